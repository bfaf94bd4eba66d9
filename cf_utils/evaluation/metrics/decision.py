"""Metrics of one decision: did it flip, how much changed, and would somebody else agree?

One value an item unless the name says otherwise; the caller averages and states n. Nothing here asks the explained
classifier whether its own counterfactual is good, except `validity`, which is only that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, block_index, block_mean
from cf_utils.models.classifiers import majority, predict


def validity(cfs: Counterfactuals, reached: bool = False) -> float:
    """Share of items whose decision is the target (`reached`: with a probability of at least tau). [0, 1], higher is better.

    Blind spot: adversarial noise is perfectly valid.
    """
    return (cfs.reached if reached else cfs.valid).float().mean().item()


def of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """`values` (B,) of any metric as float64, NaN where the search failed, so that no method looks close by giving up.

    Report its nanmean with `validity` and n beside it.
    """
    return torch.where(valid, values.double(), torch.nan)


def blocks_changed(
    query: Tensor, counterfactual: Tensor, block: Sequence[int] = (4, 4), least: float = 1e-3
) -> Tensor:
    """L0 over blocks: how many blocks hold an element that moved by at least `least`. (B,) int64, lower is sparser.

    The threshold is that of Gradual Construction, Eq. 9. An unmasked block whose values came out as they were does not count.
    """
    index, n = block_index(query.shape[1:], block)
    moved = ((counterfactual - query).abs() >= least).to(query.dtype)
    return (block_mean(moved, index, n) > 0).sum(1)


def l1(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Sum of |change| over all elements, in the data's units. (B,), lower is closer."""
    return (counterfactual - query).flatten(1).abs().sum(1)


def l2(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Euclidean length of the change (Gradual Construction, Eq. 10). (B,), lower is closer. Smallest for adversarial noise."""
    return torch.linalg.vector_norm((counterfactual - query).flatten(1), dim=1)


def share_out_of_range(x: Tensor, low: float | Tensor = 0.0, high: float | Tensor = 1.0) -> Tensor:
    """Share of elements outside [low, high]. (B,), 0 for what can exist. A plot with vmin and vmax hides it.

    `low` and `high` may be tensors that broadcast to an item, such as each feature's training range.
    """
    return ((x < low - 1e-6) | (x > high + 1e-6)).flatten(1).double().mean(1)


def judged(judges: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Majority decision of judges on what a reader would see (x clamped to [0, 1]); -1 without a majority. (B,) int64."""
    return majority(torch.stack([predict(j, x.clamp(0, 1)).argmax(1).cpu() for j in judges]))


def judge_agreement(judges: Sequence[nn.Module], cfs: Counterfactuals) -> dict[str, float | int]:
    """Does the counterfactual look like the target to somebody else than the explained classifier? [0, 1], higher is better.

    Returns `valid`: share of the reached items that the majority of judges calls the target, and their `n`; `all`: the same
    over all items, failures counting 0, so no method looks good by giving up. Void where the judges do not know real inputs
    or follow adversarial noise: measure both beside it.
    """
    agree = (judged(judges, cfs.counterfactual) == cfs.target.cpu()) & cfs.reached.cpu()
    n = int(cfs.reached.sum())
    return {
        "valid": agree.sum().item() / n if n else float("nan"),
        "n": n,
        "all": agree.float().mean().item(),
    }


def logit_distance(logits: Tensor, training: Tensor) -> Tensor:
    """How far logits (B, K) lie from a class's training logits (N, K): root mean square of their z-scores. (B,)

    1 is where training inputs are themselves (their root mean square is exactly 1). Gradual Construction, Fig. 3, as a number.
    """
    mean, sd = training.mean(0), training.std(0, correction=0)
    return ((logits - mean) / sd).square().mean(1).sqrt()


def paired_difference(
    a: Tensor, b: Tensor, draws: int = 5000, seed: int = 0
) -> dict[str, float | int]:
    """Mean of a - b over the same items, with a 95 % percentile bootstrap interval over items. Keys mean, low, high, n.

    Items on which either is NaN (a failed search, no neighbour, no word found) are left out of both; n says how many stay.
    """
    d = (a.double() - b.double()).flatten()
    d = d[~d.isnan()]
    if len(d) == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    gen = torch.Generator().manual_seed(seed)
    means = d[torch.randint(len(d), (draws, len(d)), generator=gen)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": d.mean().item(), "low": low, "high": high, "n": len(d)}
