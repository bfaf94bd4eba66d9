"""Cases of the exercises of notebook 09."""

from __future__ import annotations

import torch

from cf_utils.harness.exercise_cases.case import Case

CLEAN, NOISE = torch.tensor([[0.5, -1.0], [2.0, 0.0]]), torch.tensor([[1.0, 2.0], [-1.0, 3.0]])


def _at(a: float) -> torch.Tensor:
    """The image CLEAN with NOISE, of which the share a is left."""
    return a**0.5 * CLEAN + (1 - a) ** 0.5 * NOISE


CASES: dict[str, tuple[Case, ...]] = {
    # step_back(below, D, a_below, a)
    "9.1": (
        Case("from the clean image (share 1), it adds noise", (CLEAN, NOISE, 1.0, 0.36), _at(0.36)),
        Case("between two levels, image and noise stay", (_at(0.64), NOISE, 0.64, 0.25), _at(0.25)),
        Case("without noise, the image fades", (CLEAN, 0 * NOISE, 1.0, 0.25), 0.5 * CLEAN),
        Case("it is the inverse of Eq. 1", (_at(0.09), NOISE, 0.09, 0.04), _at(0.04)),
    ),
    # pattern_of(codes, w)
    "9.2": (
        Case(
            "codes that vary alone give their variances",
            (torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]), torch.ones(2)),
            [2 / 3, 8 / 3],
        ),
        Case(
            "a code without weight counts if it varies with the score",
            (torch.tensor([[1.0, 3.0], [2.0, 6.0], [3.0, 9.0]]), torch.tensor([1.0, 0.0])),
            [1.0, 3.0],
        ),
        Case(
            "a code that only cancels a disturbance gives 0",
            (
                torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, -1.0], [-2.0, -1.0]]),
                torch.tensor([1.0, -1.0]),
            ),
            [4 / 3, 0.0],
        ),
        Case(
            "a constant added to all codes changes nothing",
            (torch.tensor([[11.0, 10.0], [9.0, 10.0]]), torch.tensor([2.0, 1.0])),
            [4.0, 0.0],
        ),
    ),
}
