"""Answers to the exercise of notebook 09."""

from __future__ import annotations


def _step(below, D, a_below, a):
    clean = (below - (1 - a_below) ** 0.5 * D) / a_below**0.5
    return a**0.5 * clean + (1 - a) ** 0.5 * D


def _scaled(below, D, a_below, a):
    k = (a / a_below) ** 0.5
    return k * below + ((1 - a) ** 0.5 - k * (1 - a_below) ** 0.5) * D


RIGHT = {"9.1": ((_step,), (_scaled,))}
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
}
