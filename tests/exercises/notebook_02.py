"""Answers to the exercises of notebook 02."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _loop_nearest(points, table):
    return [min(range(len(table)), key=lambda r: float((table[r] - p).norm())) for p in points]


RIGHT = {
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
}

WRONG = {
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
}
