"""Measure settings: explain the queries batch by batch, and judge the answers by the world's truth.

Decisions:
* A factor counts as moved if its displacement exceeds that of an unedited query that passes through
  the setting's own chain (`displacement.null_sd`). A chain that starts from more noise therefore
  needs larger displacements.
* The measurement of a setting ends as soon as it cannot win any more. After a setting that is valid
  on all queries, no further one is measured. Neither rule changes the choice.
* Explanations are stored, so a killed run resumes. Measurements are cheap and are repeated.
* A record keeps rows of other settings while queries, checkpoints and those settings are the same.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals, Explainer, files
from cf_utils.evaluation.metrics import decision
from cf_utils.evaluation.truth import displacement
from cf_utils.harness.cases import Case, Truth
from cf_utils.models import classifiers, oracle_columns
from cf_utils.models.checkpoints import Loaded
from cf_utils.models.generators.diffusion import noise_of
from cf_utils.training.tuning.grids import METHODS, PAPER, Grid, Method
from cf_utils.training.tuning.record import (
    Row,
    build_record,
    cannot_win,
    find_best_validity,
    find_changes,
    find_perfect,
)


class OutOfTime(Exception):
    """The time limit was reached between two batches."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuner:
    """Measures settings of a method on the queries of a rendered case.

    Each query is explained towards the class that the classifier does not assign to it.
    """

    case: Case  # with its truth
    oracle: Loaded  # the world's factor oracle, on the CPU, where answers are judged
    method: str  # a key of `METHODS`
    grid: Grid
    folder: Path  # of the stored explanations
    generator: nn.Module | None = None  # of the method; None: the case's prior
    batch: int = 8  # images explained at once
    seed: int = 0
    device: torch.device | str = "cpu"  # of the case's networks
    deadline: float = math.inf  # in units of `time.monotonic`; no batch begins later
    null_cache: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    @property
    def spec(self) -> Method:
        """How settings of the method become explainers."""
        return METHODS[self.method]

    @property
    def truth(self) -> Truth:
        """The truth of the case. Raises ValueError if it has none."""
        if self.case.truth is None:
            raise ValueError(f"case: got {self.case.name}, expected renders, whose truth is known")
        return self.case.truth

    @cached_property
    def x(self) -> Tensor:
        """The queries (N, C, H, W) on the networks' device."""
        return self.case.data.x.to(self.device)

    @cached_property
    def target(self) -> Tensor:
        """The wanted class per query (N,)."""
        return 1 - classifiers.predict(self.case.classifier, self.x).argmax(1)

    @cached_property
    def cpu_classifier(self) -> nn.Module:
        """A copy of the classifier on the CPU."""
        return copy.deepcopy(self.case.classifier).cpu()

    @cached_property
    def readable_uses(self) -> dict[str, Any]:
        """The classifier's uses of the factors that the oracle reads well enough."""
        readable = oracle_columns.readable_factors(self.oracle.card)
        return {name: self.truth.uses[name] for name in readable}

    def build(self, k: int) -> tuple[Explainer | None, Explainer]:
        """Return setting k's shared search, or None, and its explainer (see `Method.build`)."""
        generator = self.case.prior if self.generator is None else self.generator
        return self.spec.build(generator, self.seed, self.grid[k])

    def check_settings(self, numbers: Sequence[int]) -> None:
        """Raise the method's ValueError if a setting does not fit, before any search."""
        logits = classifiers.predict(self.case.classifier, self.x[:1])
        for explain in (e for k in numbers for e in self.build(k) if e is not None):
            explain.check(self.x[:1], logits)

    def explain(self, k: int, rows: slice) -> tuple[Counterfactuals, Tensor]:
        """Explain a batch by setting k.

        Returns the result on the CPU, and seconds per item (B,), the search included.
        Raises OutOfTime.
        """
        search, whole = self.build(k)
        if search is None:
            cfs = self._load_or_explain(whole, rows)
            return cfs, cfs.seconds
        found = self._load_or_explain(search, rows)
        cfs = self._load_or_explain(whole.with_(reuse=found), rows)
        return cfs, found.seconds + cfs.seconds

    def _load_or_explain(self, explain: Explainer, rows: slice) -> Counterfactuals:
        """Return a batch's stored result, or compute and store it. Raises OutOfTime."""
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        cfs = core.explain_in_batches(
            explain,
            self.case.classifier,
            self.x[rows],
            self.target[rows],
            self.case.data.ids[rows],
            batch_size=self.batch,
            folder=self.folder,
        )
        assert cfs is not None  # one shard holds all rows
        return cfs

    def null_sd(self, spacing: str, steps: int) -> Tensor:
        """Return `displacement.null_sd` (K,) of the filter of `steps` steps of a spacing."""
        if (spacing, steps) not in self.null_cache:
            chain, unedited = self.case.prior.chain(spacing), []
            ids = self.case.data.ids.split(self.batch)
            with torch.no_grad():
                for x, part in zip(self.x.split(self.batch), ids, strict=True):
                    noise = noise_of(self.seed, part, x, "null")
                    unedited.append(chain.filter(x, steps, noise))
            self.null_cache[spacing, steps] = displacement.null_sd(
                self.oracle.model, self.x.cpu(), torch.cat(unedited).cpu()
            )
        return self.null_cache[spacing, steps]

    def null_of(self, explain: Explainer) -> Tensor:
        """Return `displacement.null_sd` (K,) of a setting's generative model.

        Methods with a diffusion prior are measured by their filter, others by their zero edit.
        """
        if self.generator is None:
            return self.null_sd(explain.spacing, explain.steps)
        key = ("zero edit", 0)
        if key not in self.null_cache:
            x, ids = self.x.split(self.batch), self.case.data.ids.split(self.batch)
            unedited = [explain.zero_edit(*pair) for pair in zip(x, ids, strict=True)]
            self.null_cache[key] = displacement.null_sd(
                self.oracle.model, self.x.cpu(), torch.cat(unedited).cpu()
            )
        return self.null_cache[key]

    def measure_items(self, k: int, rows: slice) -> dict[str, Tensor]:
        """Return the measurements of setting k per item of a batch, (B,) each. Raises OutOfTime."""
        _, whole = self.build(k)
        cfs, seconds = self.explain(k, rows)
        null = self.null_of(whole)
        moved = displacement.measure(cfs, self.oracle.model, null)
        factors = self.truth.factors.take(rows)
        validity = displacement.semantic_validity(cfs, factors, self.cpu_classifier, moved)
        change = (cfs.counterfactual - cfs.query).abs().flatten(1).mean(1)
        return {
            "flip_rate": cfs.valid.double(),
            "semantic_validity": (validity == 1).double(),  # an undefined one counts 0
            "used_factor_moved": displacement.used_factor_moved(moved, self.truth.uses),
            "unused_factor_moved": displacement.unused_factor_moved(moved, self.readable_uses),
            "mean_change": decision.mask_failed(change, cfs.valid),
            "seconds_per_image": seconds,
        }

    def measure(self, k: int, best: float | None = None) -> dict[str, Any]:
        """Measure setting k; return its row of the record. Raises OutOfTime.

        `best` is the highest semantic validity of another setting that reaches the floor. If k
        can no longer reach `best` or the floor, the measurement ends early: `measured` is then
        below the number of queries, and the figures cover only those. `items` holds the semantic
        validity per query, 0 or 1.
        """
        found: list[dict[str, Tensor]] = []
        row: dict[str, Any] = {}
        starts = range(0, len(self.x), self.batch)
        for at in core.progress(starts, desc=f"setting {k}", leave=False):
            found.append(self.measure_items(k, slice(at, at + self.batch)))
            whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
            means = {name: values.nanmean().item() for name, values in whole.items()}
            row = {
                "number": k,
                "settings": core.describe(self.grid[k]),
                "measured": len(whole["flip_rate"]),
                **{name: None if math.isnan(mean) else mean for name, mean in means.items()},
                "items": "".join("01"[int(v)] for v in whole["semantic_validity"].tolist()),
            }
            if cannot_win(row, len(self.x), self.spec.floor, best):
                break
        return row


