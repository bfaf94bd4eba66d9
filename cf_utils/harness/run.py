"""Run notebooks: all that are not done, through Snakemake, or a single one in this process.

The plan (see `plan`) is a JSON file that workflow/Snakefile reads. Its jobs call `cf run --one`.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import claims, folders, job, notebooks, parameters, report, terminal
from cf_utils.harness.locks import environment, lock_file
from cf_utils.harness.plan import Options, make_plan, snakemake_command

SEEDS = range(5)  # of `run_claims`
POLL = 0.5  # seconds between two looks at the jobs


def choose_notebooks(wanted: Sequence[str], profile: str) -> list[str]:
    """Return the names of the wanted notebooks, or of all that have a section in the profile."""
    names = notebooks.find_all(wanted) or list(parameters.profile_sections(profile))
    if not names:
        raise ValueError(f"profile: {profile!r} has no notebooks to run")
    return names


def run_workflow(wanted: Sequence[str], options: Options) -> int:
    """Run what is not done yet; return 0 if every notebook is done and every claim holds.

    The terminal shows progress, see `terminal`; what Snakemake and the jobs print is in the log.

    Args:
        wanted: numbers or names of notebooks; if empty, all that have a section in the profile.

    On Ctrl-C it raises KeyboardInterrupt with a sentence that says how to go on.
    """
    names = choose_notebooks(wanted, options.profile)
    folders.check_writable(folders.root())
    lock = folders.root() / ".locks" / "workflow.lock"
    with lock_file(lock, "the workflow in this results folder") as descriptor:
        plan = make_plan(names, options)
        path = folders.root() / ".plans" / f"{options.profile}.json"
        files.write_json(path, plan)
        command = snakemake_command(path, plan, options)
        if options.dry_run:
            return _run_snakemake(command, descriptor)
        before, status = _modification_times(plan), 0
        progress = terminal.Progress(names, plan, options.cores or 1)
        try:
            if (pending := find_pending(command, names)) is not None:
                progress.announce(pending)
                status = _run_snakemake(command, descriptor, progress)
                progress.finish(status)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(progress.say_stopped()) from None
        problem = _write_report(options.profile) if status else None
        unchanged = status == 0 and _modification_times(plan) == before
        return summarise(names, options.profile, status, unchanged, problem)


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


def find_pending(command: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """Return which of the notebooks have a job to run; None if there is no job, nor a report.

    A dry run of Snakemake tells. If it fails, all notebooks are returned; the run will show why.
    """
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True)
    if dry.returncode:
        return list(names)
    said = dry.stdout + dry.stderr
    if "Nothing to be done" in said:
        return None
    found = set(re.findall(r"(?m)^\s*wildcards: nb=([\w.-]+)", said))
    return [name for name in names if name in found]


def _run_snakemake(
    command: Sequence[str], lock: int, progress: terminal.Progress | None = None
) -> int:
    """Run Snakemake and return its exit status; on Ctrl-C wait until it has ended its jobs.

    With `progress`, the output goes to the log. The child inherits the lock: if only this process
    is killed, the next run waits for the child.
    """
    with contextlib.ExitStack() as stack:
        out: dict[str, Any] = {}
        if progress is not None:
            path = terminal.log_path(progress.profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(open(path, "w"))
            out = {"stdout": log, "stderr": subprocess.STDOUT}
        child = stack.enter_context(subprocess.Popen(command, pass_fds=(lock,), **out))
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(POLL)
                if progress is not None:
                    progress.look()
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
    """Print what failed and where to look; return the exit status.

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
    if status:
        print(f"log: {terminal.log_path(profile)}")
    if unchanged:
        print(f"nothing to do, all is done; the report is {report.path(profile)}")
    else:
        print(f"report: {problem or report.path(profile)}")
    return int(bad)


def run_claims(wanted: Sequence[str], options: Options) -> int:
    """Run each notebook with 5 seeds and write the range of each claim's value.

    The ranges go to results/claims/<notebook>.json. Returns 1 if a notebook failed with some seed.
    """
    names = choose_notebooks(wanted, options.profile)
    roots = [folders.root() / ".claims" / f"seed-{seed}" for seed in SEEDS]
    for seed, root in zip(SEEDS, roots, strict=True):
        changes = [*options.changes, f"seed={seed}"]
        print(f"seed {seed} of {SEEDS[0]} to {SEEDS[-1]}", flush=True)
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
