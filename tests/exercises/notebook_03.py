"""Answers to the exercises of notebook 03."""

from __future__ import annotations

import torch


def _printed(q, c):
    return (q - c >= 0.001).sum(1)


def _meant(q, c):
    return ((q - c).abs() >= 0.001).sum(1)


RIGHT = {
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
}

WRONG = {
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
}
