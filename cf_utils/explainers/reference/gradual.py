"""Gradual construction of one item, in plain autograd; `explainers.gradual` in its plain form.

Source: Jung, Kang, Kim, Won & Lee, Pattern Recognition 2022, Algorithm 1 with Eqs. 1, 5, 7 and 8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def masking_step(f: nn.Module, x_prime: Tensor, target: int, blocks: Tensor, mask: Tensor) -> int:
    """Return the masked block with the largest mean |d log f_t / d x'|, the order of Eq. 5.

    Args:
        x_prime: one item (...).
        blocks: int64 (...), the block of each value.
        mask: bool (...), True for values that are unmasked already.
    """
    x_prime = x_prime.clone().requires_grad_(True)
    log_f = f(x_prime[None]).log_softmax(1)[0, target]
    (gradient,) = torch.autograd.grad(log_f, x_prime)
    masked = blocks[~mask].unique().tolist()
    return max(masked, key=lambda block: gradient[blocks == block].abs().mean().item())


def loss(
    f: nn.Module, x_prime: Tensor, x: Tensor, prototype: Tensor, lam: float, eta: float = 0.0
) -> Tensor:
    """Return ||z(x') - mean z||_2 + lam ||x' - x||_2 + eta TV(x'), Eqs. 7 and 8 with beta = 2.

    `prototype` (K,) is mean z of the target. The total variation is for images (C, H, W).
    """
    z = f(x_prime[None])[0]
    value = (z - prototype).norm() + lam * (x_prime - x).norm()
    if x.ndim == 3:
        value = value + eta * sum((x_prime.diff(dim=d) ** 2).sum() for d in (1, 2))
    return value


def composition_step(
    loss_of: Callable[[Tensor], Tensor],
    x_prime: Tensor,
    mask: Tensor,
    steps: int,
    lr: float,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Return x' after Adam on its unmasked values."""
    x_prime = x_prime.clone().requires_grad_(True)
    adam = torch.optim.Adam([x_prime], lr=lr)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss_of(x_prime), x_prime)
        x_prime.grad = gradient * mask
        adam.step()
        if bounds is not None:
            x_prime.data.clamp_(*bounds)
    return x_prime.detach()


def gradual_construction(
    f: nn.Module,
    x: Tensor,
    target: int,
    composite: Tensor,
    blocks: Tensor,
    compose: Callable[[Tensor, Tensor], Tensor],
    tau: float,
    max_blocks: int | None = None,
    rank_again: bool = False,
) -> list[Tensor]:
    """Return x and the state x' after each composition step, until f gives the target tau.

    Args:
        f: classifier, (1, ...) -> logits (1, K).
        composite: first values of unmasked blocks, (...).
        blocks: int64 (...), the block of each value.
        compose: the composition step, (x', mask) -> x'; see `composition_step`.
        rank_again: rank blocks at each x' instead of at the query.
    """
    mask, path = torch.zeros_like(x, dtype=torch.bool), [x]
    for _ in range(max_blocks or len(blocks.unique())):
        at = path[-1] if rank_again else x
        new = blocks == masking_step(f, at, target, blocks, mask)
        mask = mask | new
        x_prime = torch.where(new, composite, path[-1])  # Eq. 1
        path.append(compose(x_prime, mask))
        p = f(path[-1][None]).softmax(1)[0]
        if p.argmax() == target and p[target] >= tau:
            break
    return path
