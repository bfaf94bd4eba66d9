"""Counterfactual digits: tables of methods and of thresholds, with independent judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics import decision

Results = Mapping[str, Counterfactuals]


def judge(judges: Sequence[nn.Module], results: Results) -> dict[str, Tensor]:
    """Return for each method whether most judges see the target, bool (B,)."""
    return {k: decision.vote(judges, c.counterfactual) == c.target for k, c in results.items()}


def compare(results: Results, agrees: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return one row per method; lengths are over items that reached tau, in units of [0, 1].

    "judges (reached)" is the share of reached items in which most judges see the target; in
    "judges (all)" an item that was not reached counts as 0.
    """
    return pd.DataFrame({k: _describe(c, agrees[k]) for k, c in results.items()}).T


def _describe(cfs: Counterfactuals, agree: Tensor) -> dict[str, float]:
    ok = cfs.reached
    query, cf = cfs.query[ok], cfs.counterfactual[ok]
    return {
        "n": len(cfs),
        "valid": decision.validity(cfs),
        "reached": decision.validity(cfs, reached=True),
        "n reached": int(ok.sum()),
        "judges (reached)": agree[ok].float().mean().item(),
        "judges (all)": (agree & ok).float().mean().item(),
        "blocks": decision.blocks_changed(query, cf).float().mean().item(),
        "L1": decision.l1(query, cf).mean().item(),
        "L2": decision.l2(query, cf).mean().item(),
        "TV": core.total_variation(cf).mean().item(),
        "out of range": decision.share_out_of_range(cf).mean().item(),
        "passes": cfs.n_forward.float().mean().item(),
        "backward": cfs.n_backward.float().mean().item(),
    }


def subtract_agreement(
    results: Results, agrees: Mapping[str, Tensor], first: str, others: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the paired difference of the judges' agreement, `first` minus each of `others`.

    Only items that both methods reached count.
    """
    out = {}
    for k in others:
        both = results[first].reached & results[k].reached
        ours, theirs = agrees[first][both].float(), agrees[k][both].float()
        out[k] = dict(decision.paired_difference(ours, theirs))
    return out


def name_metrics(table: pd.DataFrame, key: str, suffix: str = "") -> dict[str, float]:
    """Return the row `key` of `compare` under the names of metrics.json."""
    (line,) = table.loc[[key]].to_dict("records")
    named: dict[str, float] = {
        "validity": line["reached"],
        "judge_agreement": line["judges (reached)"],
        "judge_n": int(line["n reached"]),
        "judge_agreement_all": line["judges (all)"],
        "blocks_mean": line["blocks"],
    }
    if suffix:  # the first method's n is the notebook's
        named["n"] = int(line["n"])
    return {name + suffix: value for name, value in named.items()}


def follow_tau(
    per_tau: Mapping[float, Counterfactuals], judges: Sequence[nn.Module]
) -> pd.DataFrame:
    """Return one row per tau: share reached, the judges' agreement, blocks of the reached items."""
    rows = []
    for tau, cfs in per_tau.items():
        agree = decision.judge_agreement(judges, cfs)
        there = cfs.select(cfs.reached)
        blocks = decision.blocks_changed(there.query, there.counterfactual).float().mean().item()
        reached = decision.validity(cfs, reached=True)
        rows.append((tau, reached, agree["valid"], agree["n"], agree["all"], blocks))
    columns = ["tau", "reached", "judges (reached)", "n", "judges (all)", "blocks"]
    return pd.DataFrame(rows, columns=columns)
