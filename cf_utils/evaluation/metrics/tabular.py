"""Metrics of counterfactuals on tables: how many features, how far, how steadily, and could somebody follow the advice?

Source: Jung et al., Gradual Construction (2022), section 4.4, unless said otherwise. Rows are (B, F), scaled to [0, 1] by the
training data. One value an item. What an item whose search failed scores is its last state's: lay `decision.of_valid` over it
(`coherence` takes `valid` itself). Eq. 10 is `decision.l2`, range is `decision.share_out_of_range`; `decision.l1` sums |change|
and is not what the paper calls L1: that is `features_changed`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.core import Constraints, progress
from cf_utils.evaluation.metrics.decision import blocks_changed
from cf_utils.models.classifiers import predict

LEAST = 1e-3  # a smaller difference is noise (Eq. 9)
BATCH = (
    16384  # rows a forward pass of the brute force: small networks' activations stay in the cache
)


def features_changed(query: Tensor, counterfactual: Tensor) -> Tensor:
    """The paper's L1, Eq. 9: how many features differ by 0.001 or more. (B,) int64, 0 to F, lower is sparser.

    Printed without absolute value and sum, which would count no feature that fell; both are meant (Eq. 11 has them).
    Blind spot: one feature moved to where nobody is counts 1. Beside it: `decision.l2`, `share_out_of_range`.
    """
    _check(query, counterfactual)
    return blocks_changed(query, counterfactual, block=(1,), least=LEAST)


def coherence(
    query: Tensor,
    counterfactual: Tensor,
    decision: Tensor,
    epsilon: int,
    valid: Tensor | None = None,
    summary: str = "max",
) -> Tensor:
    """Eq. 11: how much further apart than two neighbours their counterfactuals are, |cf_i - cf_j| / |x_i - x_j|, at worst.

    Neighbours of i are the items j that differ from it in at most `epsilon` features (by 0.001 or more). The paper prints
    arg max and gives no epsilon; the value of the maximum is meant, and 12 (HELOC) and 5 (UCI) are ours. `summary="median"`
    gives the typical neighbour instead of the worst. Only valid items with the same `decision` (B,) on the query are
    neighbours: others are sent the other way. Exact duplicates, an item itself among them, have no ratio and are left out.

    (B,) float64 >= 0; NaN where an item failed or has no neighbour: print `isfinite().sum()` beside the mean. Lower is
    steadier; a constant shift scores 1, one output for all 0. Blind spots: 0 is bad advice, and twins with different advice
    (a method's own noise) do not show.
    """
    _check(query, counterfactual)
    if summary not in ("max", "median"):
        raise ValueError(f"summary: got {summary!r}, expected 'max' or 'median'")
    if epsilon < 1:
        raise ValueError(f"epsilon: got {epsilon}, expected at least 1 changed feature")
    n, width = query.shape
    valid = torch.ones(n, dtype=torch.bool, device=query.device) if valid is None else valid
    _check_items(n, decision=decision, valid=valid)
    x, cf, out = query.double(), counterfactual.double(), []
    for rows in torch.arange(n, device=x.device).split(max(1, 4_000_000 // (n * width))):
        apart = x[rows, None] - x  # (r, B, F)
        near = (apart.abs() >= LEAST).sum(2) <= epsilon
        apart = torch.linalg.vector_norm(apart, dim=2)
        near &= (apart > 0) & (decision[rows, None] == decision) & valid[rows, None] & valid
        ratio = torch.where(
            near, torch.linalg.vector_norm(cf[rows, None] - cf, dim=2) / apart, torch.nan
        )
        out.append(ratio.nanquantile(1.0 if summary == "max" else 0.5, dim=1))
    return torch.cat(out)


def mad_distance(query: Tensor, counterfactual: Tensor, mad: Tensor) -> Tensor:
    """Wachter et al., Eq. 4: sum of |change| in median absolute deviations of each feature (`core.median_absolute_deviation`
    of the training rows, (F,) > 0). (B,), lower is closer. Blind spot: many small changes cost as much as a large one."""
    _check(query, counterfactual)
    if mad.shape != query.shape[1:] or not (mad > 0).all():
        raise ValueError(
            f"mad: got shape {tuple(mad.shape)}, least {mad.min():.3g}, expected ({query.shape[1]},) positive ones"
        )
    return ((counterfactual - query).abs() / mad).sum(1)


def monotone_violations(
    query: Tensor, counterfactual: Tensor, target: Tensor, sensible: Tensor
) -> Tensor:
    """How many features were changed (by 0.001 or more) against the direction that common sense gives. (B,) int64, 0 is best.

    `sensible` (F,): +1 where a rise speaks for class 1, -1 where a fall does, 0 where sense is silent; for target 0 the signs
    turn. `target` (B,) of 0 and 1. Ours: the paper's Tables 4 and 5 each have one (more inquiries, later payment: loanable).
    Blind spot: it blames the explanation for what the classifier may have learned.
    """
    _check(query, counterfactual)
    _check_items(len(query), target=target)
    if sensible.shape != query.shape[1:] or not ((sensible.abs() == 1) | (sensible == 0)).all():
        raise ValueError(
            f"sensible: got shape {tuple(sensible.shape)}, expected ({query.shape[1]},) of -1, 0 and 1"
        )
    if not ((target == 0) | (target == 1)).all():
        raise ValueError(f"target: values from {target.min()} to {target.max()}, expected 0 or 1")
    change = counterfactual - query
    along = change.sign() * sensible * (2 * target - 1)[:, None]
    return ((along < 0) & (change.abs() >= LEAST)).sum(1)


def plausibility(x: Tensor, target: Tensor, training: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Mean Euclidean distance to the k nearest training rows of the target class. (B,) float64 >= 0, lower is likelier.

    `x` (B, F) are counterfactuals, `training` (N, F) with `labels` (N,). Says nothing alone: stand it beside
    `plausibility_of_real`. Blind spot: an untouched query is as plausible as any person, whatever its class.
    """
    _check_items(len(x), target=target)
    _check_items(len(training), labels=labels)
    if x.ndim != 2 or training.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"training: got shape {tuple(training.shape)} for x {tuple(x.shape)}, expected the same features"
        )
    out = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    for c in target.unique():
        people = training[labels == c]
        if not 1 <= k <= len(people):
            raise ValueError(
                f"k: got {k}, expected 1 to {len(people)}, the training rows of class {int(c)}"
            )
        for rows in (target == c).nonzero().flatten().split(max(1, 8_000_000 // len(people))):
            far = torch.cdist(
                x[rows], people, compute_mode="donot_use_mm_for_euclid_dist"
            )  # the other way loses small ones
            out[rows] = far.topk(k, largest=False).values.double().mean(1)
    return out


def plausibility_of_real(
    target: Tensor, real: Tensor, real_labels: Tensor, training: Tensor, labels: Tensor, k: int = 5
) -> Tensor:
    """What `plausibility` is for real held-out rows `real` of each item's target class, on average. (B,) float64.

    `real` must not be in `training`: a row is at distance 0 from itself."""
    out = torch.empty(len(target), dtype=torch.float64, device=target.device)
    for c in target.unique():
        mine = real_labels == c
        if not mine.any():
            raise ValueError(
                f"real_labels: no row of class {int(c)}, expected some of every target"
            )
        out[target == c] = (
            plausibility(real[mine], real_labels[mine], training, labels, k).mean().to(out.device)
        )
    return out


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
    """How few features must change for the target to be decided with probability `tau` or more, by brute force.

    Each feature takes `grid` values from `low` to `high` (scalars, or (F,): the training range), brought to where
    `constraints` allow. (B,) int64: 0 already there, 1 or 2, 3 for more than 2; -1 (unknown) for rows that no single feature
    flips beyond the first `pairs` of them. Exact on the grid; between its points, or out of range, fewer may do.

    A pair costs grid^2 passes, so every pair is tried on each fifth value first, and then whole pairs, the most promising
    first, until one flips: the values of the first round are on the grid too, so nothing is lost.
    """
    _check_items(len(x), target=target)
    if grid < 2:
        raise ValueError(f"grid: got {grid}, expected at least 2 values")
    n, width = x.shape
    low, high = (
        torch.as_tensor(b, dtype=x.dtype, device=x.device).expand(width) for b in (low, high)
    )
    values = torch.lerp(
        low[:, None], high[:, None], torch.linspace(0, 1, grid, dtype=x.dtype, device=x.device)
    )  # (F, G)
    values = values.expand(n, width, grid)
    if constraints is not None:
        values = torch.stack([constraints.snap(v, x) for v in values.unbind(2)], 2)
    least = torch.where(_flips(classifier, x, target, tau)[0], 0, -1)
    for rows in (least < 0).nonzero().flatten().split(max(1, BATCH // (width * grid))):
        z = x[rows, None, None].repeat(1, width, grid, 1)  # (r, F, G, F)
        z.diagonal(dim1=1, dim2=3).copy_(values[rows].transpose(1, 2))
        hit = _flips(
            classifier, z.flatten(0, 2), target[rows].repeat_interleave(width * grid), tau
        )[0]
        least[rows[hit.view(len(rows), -1).any(1)]] = 1
    coarse = torch.tensor(sorted({*range(0, grid, 5), grid - 1}), device=x.device)
    for i in progress((least < 0).nonzero().flatten()[:pairs].tolist(), desc="pairs", leave=False):
        a, b = torch.combinations(torch.arange(width, device=x.device)).T
        free = (values[i] != x[i, :, None]).any(1)
        a, b = a[free[a] & free[b]], b[free[a] & free[b]]
        best = _pairs(classifier, x[i], target[i], values[i][:, coarse], a, b, tau)
        if not best.isinf().any():
            order = best.argsort(descending=True)
            best = _pairs(classifier, x[i], target[i], values[i], a[order], b[order], tau)
        least[i] = 2 if best.isinf().any() else 3
    return least


def l1_excess(changed: Tensor, least: Tensor) -> Tensor:
    """`features_changed` minus the least that flips the row, from `least_features`. (B,) float64, 0 is best; NaN where the
    least is not known (-1) or only known to be more than 2. Below 0 where a method found a value off the grid or its range."""
    known = (least >= 0) & (least <= 2)
    return torch.where(known, (changed - least).double(), torch.nan)


def _pairs(
    classifier: nn.Module,
    row: Tensor,
    target: Tensor,
    values: Tensor,
    a: Tensor,
    b: Tensor,
    tau: float,
) -> Tensor:
    """Highest target probability of each pair of features (a[j], b[j]) over the values (F, g) of both; infinite for one that
    flips `row` (F,), after whose batch the rest is left out."""
    if not len(a):
        return row.new_empty(0)
    g, best = values.shape[1], []
    for p, q in zip(*(s.split(max(1, BATCH // g**2)) for s in (a, b)), strict=True):
        each = torch.arange(len(p), device=row.device)
        z = row.repeat(len(p), g, g, 1)  # (pairs, g, g, F)
        z[each, :, :, p] = values[p][:, :, None].expand(-1, g, g)
        z[each, :, :, q] = values[q][:, None, :].expand(-1, g, g)
        hit, score = (
            s.view(len(p), -1)
            for s in _flips(classifier, z.flatten(0, 2), target.expand(len(p) * g * g), tau)
        )
        best.append(torch.where(hit.any(1), torch.inf, score.amax(1)))
        if hit.any():
            break
    return torch.cat(best)


def _flips(classifier: nn.Module, z: Tensor, target: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Is the target decided with at least tau, and the target's probability: both (N,)."""
    logits = predict(classifier, z, batch_size=BATCH)
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return (logits.argmax(1) == target) & (p >= tau), p


def _check(query: Tensor, counterfactual: Tensor) -> None:
    if query.ndim != 2 or query.shape != counterfactual.shape:
        raise ValueError(
            f"query, counterfactual: got shapes {tuple(query.shape)} and {tuple(counterfactual.shape)}, "
            "expected the same (B, F)"
        )


def _check_items(n: int, **tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.shape != (n,):
            raise ValueError(f"{name}: got shape {tuple(t.shape)}, expected ({n},), one an item")
