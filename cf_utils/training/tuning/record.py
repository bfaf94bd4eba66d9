"""The rule, and the record of what came of it: results/tuning/<world>_<label>_<kind>_<method>.json.

Of the settings that turn a share of the queries of at least the method's floor, the one with the highest semantic validity over
all queries, in which a failure counts 0. Ties: more turned, then the earlier setting, so the paper's first. Where none reaches
the floor, the one that turns most is taken, ties by semantic validity and then as before, and the record says "floor missed".
Only a setting measured on all queries is chosen; one that could not win any more was left before, or not begun (`tuner.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch

from cf_utils.evaluation.metrics import decision
from cf_utils.models import checkpoints
from cf_utils.training.tuning.grids import PAPER

MEASURED = (
    "measured",
    "flip_rate",
    "semantic_validity",
    "used_factor_moved",
    "unused_factor_moved",
    "mean_change",
    "seconds_per_image",
)


def choose(rows: Sequence[Mapping], floor: float) -> tuple[Mapping, bool]:
    """The rule: (the row chosen, whether none reached the floor). Rows in the grid's order, with flip_rate and semantic_validity,
    measured on all queries."""
    if not rows:
        raise ValueError("rows: got none, expected at least one measured setting")
    able = [r for r in rows if r["flip_rate"] >= floor]
    first, second = (
        ("semantic_validity", "flip_rate") if able else ("flip_rate", "semantic_validity")
    )
    return max(
        able or rows, key=lambda r: (r[first], r[second])
    ), not able  # of equals max takes the first


def best_of(rows: Iterable[Mapping], n: int, floor: float) -> float | None:
    """The highest semantic validity of the rows that are measured on all n queries and turn enough; None where there is none."""
    return max(
        (r["semantic_validity"] for r in rows if r["measured"] == n and r["flip_rate"] >= floor),
        default=None,
    )


def settled(rows: Iterable[Mapping], n: int) -> int | float:
    """The first setting that is valid on all n queries: no later one can be better. Infinity where there is none."""
    return min(
        (r["number"] for r in rows if r["measured"] == n and r["semantic_validity"] == 1),
        default=float("inf"),
    )


def lost(row: Mapping, n: int, floor: float, best: float | None) -> bool:
    """Whether a row of some of n queries stays under the floor, or under another one's semantic validity at the floor (`best`),
    even if all the others come out valid."""
    if best is None:
        return False
    ends = (("flip_rate", floor), ("semantic_validity", best))
    return any(
        (row[name] * row["measured"] + n - row["measured"]) / n < least - 1e-9
        for name, least in ends
    )


def record_of(made_on: Mapping, rows: Sequence[Mapping], size: int, floor: float) -> dict:
    """What the file holds: `made_on`, the choice, and the rows of a grid of `size` settings; `left`: those not measured
    that could still be chosen.

    `difference`: semantic validity of the chosen setting less that of the paper's over the same queries (`items` of the rows),
    with a 95 % bootstrap interval; None while the paper's is not measured.
    """
    chosen, missed = choose([r for r in rows if r["measured"] == made_on["n"]], floor)
    items = {r["number"]: torch.tensor([int(c) for c in r["items"]]) for r in rows}
    difference = (
        decision.paired_difference(items[chosen["number"]], items[PAPER])
        if PAPER in items
        else None
    )
    first = settled(rows, made_on["n"])
    return {
        **made_on,
        "floor": floor,
        "verdict": "floor missed" if missed else "floor reached",
        "chosen": chosen["number"],
        "paper": PAPER,
        "difference": difference,
        "left": [k for k in range(size) if k not in items and k < first],
        "rows": list(rows),
    }


def checkpoint_hashes(world: str, label: str, kind: str) -> dict[str, str]:
    """Name -> hash of the files that a record stands on, as their cards have it now: classifier, prior, oracle."""
    names = (f"{world}_{label}_{kind}", f"{world}_ddpm", f"{world}_oracle")
    return {name: checkpoints.read_card(name).sha256 for name in names}


def stale(record: Mapping, made_on: Mapping) -> list[str]:
    """What an earlier record was measured with another one of: entries of `made_on`, or names of checkpoints."""
    parts = [(record, made_on), (record.get("checkpoints", {}), made_on["checkpoints"])]
    return [
        k for old, new in parts for k, v in new.items() if k != "checkpoints" and old.get(k) != v
    ]


def shown(record: Mapping) -> str:
    """The record as a table: the chosen setting, the paper's, the others."""
    first = {"chosen": record["chosen"], "paper": record["paper"]}
    what = {
        r["number"]: " ".join(word for word, k in first.items() if k == r["number"])
        for r in record["rows"]
    }
    rows = sorted(
        record["rows"],
        key=lambda r: ("chosen" not in what[r["number"]], "paper" not in what[r["number"]]),
    )
    frame = pd.DataFrame([{k: r[k] for k in MEASURED} for r in rows], dtype=float).round(4)
    frame.insert(0, "which", [what[r["number"]] for r in rows])
    frame.insert(0, "number", [r["number"] for r in rows])
    frame["settings"] = [" ".join(f"{k}={v}" for k, v in r["settings"].items()) for r in rows]
    tail = f"n {record['n']}; floor of the flip rate {record['floor']:g}: {record['verdict']}"
    if (d := record["difference"]) is not None:
        tail += f"; semantic validity, chosen less paper's: {d['mean']:.3f} [{d['low']:.3f}, {d['high']:.3f}]"
    return f"{frame.to_string(index=False)}\n{tail}" + (
        f"\nnot measured yet: {record['left']}" if record["left"] else ""
    )
