"""Dependence between factors: a graph of (parent, weight) pairs and its correlations.

A factor with parents has the normal score z = sum_p w_p z_p + r e. Here e is the score of its own
draw and r is chosen such that z has variance 1. Marginal distributions are therefore equal in every
variant of a world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Graph = Mapping[str, Sequence[tuple[str, float]]]  # factor -> its (parent, weight) pairs


class ScoreModel(NamedTuple):
    """Linear model of the normal scores of K factors.

    order: columns, parents before their dependents. weights: (K, K), row = dependent, column =
        parent.
    residual: (K,), weight r of a factor's own draw. correlation: (K, K), of the normal scores.
    """

    order: list[int]
    weights: Tensor
    residual: Tensor
    correlation: Tensor


def build_score_model(names: Sequence[str], graph: Graph) -> ScoreModel:
    """Turn a graph over the factors `names` into a linear model of their normal scores.

    Raises ValueError if the graph has a cycle or if the parents of a factor explain a variance
    above 1.
    """
    k = len(names)
    w = torch.zeros(k, k, dtype=torch.float64)
    r = torch.ones(k, dtype=torch.float64)
    c = torch.eye(k, dtype=torch.float64)
    order = [i for i, name in enumerate(names) if name not in graph]
    left = [name for name in names if name in graph]
    while left:
        ready = [name for name in left if all(parent not in left for parent, _ in graph[name])]
        if not ready:
            raise ValueError(f"variant: got a cycle among {left}, expected a graph without cycles")
        for name in ready:
            i = names.index(name)
            for parent, weight in graph[name]:
                w[i, names.index(parent)] = weight
            explained = w[i] @ c @ w[i]
            if explained > 1 + 1e-9:
                raise ValueError(
                    f"variant: the parents of {name!r} explain a variance of {explained:.3f}, "
                    "expected at most 1; reduce their weights"
                )
            r[i] = (1 - explained).clamp(0).sqrt()
            c[i] = c[:, i] = w[i] @ c
            c[i, i] = 1
            order.append(i)
            left.remove(name)
    return ScoreModel(order, w, r, c)
