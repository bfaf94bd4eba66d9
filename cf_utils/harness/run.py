"""Run notebooks through Snakemake: plan the jobs, check all of them, run those that are not done.

The plan is a JSON file that workflow/Snakefile reads. Each of its jobs calls `cf run --one`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import (
    claims,
    dependencies,
    folders,
    job,
    notebooks,
    parameters,
    records,
    report,
)
from cf_utils.harness.locks import environment, lock_file

SNAKEFILE = files.ROOT / "workflow" / "Snakefile"
SEEDS = range(5)  # of `run_claims`


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Options:
    """How to run notebooks; the arguments of `cf run`."""

    profile: str = folders.DEMO
    data: str = ""  # folder with official data sets; '' means embedded data
    changes: Sequence[str] = ()  # parameters as "NAME=VALUE"
    shards: int | None = None  # None: as the profile says
    cores: int | None = None  # None: all
    dry_run: bool = False
    snakemake: Sequence[str] = ()  # more arguments for Snakemake

    def __post_init__(self) -> None:
        for name in ("shards", "cores"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name}: got {value}, expected a whole number >= 1")
        if self.cores is None:
            object.__setattr__(self, "cores", available_cores())


def choose_notebooks(wanted: Sequence[str], profile: str) -> list[str]:
    """Return the names of the wanted notebooks, or of all that the profile has a section for."""
    names = notebooks.find_all(wanted) or list(parameters.profile_sections(profile))
    if not names:
        raise ValueError(f"profile: {profile!r} has no notebooks to run")
    return names


def run_workflow(wanted: Sequence[str], options: Options) -> int:
    """Run what is not done yet; return 0 if every notebook is done and every claim holds.

    Args:
        wanted: numbers or names of notebooks; none means all that the profile has a section for.
    """
    names = choose_notebooks(wanted, options.profile)
    folders.check_writable(folders.root())
    lock = folders.root() / ".locks" / "workflow.lock"
    with lock_file(lock, "the workflow in this results folder") as descriptor:
        plan = make_plan(names, options)
        path = folders.root() / ".plans" / f"{options.profile}.json"
        files.write_json(path, plan)
        before = _modification_times(plan)
        status = _run_snakemake(snakemake_command(path, plan, options), descriptor)
        if options.dry_run:
            return status
        problem = _write_report(options.profile) if status else None
        unchanged = status == 0 and _modification_times(plan) == before
        return summarise(names, options.profile, status, unchanged, problem)


def make_plan(names: Sequence[str], options: Options) -> dict[str, Any]:
    """Return Snakemake's configuration: the jobs, checked, and what the report shows."""
    jobs = {name: _plan_job(name, options) for name in names}
    concurrent = min(sum(one["shards"] for one in jobs.values()), options.cores)
    gpus = count_gpus()
    finished = {
        name
        for name in notebooks.paths()
        if (folders.run_folder(options.profile, name) / "metrics.json").exists()
    }
    return {
        "profile": options.profile,
        "root": str(folders.root()),
        "jobs": jobs,
        "gpu": int(gpus > 0),
        "gpus": gpus,
        "threads": max(1, options.cores // max(1, concurrent)),
        "report": str(report.path(options.profile)),
        "shown": sorted(finished | jobs.keys()),
        "report_inputs": [str(path) for path in report.input_files()],
        "stale": [file for name in names for file in _stale_files(name, options.profile, jobs)],
    }


def _plan_job(name: str, options: Options) -> dict[str, Any]:
    given, shards = parameters.for_run(name, options.profile, options.data, options.changes)
    if not notebooks.can_be_sharded(notebooks.read(name)):
        shards = 1
    elif options.shards is not None:
        shards = options.shards
    return {
        "parameters": json.dumps(given, sort_keys=True),
        "shards": shards,
        "inputs": [str(path) for path in dependencies.input_files(name)],
    }


def _stale_files(name: str, profile: str, jobs: dict[str, Any]) -> list[str]:
    """Return the outputs of a notebook and its shards that Snakemake must make again."""
    expected = parameters.complete(name, json.loads(jobs[name]["parameters"]))
    folder, shards = folders.run_folder(profile, name), jobs[name]["shards"]
    outputs = [folder / "metrics.json"]
    if shards > 1:
        for k in range(1, shards + 1):
            outputs.append(folders.shard_folder(folder, (k, shards)) / "done.json")
    found = []
    for path in outputs:
        if path.exists() and (reason := records.why_stale(path.parent, expected)):
            print(f"{name} runs again: {reason}", flush=True)
            found.append(str(path))
    return found


def run_one(
    wanted: Sequence[str], options: Options, shard: str, given: str, keep_going: bool
) -> int:
    """Run a single notebook in this process; return 1 if it or one of its claims failed, else 0.

    Args:
        wanted: exactly one number or name.
        shard: "k/N".
        given: a JSON object of parameters to pass instead of the profile's, or ''.
        keep_going: whether failed claims are ignored.
    """
    if len(wanted) != 1:
        raise ValueError(f"--one: got {len(wanted)} notebooks, expected one")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # papermill then ends its kernel
    name = notebooks.find(wanted[0])
    if given:
        chosen = parameters.parse_json(given)
    else:
        chosen, _ = parameters.for_run(name, options.profile, options.data, options.changes)
    try:
        folder = job.run_notebook(name, options.profile, chosen, folders.parse_shard(shard))
    except job.JobFailed as e:
        print(f"FAILED {e}", file=sys.stderr)
        return 1
    if failed := job.failed_claims(folder):
        print(f"{name}: {len(failed)} claims do not hold: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed) and not keep_going)


def count_gpus() -> int:
    """Return the number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def snakemake_command(path: Path, plan: dict[str, Any], options: Options) -> list[str]:
    """Return the command that runs the plan in the file `path`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    if plan["stale"]:
        command += ["--forcerun", *plan["stale"]]
    command += ["--configfile", str(path), "--directory", str(folders.root())]
    command += ["--cores", str(options.cores), "--scheduler", "greedy"]
    command += ["--nolock", "--rerun-incomplete", "--keep-going"]
    command += ["--max-checksum-file-size", "100MB"]
    if options.dry_run:
        command += ["--dry-run"]
    else:
        command += ["--quiet", "host", "progress", "reason", "rules"]
    if plan["gpu"]:
        command += ["--resources", f"gpu={plan['gpus']}"]
    return [*command, *options.snakemake]


def _run_snakemake(command: Sequence[str], lock: int) -> int:
    """Run Snakemake and return its exit status; on Ctrl-C wait until it has ended its jobs.

    The child inherits the lock. If only this process is killed, the next run waits for the child.
    """
    with subprocess.Popen(command, pass_fds=(lock,)) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(20)  # the terminal sent it the same signal
            child.terminate()
            raise


def _write_report(profile: str) -> str | None:
    """Write the report of a run in which a job failed; return why it could not be written."""
    try:
        report.write(profile)
    except OSError as e:
        return f"the report could not be written ({e})"
    return None


def _modification_times(plan: dict[str, Any]) -> list[int | None]:
    """Return when each result was written; None where it is missing."""
    outputs = [folders.run_folder(plan["profile"], name) / "metrics.json" for name in plan["jobs"]]
    outputs.append(Path(plan["report"]))
    return [path.stat().st_mtime_ns if path.exists() else None for path in outputs]


def summarise(
    names: Sequence[str], profile: str, status: int, unchanged: bool, problem: str | None = None
) -> int:
    """Print what is done, what failed and where to look; return the exit status.

    Args:
        status: Snakemake's exit status.
        unchanged: whether no result was written.
        problem: why there is no new report.
    """
    bad = bool(status)
    for name in names:
        folder = folders.run_folder(profile, name)
        if not (folder / "metrics.json").exists():
            bad, log = True, folder / "log" / "notebook.ipynb"
            print(f"{name}: not done" + (f"; see {log}" if log.exists() else ""))
        elif failed := job.failed_claims(folder):
            bad = True
            print(f"{name}: done, but {len(failed)} claims do not hold: {'; '.join(failed)}")
        elif not unchanged:
            print(f"{name}: done, results in {folder}")
    print(f"report: {problem or report.path(profile)}")
    if unchanged:
        print("all is done: nothing has changed since the last run")
    return int(bad)


def run_claims(wanted: Sequence[str], options: Options) -> int:
    """Run each notebook with 5 seeds and write the range of each claim's value.

    The ranges go to results/claims/<notebook>.json. Returns 1 if a notebook failed with some seed.
    """
    names = choose_notebooks(wanted, options.profile)
    roots = [folders.root() / ".claims" / f"seed-{seed}" for seed in SEEDS]
    for seed, root in zip(SEEDS, roots, strict=True):
        changes = [*options.changes, f"seed={seed}"]
        with environment(CF_RESULTS_ROOT=str(root), CF_CLAIMS="record"):
            run_workflow(names, replace(options, changes=changes))  # failed claims are recorded
    bad = 0
    for name in names:
        run_folders = [root / options.profile / name for root in roots]
        missing = [f.parent.parent.name for f in run_folders if not (f / "claims.json").exists()]
        if missing:
            bad = 1
            print(f"{name}: no claims from {', '.join(missing)}; not written")
        else:
            print(f"{name}: {claims.write_ranges(name, run_folders)}")
    return bad


def list_notebooks() -> list[str]:
    """Return one line per notebook: name, title, and the profiles in which it is done."""
    lines = []
    for name in notebooks.paths():
        done = sorted(p.parent.parent.name for p in folders.root().glob(f"*/{name}/metrics.json"))
        suffix = f"   [done: {', '.join(done)}]" if done else ""
        lines.append(f"{name:28} {notebooks.title(name)}{suffix}")
    return lines
