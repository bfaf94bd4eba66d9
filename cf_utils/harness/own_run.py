"""Explain your own data: batches that can be resumed, an estimate of the time, and the results.

A folder of results holds `batches/` (what resume reads), `counterfactuals/` (the whole result,
`Counterfactuals.load` reads it), `results.csv`, `changes.csv` (tables) or one PNG per image,
`gallery-*.png`, `report.html` and `run.json`. Every file is written under a temporary name first.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from cf_utils.core import Counterfactuals, Explainer, explain_in_batches
from cf_utils.harness import own_methods, own_report, preflight
from cf_utils.harness.own_case import Case, Options, load
from cf_utils.harness.preflight import Finding

PILOT_SECONDS = 20.0  # batches are timed until then
START_UP = time.time() - psutil.Process().create_time()  # seconds until this import, of a process


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that an explanation needs."""

    case: Case
    explain: Explainer
    target: Tensor  # (N,) int64

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return -(-len(self.case.x) // self.case.batch_size)

    def run(self, folder: Path, shard: tuple[int, int] = (1, 1)) -> Counterfactuals | None:
        """Explain all items, or those of a shard, with batches in `folder`."""
        case = self.case
        return explain_in_batches(
            self.explain,
            case.model,
            case.x,
            self.target,
            case.ids,
            batch_size=case.batch_size,
            folder=folder,
            shard=shard,
            desc=case.options.method or type(self.explain).__name__,
        )


def prepare(options: Options) -> tuple[Case, list[Finding], Plan | None]:
    """Load the case and inspect it; the plan is None if there is something to fix first."""
    own_methods.choose(options)  # before any slow work
    case = load(options)
    findings = preflight.inspect(case)
    if any(finding.level == "fix" for finding in findings):
        return case, findings, None
    return case, findings, Plan(case, own_methods.build(case), case.find_target())


def check(options: Options) -> tuple[list[Finding], float | None]:
    """Inspect the case, and estimate the minutes of `explain` from timed batches.

    Returns the findings, and the minutes or None if there is something to fix.
    """
    start = time.time()
    _, findings, plan = prepare(options)
    if plan is None:
        return findings, None
    with tempfile.TemporaryDirectory() as folder:
        minutes, timed = estimate(plan, Path(folder), START_UP + time.time() - start)
    text = f"about {_say(minutes)} for {len(plan.case.x)} items ({timed} of {plan.n_batches} "
    findings.append(Finding("ok", "time", text + f"batches of {plan.case.batch_size} timed)"))
    findings.append(_check_memory(plan.case))
    return findings, minutes


def estimate(
    plan: Plan, folder: Path, set_up: float, seconds: float = PILOT_SECONDS
) -> tuple[float, int]:
    """Return the minutes that `explain` takes in a new process, and how many batches were timed.

    Batches are explained in random order, until `seconds` are over. The estimate is `set_up`, the
    seconds that a new process needs to import and prepare everything, plus the time of all batches
    (see `extrapolate`), plus the time of a gallery.
    """
    start, n = time.time(), plan.n_batches
    order = random.Random(plan.case.options.seed).sample(range(1, n + 1), n)
    times: list[float] = []
    for k in order:
        at = time.perf_counter()
        plan.run(folder / "batches", (k, n) if n > 1 else (1, 1))
        times.append(time.perf_counter() - at)
        if time.time() - start > seconds:
            break
    total = set_up + extrapolate(times, n) + _time_writing(plan, folder, order[0])
    return total / 60, len(times)


def extrapolate(times: Sequence[float], n: int) -> float:
    """Return the seconds of n batches, of which those in `times` were timed, in this order.

    The others count as the mean of the timed ones, without the first, which also pays for what
    happens once, and without the fastest and the slowest of four or more.
    """
    later = sorted(times[1:] or times)
    if len(later) >= 4:
        later = later[1:-1]
    return sum(times) + (n - len(times)) * sum(later) / len(later)


def _time_writing(plan: Plan, folder: Path, batch: int) -> float:
    """Return the seconds that writing all outputs takes, from those of one batch."""
    size = plan.case.batch_size
    rows = torch.arange(len(plan.case.x))[(batch - 1) * size : batch * size]
    part = Plan(plan.case.take(rows), plan.explain, plan.target[rows])
    stored = next((folder / "batches").glob(f"{(batch - 1) * size:06d}-*"))
    cfs = Counterfactuals.load(stored)
    start = time.perf_counter()
    write(part, cfs, folder, 0.0)
    seconds = time.perf_counter() - start
    if plan.case.kind == "table":  # one figure, whatever the number of rows
        return seconds
    return seconds * own_report.count_shown(len(plan.case.x)) / own_report.count_shown(len(rows))


def _say(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 1.5 else f"{minutes:.1f} minutes"


def _check_memory(case: Case) -> Finding:
    """Compare the peak so far with what is there, on the device of the classifier."""
    if next(case.model.buffers()).device.type == "cuda":
        peak, there = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    else:
        used = psutil.Process().memory_info()
        peak = getattr(used, "peak_wset", used.rss)
        there = psutil.virtual_memory().available + used.rss
    text = f"{peak / 2**30:.1f} GiB used of {there / 2**30:.1f}"
    if peak > 0.9 * there:
        return Finding("fix", "memory", f"{text}: pass --batch {max(1, case.batch_size // 2)}")
    return Finding("ok", "memory", text)


def explain(options: Options, out: str | Path) -> tuple[list[Finding], Counterfactuals | None]:
    """Explain the data and write everything to `out`; a second call resumes.

    Returns the findings of the preflight, and the result, or None if there is something to fix.
    """
    start = time.perf_counter()
    _, findings, plan = prepare(options)
    if plan is None:
        return findings, None
    cfs = plan.run(Path(out) / "batches")
    if cfs is None:
        raise RuntimeError("a whole run returned no result")
    write(plan, cfs, Path(out), time.perf_counter() - start)
    return findings, cfs


def write(plan: Plan, cfs: Counterfactuals, out: Path, seconds: float) -> None:
    """Write results, gallery and report of a plan's counterfactuals to the folder `out`."""
    options = dataclasses.asdict(plan.case.options)
    settings = {"options": options, "settings": cfs.settings, "seconds": round(seconds, 1)}
    own_report.write(plan.case, cfs, out, settings)


def summarise(cfs: Counterfactuals) -> str:
    """Say how many items were explained, and why the others failed."""
    n, done = len(cfs), int(cfs.reached.sum())
    reasons = [why for why in cfs.reason if why]
    common: Sequence[Any] = sorted(set(reasons), key=reasons.count, reverse=True)[:2]
    failed = "; ".join(f"{reasons.count(why)} x {why}" for why in common)
    return f"{done} of {n} explained" + (f" ({failed})" if failed else "")
