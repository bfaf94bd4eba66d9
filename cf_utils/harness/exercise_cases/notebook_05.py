"""Cases of the exercises of notebook 05."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cf_utils.harness.exercise_cases.case import Case


def _mask(*spans: tuple[int, int, int]) -> Tensor:
    """Return a mask (1, 1, 8, 12) that holds columns first to last of each (row, first, last)."""
    mask = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    for row, first, last in spans:
        mask[0, 0, row, first : last + 1] = True
    return mask


NOTHING = _mask()
HEART = _mask((4, 5, 7))
LUNGS = _mask((2, 1, 10), (3, 1, 10))

CASES: dict[str, tuple[Case, ...]] = {
    # ratio_of(heart, lungs)
    "5.1": (
        Case("a width counts both its end columns", (HEART, LUNGS), [3 / 10]),
        Case(
            "the gap between the lungs belongs to the chest",
            (HEART, _mask((2, 1, 3), (2, 9, 10))),
            [3 / 10],
        ),
        Case(
            "the widest extent counts, over all rows together",
            (_mask((3, 4, 6), (5, 6, 8)), LUNGS),
            [5 / 10],
        ),
        Case("only the width matters, not the area", (_mask((2, 5, 7), (4, 5, 7)), LUNGS), [0.3]),
        Case("an empty heart gives NaN", (NOTHING, LUNGS), [math.nan]),
        Case("empty lungs give NaN", (HEART, NOTHING), [math.nan]),
        Case(
            "each patient of a batch has an own ratio",
            (
                torch.cat([HEART, _mask((1, 0, 5)), NOTHING]),
                torch.cat([LUNGS, _mask((0, 0, 11)), LUNGS]),
            ),
            [0.3, 0.5, math.nan],
        ),
    ),
}
