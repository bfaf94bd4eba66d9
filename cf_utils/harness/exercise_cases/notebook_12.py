"""Cases of the exercises of notebook 12."""

from __future__ import annotations

import math

import torch

from cf_utils.harness.exercise_cases.case import Case

MEAN = torch.tensor([[1.0, 5.0, 0.0], [1.0, 5.0, 0.0], [1.0, 5.0, 0.0]])
RAISED, ONE_BELOW, ALL_BELOW = MEAN[:1] + 1, torch.tensor([[9.0, 4.9, 9.0]]), MEAN[:1] - 1

CASES: dict[str, tuple[Case, ...]] = {
    # ceiling(k)
    "12.1": (
        Case("two classes: e / (e + 1)", (2,), math.e / (math.e + 1)),
        Case("ten classes: nine of them keep exp(0) = 1", (10,), math.e / (math.e + 9)),
        Case("a thousand classes", (1000,), math.e / (math.e + 999)),
    ),
    # impossible(mean, worst)
    "12.2": (
        Case("a row whose worst values are all larger is possible", (MEAN[:1], RAISED), [False]),
        Case("one worst value below its mean is enough", (MEAN[:1], ONE_BELOW), [True]),
        Case("all below is impossible, too", (MEAN[:1], ALL_BELOW), [True]),
        Case("a worst value equal to its mean is possible", (MEAN[:1], MEAN[:1]), [False]),
        Case(
            "one answer per row",
            (MEAN, torch.cat([ONE_BELOW, RAISED, ALL_BELOW])),
            [True, False, True],
        ),
    ),
}
