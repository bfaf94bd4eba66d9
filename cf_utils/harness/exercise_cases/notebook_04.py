"""Cases of the exercises of notebook 04."""

from __future__ import annotations

import math

import torch

from cf_utils.harness.exercise_cases.case import Case

LOG_3 = math.log(3)  # the logit of 0.75

CASES: dict[str, tuple[Case, ...]] = {
    # kl_from_logit(p, a)
    "4.1": (
        Case(
            "it is 0 where both distributions agree",
            (torch.tensor([0.5, 0.75, 0.25]), torch.tensor([0.0, LOG_3, -LOG_3])),
            [0.0, 0.0, 0.0],
        ),
        Case(
            "p is the first argument of KL(p || q), and weights the logarithms",
            (torch.tensor([0.75]), torch.tensor([0.0])),
            [0.75 * math.log(1.5) + 0.25 * math.log(0.5)],
        ),
        Case(
            "both outcomes count, present and absent",
            (torch.tensor([0.5, 0.5]), torch.tensor([LOG_3, -LOG_3])),
            [0.5 * math.log(4 / 3), 0.5 * math.log(4 / 3)],
        ),
        Case(
            "it is finite and exact for a of 200 and -200",
            (torch.tensor([0.01, 0.99]), torch.tensor([200.0, -200.0])),
            [198 + 0.01 * math.log(0.01) + 0.99 * math.log(0.99)] * 2,
        ),
        Case(
            "each element has its own value, whatever the shape",
            (torch.full((2, 1, 2), 0.5), torch.tensor([[[0.0, LOG_3]], [[-LOG_3, 0.0]]])),
            [[[0.0, 0.5 * math.log(4 / 3)]], [[0.5 * math.log(4 / 3), 0.0]]],
        ),
    ),
}
