"""Answers to the exercises of notebook 04."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _kl(p, q):
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def _entropy_and_cross_entropy(p, a):
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    return F.binary_cross_entropy_with_logits(a, p, reduction="none") - entropy


def _one_by_one(p, a):
    out = []
    for one, logit in zip(p.flatten().tolist(), a.flatten().tolist(), strict=True):
        low = math.log1p(math.exp(-abs(logit)))  # log(1 + exp(-|a|))
        present, absent = max(-logit, 0) + low, max(logit, 0) + low
        cross = one * present + (1 - one) * absent
        out.append(cross + one * math.log(one) + (1 - one) * math.log(1 - one))
    return torch.tensor(out).reshape(p.shape)


RIGHT = {"4.1": [(_entropy_and_cross_entropy,), (_one_by_one,)]}

WRONG = {
    "4.1": {
        "from the sigmoid": (lambda p, a: _kl(p, a.sigmoid()),),
        "clipped": (lambda p, a: _kl(p, a.sigmoid().clamp(1e-6, 1 - 1e-6)),),
        "the other way round": (lambda p, a: _kl(a.double().sigmoid(), p.double()),),
        "only the present outcome": (lambda p, a: p * (p.log() - F.logsigmoid(a)),),
        "cross-entropy": (lambda p, a: F.binary_cross_entropy_with_logits(a, p, reduction="none"),),
        "mean over all elements": (lambda p, a: _entropy_and_cross_entropy(p, a).mean(),),
        "the sign of a in both terms": (
            lambda p, a: (
                p * (p.log() - F.logsigmoid(a)) + (1 - p) * ((1 - p).log() - F.logsigmoid(a))
            ),
        ),
    }
}
