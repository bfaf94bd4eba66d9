"""Answers to the exercises of notebook 07."""

from __future__ import annotations

import torch


def _clip_last(x, g, query, step, eps):
    return (query + (x - step * g.sign() - query).clamp(-eps, eps)).clamp(0, 1)


def _where_step(x, g, query, step, eps):
    moved = torch.where(g > 0, x - step, torch.where(g < 0, x + step, x))
    return torch.min(torch.max(moved, (query - eps).clamp(min=0)), (query + eps).clamp(max=1))


RIGHT = {
    "7.1": [(_clip_last,), (_where_step,)],
}

WRONG = {
    "7.1": {
        "without a sign": (lambda x, g, q, s, e: (q + (x - s * g - q).clamp(-e, e)).clamp(0, 1),),
        "ignores x": (lambda x, g, q, s, e: (q - (s * g.sign()).clamp(-e, e)).clamp(0, 1),),
        "bounds around x'": (lambda x, g, q, s, e: (x - (s * g.sign()).clamp(-e, e)).clamp(0, 1),),
        "up the gradient": (
            lambda x, g, q, s, e: (q + (x + s * g.sign() - q).clamp(-e, e)).clamp(0, 1),
        ),
        "not clamped to [0, 1]": (lambda x, g, q, s, e: q + (x - s * g.sign() - q).clamp(-e, e),),
        "in place": (lambda x, g, q, s, e: _clip_last(x.sub_(s * g.sign()), 0 * g, q, s, e),),
    },
}
