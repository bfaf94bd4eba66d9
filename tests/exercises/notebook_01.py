"""Answers to the exercises of notebook 01."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F


def _pool(size):
    return F.max_pool2d(size, 4)


def _block_means(g):
    return F.avg_pool2d(g.abs()[:, None], 4).flatten(1)


def _loop_next_block(gradient, unmasked):
    out = []
    for g, m in zip(gradient.numpy(), unmasked.numpy(), strict=True):
        means = np.abs(g).reshape(7, 4, 7, 4).mean((1, 3)).ravel()
        means[m] = -1
        out.append(int(means.argmax()))
    return out


RIGHT = {
    "1.1": [
        (lambda g, m: _block_means(g).masked_fill(m, -1).argmax(1),),
        (_loop_next_block,),
    ],
}

WRONG = {
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
}
