"""Genetic operators on populations of vectors; noise u is uniform in [0, 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def select(fitness: Tensor, n: int) -> Tensor:
    """Return the positions (..., n) of the n fittest members, best first.

    Args:
        fitness: (..., N). Ties keep their order; NaN counts as worst.
        n: members to keep, at most N.
    """
    order = fitness.nan_to_num(nan=-torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order[..., :n]


def tournament(fitness: Tensor, u: Tensor) -> Tensor:
    """Return the positions (..., M) of the winners of M tournaments; ties go to the first entrant.

    Args:
        fitness: (..., N).
        u: (..., M, k), draws the k members of each tournament.
    """
    n = fitness.shape[-1]
    entrants = (u * n).long().clamp(max=n - 1)
    values = fitness.gather(-1, entrants.flatten(-2)).view(entrants.shape)
    return entrants.gather(-1, values.argmax(-1, keepdim=True)).squeeze(-1)


def crossover(a: Tensor, b: Tensor, u: Tensor, rate: float) -> Tensor:
    """Return children (..., M, d) by two-point crossover: genes between two cuts come from b.

    Args:
        a, b: parents (..., M, d).
        u: (..., M, 3), decides whether a pair is mixed, and draws the two cuts.
        rate: probability that a pair is mixed; otherwise the child equals a.
    """
    d = a.shape[-1]
    cut = (u[..., 1:] * (d + 1)).long().sort(-1).values  # 0 .. d
    gene = torch.arange(d, device=a.device)
    inside = (gene >= cut[..., :1]) & (gene < cut[..., 1:])
    return torch.where(inside & (u[..., :1] < rate), b, a)


def mutate(z: Tensor, fresh: Tensor, u: Tensor, rate: float) -> Tensor:
    """Replace each gene of z (..., d) by that of `fresh` with probability `rate`; u (..., d)."""
    return torch.where(u < rate, fresh, z)


def exchange_segments(z: Tensor, mix: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return z with the genes between two cuts exchanged within each pair of neighbours.

    Args:
        z: two populations per item, (B, 2, N, F) with an even N; rows 2k and 2k + 1 are a pair.
        mix: bool (B, 2, N), whether to exchange. Here and for the cuts, row 2k stands for its pair.
        first: u (B, 2, N), draws a cut; the segment contains both of its ends.
        second: u (B, 2, N), draws the other cut.
    """
    n = z.shape[-1]
    feature = torch.arange(n, device=z.device)
    low, high = (
        torch.floor(n * cut(first, second))[:, :, ::2, None]
        for cut in (torch.minimum, torch.maximum)
    )
    swap = mix[:, :, ::2, None] & (feature >= low) & (feature <= high)
    left, right = z[:, :, ::2], z[:, :, 1::2]
    children = [torch.where(swap, right, left), torch.where(swap, left, right)]
    return torch.stack(children, 3).flatten(2, 3)


def draw_values(train: Tensor, u: Tensor) -> Tensor:
    """Return values (..., F) of features, drawn from the rows `train` (N, F) by u (..., F)."""
    n_train, n = train.shape
    row = (u * n_train).long().clamp(max=n_train - 1)
    return train.T.flatten()[row + torch.arange(n, device=u.device) * n_train]
