"""How a setting is measured: explanations kept batch by batch, judged by the world that made the queries.

Decisions:
* What the oracle reads is held against what the setting's own chain (spacing, steps) does to an unedited query
  (`truth.null_sd`): who starts from more noise must move a factor further to be seen.
* A setting is left after the batch from which on it can no longer be chosen: not with all other queries valid. After one that is
  valid on all queries none is begun. That changes nothing of the choice, and a method of many passes ends earlier.
* Batches on disk are read (a killed run goes on), measuring is cheap and done anew. A record keeps the rows that were not asked
  for this time, as long as queries, checkpoints and the setting itself are the same.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals, Explainer, files
from cf_utils.evaluation.metrics import decision
from cf_utils.evaluation.truth import displacement
from cf_utils.harness.cases import Case
from cf_utils.models import classifiers, oracles
from cf_utils.models.checkpoints import Loaded
from cf_utils.models.generators.diffusion import noise_of
from cf_utils.training.tuning.grids import METHODS, PAPER, Grid, Method
from cf_utils.training.tuning.record import best_of, lost, record_of, settled, stale


class OutOfTime(Exception):
    """The limit was reached between two batches."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuner:
    """Measures settings of `method` on the queries of `case` (renders, with their classifier and prior), each to be turned to the
    class that the classifier does not see there. `oracle` is on the CPU, where all is judged. `deadline`: a time of
    `time.monotonic`, looked at before each batch."""

    case: Case
    oracle: Loaded
    method: str
    grid: Grid
    folder: Path  # keeps the explanations
    batch: int = 8  # images explained at once
    seed: int = 0
    device: torch.device | str = "cpu"  # of the case's networks
    deadline: float = math.inf
    nulls: dict = field(default_factory=dict, repr=False)  # (spacing, steps) -> null_sd

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    @cached_property
    def x(self) -> Tensor:
        return self.case.data.x.to(self.device)

    @cached_property
    def target(self) -> Tensor:
        return 1 - classifiers.predict(self.case.classifier, self.x).argmax(1)

    @cached_property
    def judge(self) -> nn.Module:
        return copy.deepcopy(self.case.classifier).cpu()

    @cached_property
    def quiet(self) -> Mapping:
        """What the classifier makes of the factors that the oracle can read: what moves in the others is its own noise."""
        return {name: self.case.uses[name] for name in oracles.readable(self.oracle.card)}

    def explainers(self, k: int) -> tuple[Explainer | None, Explainer]:
        return self.how.explainers(self.case.prior, self.seed, self.grid[k])

    def check(self, numbers: Sequence[int]) -> None:
        """ValueError by the method itself where a setting does not fit, before any search."""
        logits = classifiers.predict(self.case.classifier, self.x[:1])
        for explain in (e for k in numbers for e in self.explainers(k) if e is not None):
            explain.check(self.x[:1], logits)

    def explained(self, k: int, rows: slice) -> tuple[Counterfactuals, Tensor]:
        """Setting k's explanations of a batch, on the CPU, and the seconds (B,) that each took with its search. Raises
        OutOfTime."""
        search, whole = self.explainers(k)
        if search is None:
            cfs = self._kept(whole, rows)
            return cfs, cfs.seconds
        found = self._kept(search, rows)
        cfs = self._kept(dataclasses.replace(whole, **{self.how.takes: found}), rows)
        return cfs, found.seconds + cfs.seconds

    def _kept(self, explain: Explainer, rows: slice) -> Counterfactuals:
        """Read from the batch's file, or made and kept there, if there is time."""
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        return core.explain_in_batches(
            explain,
            self.case.classifier,
            self.x[rows],
            self.target[rows],
            self.case.data.ids[rows],
            batch_size=self.batch,
            folder=self.folder,
        )

    def null(self, spacing: str, steps: int) -> Tensor:
        """`truth.null_sd` (K,) of the filter of so many steps of a spacing."""
        if (spacing, steps) not in self.nulls:
            chain, parts = (
                self.case.prior.chain(spacing),
                (self.x.split(self.batch), self.case.data.ids.split(self.batch)),
            )
            with torch.no_grad():
                same = [
                    chain.filter(x, steps, noise_of(self.seed, ids, x, "null"))
                    for x, ids in zip(*parts, strict=True)
                ]
            self.nulls[spacing, steps] = displacement.null_sd(
                self.oracle.model, self.x.cpu(), torch.cat(same).cpu()
            )
        return self.nulls[spacing, steps]

    def items(self, k: int, rows: slice) -> dict[str, Tensor]:
        """What is measured of each explanation of a batch, (B,) each. Raises OutOfTime."""
        (_, whole), (cfs, seconds), uses = (
            self.explainers(k),
            self.explained(k, rows),
            self.case.uses,
        )
        d = displacement.measure(cfs, self.oracle.model, self.null(whole.spacing, whole.steps))
        solid = (
            displacement.semantic_validity(cfs, self.case.data.factors.take(rows), self.judge, d)
            == 1
        )  # not of NaN
        change = (cfs.counterfactual - cfs.query).abs().flatten(1).mean(1)
        return {
            "flip_rate": cfs.valid.double(),
            "semantic_validity": solid.double(),
            "used_factor_moved": displacement.used_factor_moved(d, uses),
            "unused_factor_moved": displacement.unused_factor_moved(d, self.quiet),
            "mean_change": decision.mask_failed(change, cfs.valid),
            "seconds_per_image": seconds,
        }

    def row(self, k: int, best: float | None = None) -> dict:
        """What the record says of setting k; `items` is each query's semantic validity, 0 or 1. Raises OutOfTime.

        best: semantic validity of a setting at the floor. k is left once it cannot come up to it, or to the floor; then fewer
        queries than all are `measured`, and its figures are theirs.
        """
        found: list[dict[str, Tensor]] = []
        for at in core.progress(
            range(0, len(self.x), self.batch), desc=f"setting {k}", leave=False
        ):
            found.append(self.items(k, slice(at, at + self.batch)))
            whole = {name: torch.cat([one[name] for one in found]) for name in found[0]}
            row = {
                "number": k,
                "settings": core.describe(self.grid[k]),
                "measured": len(whole["flip_rate"]),
                **{
                    name: None if (mean := v.nanmean().item()) != mean else mean
                    for name, v in whole.items()
                },
                "items": "".join("01"[int(v)] for v in whole["semantic_validity"].tolist()),
            }
            if lost(row, len(self.x), self.how.floor, best):
                break
        return row


