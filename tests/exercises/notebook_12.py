"""Answers to the exercises of notebook 12."""

from __future__ import annotations

import math

import torch

RIGHT = {
    "12.1": [
        (lambda k: math.e / (math.e + k - 1),),
        (lambda k: torch.eye(k, dtype=torch.float64).softmax(1)[0, 0],),
    ],
    "12.2": [
        (lambda mean, worst: (worst < mean).any(1),),
        (
            lambda mean, worst: [
                any(w < m for m, w in zip(*row, strict=True))
                for row in zip(mean.tolist(), worst.tolist(), strict=True)
            ],
        ),
    ],
}

WRONG = {
    "12.1": {
        "as for two classes": (lambda k: 1 / (1 + math.exp(-1)),),
        "chance": (lambda k: 1 / k,),
        "one class too many": (lambda k: math.e / (math.e + k),),
        "a search can reach everything": (lambda k: 1.0,),
    },
    "12.2": {
        "only if all are below": (lambda mean, worst: (worst < mean).all(1),),
        "equal is impossible": (lambda mean, worst: (worst <= mean).any(1),),
        "the other way round": (lambda mean, worst: (worst > mean).any(1),),
        "compares the sums": (lambda mean, worst: worst.sum(1) < mean.sum(1),),
        "one answer for all rows": (lambda mean, worst: (worst < mean).any(),),
        "counts them": (lambda mean, worst: (worst < mean).sum(1),),
    },
}
