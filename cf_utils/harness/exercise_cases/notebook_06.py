"""Cases of the exercises of notebook 06."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cf_utils.harness.exercise_cases.case import Case


@dataclass(frozen=True)
class _Schedule:
    """Stands in for a schedule: what is added grows with the level t."""

    def add_noise(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        return z + 0.1 * (t + 1) * noise


@dataclass(frozen=True)
class _Chain:
    """Stands in for a chain: a step halves z, and adds a value that names the level."""

    schedule: _Schedule = field(default_factory=_Schedule)

    def step(self, z: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
        return z / 2 + 0.1 * k + (0 if noise is None else 0.01 * noise)


def _noise(k: int) -> Tensor:
    return torch.full((1, 1, 1, 1), k + 1.0)


def _values(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


CASES: dict[str, tuple[Case, ...]] = {
    # behind_noise(x_t, eps, abar)
    "6.1": (
        Case("at abar = 1 the image is x_t", (_values(0.3), _values(2.0), 1.0), _values(0.3)),
        Case(
            "the image is divided by the root of abar",
            (_values(0.25), _values(0.0), 0.25),
            _values(0.5),
        ),
        Case(
            "the noise is taken off, times the root of 1 - abar",
            (_values(0.5, 1.0), _values(1.0, 0.5), 0.64),
            _values(-0.125, 0.875),
        ),
        Case("the image is not clipped", (_values(1.0), _values(0.0), 0.01), _values(10.0)),
    ),
    # my_filter(chain, x, steps, noise)
    "6.2": (
        Case(
            "one step starts at level 0, with noise(1), and adds no noise on the way back",
            (_Chain(), _values(0.75), 1, _noise),
            _values(0.675),
        ),
        Case(
            "the steps go down from steps - 1 to 0, with noise(k) from level k > 0",
            (_Chain(), _values(0.75), 2, _noise),
            _values(0.6675),
        ),
        Case(
            "images are in [0, 1] outside of the chain and in [-1, 1] inside",
            (_Chain(), _values(0.5, 0.25), 1, _noise),
            _values(0.55, 0.425),
        ),
    ),
}
