"""Metrics of counterfactuals on tables: sparsity, distance, stability and plausibility.

Source: Jung et al., Gradual Construction (2022), section 4.4, unless a docstring says otherwise.
Rows are (B, F), scaled to [0, 1] by the training data. Each function returns one value per item.
A failed search is measured at its last state: apply `decision.mask_failed` (`coherence` takes
`valid` itself). The paper's Eq. 10 is `decision.l2`; its L1 is `features_changed`, not
`decision.l1`, which sums |change|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.evaluation.metrics.decision import MIN_CHANGE, blocks_changed


def features_changed(query: Tensor, counterfactual: Tensor) -> Tensor:
    """The paper's L1, Eq. 9: number of features that changed by at least `MIN_CHANGE`.

    0 to F, lower is sparser. Deviation: Eq. 9 is printed without absolute value and sum, which
    would miss features that fall; Eq. 11 has both. Blind spot: one feature moved to an absurd value
    counts 1; report `decision.l2` and `decision.share_out_of_range` beside it.

    Args: query, counterfactual (B, F). Returns: (B,) int64.
    """
    _check_rows(query, counterfactual)
    return blocks_changed(query, counterfactual, block=(1,), threshold=MIN_CHANGE)


def coherence(
    query: Tensor,
    counterfactual: Tensor,
    decision: Tensor,
    epsilon: int,
    valid: Tensor | None = None,
    summary: str = "max",
) -> Tensor:
    """Eq. 11: |cf_i - cf_j| / |x_i - x_j|, the maximum over the neighbours j of item i.

    >= 0, lower is more stable; a constant shift scores 1, one output for all items scores 0.
    Neighbours differ in at most `epsilon` features (by `MIN_CHANGE` or more), are valid and have
    the same decision. Exact duplicates are left out, because their ratio is undefined.
    Deviation: the paper prints arg max and gives no epsilon; the maximum is meant.
    Blind spots: the same advice for everybody scores 0, and duplicates with different advice are
    not counted.

    Args:
        query, counterfactual: (B, F).
        decision: (B,), the classifier's on the query.
        epsilon: features in which neighbours may differ, >= 1.
        valid: (B,) bool, default all.
        summary: "max", or "median" for the typical neighbour.

    Returns: (B,) float64, NaN where an item failed or has no neighbour; report isfinite().sum().
    """
    _check_rows(query, counterfactual)
    if summary not in ("max", "median"):
        raise ValueError(f"summary: got {summary!r}, expected 'max' or 'median'")
    if epsilon < 1:
        raise ValueError(f"epsilon: got {epsilon}, expected at least 1 changed feature")
    n, width = query.shape
    valid = torch.ones(n, dtype=torch.bool, device=query.device) if valid is None else valid
    check_per_item(n, decision=decision, valid=valid)
    x, cf, parts = query.double(), counterfactual.double(), []
    quantile = 1.0 if summary == "max" else 0.5
    for rows in torch.arange(n, device=x.device).split(max(1, 4_000_000 // (n * width))):
        difference = x[rows, None] - x  # (r, B, F)
        near = (difference.abs() >= MIN_CHANGE).sum(2) <= epsilon
        distance = torch.linalg.vector_norm(difference, dim=2)
        near &= (distance > 0) & (decision[rows, None] == decision) & valid[rows, None] & valid
        cf_distance = torch.linalg.vector_norm(cf[rows, None] - cf, dim=2)
        ratio = torch.where(near, cf_distance / distance, torch.nan)
        parts.append(ratio.nanquantile(quantile, dim=1))
    return torch.cat(parts)


def mad_distance(query: Tensor, counterfactual: Tensor, mad: Tensor) -> Tensor:
    """Sum of |change| per feature in units of its median absolute deviation. Lower is closer.

    Source: Wachter et al. (2017), Eq. 4. Blind spot: many small changes cost as much as a large
    one.

    Args: query, counterfactual (B, F); mad (F,) > 0, `core.median_absolute_deviation` of training
    rows. Returns: (B,) >= 0.
    """
    _check_rows(query, counterfactual)
    if mad.shape != query.shape[1:] or not (mad > 0).all():
        raise ValueError(
            f"mad: got shape {tuple(mad.shape)}, least {mad.min():.3g}, "
            f"expected ({query.shape[1]},) positive values"
        )
    return ((counterfactual - query).abs() / mad).sum(1)


def monotone_violations(
    query: Tensor, counterfactual: Tensor, target: Tensor, sensible: Tensor
) -> Tensor:
    """Number of features changed against the direction of common sense. 0 to F, lower is better.

    Ours; the paper's Tables 4 and 5 each contain one such change. Blind spot: it blames the
    explanation for what the classifier may have learned.

    Args:
        query, counterfactual: (B, F); changes below `MIN_CHANGE` do not count.
        target: (B,) of 0 and 1.
        sensible: (F,), +1 if a rise speaks for class 1, -1 if a fall does, 0 if neither. The signs
            are reversed for target 0.

    Returns: (B,) int64.
    """
    _check_rows(query, counterfactual)
    check_per_item(len(query), target=target)
    if sensible.shape != query.shape[1:] or not ((sensible.abs() == 1) | (sensible == 0)).all():
        raise ValueError(
            f"sensible: got shape {tuple(sensible.shape)}, "
            f"expected ({query.shape[1]},) of -1, 0 and 1"
        )
    if not ((target == 0) | (target == 1)).all():
        raise ValueError(f"target: values from {target.min()} to {target.max()}, expected 0 or 1")
    change = counterfactual - query
    along = change.sign() * sensible * (2 * target - 1)[:, None]
    return ((along < 0) & (change.abs() >= MIN_CHANGE)).sum(1)


def plausibility(x: Tensor, target: Tensor, training: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Mean Euclidean distance to the k nearest training rows of the target class. Lower is better.

    Report `plausibility_of_real` beside it. Blind spot: an unchanged query is as plausible as any
    real row, whatever its class.

    Args:
        x: counterfactuals (B, F).
        target: (B,) int64.
        training, labels: (N, F) and (N,).
        k: neighbours, 1 to the number of training rows of the class.

    Returns: (B,) float64 >= 0.
    """
    check_per_item(len(x), target=target)
    check_per_item(len(training), labels=labels)
    if x.ndim != 2 or training.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"training: got shape {tuple(training.shape)} for x {tuple(x.shape)}, "
            "expected the same features"
        )
    out = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    for c in target.unique():
        reference = training[labels == c]
        if not 1 <= k <= len(reference):
            raise ValueError(
                f"k: got {k}, expected 1 to {len(reference)}, the training rows of class {int(c)}"
            )
        for rows in (target == c).nonzero().flatten().split(max(1, 8_000_000 // len(reference))):
            # matrix products would lose small distances
            distance = torch.cdist(x[rows], reference, compute_mode="donot_use_mm_for_euclid_dist")
            out[rows] = distance.topk(k, largest=False).values.double().mean(1)
    return out


def plausibility_of_real(
    target: Tensor, real: Tensor, real_labels: Tensor, training: Tensor, labels: Tensor, k: int = 5
) -> Tensor:
    """Mean `plausibility` of held-out real rows of each item's target class, the reference value.

    Args: target (B,); real (M, F) and real_labels (M,), not part of `training`, because a row is at
    distance 0 from itself; the rest as in `plausibility`. Returns: (B,) float64 >= 0.
    """
    out = torch.empty(len(target), dtype=torch.float64, device=target.device)
    for c in target.unique():
        of_class = real_labels == c
        if not of_class.any():
            raise ValueError(
                f"real_labels: got no row of class {int(c)}, expected rows of every target class"
            )
        values = plausibility(real[of_class], real_labels[of_class], training, labels, k)
        out[target == c] = values.mean().to(out.device)
    return out


def _check_rows(query: Tensor, counterfactual: Tensor) -> None:
    if query.ndim != 2 or query.shape != counterfactual.shape:
        raise ValueError(
            f"query, counterfactual: got shapes {tuple(query.shape)} and "
            f"{tuple(counterfactual.shape)}, expected the same (B, F)"
        )


def check_per_item(n: int, **tensors: Tensor) -> None:
    """Raise ValueError, naming the argument, unless each tensor has shape (n,)."""
    for name, t in tensors.items():
        if t.shape != (n,):
            raise ValueError(
                f"{name}: got shape {tuple(t.shape)}, expected ({n},), one value per item"
            )
