"""Advice to applicants: metrics of counterfactual rows of a table, and pairs of neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Constraints, Counterfactuals
from cf_utils.datasets.tabular import Table
from cf_utils.evaluation.metrics import brute_force, decision, tabular

OFFICIAL = ("uci_credit", "heloc")  # tables of the paper's Table 6


def mark_changes(cfs: Counterfactuals) -> Tensor:
    """Return which values changed by the least change that counts, bool (B, F)."""
    return (cfs.counterfactual - cfs.query).abs() >= decision.MIN_CHANGE


def keep_changed(cfs: Counterfactuals) -> Tensor:
    """Return the counterfactual's changed values, and 0 (inside the range) elsewhere, (B, F)."""
    return torch.where(mark_changes(cfs), cfs.counterfactual, 0)


def measure(
    cfs: Counterfactuals,
    table: Table,
    limits: Constraints,
    epsilon: int,
    mad: Tensor,
    least: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the metrics of one method per row, (B,) each; NaN where the search failed.

    Args:
        cfs: result on rows of `table`.
        table: training rows.
        limits: constraints of values that occur.
        epsilon: neighbours differ in at most so many features.
        mad: median absolute deviation per feature (F,).
        least: the least number of features that must change per row, see `brute_force`.

    `share_out_of_range` and `can_be` are 0 or more for failed rows, too.
    """
    query, cf, target = cfs.query, cfs.counterfactual, cfs.target
    changed = tabular.features_changed(query, cf)
    values = {
        "l1": changed,
        "l2": decision.l2(query, cf),
        "monotone_violations": tabular.monotone_violations(query, cf, target, table.sensible),
        "mad_distance": tabular.mad_distance(query, cf, mad),
        "plausibility": tabular.plausibility(cf, target, table.x, table.y),
    }
    values = {k: decision.mask_failed(v, cfs.valid) for k, v in values.items()}
    for name, summary in (("coherence", "max"), ("coherence_median", "median")):
        values[name] = tabular.coherence(query, cf, cfs.source, epsilon, cfs.valid, summary)
    values["share_out_of_range"] = decision.share_out_of_range(keep_changed(cfs))
    values["can_be"] = (limits.allows(cf, query) & cfs.valid).double()
    if least is not None:
        excess = brute_force.l1_excess(changed, least)
        values["l1_excess"] = decision.mask_failed(excess, cfs.valid)
    return values


def summarise(cfs: Counterfactuals, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return means over rows of what `measure` gave, and n where it is not the number of rows."""
    line = {
        "validity": decision.validity(cfs),
        "share_out_of_range": values["share_out_of_range"].mean().item(),
        "rows_out_of_range": (values["share_out_of_range"] > 0).double().mean().item(),
        "can_be": values["can_be"].mean().item(),
        "coherence_n": int(values["coherence"].isfinite().sum()),
        "coherence_median": values["coherence_median"].nanmedian().item(),
        "seconds_item": cfs.seconds.mean().item(),
    }
    for name in ("monotone_violations", "mad_distance", "plausibility"):
        line[name] = values[name].nanmean().item()
    if "l1_excess" in values:
        line["l1_excess_mean"] = values["l1_excess"].nanmean().item()
        line["l1_excess_n"] = int(values["l1_excess"].isfinite().sum())
    for name in ("l1", "l2", "coherence"):
        finite = values[name][values[name].isfinite()].double()
        line[f"{name}_mean"] = finite.mean().item()
        line[f"{name}_sd"] = finite.std().item() if len(finite) > 1 else float("nan")
    return line


def list_impossible(cfs: Counterfactuals, table: Table, n: int = 8) -> pd.DataFrame:
    """Return the n rows whose advice lies furthest from the range, one value each, in units."""
    away = (keep_changed(cfs) - 0.5).abs()
    rows = away.max(1).values.argsort(descending=True)[:n].tolist()
    has, told = table.to_units(cfs.query), table.to_units(cfs.counterfactual)
    lines = []
    for i in rows:
        k = int(away[i].argmax())
        limits = table.low[k].item(), table.high[k].item()
        name = table.features[k]
        lines.append((cfs.ids[i].item(), name, has.iloc[i, k], told.iloc[i, k], *limits))
    columns = ["row", "feature", "has", "is advised", "smallest", "largest"]
    return pd.DataFrame(lines, columns=columns)


def count_directions(cfs: Counterfactuals, table: Table) -> pd.DataFrame:
    """Return the share of rows per feature that rise and that fall, for either direction of advice.

    Index: features. Columns: (direction, "rises" or "falls"), over the valid rows of a direction.
    """
    moved = (cfs.counterfactual - cfs.query) * mark_changes(cfs)
    ways = {"refused → approved": cfs.source == 0, "approved → refused": cfs.source == 1}
    share = {
        (way, side): ((sign * moved[rows & cfs.valid]) > 0).double().mean(0).tolist()
        for way, rows in ways.items()
        for side, sign in (("rises", 1), ("falls", -1))
    }
    return pd.DataFrame(share, index=list(table.features))


def change_rates(results: Mapping[str, Counterfactuals], table: Table) -> pd.DataFrame:
    """Return the share of valid rows per feature (index) that each method (column) changes."""
    shares = {k: mark_changes(c)[c.valid].double().mean(0).tolist() for k, c in results.items()}
    return pd.DataFrame(shares, index=list(table.features))


def ratio_of_pair(cfs: Counterfactuals, i: int, j: int) -> float:
    """Return the distance of two answers over the distance of their queries, Eq. 11's ratio."""
    apart = (cfs.query[i] - cfs.query[j]).norm()
    return ((cfs.counterfactual[i] - cfs.counterfactual[j]).norm() / apart).item()


def worst_pair(
    cfs: Counterfactuals, results: Mapping[str, Counterfactuals], epsilon: int
) -> tuple[int, int]:
    """Return the two neighbours with the largest ratio among those that all `results` explain.

    Neighbours are decided alike and differ in at most `epsilon` features.
    """
    query, source = cfs.query, cfs.source
    ok = torch.stack([other.valid for other in results.values()]).all(0)
    apart = torch.cdist(query.double(), query.double())
    differ = torch.stack([((x - query).abs() >= decision.MIN_CHANGE).sum(1) for x in query])
    may = (differ <= epsilon) & (apart > 0) & (source[:, None] == source) & ok[:, None] & ok
    answers = cfs.counterfactual.double()
    ratio = torch.where(may, torch.cdist(answers, answers) / apart, -1)
    i, j = divmod(int(ratio.argmax()), len(query))
    return i, j


def name_for_paper(
    lines: Mapping[str, Mapping[str, float]], table: str, accuracy: float
) -> dict[str, float]:
    """Return the means that stand beside the paper's Table 6, named by method and data set.

    Args:
        lines: method -> `summarise`.
        table: name of an official data set; for any other table there are no numbers to return.
        accuracy: of the classifier, in [0, 1].
    """
    if table not in OFFICIAL:
        return {}
    means = ("l1_mean", "l2_mean", "coherence_mean")
    named = {f"{key}_{k}_{table}": line[key] for k, line in lines.items() for key in means}
    return named | {f"classifier_accuracy_percent_{table}": 100 * accuracy}
