"""Cases of the exercises of notebook 08."""

from __future__ import annotations

import torch

from cf_utils.harness.exercise_cases.case import Case

FIRST = torch.tensor([[True, True], [False, False]])  # the upper row is inside
CORNER = torch.tensor([[True, False, False], [False, False, False]])
TWO = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])  # what a layer of two channels holds

CASES: dict[str, tuple[Case, ...]] = {
    # auroc(m, inside_of)
    "8.1": (
        Case("a map that is higher inside gets 1", (torch.tensor([[3.0, 4], [1, 2]]), FIRST), 1.0),
        Case("a map that is lower inside gets 0", (torch.tensor([[1.0, 2], [3, 4]]), FIRST), 0.0),
        Case("a map without differences gets 0.5", (torch.ones(2, 2), FIRST), 0.5),
        Case("a tie counts half", (torch.tensor([[3.0, 2], [1, 2]]), FIRST), 0.875),
        Case(
            "all pairs count, however many pixels are inside",
            (torch.tensor([[4.0, 1, 2], [3, 5, 4]]), CORNER),
            0.7,
        ),
    ),
    # grad_cam(held, derivative)
    "8.2": (
        Case(
            "a channel's weight is the mean of its derivative",
            (TWO, torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]])),
            [[0.5, 1.0]],
        ),
        Case(
            "channels that speak against are subtracted",
            (TWO, torch.tensor([[[0.0, 1.0]], [[-0.3, 0.1]]])),
            [[0.2, 1.0]],
        ),
        Case(
            "what is negative in sum becomes 0",
            (TWO, torch.tensor([[[0.5, 0.5]], [[-2.0, 0.0]]])),
            [[0.0, 1.0]],
        ),
    ),
}
