"""Answers to the exercises of notebook 05."""

from __future__ import annotations

import math

import torch


def _span(mask):
    """Width from the first to the last column, per item; NaN for an empty mask."""
    out = []
    for one in mask:
        columns = one[0].any(0).nonzero().flatten().tolist()
        out.append(columns[-1] - columns[0] + 1 if columns else math.nan)
    return torch.tensor(out)


def _by_positions(heart, lungs):
    def width(mask):
        at = torch.arange(mask.shape[3]).expand(len(mask), -1)
        used = mask.any(2)[:, 0]
        last = torch.where(used, at, -1).amax(1)
        first = torch.where(used, at, mask.shape[3]).amin(1)
        return (last - first + 1).double().masked_fill(~used.any(1), math.nan)

    return width(heart) / width(lungs)


def _columns(mask):
    return mask.any(2)[:, 0].sum(1).double()


def _widest_row(mask):
    return torch.stack([_span(mask[:, :, [r]]).nan_to_num(0) for r in range(mask.shape[2])]).amax(0)


def _or_nan(ratio, heart, lungs):
    return ratio.masked_fill(~(heart.flatten(1).any(1) & lungs.flatten(1).any(1)), math.nan)


RIGHT = {
    "5.1": [
        (lambda h, lungs: _span(h) / _span(lungs),),
        (_by_positions,),
    ]
}

WRONG = {
    "5.1": {
        "columns with a pixel": (lambda h, c: _or_nan(_columns(h) / _columns(c), h, c),),
        "last minus first": (lambda h, c: (_span(h) - 1) / (_span(c) - 1),),
        "the widest row": (lambda h, c: _or_nan(_widest_row(h) / _widest_row(c), h, c),),
        "upside down": (lambda h, c: _span(c) / _span(h),),
        "areas": (
            lambda h, c: _or_nan(h.flatten(1).sum(1) / c.flatten(1).sum(1).clamp(min=1), h, c),
        ),
        "0 for an empty heart": (lambda h, c: _span(h).nan_to_num(0) / _span(c),),
        "infinite for empty lungs": (lambda h, c: _span(h) / _span(c).nan_to_num(0),),
        "one ratio for the batch": (lambda h, c: (_span(h) / _span(c)).nanmean(),),
    }
}
