"""The tuning rule, and its record: results/tuning/<world>_<label>_<kind>_<method>.json.

The rule: among the settings whose flip rate reaches the method's floor, choose the one with the
highest semantic validity over all queries, where a failure counts 0. Ties go to the higher flip
rate, then to the earlier setting. If no setting reaches the floor, choose the highest flip rate,
then the highest semantic validity, then the earlier setting; the record says "floor missed".

Only a setting measured on all queries is chosen. The measurement of a setting that cannot win ends
early (see `tuner`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from cf_utils.evaluation.metrics import decision
from cf_utils.models import checkpoints
from cf_utils.training.tuning.grids import PAPER

Row = Mapping[str, Any]  # measurements of one setting, an entry of a record's "rows"

MEASURED = (
    "measured",
    "flip_rate",
    "semantic_validity",
    "used_factor_moved",
    "unused_factor_moved",
    "mean_change",
    "seconds_per_image",
)


def choose(rows: Sequence[Row], floor: float) -> tuple[Row, bool]:
    """Apply the rule; return the chosen row, and whether no row reaches the floor.

    `rows` are in the order of the grid, each measured on all queries.
    """
    if not rows:
        raise ValueError("rows: got none, expected at least one measured setting")
    able = [row for row in rows if row["flip_rate"] >= floor]
    order = ("semantic_validity", "flip_rate") if able else ("flip_rate", "semantic_validity")
    # max returns the first of equal rows
    chosen = max(able or rows, key=lambda row: tuple(row[name] for name in order))
    return chosen, not able


def find_best_validity(rows: Iterable[Row], n: int, floor: float) -> float | None:
    """Return the highest semantic validity of rows that are complete and reach the floor.

    `n` is the number of queries. Returns None without such a row.
    """
    able = (row for row in rows if row["measured"] == n and row["flip_rate"] >= floor)
    return max((row["semantic_validity"] for row in able), default=None)


def find_perfect(rows: Iterable[Row], n: int) -> int | float:
    """Return the first setting that is valid on all n queries, which no later one can beat.

    Returns infinity without such a setting.
    """
    perfect = (row for row in rows if row["measured"] == n and row["semantic_validity"] == 1)
    return min((row["number"] for row in perfect), default=float("inf"))


def cannot_win(row: Row, n: int, floor: float, best: float | None) -> bool:
    """Return whether a row cannot be chosen even if all its remaining queries are valid.

    Args:
        row: measured on some of the n queries.
        floor: lowest flip rate that the rule accepts.
        best: `find_best_validity` of the other rows.
    """
    if best is None:
        return False
    remaining = n - row["measured"]
    limits = {"flip_rate": floor, "semantic_validity": best}
    return any(
        (row[name] * row["measured"] + remaining) / n < least - 1e-9
        for name, least in limits.items()
    )


def build_record(
    conditions: Mapping[str, Any], rows: Sequence[Row], size: int, floor: float
) -> dict[str, Any]:
    """Return the content of a record.

    Args:
        conditions: what all rows depend on: n, seed, checkpoints, ...
        rows: measured settings of a grid of `size` settings, in its order.
        floor: lowest flip rate that the rule accepts.

    `difference` is the semantic validity of the chosen setting minus that of the paper's, with a
    95 % bootstrap interval over the same queries; None if the paper's is not measured. `left` lists
    the settings that are not measured and may still win.
    """
    chosen, missed = choose([row for row in rows if row["measured"] == conditions["n"]], floor)
    items = {row["number"]: torch.tensor([int(c) for c in row["items"]]) for row in rows}
    difference = None
    if PAPER in items:
        difference = decision.paired_difference(items[chosen["number"]], items[PAPER])
    perfect = find_perfect(rows, conditions["n"])
    return {
        **conditions,
        "floor": floor,
        "verdict": "floor missed" if missed else "floor reached",
        "chosen": chosen["number"],
        "paper": PAPER,
        "difference": difference,
        "left": [k for k in range(size) if k not in items and k < perfect],
        "rows": list(rows),
    }


def read_checkpoint_hashes(
    world: str, label: str, kind: str, generator: str = "ddpm"
) -> dict[str, str]:
    """Return the hashes of classifier, generative model and oracle by checkpoint name."""
    names = (f"{world}_{label}_{kind}", f"{world}_{generator}", f"{world}_oracle")
    return {name: checkpoints.read_card(name).sha256 for name in names}


def find_changes(record: Mapping[str, Any], conditions: Mapping[str, Any]) -> list[str]:
    """Return the names of conditions, or of checkpoints, that differ from an earlier record's."""
    pairs = [(record, conditions), (record.get("checkpoints", {}), conditions["checkpoints"])]
    changed = []
    for old, new in pairs:
        changed += [k for k, v in new.items() if k != "checkpoints" and old.get(k) != v]
    return changed


def format_record(record: Mapping[str, Any]) -> str:
    """Return a record as a table: the chosen setting first, then the paper's, then the others."""
    marks = {"chosen": record["chosen"], "paper": record["paper"]}

    def mark(row: Row) -> str:
        return " ".join(word for word, number in marks.items() if number == row["number"])

    rows = sorted(
        record["rows"], key=lambda row: ("chosen" not in mark(row), "paper" not in mark(row))
    )
    frame = pd.DataFrame([{name: row[name] for name in MEASURED} for row in rows], dtype=float)
    frame = frame.round(4)
    frame.insert(0, "which", [mark(row) for row in rows])
    frame.insert(0, "number", [row["number"] for row in rows])
    frame["settings"] = [" ".join(f"{k}={v}" for k, v in row["settings"].items()) for row in rows]
    last = f"n {record['n']}; floor of the flip rate {record['floor']:g}: {record['verdict']}"
    if (d := record["difference"]) is not None:
        last += "; semantic validity, chosen minus paper: "
        last += f"{d['mean']:.3f} [{d['low']:.3f}, {d['high']:.3f}]"
    if record["left"]:
        last += f"\nnot measured yet: {record['left']}"
    return f"{frame.to_string(index=False)}\n{last}"