def tune(tuner: Tuner, made_on: Mapping, numbers: Sequence[int], path: Path) -> dict | None:
    """Measure the settings `numbers` and write the record at `path` after each; returns it: with no setting measured in time, the
    one that was there, or None. `made_on`: what all its rows stand on (checkpoints, n, seed, ...). Raises ValueError where a
    record of another n or seed would be lost."""
    made_on = {**made_on, "queries": files.sha256(tuner.case.data.x)[:16]}
    tuner.check(numbers)
    n, floor = len(tuner.x), tuner.how.floor
    record, rows = files.read_json(path) if path.exists() else None, {}
    others = stale(record, made_on) if record else []
    if other := [k for k in ("n", "seed") if k in others]:
        raise ValueError(
            f"{path}: holds a record of {', '.join(f'{k} {record[k]}' for k in other)}, got "
            f"{', '.join(f'{k} {made_on[k]}' for k in other)}; give another folder (--out) or remove it"
        )
    if others:
        print(f"{path.name}: was measured with another {', '.join(others)}; its rows are dropped")
        record = None
    elif record:
        rows = {
            r["number"]: r
            for r in record["rows"]
            if r["number"] < len(tuner.grid)
            and r["settings"] == core.describe(tuner.grid[r["number"]])
        }
        best = best_of(rows.values(), n, floor)
        rows = {k: r for k, r in rows.items() if r["measured"] == n or lost(r, n, floor, best)}
    for k in numbers:
        if k > (first := settled(rows.values(), n)):
            print(f"setting {k}: not begun, setting {first} is valid on all queries")
            continue
        try:
            others = [r for i, r in rows.items() if i != k]
            rows[k] = tuner.row(k, None if k == PAPER else best_of(others, n, floor))
        except OutOfTime:
            print(f"time is up before setting {k} is done; the same command goes on from here")
            break
        record = record_of(
            made_on, [rows[i] for i in sorted(rows)], len(tuner.grid), tuner.how.floor
        )
        files.write_json(path, record)
    return record
