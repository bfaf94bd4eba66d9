"""Answers to the exercises of notebook 09."""

from __future__ import annotations

import torch


def _step(below, D, a_below, a):
    clean = (below - (1 - a_below) ** 0.5 * D) / a_below**0.5
    return a**0.5 * clean + (1 - a) ** 0.5 * D


def _scaled(below, D, a_below, a):
    k = (a / a_below) ** 0.5
    return k * below + ((1 - a) ** 0.5 - k * (1 - a_below) ** 0.5) * D


def _covariance_times_filter(codes, w):
    return torch.cov(codes.T) @ w


def _by_loop(codes, w):
    s = codes @ w
    away = s - s.mean()
    return torch.stack([(c * away).sum() / (len(s) - 1) for c in codes.T])


RIGHT = {
    "9.1": ((_step,), (_scaled,)),
    "9.2": ((_covariance_times_filter,), (_by_loop,)),
}
WRONG = {
    "9.1": {
        "Eq. 1 forwards": (lambda below, D, a_below, a: _step(below, D, a, a_below),),
        "fresh noise on top": (
            lambda below, D, a_below, a: (
                (a / a_below) ** 0.5 * below + (1 - a / a_below) ** 0.5 * D
            ),
        ),
        "without square roots": (lambda below, D, a_below, a: _step(below, D, a_below**2, a**2),),
        "noise of the level below": (
            lambda below, D, a_below, a: (
                (a / a_below) ** 0.5 * (below - (1 - a_below) ** 0.5 * D) + (1 - a_below) ** 0.5 * D
            ),
        ),
    },
    "9.2": {
        "the filter": (lambda codes, w: w,),
        "variances times the filter": (lambda codes, w: codes.var(0) * w,),
        "not centred": (lambda codes, w: codes.T @ (codes @ w) / (len(codes) - 1),),
        "the mean, not N - 1": (lambda codes, w: torch.cov(codes.T, correction=0) @ w,),
    },
}
