"""Answers to the exercises of notebook 07."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _clip_last(x, g, query, step, eps):
    return (query + (x - step * g.sign() - query).clamp(-eps, eps)).clamp(0, 1)


def _where_step(x, g, query, step, eps):
    moved = torch.where(g > 0, x - step, torch.where(g < 0, x + step, x))
    return torch.min(torch.max(moved, (query - eps).clamp(min=0)), (query + eps).clamp(max=1))


def _size(query, edited):
    return (edited - query).abs().sum(1, keepdim=True)


def _largest(size):
    return size.amax((2, 3), keepdim=True)


def _dilate(size, side):
    return F.max_pool2d(size, side, 1, side // 2)


def _mask_after_threshold(query, edited, threshold, side):
    size = _size(query, edited)
    inside = (size >= threshold * _largest(size)) & (size > 0)
    return _dilate(inside.float(), side) > 0


def _mask_by_windows(query, edited, threshold, side):
    mask = torch.zeros(len(query), 1, *query.shape[2:], dtype=torch.bool)
    half = side // 2
    for b, size in enumerate(_size(query, edited)[:, 0]):
        for i, j in (size >= threshold * size.max()).nonzero().tolist():
            if size.max() > 0:
                rows = slice(max(i - half, 0), i + half + 1)
                mask[b, 0, rows, max(j - half, 0) : j + half + 1] = True
    return mask


def _guide(z, mean, variance, slope, q, abar, scale, l1, noise):
    g = scale * slope / abar**0.5 + l1 * torch.sign(z - q)
    return mean - variance * g + variance.sqrt() * noise


def _guide_by_terms(z, mean, variance, slope, q, abar, scale, l1, noise):
    up = (z > q).float() - (z < q).float()
    drift = mean - variance * scale * slope / math.sqrt(abar)
    return drift - variance * l1 * up + noise * variance**0.5


RIGHT = {
    "7.1": [(_clip_last,), (_where_step,)],
    "7.2": [(_mask_after_threshold,), (_mask_by_windows,)],
    "7.3": [(_guide,), (_guide_by_terms,)],
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
    "7.2": {
        "not dilated": (lambda q, e, t, side: _mask_after_threshold(q, e, t, 1),),
        "largest channel": (
            lambda q, e, t, side: _mask_after_threshold(
                q.amax(1, True) * 0, (e - q).abs().amax(1, True), t, side
            ),
        ),
        "signed change": (
            lambda q, e, t, side: _mask_after_threshold(q * 0, (e - q).clamp(min=0), t, side),
        ),
        "largest change of the batch": (
            lambda q, e, t, side: (
                (_dilate(_size(q, e), side) >= t * _size(q, e).max()) & (_size(q, e).max() > 0)
            ),
        ),
        "above the threshold": (
            lambda q, e, t, side: _dilate(_size(q, e), side) > t * _largest(_size(q, e)),
        ),
        "everything if nothing changed": (
            lambda q, e, t, side: _dilate(_size(q, e), side) >= t * _largest(_size(q, e)),
        ),
        "mean over the window": (
            lambda q, e, t, side: (
                F.avg_pool2d(_size(q, e), side, 1, side // 2) >= t * _largest(_size(q, e))
            ),
        ),
        "absolute threshold": (lambda q, e, t, side: _dilate(_size(q, e), side) >= t,),
        "square to one side": (
            lambda q, e, t, side: _mask_after_threshold(q, e, t, side).roll((1, 1), (2, 3)),
        ),
    },
    "7.3": {
        "up the slope": (lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, -s, q, a, k, -l1, n),),
        "without the variance": (
            lambda z, m, v, s, q, a, k, l1, n: (
                m - k * s / a**0.5 - l1 * (z - q).sign() + v.sqrt() * n
            ),
        ),
        "divided by abar": (
            lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, s, q, a**2, k, l1, n),
        ),
        "not divided": (lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, s, q, 1.0, k, l1, n),),
        "noise times the variance": (
            lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, s, q, a, k, l1, v.sqrt() * n),
        ),
        "the difference, not its sign": (
            lambda z, m, v, s, q, a, k, l1, n: (
                _guide(z, m, v, s, q, a, k, 0.0, n) - v * l1 * (z - q)
            ),
        ),
        "away from the query": (
            lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, s, q, a, k, -l1, n),
        ),
        "l1 divided, too": (
            lambda z, m, v, s, q, a, k, l1, n: _guide(z, m, v, s, q, a, k, l1 / a**0.5, n),
        ),
        "distance of the mean": (
            lambda z, m, v, s, q, a, k, l1, n: _guide(m, m, v, s, q, a, k, l1, n),
        ),
    },
}
