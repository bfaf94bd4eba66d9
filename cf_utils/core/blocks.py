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
        raise ValueError(f"block: got {tuple(block)} for items of shape {tuple(shape)}, expected positive extents or -1")
    lead = len(shape) - len(block)
    sizes = [*shape[:lead], *(s if b == -1 else b for s, b in zip(shape[lead:], block, strict=True))]
    index, n = torch.zeros(tuple(shape), dtype=torch.int64), 1
    for d, (s, b) in enumerate(zip(shape, sizes, strict=True)):
        parts = -(-s // b)
        index = index * parts + (torch.arange(s) // b).view(-1, *[1] * (len(shape) - d - 1))
        n *= parts
    return index, n


def block_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Mean of values (B, ...) over each block: (B, n)."""
    flat = index.flatten().to(values.device)
    total = torch.zeros(len(values), n, dtype=values.dtype, device=values.device).index_add_(1, flat, values.flatten(1))
    return total / torch.bincount(flat, minlength=n)


class _Squares(torch.autograd.Function):
    """Total variation with exponent 2. Its gradient by hand saves a dozen kernels in every step of a search."""

    @staticmethod
    def forward(ctx, x):
        both = _differences(x)
        ctx.save_for_backward(*both)
        return sum(torch.linalg.vector_norm(d.flatten(1), dim=1).square() for d in both)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up):
        across, down = ctx.saved_tensors
        g = across.new_zeros(*across.shape[:-1], across.shape[-1] + 1)
        g[..., :, 1:] += across
        g[..., :, :-1] -= across
        g[..., 1:, :] += down
        g[..., :-1, :] -= down
        return g.mul_((2 * up).view(-1, 1, 1, 1))


class _Distance(torch.autograd.Function):
    """||a - b||_2 of each item, gradient for a alone and 0 where a = b; by hand for the same reason."""

    @staticmethod
    def forward(ctx, a, b):
        d = a - b
        n = torch.linalg.vector_norm(d.flatten(1), dim=1)
        ctx.save_for_backward(d, n)
        return n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up):
        d, n = ctx.saved_tensors
        return d * torch.where(n > 0, up / n, 0).view(-1, *[1] * (d.ndim - 1)), None


def distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||_2 of each item (B, ...) -> (B,); differentiable once, in a; its gradient is 0 where a = b."""
    return _Distance.apply(a, b)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """Sum over pixels of (dx^2 + dy^2)^(beta / 2) per image (B, C, H, W) -> (B,); differences over the edge are 0 (Eq. 8)."""
    across, down = _differences(x)
    if beta == 2:                               # two sums of squares
        return _Squares.apply(x)
    square = torch.nn.functional.pad(across, (0, 1)).square() + torch.nn.functional.pad(down, (0, 0, 0, 1)).square()
    return square.pow(beta / 2).flatten(1).sum(1)
