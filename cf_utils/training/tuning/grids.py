"""What is tried: the settings of each method, 24 each, declared before they are measured.

Decisions:
* Setting 0 is the paper's: what the authors' scripts have, but that a mask's dilation scales with the image, as a length does.
* What comes after a search (mask, refinement) is varied without a new search: 24 settings of ACE are 6 attacks, those of
  DiME pasted are 4 searches, which DiME's own grid holds, too.
* scales and l1 are the published ones and others that allow for a small image, whose fewer values have larger gradients; lam and
  the step are the published ones and a pair that lets the attack go on after the decision has turned.
* On roads, whose causes are small, gradient descent is tried beside signed steps, which move every pixel alike. It came into
  that grid after 24 of the 64 validation roads had been looked at; all else was declared before. All attacks have 50 iterations
  (the paper gives gradient descent 100), so that no setting takes longer than another.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cf_utils.core import Explainer
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.models.generators.diffusion import DDPM

PAPER = 0  # the paper's setting, in each grid
FINISH = ("threshold", "dilation", "refine")  # what the search itself does not depend on
Grid = Sequence[Mapping]


@dataclass(frozen=True)
class Method:
    """How a setting becomes an explainer: `make(**fixed, **setting)`. `takes`: the field for the result of a search that settings
    which differ in FINISH alone share, `make(**search, **setting)` without FINISH; None: nothing to share."""

    make: type[Explainer]
    floor: float  # of the flip rate
    fixed: Mapping = field(default_factory=dict)
    takes: str | None = None
    search: Mapping = field(default_factory=dict)

    def explainers(
        self, prior: DDPM, seed: int, setting: Mapping
    ) -> tuple[Explainer | None, Explainer]:
        """(the shared search or None, the method itself, which does not take its result yet)."""
        whole = self.make(prior=prior, seed=seed, **self.fixed, **setting)
        own = {name: v for name, v in setting.items() if name not in FINISH}
        return self.make(
            prior=prior, seed=seed, **self.search, **own
        ) if self.takes else None, whole


METHODS = {
    "ace": Method(ACE, 0.95, takes="attacked", search={"stage": "pre"}),
    "dime": Method(DiME, 0.90),
    "fastdime": Method(DiME, 0.90, {"fast": True}),
    "dime_pasted": Method(DiME, 0.90, {"pasted": True}, takes="guided"),
}


def crossed(*axes: Grid) -> Grid:
    """Every combination of one entry an axis, the last axis fastest."""
    return tuple(
        {k: v for part in one for k, v in part.items()} for one in itertools.product(*axes)
    )


def _each(name: str, *values) -> Grid:
    return tuple({name: v} for v in values)


def _grids(
    attacks: Grid,
    spacings: Sequence[str],
    masks: Sequence[tuple[float, int]],
    starts: Sequence[int],
) -> dict:
    """A world's grids from its values of each setting, the paper's first. `attacks`: of ACE, six; `spacings`: of DiME's
    refinement; `masks`: (threshold, dilation)."""
    finish = [{"threshold": t, "dilation": d} for t, d in masks]
    scales, l1 = ((8.0, 10.0, 15.0), (2.0, 2.5, 3.75), (16.0, 20.0, 30.0)), _each("l1", 0.05, 0.2)
    own = ({"own_mask": True, "dilation": 3}, {"own_mask": False})
    return {
        "ace": crossed(attacks, finish),
        "dime": crossed(_each("steps", *starts), _each("scales", *scales), l1),
        "fastdime": crossed(_each("steps", 60, 45, 34), _each("scales", *scales[:2]), l1, own),
        "dime_pasted": crossed(
            _each("steps", *starts),
            _each("refine", *((s, 5) for s in spacings)),
            finish[: 6 // len(spacings)],
        ),
    }


FAR = {"lam": 1e-6, "step": 2 / 255}  # signed steps that go on after the decision has turned
DESCENT = {"attack": "gd", "lam": 1e-6, "step": 0.3}  # against the gradient itself

# The sigma that a search starts from, of 500 levels: 0.14, 0.27, 0.39, 0.51 by five steps of "100", "50", "33", "25"; 0.27, 0.51,
# 0.63, 0.77 by 17, 34, 45, 60 of DiME's "200".
GRIDS = {
    "faces": _grids(
        crossed(_each("spacing", "50", "33", "25"), ({"lam": 0.003, "step": 1 / 255}, FAR)),
        ("50", "33", "25"),
        ((0.15, 7), (0.3, 7), (0.05, 7), (0.15, 15)),
        (60, 45, 34, 17),
    ),
    "roads": _grids(
        (
            {"spacing": "100", "lam": 0.001, "step": 1 / 255},
            {"spacing": "50"} | FAR,
            {"spacing": "100"} | DESCENT,
            {"spacing": "50"} | DESCENT,
            {"spacing": "50"} | DESCENT | {"step": 1.0},
            {"spacing": "33"} | DESCENT,
        ),
        ("100", "50"),
        ((0.05, 3), (0.15, 3), (0.05, 7), (0.05, 15)),
        (45, 60, 34, 17),
    ),
}


def papers(world: str, method: str, prior: DDPM, seed: int = 0) -> Explainer:
    """A method with its paper's setting for a world: setting 0 of the grid."""
    return METHODS[method].explainers(prior, seed, GRIDS[world][method][PAPER])[1]
