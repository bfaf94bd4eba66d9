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


class _Pull(torch.autograd.Function):
    """Value and gradient at once: half the kernels that autograd would run, in every step of a search."""

    @staticmethod
    def forward(ctx, z, x, lam, eta):
        g = z - x
        far = torch.linalg.vector_norm(g.flatten(1), dim=1)
        value = lam * far
        g.mul_(torch.where(far > 0, lam / far, 0).view(-1, *[1] * (z.ndim - 1)))
        if eta:
            ends, starts = (g[..., :, 1:], g[..., 1:, :]), (g[..., :, :-1], g[..., :-1, :])
            for d, one, other in zip(_differences(z), ends, starts, strict=True):
                value += eta * torch.linalg.vector_norm(d.flatten(1), dim=1).square()
                d.mul_(2 * eta)
                one += d
                other -= d
        ctx.save_for_backward(g)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up):
        (g,) = ctx.saved_tensors
        return g * up.view(-1, *[1] * (g.ndim - 1)), None, None, None


def pull(z: Tensor, x: Tensor, lam: float, eta: float = 0.0, beta: float = 2.0) -> Tensor:
    """lam ||z - x||_2 + eta total_variation(z) of each item (B,): what holds a search near x. Differentiable once, in z; the
    gradient of the distance is 0 where z = x. eta is for images (B, C, H, W)."""
    if eta and beta != 2:
        return _Pull.apply(z, x, lam, 0.0) + eta * total_variation(z, beta)
    return _Pull.apply(z, x, lam, eta)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """Sum over pixels of (dx^2 + dy^2)^(beta / 2) per image (B, C, H, W) -> (B,); differences over the edge are 0 (Eq. 8)."""
    across, down = _differences(x)
    square = torch.nn.functional.pad(across, (0, 1)).square() + torch.nn.functional.pad(down, (0, 0, 0, 1)).square()
    return (square if beta == 2 else square.pow(beta / 2)).flatten(1).sum(1)
