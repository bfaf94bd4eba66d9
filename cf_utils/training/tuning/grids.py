"""Grids: the settings that the tuning rule tries, 24 per world and method; three lambda of xGEM.

Decisions:
* Setting 0 is the paper's: the values of the authors' scripts, except that the dilation of the mask
  scales with the image.
* Settings that differ in mask or refinement alone share one search, so the 24 settings of ACE take
  6 attacks. The 4 searches of pasted DiME are in the grid of DiME, too.
* `scales` and `l1` include values for small images, whose fewer pixels have larger gradients.
* One pair of `lam` and `step` continues the attack after the decision has flipped.
* The grid of roads includes gradient descent: their causes are small, and signed steps move every
  pixel.
* All attacks have 50 iterations, so that no setting takes longer than another.
* xGEM's papers print no lambda. Its setting 0 is the preset's; the others are a tenth and three
  times of it. Its target probability is 0.9, at which it is compared with other latent methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cf_utils.core import Explainer
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.explainers.xgem import XGEM

Grid = Sequence[Mapping[str, Any]]

PAPER = 0  # number of the paper's setting in each grid
AFTER_SEARCH = ("threshold", "dilation", "refine")  # settings that the search does not depend on


@dataclass(frozen=True)
class Method:
    """How a setting becomes an explainer, and which searches are shared."""

    explainer: type[Explainer]
    floor: float  # lowest flip rate that the rule accepts
    fixed: Mapping[str, Any] = field(default_factory=dict)  # added to every setting
    # Changes that make the explainer of a shared search; None: nothing is shared.
    search: Mapping[str, Any] | None = None
    generator: str = "prior"  # argument of the explainer that takes the generative model
    checkpoint: str = "ddpm"  # of the generative model: <world>_<checkpoint>

    def build(
        self, generator: nn.Module, seed: int, setting: Mapping[str, Any]
    ) -> tuple[Explainer | None, Explainer]:
        """Return the explainer of the shared search, or None, and that of the whole setting.

        Settings that differ in `AFTER_SEARCH` alone have equal searches. Pass a search's result to
        the whole explainer as `reuse`.
        """
        parts = {self.generator: generator, "seed": seed}
        whole = self.explainer(**parts, **self.fixed, **setting)
        if self.search is None:
            return None, whole
        shared = {name: value for name, value in setting.items() if name not in AFTER_SEARCH}
        return self.explainer(**parts, **self.search, **shared), whole


METHODS = {
    "ace": Method(ACE, 0.95, search={"stage": "pre"}),
    "dime": Method(DiME, 0.90),
    "fastdime": Method(DiME, 0.90, {"fast": True}),
    "dime_pasted": Method(DiME, 0.90, {"pasted": True}, search={}),
    "xgem": Method(XGEM, 0.90, {"tau": 0.9}, generator="model", checkpoint="vae"),
}


def combine(*axes: Grid) -> Grid:
    """Return every combination of one entry per axis; the last axis varies fastest."""
    grid = []
    for entries in itertools.product(*axes):
        grid.append({name: value for entry in entries for name, value in entry.items()})
    return tuple(grid)


def _vary(name: str, *values: Any) -> Grid:
    """Return an axis on which one setting takes several values."""
    return tuple({name: value} for value in values)


def _build_grids(
    attacks: Grid,
    spacings: Sequence[str],
    masks: Sequence[tuple[float, int]],
    steps: Sequence[int],
) -> dict[str, Grid]:
    """Return a world's grids from the values of each setting, the paper's first.

    Args:
        attacks: six attacks of ACE.
        spacings: spacings of the refinement of pasted DiME.
        masks: four pairs (threshold, dilation).
        steps: four numbers of steps of DiME.
    """
    finish = [{"threshold": threshold, "dilation": dilation} for threshold, dilation in masks]
    scales = _vary("scales", (8.0, 10.0, 15.0), (2.0, 2.5, 3.75), (16.0, 20.0, 30.0))
    l1 = _vary("l1", 0.05, 0.2)
    own_masks = ({"own_mask": True, "dilation": 3}, {"own_mask": False})
    refine = _vary("refine", *((spacing, 5) for spacing in spacings))
    start = _vary("steps", *steps)
    return {
        "ace": combine(attacks, finish),
        "dime": combine(start, scales, l1),
        "fastdime": combine(_vary("steps", 60, 45, 34), scales[:2], l1, own_masks),
        "dime_pasted": combine(start, refine, finish[: 6 // len(spacings)]),
    }


FURTHER = {"lam": 1e-6, "step": 2 / 255}  # continues after the decision has flipped
DESCENT = {"attack": "gd", "lam": 1e-6, "step": 0.3}

# First noise levels (standard deviation, 500 levels): five steps of spacing "100", "50", "33", "25"
# start at 0.14, 0.27, 0.39, 0.51; 17, 34, 45, 60 steps of "200" at 0.27, 0.51, 0.63, 0.77.
GRIDS = {
    "faces": _build_grids(
        combine(_vary("spacing", "50", "33", "25"), ({"lam": 0.003, "step": 1 / 255}, FURTHER)),
        ("50", "33", "25"),
        ((0.15, 7), (0.3, 7), (0.05, 7), (0.15, 15)),
        (60, 45, 34, 17),
    )
    | {"xgem": _vary("lam", 0.01, 0.001, 0.03)},
    "roads": _build_grids(
        (
            {"spacing": "100", "lam": 0.001, "step": 1 / 255},
            {"spacing": "50"} | FURTHER,
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


def build_paper_setting(world: str, method: str, generator: nn.Module, seed: int = 0) -> Explainer:
    """Return a method with its paper's setting for a world: setting 0 of the grid."""
    return METHODS[method].build(generator, seed, GRIDS[world][method][PAPER])[1]
