"""Answers to the exercises of notebook 08."""

from __future__ import annotations

import torch


def _pairs(m, inside, tie=0.5):
    a, b = m[inside][:, None], m[~inside][None]
    return ((a > b).double() + tie * (a == b).double()).mean()


def _by_ranks(m, inside):
    """Mann and Whitney's U from the mean ranks of ties."""
    values, at = m.flatten().tolist(), inside.flatten().tolist()
    rank = [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
    n = sum(at)
    u = sum(r for r, here in zip(rank, at, strict=True) if here) - n * (n + 1) / 2
    return u / (n * (len(at) - n))


RIGHT = {
    "8.1": [(_pairs,), (_by_ranks,)],
    "8.2": [
        (lambda a, d: torch.einsum("c,chw->hw", d.flatten(1).mean(1), a).relu(),),
        (
            lambda a, d: (
                torch.stack([one * w.mean() for one, w in zip(a, d, strict=True)])
                .sum(0)
                .clamp(min=0)
            ),
        ),
    ],
}

WRONG = {
    "8.1": {
        "ties count nothing": (lambda m, r: _pairs(m, r, 0.0),),
        "ties count fully": (lambda m, r: _pairs(m, r, 1.0),),
        "the other way round": (lambda m, r: _pairs(m, ~r),),
        "accuracy at the mean": (lambda m, r: ((m > m.mean()) == r).double().mean(),),
        "only the largest pixel inside": (
            lambda m, r: (
                (m[r].max() > m[~r]).double().mean() + 0.5 * (m[r].max() == m[~r]).double().mean()
            ),
        ),
    },
    "8.2": {
        "product of both": (lambda a, d: (a * d).sum(0).relu(),),
        "not clipped": (lambda a, d: (d.mean((1, 2))[:, None, None] * a).sum(0),),
        "clipped before the sum": (lambda a, d: (d.mean((1, 2))[:, None, None] * a).relu().sum(0),),
        "size of the derivative": (
            lambda a, d: (d.mean((1, 2)).abs()[:, None, None] * a).sum(0).relu(),
        ),
        "sum of the derivative": (lambda a, d: (d.sum((1, 2))[:, None, None] * a).sum(0).relu(),),
        "mean over channels": (lambda a, d: (d.mean((1, 2))[:, None, None] * a).mean(0).relu(),),
    },
}
