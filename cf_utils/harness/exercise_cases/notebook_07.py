"""Cases of the exercises of notebook 07."""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.harness.exercise_cases.case import Case


def _points(*points: tuple[int, int, float], channels: int = 1) -> Tensor:
    """Return an image (1, 3, 5, 5) that is 0 but for (row, column, value) in some channels."""
    x = torch.zeros(1, 3, 5, 5)
    for row, column, value in points:
        x[0, :channels, row, column] = value
    return x


def _square(rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    mask[0, 0, rows, columns] = True
    return mask


DARK, FAINT = _points(), _points((2, 2, 0.1))
POINT = _square(slice(2, 3), slice(2, 3))
ONE = torch.ones(1)

CASES: dict[str, tuple[Case, ...]] = {
    # pgd_step(x_now, g, query, step, eps)
    "7.1": (
        Case(
            "the step goes down the gradient",
            (torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]), torch.full((2,), 0.5), 0.1, 1.0),
            [0.4, 0.6],
        ),
        Case(
            "only the sign of the gradient counts",
            (torch.tensor([0.5, 0.5]), torch.tensor([9.0, -0.1]), torch.full((2,), 0.5), 0.1, 1.0),
            [0.4, 0.6],
        ),
        Case(
            "the step starts at x', not at the query",
            (torch.tensor([0.6, 0.6]), torch.tensor([1.0, -1.0]), torch.full((2,), 0.5), 0.1, 1.0),
            [0.5, 0.7],
        ),
        Case(
            "x' stays within eps of the query, not of x'",
            (
                torch.tensor([0.45, 0.55]),
                torch.tensor([1.0, -1.0]),
                torch.full((2,), 0.5),
                0.1,
                0.1,
            ),
            [0.4, 0.6],
        ),
        Case(
            "x' stays in [0, 1]",
            (
                torch.tensor([0.02, 0.98]),
                torch.tensor([1.0, -1.0]),
                torch.tensor([0.0, 1.0]),
                0.1,
                0.5,
            ),
            [0.0, 1.0],
        ),
    ),
    # mask_of(query, edited, threshold, side)
    "7.2": (
        Case(
            "a changed point becomes a square of `side` pixels",
            (DARK, _points((2, 2, 1.0)), 0.5, 3),
            _square(slice(1, 4), slice(1, 4)),
        ),
        Case(
            "a square ends at the border of the image",
            (DARK, _points((0, 4, 1.0)), 0.5, 3),
            _square(slice(0, 2), slice(3, 5)),
        ),
        Case("what became darker has changed, too", (_points((2, 2, 1.0)), DARK, 0.5, 1), POINT),
        Case(
            "the changes of the channels add up",
            (DARK, _points((2, 2, 0.2), channels=3) + _points((4, 4, 0.5)), 0.9, 1),
            POINT,
        ),
        Case(
            "a change of exactly the threshold is inside",
            (DARK, _points((2, 2, 0.5), (2, 3, 1.0)), 0.5, 1),
            _square(slice(2, 3), slice(2, 4)),
        ),
        Case(
            "the largest change of each image counts for that image alone",
            (DARK.expand(2, -1, -1, -1), torch.cat([FAINT, _points((2, 2, 1.0))]), 0.5, 1),
            torch.cat([POINT, POINT]),
        ),
        Case("an image without a change has an empty mask", (DARK, DARK, 0.5, 3), POINT & False),
    ),
    # guided_step(z, mean, variance, slope, query, abar, scale, l1, noise)
    "7.3": (
        Case(
            "without guidance it is a step of the chain: the noise is scaled by the sd",
            (ONE, 2 * ONE, 0.25 * ONE, 3 * ONE, 0 * ONE, 1.0, 0.0, 0.0, ONE),
            [2.5],
        ),
        Case(
            "the guidance goes against the slope, times scale and variance",
            (ONE, 2 * ONE, 0.25 * ONE, 3 * ONE, 0 * ONE, 1.0, 2.0, 0.0, 0.0),
            [0.5],
        ),
        Case(
            "the slope is divided by the root of abar",
            (ONE, 2 * ONE, 0.25 * ONE, 3 * ONE, 0 * ONE, 0.25, 2.0, 0.0, 0.0),
            [-1.0],
        ),
        Case(
            "the l1 term pulls z towards the query by the sign of the difference",
            (
                torch.tensor([0.9, 0.4, 0.6]),
                torch.zeros(3),
                torch.full((3,), 0.5),
                torch.zeros(3),
                torch.tensor([0.5, 0.5, 0.6]),
                1.0,
                1.0,
                0.2,
                0.0,
            ),
            [-0.1, 0.1, 0.0],
        ),
        Case(
            "the l1 term is not divided by the root of abar",
            (ONE, 2 * ONE, 0.25 * ONE, 0 * ONE, 0 * ONE, 0.25, 2.0, 0.4, 0.0),
            [1.9],
        ),
    ),
}
