"""Wachter's counterfactual of one item, in plain autograd; `explainers.wachter` in its plain form.

Source: Wachter, Mittelstadt & Russell, Harvard J. Law & Tech. 2017, Eqs. 2 and 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def loss(f_t: Tensor, wanted: float, distance: Tensor, lam: float) -> Tensor:
    """Return lam (f_t(x') - y')^2 + d(x, x'), Eq. 2."""
    return lam * (f_t - wanted) ** 2 + distance


def distance(x_prime: Tensor, x: Tensor, mad: Tensor | float = 1.0) -> Tensor:
    """Return sum_k |x'_k - x_k| / MAD_k, Eq. 4."""
    return ((x_prime - x).abs() / mad).sum()


def wachter(
    f: Callable[[Tensor], Tensor] | nn.Module,
    x: Tensor,
    target: int,
    tau: float,
    bounds: tuple[float, float],
    mad: Tensor | float = 1.0,
    lam: float = 1.0,
    factor: float = 10.0,
    rounds: int = 16,
    steps: int = 200,
    lr: float = 0.02,
    tolerance: float = 0.02,
) -> Tensor:
    """Return the nearest visited x' that f decides as the target with tau or more.

    Args:
        f: classifier, (1, ...) -> logits (1, K).
        x: one item (...), within `bounds`.
        mad: median absolute deviation per value, > 0.
        lam, factor: the first weight of the squared error, and its growth per round.
        steps, lr: Adam steps per round; the step size falls linearly to 0 within a round.
        tolerance: y' = tau + tolerance, at most halfway from tau to 1.

    The last x' is returned if none reaches tau.
    """
    x_prime, wanted = x.clone(), min(tau + tolerance, (1 + tau) / 2)
    nearest, least, done = None, torch.inf, False
    for r in range(rounds):  # max_lam
        x_prime = x_prime.detach().requires_grad_(True)
        adam = torch.optim.Adam([x_prime], lr=lr)
        for k in range(steps + 1):  # min_x'
            p, away = f(x_prime[None]).softmax(1)[0], distance(x_prime, x, mad)
            done = bool(p.argmax() == target and p[target] >= tau)
            if done and away < least:
                nearest, least = x_prime.detach().clone(), away.item()
            if k < steps:
                adam.zero_grad()
                loss(p[target], wanted, away, lam * factor**r).backward()
                adam.param_groups[0]["lr"] = lr * (1 - k / steps)
                adam.step()
                x_prime.data.clamp_(*bounds)
        if done:
            break
    return x_prime.detach() if nearest is None else nearest
