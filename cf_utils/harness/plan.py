"""The plan of a workflow: which jobs there are, and which results must be computed again.

Snakemake reads the plan as its configuration; workflow/Snakefile makes rules of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import dependencies, folders, notebooks, parameters, records, report

SNAKEFILE = files.ROOT / "workflow" / "Snakefile"


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


def make_plan(names: Sequence[str], options: Options) -> dict[str, Any]:
    """Check the jobs; return Snakemake's configuration: jobs, and what the report shows."""
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
    if plan["gpu"]:
        command += ["--resources", f"gpu={plan['gpus']}"]
    return [*command, *options.snakemake]
