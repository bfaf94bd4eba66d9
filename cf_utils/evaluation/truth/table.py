"""One table of what the renderer can prove about explanations: one row per method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics.decision import paired_difference
from cf_utils.evaluation.truth import displacement as moves
from cf_utils.evaluation.truth import true_counterfactuals
from cf_utils.evaluation.truth.displacement import Displacement, Oracle, Uses
from cf_utils.evaluation.truth.true_counterfactuals import TrueSet
from cf_utils.worlds import Factors


def truth_table(
    found: Mapping[str, Counterfactuals],
    factors: Factors,
    classifier: nn.Module,
    uses: Uses,
    oracle: Oracle,
    *,
    readable: tuple[str, ...] | None = None,
    zero_edits: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """Compare explanations of the same renders with what is known about them.

    All methods share one threshold for "moved": per column, the largest null of the oracle and of
    the methods' zero edits. Columns:

    * n, validity, score: explained items, share that flips, mean probability of the target.
    * semantic_validity, semantic_validity_used: see `displacement.semantic_validity`; the second
      displaces only the factors that the classifier uses.
    * used_factor_moved, unused_factor_moved: shares; the second is better if lower.
    * unused_factor_moved_zero_edit: the same of the method's own zero edit, a lower bound.
    * true_gain: see `true_counterfactuals.true_gain`.
    * overshoot: median of the displacement in the factor of the nearest true counterfactual,
      divided by that counterfactual's displacement; 1 is exact.
    * unreadable: share of readings without a verdict.

    Args:
        found: method -> explanations of the same queries, in one order.
        factors: rows that rendered the queries.
        uses: `quality.uses` of the classifier's model card.
        readable: factors that the oracle reads reliably; the verdict on unused factors considers no
            others. None: all.
        zero_edits: method -> images of its zero edit, (B, C, H, W).
    """
    quiet = uses if readable is None else {k: v for k, v in uses.items() if k in readable}
    used, rows, zero_edits = moves.used_factors(uses), {}, zero_edits or {}
    null = common_null(oracle, next(iter(found.values())).query, zero_edits)
    for name, cfs in found.items():
        read = moves.measure(cfs, oracle, null)
        members = true_counterfactuals.find(cfs, factors, classifier, uses)
        valid = {
            only: moves.semantic_validity(cfs, factors, classifier, read, only).nanmean().item()
            for only in (None, used)
        }
        explained = ~read.undefined.cpu()
        rows[name] = {
            "n": int(explained.sum()),
            "validity": cfs.valid[explained].double().mean().item(),
            "score": cfs.score[explained].double().mean().item(),
            "semantic_validity": valid[None],
            "semantic_validity_used": valid[used],
            "used_factor_moved": moves.used_factor_moved(read, uses).nanmean().item(),
            "unused_factor_moved": moves.unused_factor_moved(read, quiet).nanmean().item(),
            "unused_factor_moved_zero_edit": _unused_by_zero_edit(
                cfs, zero_edits.get(name), oracle, null, quiet
            ),
            "true_gain": true_counterfactuals.true_gain(cfs, members).nanmean().item(),
            "overshoot": overshoot(cfs, read, members, factors).nanmedian().item(),
            "unreadable": moves.unreadable_share(read).mean().item(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def compare_validity(
    found: Mapping[str, Counterfactuals],
    factors: Factors,
    classifier: nn.Module,
    uses: Uses,
    oracle: Oracle,
    *,
    zero_edits: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how far the first method's `semantic_validity_used` is ahead of each method's.

    Columns: ahead (first minus method, over the same items), and low, high, its 95 % interval from
    a paired bootstrap. The arguments are those of `truth_table`; seed: of the bootstrap.
    """
    null = common_null(oracle, next(iter(found.values())).query, zero_edits or {})
    used, items, rows = moves.used_factors(uses), [], {}
    for name, cfs in found.items():
        read = moves.measure(cfs, oracle, null)
        items.append(moves.semantic_validity(cfs, factors, classifier, read, used))
        gap = paired_difference(items[0], items[-1], seed=seed)
        rows[name] = {"ahead": gap["mean"], "low": gap["low"], "high": gap["high"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def common_null(oracle: Oracle, query: Tensor, zero_edits: Mapping[str, Tensor]) -> Tensor:
    """Return the largest null standard deviation of the oracle and of all zero edits, (K,)."""
    null = oracle.null
    for unedited in zero_edits.values():
        null = torch.maximum(null, moves.null_sd(oracle, query, unedited).to(null))
    return null


def _unused_by_zero_edit(
    cfs: Counterfactuals, unedited: Tensor | None, oracle: Oracle, null: Tensor, uses: Uses
) -> float:
    """Share of the unused factors that a zero edit moves; NaN without one."""
    if unedited is None:
        return float("nan")
    read = moves.measure(dataclasses.replace(cfs, counterfactual=unedited), oracle, null)
    return moves.unused_factor_moved(read, uses).nanmean().item()


def overshoot(
    cfs: Counterfactuals, read: Displacement, members: TrueSet, factors: Factors
) -> Tensor:
    """Displacement in the nearest true counterfactual's factor, relative to its own. (B,) float64.

    1 is exact, 0 is no move, negative values point the wrong way. NaN where an item has no true
    counterfactual or the factor has no column of its own.
    """
    out = torch.full((len(cfs),), torch.nan, dtype=torch.float64)
    if not len(members):
        return out
    nearest = true_counterfactuals.euclidean_distance(
        cfs.counterfactual[members.item], members.image
    ).cpu()
    best = (nearest == members.minimum(nearest)[members.item]).nonzero().flatten().tolist()
    for m in best:
        item, name = int(members.item[m]), members.factor[m]
        if name in read.names:
            true = members.value[m] - factors[name][item]
            made = read.value[item, read.names.index(name)].cpu()
            out[item] = (made / true).double() if true else torch.nan
    return out
