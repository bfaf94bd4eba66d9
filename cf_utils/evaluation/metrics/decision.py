"""Metrics of a decision: whether it flipped, how much changed, and whether other models agree.

Each function returns one value per item unless it says otherwise; report the mean together with n.
Only `validity` uses the explained classifier's own opinion of the counterfactual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, block_index, block_mean
from cf_utils.models.classifiers import majority, predict

MIN_CHANGE = 1e-3  # Gradual Construction, Eq. 9: a smaller difference counts as no change


def validity(cfs: Counterfactuals, reached: bool = False) -> float:
    """Share of items that the classifier assigns to the target class. [0, 1], higher is better.

    `reached`: require the wanted probability tau as well. Blind spot: adversarial noise is valid.
    """
    return (cfs.reached if reached else cfs.valid).float().mean().item()


def mask_failed(values: Tensor, valid: Tensor) -> Tensor:
    """Replace a metric's values by NaN where the search failed.

    Without this, a method that gives up early looks close to the query. Report the nanmean with
    `validity` and n.

    Args: values (B,) of any metric; valid (B,) bool. Returns: (B,) float64.
    """
    return torch.where(valid, values.double(), torch.nan)


def blocks_changed(
    query: Tensor,
    counterfactual: Tensor,
    block: Sequence[int] = (4, 4),
    threshold: float = MIN_CHANGE,
) -> Tensor:
    """L0 over blocks: number of blocks with an element that changed by at least `threshold`.

    Source of the threshold: Gradual Construction, Eq. 9. Lower is sparser. An unmasked block whose
    values did not change does not count.

    Args:
        query, counterfactual: (B, ...), in the data's units.
        block: extents along the trailing dimensions, as in `core.block_index`.

    Returns: (B,) int64.
    """
    index, n = block_index(query.shape[1:], block)
    changed = ((counterfactual - query).abs() >= threshold).to(query.dtype)
    return (block_mean(changed, index, n) > 0).sum(1)


def l1(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Sum of |change| over all elements, in the data's units. (B,) >= 0, lower is closer."""
    return (counterfactual - query).flatten(1).abs().sum(1)


def l2(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Euclidean length of the change, in the data's units. (B,) >= 0, lower is closer.

    Source: Gradual Construction, Eq. 10. Blind spot: adversarial noise has the smallest values.
    """
    return torch.linalg.vector_norm((counterfactual - query).flatten(1), dim=1)


def share_out_of_range(x: Tensor, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
    """Share of elements outside [low, high]. (B,) float64 in [0, 1]; 0 for realisable inputs.

    `low` and `high` are numbers, or tensors that broadcast to one item (a range per feature).
    """
    return ((x < low - 1e-6) | (x > high + 1e-6)).flatten(1).double().mean(1)


def vote(judges: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Majority decision of independent classifiers on images, clamped to the visible range [0, 1].

    Args: judges: map x to logits; x (B, ...). Returns: (B,) int64, -1 where no majority exists.
    """
    return majority(torch.stack([predict(j, x.clamp(0, 1)).argmax(1).cpu() for j in judges]))


def judge_agreement(judges: Sequence[nn.Module], cfs: Counterfactuals) -> dict[str, float | int]:
    """Share of counterfactuals that a majority of independent judges assigns to the target.

    [0, 1], higher is better. Void where the judges misclassify real inputs or follow adversarial
    noise: measure both and report them beside it.

    Returns: `valid`, the share among the reached items; `n`, their number; `all`, the share among
    all items, where failures count 0.
    """
    agree = (vote(judges, cfs.counterfactual) == cfs.target.cpu()) & cfs.reached.cpu()
    n = int(cfs.reached.sum())
    return {
        "valid": agree.sum().item() / n if n else float("nan"),
        "n": n,
        "all": agree.float().mean().item(),
    }


def logit_distance(logits: Tensor, training: Tensor) -> Tensor:
    """Root mean square z-score of logits relative to the training logits of one class.

    Gradual Construction, Fig. 3, as a number. (B,) >= 0; the training logits' own root mean square
    is 1, so values near 1 are typical of the class.

    Args: logits (B, K); training (N, K), logits of the class's training inputs.
    """
    mean, sd = training.mean(0), training.std(0, correction=0)
    return ((logits - mean) / sd).square().mean(1).sqrt()


def paired_difference(
    a: Tensor, b: Tensor, draws: int = 5000, seed: int = 0
) -> dict[str, float | int]:
    """Mean of a - b over the same items, with a 95 % percentile bootstrap interval over items.

    Items where either value is NaN are left out of both.

    Args: a, b (B,) values of one metric; draws: bootstrap samples.
    Returns: mean, low, high and n, the number of items compared.
    """
    d = (a.double() - b.double()).flatten()
    d = d[~d.isnan()]
    if len(d) == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    gen = torch.Generator().manual_seed(seed)
    means = d[torch.randint(len(d), (draws, len(d)), generator=gen)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": d.mean().item(), "low": low, "high": high, "n": len(d)}