def tune(
    tuner: Tuner, conditions: Mapping[str, Any], numbers: Iterable[int], path: Path
) -> dict[str, Any] | None:
    """Measure settings, and write the record at `path` after each of them.

    Args:
        tuner: measures one setting.
        conditions: what all rows depend on: n, seed, checkpoints, ...
        numbers: numbers of the settings to measure.
        path: file of the record. Its rows of other settings are kept if they still hold.

    Returns the record. If no setting was measured in time, returns the earlier record or None.
    Raises ValueError if the record at `path` has another n or seed.
    """
    numbers = list(numbers)
    conditions = {**conditions, "queries": files.sha256(tuner.case.data.x)[:16]}
    tuner.check_settings(numbers)
    n, floor = len(tuner.x), tuner.spec.floor
    record = _read_record(path, conditions)
    rows = {} if record is None else _keep_rows(record, tuner.grid, n, floor)
    for k in numbers:
        if k > (perfect := find_perfect(rows.values(), n)):
            print(f"setting {k}: not begun, setting {perfect} is valid on all queries")
            continue
        others = [row for i, row in rows.items() if i != k]
        try:
            rows[k] = tuner.measure(k, None if k == PAPER else find_best_validity(others, n, floor))
        except OutOfTime:
            print(f"time is up before setting {k} is done; the same command resumes here")
            break
        record = build_record(conditions, [rows[i] for i in sorted(rows)], len(tuner.grid), floor)
        files.write_json(path, record)
    return record


def _read_record(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record at `path` if its rows still hold, else None.

    Raises ValueError if it has another n or seed: overwriting it would lose comparable rows.
    """
    if not path.exists():
        return None
    record = files.read_json(path)
    changed = find_changes(record, conditions)
    if fixed := [name for name in ("n", "seed") if name in changed]:
        old, new = (", ".join(f"{k} {held[k]}" for k in fixed) for held in (record, conditions))
        raise ValueError(
            f"{path}: holds a record of {old}, got {new}; give another folder (--out) or remove it"
        )
    if changed:
        print(f"{path.name}: was measured with another {', '.join(changed)}; its rows are dropped")
        return None
    return record


def _keep_rows(record: Mapping[str, Any], grid: Grid, n: int, floor: float) -> dict[int, Row]:
    """Return a record's rows, by number, of unchanged settings that are complete or cannot win."""
    rows = {
        row["number"]: row
        for row in record["rows"]
        if row["number"] < len(grid) and row["settings"] == core.describe(grid[row["number"]])
    }
    best = find_best_validity(rows.values(), n, floor)
    return {
        k: row for k, row in rows.items() if row["measured"] == n or cannot_win(row, n, floor, best)
    }
