"""Fixed points y = g(y) of a batch of items, by Anderson acceleration.

Sources: Walker & Ni, "Anderson acceleration for fixed-point iterations", 2011, algorithm AA. Pan et
al. (ICCV 2023) use it to invert the steps of a diffusion model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLOOR = 1e-12  # relative to the largest residual's square; keeps the linear system solvable


def solve(g: Callable[[Tensor], Tensor], y: Tensor, iterations: int, memory: int = 5) -> Tensor:
    """Return an approximate solution of y = g(y), after `iterations` evaluations of g.

    Each iterate is the combination of the last `memory` values of g whose residuals g(y) - y
    cancel best, per item. The first one is plain iteration.

    Args:
        g: maps (B, ...) to (B, ...), each item by itself.
        y: first guess (B, ...).
    """
    values: list[Tensor] = []
    residuals: list[Tensor] = []
    for _ in range(iterations):
        value = g(y)
        values, residuals = [*values, value][-memory:], [*residuals, value - y][-memory:]
        weights = combine(torch.stack([r.flatten(1) for r in residuals], 1)).to(value)
        y = torch.einsum("bm,bmn->bn", weights, torch.stack([v.flatten(1) for v in values], 1))
        y = y.view_as(value)
    return y


def combine(residuals: Tensor) -> Tensor:
    """Return weights (B, m), of sum 1, that minimise the norm of the weighted sum of residuals.

    residuals: (B, m, n). Returns float64.
    """
    r = residuals.double()
    gram = r @ r.mT
    gram = gram / gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-300)[:, None, None]
    eye = torch.eye(r.shape[1], dtype=r.dtype, device=r.device)
    ones = r.new_ones(len(r), r.shape[1])
    weights = torch.linalg.solve(gram + FLOOR * eye, ones)
    return weights / weights.sum(1, keepdim=True)
