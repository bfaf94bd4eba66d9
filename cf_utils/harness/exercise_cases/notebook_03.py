"""Cases of the exercises of notebook 03."""

from __future__ import annotations

import torch

from cf_utils.harness.exercise_cases.case import Case

PEOPLE = torch.tensor([0.1, 0.4, 0.3]), torch.tensor([0.1, 0.0, 0.6])  # 0.5 apart

CASES: dict[str, tuple[Case, ...]] = {
    # as_printed(query, counterfactual), as_meant(query, counterfactual)
    "3.1": (
        Case("printed: a fall counts", (torch.full((1, 3), 0.5), torch.zeros(1, 3)), [3]),
        Case("printed: a rise does not", (torch.zeros(1, 3), torch.full((1, 3), 0.5)), [0]),
        Case(
            "printed: one value per row",
            (torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.0, 0.6], [0.5, 0.7]])),
            [1, 0],
        ),
        Case("meant: a rise counts", (torch.zeros(1, 3), torch.full((1, 3), 0.5)), [3], 1),
        Case("meant: a fall counts", (torch.full((1, 3), 0.5), torch.zeros(1, 3)), [3], 1),
        Case(
            "meant: changes under 0.001 do not count",
            (torch.zeros(1, 4), torch.tensor([[0.0005, -0.0009, 0.002, 0.0]])),
            [1],
            1,
        ),
    ),
    # pair_ratio(x_i, x_j, cf_i, cf_j)
    "3.2": (
        Case("the same shift for both gives 1", (*PEOPLE, *(x + 0.3 for x in PEOPLE)), 1.0),
        Case("the same values for both give 0", (*PEOPLE, PEOPLE[0], PEOPLE[0]), 0.0),
        Case("twice the distance gives 2", (*PEOPLE, *(2 * x for x in PEOPLE)), 2.0),
        Case(
            "distances are Euclidean",
            (*PEOPLE, torch.zeros(3), torch.tensor([0.3, 0.3, 0.0])),
            0.18**0.5 / 0.5,
        ),
    ),
}
