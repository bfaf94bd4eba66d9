"""Attributes that change although they should not: the confounding metric and the flip matrix.

Sources: Singla et al., Progressive Exaggeration (ICLR 2020), section 4.4, Table 3, and section 4.5,
Fig. 7; the first after Joshi et al. (2018). Both read attributes by a classifier g that is never
explained. Blind spot: what g misreads counts as a change, so report both for the query's own
condition, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.evaluation.metrics.decision import paired_difference


def attribute_flips(a: Tensor, after: Tensor, selected: Tensor) -> Tensor:
    """Share of each query's selected explanations whose attribute differs from the query's.

    Its mean over queries is the confounding metric, the mean of 1[g(x_delta) != a]. The paper also
    divides by |D|, which is a misprint: its printed values are shares. In [0, 1]; lower means less
    confounded.

    Args:
        a: (B,) int64 or bool, the query's attribute.
        after: (B, K), g's decision on each explanation.
        selected: (B, K) bool, the explanations that count: expected response over 0.9 for the
            target label, under 0.1 for the other.

    Returns: (B,) float64, NaN for a query without a selected explanation.
    """
    _check_decisions(a, after, selected)
    differs = (after.long() != a.long()[:, None]) & selected
    return differs.sum(1).double() / selected.sum(1).double()  # 0 / 0 is NaN


def attribute_share(after: Tensor, selected: Tensor, value: int = 1) -> Tensor:
    """Share of each query's selected explanations with this value of the attribute. (B,), or NaN.

    Table 3 prints it as "Male" and "Female".
    """
    _check_decisions(after[:, 0], after, selected)
    return ((after.long() == value) & selected).sum(1).double() / selected.sum(1).double()


def confounding_difference(first: Tensor, second: Tensor, seed: int = 0) -> dict[str, float | int]:
    """Confounding metric of one classifier minus that of another, on the same queries.

    Args: first, second: `attribute_flips` (B,) of both.
    Returns: mean, low, high (95 %, paired bootstrap over queries) and n, the queries with both.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"first, second: got {tuple(first.shape)}, {tuple(second.shape)}, expected two (B,)"
        )
    return paired_difference(first, second, seed=seed)


def flip_rates(before: Tensor, after: Tensor) -> Tensor:
    """Share of explanations in which each attribute differs from the query, one row of Fig. 7.

    Args: before, after (B, A) bool, attributes of queries and explanations. Returns: (A,) float64.
    """
    if before.shape != after.shape or before.ndim != 2 or not len(before):
        raise ValueError(
            f"before, after: got {tuple(before.shape)}, {tuple(after.shape)}, expected two (B, A)"
        )
    return (before != after).double().mean(0)


def diagonal_and_rest(matrix: Tensor, diagonal: Tensor) -> tuple[float, float]:
    """Mean flip rate of the explained attributes, and mean of all others.

    The first should be near 1, the second near 0 where attributes are independent.

    Args: matrix: (T, A) of T explained attributes; diagonal: (T,) int64, the column of each.
    """
    valid = (
        matrix.ndim == 2 and diagonal.shape == matrix.shape[:1] and diagonal.dtype == torch.int64
    )
    if not valid or not bool(((diagonal >= 0) & (diagonal < matrix.shape[-1])).all()):
        raise ValueError(
            f"matrix, diagonal: got {tuple(matrix.shape)}, {diagonal.tolist()}, expected (T, A) "
            "and a column per row"
        )
    own = torch.zeros_like(matrix, dtype=torch.bool)
    own[torch.arange(len(matrix)), diagonal] = True
    return matrix[own].mean().item(), matrix[~own].mean().item()


def _check_decisions(a: Tensor, after: Tensor, selected: Tensor) -> None:
    shapes = tuple(a.shape), tuple(after.shape), tuple(selected.shape)
    if after.ndim != 2 or shapes != ((len(after),), tuple(after.shape), tuple(after.shape)):
        raise ValueError(
            f"a, after, selected: got {', '.join(map(str, shapes))}, expected (B,), (B, K), (B, K)"
        )
    if selected.dtype != torch.bool:
        raise ValueError(f"selected: got {selected.dtype}, expected bool")
