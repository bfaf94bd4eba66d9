"""One input of an exercise and the result that is known by hand."""

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


def fill_blocks(values: dict[int, Tensor | float]) -> Tensor:
    """Return zeros (1, 28, 28) with the given values (4, 4) in blocks 0 to 48."""
    g = torch.zeros(1, 28, 28)
    for block, value in values.items():
        row, column = 4 * (block // 7), 4 * (block % 7)
        g[0, row : row + 4, column : column + 4] = value
    return g
