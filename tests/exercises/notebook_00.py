"""Answers to the exercises of notebook 00."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _moved(a, b):
    return (b - a).abs()


def _pool(size):
    return F.max_pool2d(size, 4)


def _loop_blocks(query, counterfactual, least=1e-3):
    counts = []
    for a, b in zip(query, counterfactual, strict=True):
        moved = (b[0] - a[0]).abs()
        tiles = [moved[i : i + 4, j : j + 4] for i in range(0, 28, 4) for j in range(0, 28, 4)]
        counts.append(sum(bool(tile.max() >= least) for tile in tiles))
    return counts


RIGHT = {
    "0.1": [
        (_loop_blocks,),
        (lambda q, c, least=1e-3: (_pool(_moved(q, c)) >= least).flatten(1).sum(1),),
    ],
    "0.2": [
        (lambda p, y, x, w, lam: lam * (p - w) ** 2 + (y - x).abs().flatten(1).sum(1),),
        (
            lambda p, y, x, w, lam: [
                lam * (float(p[i]) - w) ** 2 + float(torch.norm(y[i] - x[i], p=1))
                for i in range(len(x))
            ],
        ),
    ],
}

WRONG = {
    "0.1": {
        "ignores least": (lambda q, c, least=1e-3: (_pool(_moved(q, c)) > 0).flatten(1).sum(1),),
        "without the absolute value": (
            lambda q, c, least=1e-3: (_pool(c - q) >= least).flatten(1).sum(1),
        ),
        "counts pixels": (lambda q, c, least=1e-3: (_moved(q, c) >= least).flatten(1).sum(1),),
        "more than least": (
            lambda q, c, least=1e-3: (_pool(_moved(q, c)) > least).flatten(1).sum(1),
        ),
        "sums within a block": (
            lambda q, c, least=1e-3: (
                (16 * F.avg_pool2d(_moved(q, c), 4) >= least).flatten(1).sum(1)
            ),
        ),
        "one number for the batch": (
            lambda q, c, least=1e-3: (_pool(_moved(q, c)) >= least).sum(),
        ),
        "blocks of 7 x 7": (
            lambda q, c, least=1e-3: (F.max_pool2d(_moved(q, c), 7) >= least).flatten(1).sum(1),
        ),
    },
    "0.2": {
        "lam weights the distance": (
            lambda p, y, x, w, lam: (p - w) ** 2 + lam * (y - x).abs().flatten(1).sum(1),
        ),
        "not squared": (
            lambda p, y, x, w, lam: lam * (p - w).abs() + (y - x).abs().flatten(1).sum(1),
        ),
        "mean over the batch": (
            lambda p, y, x, w, lam: (lam * (p - w) ** 2 + (y - x).abs().flatten(1).sum(1)).mean(),
        ),
        "Euclidean distance": (
            lambda p, y, x, w, lam: lam * (p - w) ** 2 + (y - x).flatten(1).norm(dim=1),
        ),
        "signed differences": (
            lambda p, y, x, w, lam: lam * (p - w) ** 2 + (y - x).flatten(1).sum(1),
        ),
        "mean over features": (
            lambda p, y, x, w, lam: lam * (p - w) ** 2 + (y - x).abs().flatten(1).mean(1),
        ),
    },
}
