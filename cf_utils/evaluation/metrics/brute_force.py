"""The fewest features that flip a decision on a table, by brute force: a reference for sparsity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.core import Constraints, progress
from cf_utils.evaluation.metrics.tabular import check_per_item
from cf_utils.models.classifiers import predict

BATCH = 16384  # rows per forward pass: activations of small networks stay in the cache


@torch.no_grad()
def least_features(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    grid: int = 41,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    tau: float = 0.5,
    pairs: int = 200,
    constraints: Constraints | None = None,
) -> Tensor:
    """Fewest features whose change makes the classifier decide for the target.

    Ours. Tries every single feature, then every pair, on a grid of values. Exact on the grid;
    between its points or out of range, fewer features may suffice.

    Args:
        x, target: (B, F) and (B,) int64.
        grid: values per feature, >= 2.
        low, high: range of the values, numbers or (F,).
        tau: required probability of the target.
        pairs: number of rows for which pairs of features are tried; a pair costs about grid^2
            passes.
        constraints: values are snapped to what these allow.

    Returns: (B,) int64: 0 if already decided for the target, 1 or 2, 3 for more than 2, and -1 if
    no single feature flips the row and no pairs were tried for it.
    """
    check_per_item(len(x), target=target)
    if grid < 2:
        raise ValueError(f"grid: got {grid}, expected at least 2 values")
    values = _grid_values(x, grid, low, high, constraints)
    least = torch.where(_decide_for(classifier, x, target, tau)[0], 0, -1)
    by_one = _flip_by_one(classifier, x, target, values, (least < 0).nonzero().flatten(), tau)
    least[by_one] = 1
    rows = (least < 0).nonzero().flatten()[:pairs].tolist()
    for i in progress(rows, desc="pairs", leave=False):
        least[i] = 2 if _flips_by_two(classifier, x[i], target[i], values[i], tau) else 3
    return least


def l1_excess(changed: Tensor, least: Tensor) -> Tensor:
    """Features changed minus the fewest that flip the row. Lower is better, 0 is optimal.

    Ours. Negative where a method found a value off the grid or out of its range.

    Args: changed (B,) from `tabular.features_changed`; least (B,) from `least_features`.
    Returns: (B,) float64, NaN where the fewest are unknown (-1) or only known to be over 2.
    """
    known = (least >= 0) & (least <= 2)
    return torch.where(known, (changed - least).double(), torch.nan)


def _grid_values(
    x: Tensor,
    grid: int,
    low: float | Tensor,
    high: float | Tensor,
    constraints: Constraints | None,
) -> Tensor:
    """Values to try per row and feature, (B, F, grid)."""
    n, width = x.shape
    low, high = (
        torch.as_tensor(b, dtype=x.dtype, device=x.device).expand(width) for b in (low, high)
    )
    weight = torch.linspace(0, 1, grid, dtype=x.dtype, device=x.device)
    values = torch.lerp(low[:, None], high[:, None], weight).expand(n, width, grid)
    if constraints is None:
        return values
    return torch.stack([constraints.snap(v, x) for v in values.unbind(2)], 2)


def _flip_by_one(
    classifier: nn.Module, x: Tensor, target: Tensor, values: Tensor, rows: Tensor, tau: float
) -> Tensor:
    """Return those of `rows` that some single feature flips."""
    _, width, grid = values.shape
    flipped = [rows[:0]]
    for some in rows.split(max(1, BATCH // (width * grid))):
        z = x[some, None, None].repeat(1, width, grid, 1)  # (r, F, grid, F)
        z.diagonal(dim1=1, dim2=3).copy_(values[some].transpose(1, 2))
        wanted = target[some].repeat_interleave(width * grid)
        hit = _decide_for(classifier, z.flatten(0, 2), wanted, tau)[0]
        flipped.append(some[hit.view(len(some), -1).any(1)])
    return torch.cat(flipped)


def _flips_by_two(
    classifier: nn.Module, row: Tensor, target: Tensor, values: Tensor, tau: float
) -> bool:
    """Whether some pair of features flips `row` (F,); `values` (F, grid).

    Tries every fifth value of all pairs first, then all values, the most promising pairs first.
    """
    width, grid = values.shape
    coarse = torch.tensor(sorted({*range(0, grid, 5), grid - 1}), device=row.device)
    a, b = torch.combinations(torch.arange(width, device=row.device)).T
    free = (values != row[:, None]).any(1)
    a, b = a[free[a] & free[b]], b[free[a] & free[b]]
    best = _score_pairs(classifier, row, target, values[:, coarse], a, b, tau)
    if not best.isinf().any():
        order = best.argsort(descending=True)
        best = _score_pairs(classifier, row, target, values, a[order], b[order], tau)
    return bool(best.isinf().any())


def _score_pairs(
    classifier: nn.Module,
    row: Tensor,
    target: Tensor,
    values: Tensor,
    a: Tensor,
    b: Tensor,
    tau: float,
) -> Tensor:
    """Highest target probability per pair of features (a[j], b[j]), infinite if the pair flips.

    Stops after the first batch that contains a flip.
    """
    if not len(a):
        return row.new_empty(0)
    g, best = values.shape[1], []
    for p, q in zip(*(s.split(max(1, BATCH // g**2)) for s in (a, b)), strict=True):
        each = torch.arange(len(p), device=row.device)
        z = row.repeat(len(p), g, g, 1)  # (pairs, g, g, F)
        z[each, :, :, p] = values[p][:, :, None].expand(-1, g, g)
        z[each, :, :, q] = values[q][:, None, :].expand(-1, g, g)
        decided = _decide_for(classifier, z.flatten(0, 2), target.expand(len(p) * g * g), tau)
        hit, score = (s.view(len(p), -1) for s in decided)
        best.append(torch.where(hit.any(1), torch.inf, score.amax(1)))
        if hit.any():
            break
    return torch.cat(best)


def _decide_for(
    classifier: nn.Module, z: Tensor, target: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Whether the target is decided with at least tau, and its probability, both (N,)."""
    logits = predict(classifier, z, batch_size=BATCH)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return (logits.argmax(1) == target) & (p >= tau), p
