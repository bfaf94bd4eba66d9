"""Answers to the notebooks' exercises: three or more wrong ones, two right ones for each exercise.

An answer is the tuple of functions that the exercise asks for.
"""

from __future__ import annotations

import numpy as np
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


def _block_means(g):
    return F.avg_pool2d(g.abs()[:, None], 4).flatten(1)


def _loop_next_block(gradient, unmasked):
    out = []
    for g, m in zip(gradient.numpy(), unmasked.numpy(), strict=True):
        means = np.abs(g).reshape(7, 4, 7, 4).mean((1, 3)).ravel()
        means[m] = -1
        out.append(int(means.argmax()))
    return out


def _loop_nearest(points, table):
    return [min(range(len(table)), key=lambda r: float((table[r] - p).norm())) for p in points]


def _clip_last(x, g, query, step, eps):
    return (query + (x - step * g.sign() - query).clamp(-eps, eps)).clamp(0, 1)


def _where_step(x, g, query, step, eps):
    moved = torch.where(g > 0, x - step, torch.where(g < 0, x + step, x))
    return torch.min(torch.max(moved, (query - eps).clamp(min=0)), (query + eps).clamp(max=1))


def _printed(q, c):
    return (q - c >= 0.001).sum(1)


def _meant(q, c):
    return ((q - c).abs() >= 0.001).sum(1)


def _changed(q, c):
    return (q - c).abs()


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
    "1.1": [
        (lambda g, m: _block_means(g).masked_fill(m, -1).argmax(1),),
        (_loop_next_block,),
    ],
    "2.1": [
        (_loop_nearest,),
        (lambda p, t: ((t**2).sum(1) - 2 * p @ t.T).argmin(1),),
    ],
    "2.2": [
        (lambda b, a, t: (a.argmax(1) != t)[b.argmax(1) == t].double().mean(),),
        (
            lambda b, a, t: (
                1
                - int(((b.argmax(1) == t) & (a.argmax(1) == t)).sum())
                / int((b.argmax(1) == t).sum())
            ),
        ),
    ],
    "3.1": [
        (_printed, _meant),
        (
            lambda q, c: [
                sum(a - b >= 0.001 for a, b in zip(*r, strict=True))
                for r in zip(q.tolist(), c.tolist(), strict=True)
            ],
            lambda q, c: ((q - c) >= 0.001).sum(1) + ((c - q) >= 0.001).sum(1),
        ),
    ],
    "3.2": [
        (lambda a, b, c, d: torch.dist(c, d) / torch.dist(a, b),),
        (lambda a, b, c, d: float((((c - d) ** 2).sum() / ((a - b) ** 2).sum()) ** 0.5),),
    ],
    "7.1": [(_clip_last,), (_where_step,)],
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
    "1.1": {
        "ignores the mask": (lambda g, m: _block_means(g).argmax(1),),
        "signed gradient": (
            lambda g, m: F.avg_pool2d(g[:, None], 4).flatten(1).masked_fill(m, -9).argmax(1),
        ),
        "absolute value after the mean": (
            lambda g, m: F.avg_pool2d(g[:, None], 4).flatten(1).abs().masked_fill(m, -1).argmax(1),
        ),
        "largest pixel": (
            lambda g, m: _pool(g.abs()[:, None]).flatten(1).masked_fill(m, -1).argmax(1),
        ),
        "smallest gradient": (lambda g, m: _block_means(g).masked_fill(m, 99).argmin(1),),
        "one block for the batch": (
            lambda g, m: _block_means(g).masked_fill(m, -1).sum(0).argmax(),
        ),
    },
    "2.1": {
        "farthest": (lambda p, t: torch.cdist(p, t).argmax(1),),
        "largest product": (lambda p, t: (p @ t.T).argmax(1),),
        "cosine": (lambda p, t: (F.normalize(p, dim=1) @ F.normalize(t, dim=1).T).argmax(1),),
        "sum of differences": (lambda p, t: torch.cdist(p, t, p=1).argmin(1),),
        "first coordinate": (lambda p, t: (p[:, :1] - t[:, 0]).abs().argmin(1),),
        "the wrong axis": (lambda p, t: torch.cdist(p, t).argmin(0),),
    },
    "2.2": {
        "of all reviews": (
            lambda b, a, t: ((a.argmax(1) != t) & (b.argmax(1) == t)).double().mean(),
        ),
        "share kept": (lambda b, a, t: (a.argmax(1) == t)[b.argmax(1) == t].double().mean(),),
        "target is always 1": (
            lambda b, a, t: (a.argmax(1) != 1)[b.argmax(1) == 1].double().mean(),
        ),
        "difference of the two validities": (
            lambda b, a, t: (b.argmax(1) == t).double().mean() - (a.argmax(1) == t).double().mean(),
        ),
    },
    "3.1": {
        "absolute value in both": (_meant, _meant),
        "no absolute value in either": (_printed, _printed),
        "swapped": (_meant, _printed),
        "any difference": (_printed, lambda q, c: (q != c).sum(1)),
        "one number for all rows": (lambda q, c: (q - c >= 0.001).sum(), _meant),
        "rises instead of falls": (lambda q, c: (c - q >= 0.001).sum(1), _meant),
    },
    "3.2": {
        "upside down": (lambda a, b, c, d: (a - b).norm() / (c - d).norm(),),
        "distance of the advice alone": (lambda a, b, c, d: (c - d).norm(),),
        "sums of differences": (lambda a, b, c, d: (c - d).abs().sum() / (a - b).abs().sum(),),
        "squared": (lambda a, b, c, d: ((c - d).norm() / (a - b).norm()) ** 2,),
        "how far each moved": (lambda a, b, c, d: (c - a).norm() / (d - b).norm(),),
    },
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
