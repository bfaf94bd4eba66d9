"""Blocks of features, and the total variation of neighbouring pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_index(shape: Sequence[int], block: Sequence[int]) -> tuple[Tensor, int]:
    """Number the blocks of an item of `shape`: (index int64 of that shape, how many). Edge blocks may be smaller.

    `block` gives extents along the trailing dimensions, -1 for all of one; leading dimensions it does not name are spanned
    whole: (4, 4) on (C, H, W) spans the channels, (1, -1) on (words, d) makes each word one, (1,) on (features,) each feature.
    """
    if len(block) > len(shape) or any(b == 0 or b < -1 for b in block):
        raise ValueError(
            f"block: got {tuple(block)} for items of shape {tuple(shape)}, expected positive extents or -1"
        )
    lead = len(shape) - len(block)
    sizes = [
        *shape[:lead],
        *(s if b == -1 else b for s, b in zip(shape[lead:], block, strict=True)),
    ]
    index, n = torch.zeros(tuple(shape), dtype=torch.int64), 1
    for d, (s, b) in enumerate(zip(shape, sizes, strict=True)):
        parts = -(-s // b)
        index = index * parts + (torch.arange(s) // b).view(-1, *[1] * (len(shape) - d - 1))
        n *= parts
    return index, n


def block_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Mean of values (B, ...) over each block: (B, n)."""
    flat = index.flatten().to(values.device)
    total = torch.zeros(len(values), n, dtype=values.dtype, device=values.device).index_add_(
        1, flat, values.flatten(1)
    )
    return total / torch.bincount(flat, minlength=n)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """Sum over pixels of (dx^2 + dy^2)^(beta / 2) per image (B, C, H, W) -> (B,); differences over the edge are 0 (Eq. 8)."""
    across, down = _differences(x)
    square = (
        torch.nn.functional.pad(across, (0, 1)).square()
        + torch.nn.functional.pad(down, (0, 0, 0, 1)).square()
    )
    return (square if beta == 2 else square.pow(beta / 2)).flatten(1).sum(1)
