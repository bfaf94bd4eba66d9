"""Cases of the exercises of notebook 07."""

from __future__ import annotations

import torch

from cf_utils.harness.exercise_cases.case import Case

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
}
