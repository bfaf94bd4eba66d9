"""What a notebook says of its paper: the paper's statement, our result, and whether it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cf_utils.harness import folders, results
from cf_utils.harness.story import to_words

OUTCOMES = {
    "holds": "yes",
    "done": "yes",
    "partly": "partly",
    "nearly": "partly",
    "not found": "no",
    "open": "open",
}
UNITS = {
    r"percent|accuracy_%": "%",
    r"second": "s",
    r"block": "blocks",
    r"words? changed|changed words": "words",
    r"share|rate|validity|agreement|accuracy|judges? (follow|see|read)": "share",
}


@dataclass(frozen=True)
class Verdict:
    """One line: what the paper says and what we found. Values are texts; n is None if unknown."""

    statement: str
    paper: str
    ours: str
    unit: str
    n: int | None
    holds: str


def list_verdicts(
    name: str, metrics: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]
) -> list[Verdict]:
    """Return the paper's claims that a notebook tests, then its figures that the run measures."""
    values = {claim["name"]: claim["value"] for claim in claims}
    rows = [_of_claim(row, values, metrics) for row in _read("claims", name)]
    beside = _reported_beside(name)
    return rows + [
        _of_figure(row, metrics) for row in beside if metrics.get(row["key"]) is not None
    ]


def list_unmeasured(name: str, metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Return the paper's figures that stand beside this notebook's but that the run has not."""
    rows = [row for row in _reported_beside(name) if metrics.get(row["key"]) is None]
    shown = [
        {
            "figure": _name_figure(row),
            "paper": _format_reported(row),
            "unit": unit_of(row["metric"]),
        }
        for row in rows
    ]
    return pd.DataFrame(shown)


def unit_of(text: str) -> str:
    """Return the unit that the name of a metric or claim tells; '' for ratios and others."""
    if re.search(r" over | / | minus |cosine|correlation", text):
        return ""
    return next((unit for pattern, unit in UNITS.items() if re.search(pattern, text)), "")


def count_items(key: str, metrics: Mapping[str, Any]) -> int | None:
    """Return how many items a metric stands on, if another metric counts them; else None.

    `a_b_c` is counted by `a_b_c_n`, `a_b_n` or `a_n`, or by `n_b_c` or `n_c`.
    """
    words = key.split("_")
    names = ["_".join([*words[:k], "n"]) for k in range(len(words), 0, -1)]
    names += ["_".join(["n", *words[k:]]) for k in range(1, len(words))]
    found = next((metrics[name] for name in names if metrics.get(name) is not None), None)
    return None if found is None else int(found)


def format_number(value: float | None) -> str:
    """Return a number with at most four digits; '' for None."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _of_claim(
    row: Mapping[str, str], values: Mapping[str, float | None], metrics: Mapping[str, Any]
) -> Verdict:
    known = next(
        (v for k, v in OUTCOMES.items() if row["outcome"].lower().startswith(k)), "measured"
    )
    value = values.get(row["cell"])
    ours = "" if value is None else f"{format_number(value)}; "
    unit = "" if value is None else unit_of(row["cell"])
    key = next((k for k, v in metrics.items() if value not in (None, 0, 1) and v == value), None)
    n = None if key is None else count_items(key, metrics)
    where = re.sub(r"^section", "Section", row["where"])
    return Verdict(row["claim"], where, ours + row["outcome"], unit, n, known)


def _of_figure(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> Verdict:
    key, ours = row["key"], metrics[row["key"]]
    n = count_items(key, metrics)
    if n is None and not key.startswith("classifier_"):  # measured on other data than the run's
        n = metrics.get("n")
    holds = "other data"
    if metrics["data"] == "official" and row["value"]:
        holds = f"{(ours - row['value']) / abs(row['value']):+.0%}"
    return Verdict(
        _name_figure(row),
        _format_reported(row),
        format_number(ours),
        unit_of(row["metric"]),
        None if n is None else int(n),
        holds,
    )


def _name_figure(row: Mapping[str, Any]) -> str:
    table = f"Section {row['table']}" if row["table"].isdigit() else row["table"]
    metric = to_words(row["metric"].removesuffix("_percent"))
    return f"{metric}, {to_words(row['method']).lower()}, {row['dataset']} ({table})"


def _format_reported(row: Mapping[str, Any]) -> str:
    spread = "" if pd.isna(row["sd"]) else f" ± {format_number(row['sd'])}"
    return format_number(row["value"]) + spread


def _reported_beside(name: str) -> list[dict[str, Any]]:
    """Return the papers' figures that this notebook measures too; `key` names our metric."""
    links = pd.DataFrame(_read("beside", name))
    if links.empty:
        return []
    keys = ["paper", "table", "dataset", "task", "method", "metric"]
    merged = links.merge(results.reported(), on=keys, how="left", validate="many_to_one")
    return merged.to_dict("records")


def _read(file: str, name: str) -> list[dict[str, str]]:
    """Return the rows of results/reported/<file>.csv that belong to a notebook."""
    source = folders.project() / "results" / "reported" / f"{file}.csv"
    if not source.exists():
        return []
    frame = pd.read_csv(source, keep_default_na=False, dtype=str)
    return frame[frame["notebook"] == name].to_dict("records")
