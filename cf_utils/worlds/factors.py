"""Factors of an image: one column of the table, and the table itself.

An image is defined by a row of factor values, a seed and an id. Each factor has its own random
stream: one uniform number derived from SHA-256 of (seed, id, factor name). The factor's quantile
function maps that number to the value. Therefore the first five rows of `sample(10)` equal
`sample(5)`, and moving one factor redraws nothing else.

A child (for example grey hair) belongs to its parent (age): it follows the parent in every variant
of the world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cf_utils import core

if TYPE_CHECKING:
    from cf_utils.worlds.world import World


@dataclass(frozen=True)
class Factor:
    """One column of the table. Values lie in [0, 1]; a category has the values 0, 1, ... instead.

    role: "cause", "child", "identity" or "nuisance".
    kind: "continuous", "binary" or "category".
    quantiles: knots (probability, value) of the quantile function, linear in between; for a
        continuous factor.
    p: probability of the value 1 of a binary factor. Renderers also accept any value in between, as
        a fade.
    shares: probability of each category.
    parent, curve, spread: a child follows the curve, knots (parent's value, child's value), and
        deviates by at most `spread`.
    """

    name: str
    role: str = "nuisance"
    kind: str = "continuous"
    quantiles: tuple[tuple[float, float], ...] = ((0, 0), (1, 1))
    p: float = 0.5
    shares: tuple[float, ...] = ()
    parent: str | None = None
    curve: tuple[tuple[float, float], ...] = ()
    spread: float = 0.0

    def from_uniform(self, u: Tensor, parent: Tensor | None = None) -> Tensor:
        """Map uniform draws u (N,) in (0, 1) to values float32 (N,).

        parent: values (N,) of the parent, for a child.
        """
        if self.parent is not None:
            expected = interpolate(parent.double(), self.curve)
            return (expected + self.spread * (2 * u - 1)).clamp(0, 1).float()
        if self.kind == "binary":
            return (u >= 1 - self.p).float()
        if self.kind == "category":
            edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)[:-1].contiguous()
            return torch.searchsorted(edges, u.contiguous(), right=True).float()
        return interpolate(u, self.quantiles).float()

    @property
    def highest(self) -> int:
        """Largest value of the factor's scale; the smallest is 0."""
        return len(self.shares) - 1 if self.kind == "category" else 1


@dataclass(frozen=True, eq=False)
class Factors:
    """A table of N images with K factors.

    values: float32 (N, K). draws: the uniform numbers behind them, float64 (N, K). ids: int64 (N,).
    The images can be rendered again from `world`, `values`, `seed` and `ids`.
    """

    world: World = field(repr=False)
    values: Tensor
    draws: Tensor = field(repr=False)
    seed: int
    ids: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[:, self.world.column(name)]

    def take(self, rows: Tensor | Sequence[int] | slice) -> Factors:
        """Select images by position."""
        rows = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return replace(self, values=self.values[rows], draws=self.draws[rows], ids=self.ids[rows])

    def move(self, name: str, value: Tensor | float) -> Factors:
        """Set one factor to `value`, a number or (N,), on the factor's own scale.

        Its children follow, each with its own draw. Nothing else changes.
        Raises ValueError if the factor is unknown or a value lies outside its scale.
        """
        factor, values = self.world.factors[self.world.column(name)], self.values.clone()
        value = torch.as_tensor(value, dtype=torch.float32).expand(len(self)).contiguous()
        if not ((value >= 0) & (value <= factor.highest)).all():  # also refuses NaN
            low, high = value.min(), value.max()
            raise ValueError(
                f"value: got {low:.3g} to {high:.3g} for {name}, "
                f"expected values inside [0, {factor.highest}]"
            )
        values[:, self.world.column(name)] = value
        for k in self.world.children(name):
            values[:, k] = self.world.factors[k].from_uniform(self.draws[:, k], value)
        return replace(self, values=values)

    def stream(self, name: str, shape: Sequence[int], kind: str = "uniform") -> Tensor:
        """Draw noise (N, *shape) float32 that belongs to no factor, such as camera noise.

        It depends on the world, `name`, the seed and the id of each image. kind: "uniform" or
        "normal".
        """
        return core.item_noise(self.seed, self.ids, shape, f"{self.world.name}/{name}", kind)


def interpolate(t: Tensor, knots: Sequence[tuple[float, float]]) -> Tensor:
    """Interpolate t (N,) float64 linearly through (position, value) knots; constant outside."""
    at, to = torch.tensor(knots, dtype=torch.float64).T.contiguous()
    i = torch.searchsorted(at, t.contiguous(), right=True).clamp(1, len(at) - 1)
    return to[i - 1] + (to[i] - to[i - 1]) * ((t - at[i - 1]) / (at[i] - at[i - 1])).clamp(0, 1)


def draw_uniform(seed: int, i: int, stream: str) -> float:
    """Return the uniform number in (0, 1) that belongs to (seed, id, stream).

    It consists of 52 bits of their SHA-256.
    """
    digest = hashlib.sha256(f"{seed}|{i}|{stream}".encode()).digest()
    return ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) / 2**52
