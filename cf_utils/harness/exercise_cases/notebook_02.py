"""Cases of the exercises of notebook 02."""

from __future__ import annotations

import torch

from cf_utils.harness.exercise_cases.case import Case

TABLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [10.0, 10.0]])
LOST, KEPT = [2.0, 0.0], [0.0, 2.0]

CASES: dict[str, tuple[Case, ...]] = {
    # nearest_word(points, table)
    "2.1": (
        Case("a word is nearest to itself", (TABLE, TABLE), [0, 1, 2, 3]),
        Case(
            "the smallest distance wins, not the largest product",
            (torch.tensor([[2.0, 0.1], [0.0, 3.0]]), TABLE),
            [1, 2],
        ),
        Case(
            "the length of a word matters, not only its direction",
            (torch.tensor([[0.4, 0.4]]), TABLE),
            [0],
        ),
        Case(
            "both coordinates count, by the square",
            (torch.tensor([[2.4, 0.0], [1.5, 2.2]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])),
            [1, 1],
        ),
        Case(
            "the distance is Euclidean, not the sum of differences",
            (torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0], [0.0, 3.0]])),
            [0],
        ),
    ),
    # share_lost(before, after, target)
    "2.2": (
        Case(
            "of the 2 reviews that were flipped before, 1 is lost",
            (
                torch.tensor([LOST, KEPT, KEPT, LOST, LOST]),
                torch.tensor([LOST, LOST, KEPT, KEPT, LOST]),
                torch.tensor([1, 1, 1, 1, 1]),
            ),
            0.5,
        ),
        Case(
            "the target differs from review to review",
            (
                torch.tensor([KEPT, LOST, LOST, KEPT]),
                torch.tensor([KEPT, KEPT, LOST, KEPT]),
                torch.tensor([1, 0, 0, 0]),
            ),
            1 / 3,
        ),
        Case(
            "nothing is lost if every flip stays",
            (torch.tensor([KEPT, LOST]), torch.tensor([KEPT, KEPT]), torch.tensor([1, 1])),
            0.0,
        ),
    ),
}
