"""Cases of the exercises of notebook 00."""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.harness.exercise_cases.case import Case, fill_blocks


def _image(*pixels: tuple[int, int, float]) -> Tensor:
    """Return an image (1, 1, 28, 28) that is 0 but for (row, column, value)."""
    x = torch.zeros(1, 1, 28, 28)
    for row, column, value in pixels:
        x[0, 0, row, column] = value
    return x


BLANK = _image()
EDGE = _image((3, 10, 0.5), (4, 10, 0.5))
CORNERS = _image((3, 3, 1.0), (3, 4, 1.0), (4, 3, 1.0), (4, 4, 1.0))

CASES: dict[str, tuple[Case, ...]] = {
    # blocks_touched(query, counterfactual, least=1e-3)
    "0.1": (
        Case("two pixels on both sides of an edge touch two blocks", (BLANK, EDGE), [2]),
        Case("four pixels around a corner touch four blocks", (BLANK, CORNERS), [4]),
        Case("removed ink counts like added ink", (EDGE, BLANK), [2]),
        Case("many pixels of one block count once", (BLANK, fill_blocks({8: 1.0})[None]), [1]),
        Case("a change below `least` does not count", (BLANK, EDGE, 0.6), [0]),
        Case("a change of exactly `least` counts", (BLANK, EDGE, 0.5), [2]),
        Case(
            "small changes of one block do not add up",
            (BLANK, fill_blocks({8: 0.1})[None], 0.5),
            [0],
        ),
        Case(
            "each image of a batch has its own count",
            (BLANK.expand(3, -1, -1, -1), torch.cat([CORNERS, BLANK, EDGE])),
            [4, 0, 2],
        ),
    ),
    # wachter_loss(p, x_prime, x, wanted, lam)
    "0.2": (
        Case(
            "a query that reached the score costs nothing",
            (torch.tensor([0.9]), torch.ones(1, 3), torch.ones(1, 3), 0.9, 5.0),
            [0.0],
        ),
        Case(
            "at the query only the squared error counts, times lam",
            (torch.tensor([0.4]), torch.ones(1, 3), torch.ones(1, 3), 0.9, 2.0),
            [0.5],
        ),
        Case(
            "the distance is the sum of absolute changes, and lam does not multiply it",
            (torch.tensor([0.9]), torch.tensor([[0.2, 0.9, 0.5]]), torch.full((1, 3), 0.5), 0.9, 7),
            [0.7],
        ),
        Case(
            "each item has its own loss, also for images",
            (
                torch.tensor([0.9, 0.4]),
                torch.stack([torch.full((1, 2, 2), 0.25), torch.zeros(1, 2, 2)]),
                torch.zeros(2, 1, 2, 2),
                0.9,
                2.0,
            ),
            [1.0, 0.5],
        ),
    ),
}
