"""The cases of `exercises`: inputs of each exercise whose result is known by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One input of an answer."""

    rule: str  # what a right answer does; shown when the result differs
    arguments: tuple[Any, ...]
    expected: Any
    answer: int = 0  # which of the exercise's functions


def _image(*pixels: tuple[int, int, float]) -> Tensor:
    """Return an image (1, 1, 28, 28) that is 0 but for (row, column, value)."""
    x = torch.zeros(1, 1, 28, 28)
    for row, column, value in pixels:
        x[0, 0, row, column] = value
    return x


def _blocks(values: dict[int, Tensor | float]) -> Tensor:
    """Return a gradient (1, 28, 28) with the given values (4, 4) in blocks 0 to 48."""
    g = torch.zeros(1, 28, 28)
    for block, value in values.items():
        row, column = 4 * (block // 7), 4 * (block % 7)
        g[0, row : row + 4, column : column + 4] = value
    return g


def _unmasked(*blocks: int) -> Tensor:
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[0, list(blocks)] = True
    return mask


BLANK = _image()
EDGE = _image((3, 10, 0.5), (4, 10, 0.5))
CORNERS = _image((3, 3, 1.0), (3, 4, 1.0), (4, 3, 1.0), (4, 4, 1.0))
CHECKERS = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).expand(4, 4)
SPIKE = torch.zeros(4, 4)
SPIKE[0, 0] = 5.0
TABLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [10.0, 10.0]])
LOST, KEPT = [2.0, 0.0], [0.0, 2.0]
PEOPLE = torch.tensor([0.1, 0.4, 0.3]), torch.tensor([0.1, 0.0, 0.6])  # 0.5 apart

CASES: dict[str, tuple[Case, ...]] = {
    # blocks_touched(query, counterfactual, least=1e-3)
    "0.1": (
        Case("two pixels on both sides of an edge touch two blocks", (BLANK, EDGE), [2]),
        Case("four pixels around a corner touch four blocks", (BLANK, CORNERS), [4]),
        Case("removed ink counts like added ink", (EDGE, BLANK), [2]),
        Case("many pixels of one block count once", (BLANK, _blocks({8: 1.0})[None]), [1]),
        Case("a change below `least` does not count", (BLANK, EDGE, 0.6), [0]),
        Case("a change of exactly `least` counts", (BLANK, EDGE, 0.5), [2]),
        Case(
            "small changes of one block do not add up",
            (BLANK, _blocks({8: 0.1})[None], 0.5),
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
    # next_block(gradient, unmasked)
    "1.1": (
        Case("the largest gradient wins", (_blocks({5: 1.0, 17: 2.0}), _unmasked()), [17]),
        Case("a falling probability counts, too", (_blocks({5: 1.0, 17: -2.0}), _unmasked()), [17]),
        Case(
            "values of opposite sign do not cancel in a block",
            (_blocks({5: 0.5, 17: CHECKERS}), _unmasked()),
            [17],
        ),
        Case(
            "the mean over the block decides, not its largest pixel",
            (_blocks({5: 1.0, 17: SPIKE}), _unmasked()),
            [5],
        ),
        Case(
            "a block that is unmasked already is not chosen again",
            (_blocks({5: 1.0, 17: 2.0, 40: 0.5}), _unmasked(17, 5)),
            [40],
        ),
        Case(
            "each image of a batch has its own block",
            (
                torch.cat([_blocks({5: 1.0, 6: 2.0}), _blocks({48: 0.1})]),
                torch.cat([_unmasked(6), _unmasked(6)]),
            ),
            [5, 48],
        ),
    ),
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
