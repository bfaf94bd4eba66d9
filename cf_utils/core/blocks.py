"""Blocks of features, and the total variation of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_index(shape: Sequence[int], block: Sequence[int]) -> tuple[Tensor, int]:
    """Return the block number of each feature of an item, and how many blocks there are.

    Args:
        shape: shape of one item, without the batch.
        block: size of a block along the trailing dimensions; -1 spans the whole dimension. Blocks
            also span all leading dimensions that `block` leaves out. Edge blocks may be smaller.

    Examples: (4, 4) on (C, H, W) spans the channels, (1, -1) on (words, d) makes each word a
    block, and (1,) on (features,) each feature.

    Returns: (index, n): int64 of `shape` with values 0 to n - 1, and n.
    Raises ValueError unless each extent is positive or -1.
    """
    if len(block) > len(shape) or any(b == 0 or b < -1 for b in block):
        raise ValueError(
            f"block: got {tuple(block)} for items of shape {tuple(shape)}, "
            "expected positive extents or -1"
        )
    lead = len(shape) - len(block)
    sizes = list(shape[:lead])
    sizes += [s if b == -1 else b for s, b in zip(shape[lead:], block, strict=True)]
    index, n = torch.zeros(tuple(shape), dtype=torch.int64), 1
    for d, (s, b) in enumerate(zip(shape, sizes, strict=True)):
        parts = -(-s // b)
        index = index * parts + (torch.arange(s) // b).view(-1, *[1] * (len(shape) - d - 1))
        n *= parts
    return index, n


def block_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Return the mean of values (B, ...) over each of the n blocks of `block_index`, (B, n)."""
    flat = index.flatten().to(values.device)
    total = torch.zeros(len(values), n, dtype=values.dtype, device=values.device)
    return total.index_add_(1, flat, values.flatten(1)) / torch.bincount(flat, minlength=n)


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """Return the sum over pixels of (dx^2 + dy^2)^(beta / 2) per image, (B, C, H, W) -> (B,).

    dx and dy are the differences to the next pixel in the row and in the column; 0 at the edge.
    Source: Mahendran and Vedaldi (2015). With beta = 2 it is R_tv of Gradual Construction, Eq. 8.
    With another beta it is neither Eq. 8, which prints (dx^beta + dy^beta)^(beta / 2), nor the
    authors' code, which takes the mean of |dx|^beta plus that of |dy|^beta.
    """
    across, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
    square = (
        torch.nn.functional.pad(across, (0, 1)).square()
        + torch.nn.functional.pad(down, (0, 0, 0, 1)).square()
    )
    return (square if beta == 2 else square.pow(beta / 2)).flatten(1).sum(1)
