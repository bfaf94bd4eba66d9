"""Cases of the exercises of notebook 01."""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.harness.exercise_cases.case import Case, fill_blocks


def _unmasked(*blocks: int) -> Tensor:
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[0, list(blocks)] = True
    return mask


CHECKERS = torch.tensor([[1.0, -1.0, 1.0, -1.0]]).expand(4, 4)
SPIKE = torch.zeros(4, 4)
SPIKE[0, 0] = 5.0

CASES: dict[str, tuple[Case, ...]] = {
    # next_block(gradient, unmasked)
    "1.1": (
        Case("the largest gradient wins", (fill_blocks({5: 1.0, 17: 2.0}), _unmasked()), [17]),
        Case(
            "a falling probability counts, too",
            (fill_blocks({5: 1.0, 17: -2.0}), _unmasked()),
            [17],
        ),
        Case(
            "values of opposite sign do not cancel in a block",
            (fill_blocks({5: 0.5, 17: CHECKERS}), _unmasked()),
            [17],
        ),
        Case(
            "the mean over the block decides, not its largest pixel",
            (fill_blocks({5: 1.0, 17: SPIKE}), _unmasked()),
            [5],
        ),
        Case(
            "a block that is unmasked already is not chosen again",
            (fill_blocks({5: 1.0, 17: 2.0, 40: 0.5}), _unmasked(17, 5)),
            [40],
        ),
        Case(
            "each image of a batch has its own block",
            (
                torch.cat([fill_blocks({5: 1.0, 6: 2.0}), fill_blocks({48: 0.1})]),
                torch.cat([_unmasked(6), _unmasked(6)]),
            ),
            [5, 48],
        ),
    ),
}
