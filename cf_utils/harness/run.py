"""Run notebooks: `python -m cf_utils.harness.run [NB ...] --profile demo|paper|embedded`.

Plans the jobs (parameters, shards, what each depends on), checks all of them, and lets Snakemake run what is not done yet under
a lock of ours. `--one NB` is a single job, what Snakemake's rules call. What follows a lone `--` goes to Snakemake.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from cf_utils.core import files
from cf_utils.harness import job, report, results

SNAKEFILE = files.ROOT / "workflow" / "Snakefile"
SEEDS = range(5)  # of `--claims`


def modules(source: str, seen: set[Path] | None = None) -> set[Path]:
    """The files of cf_utils that Python code imports, directly or through one another."""
    seen, package = set() if seen is None else seen, results.project() / "cf_utils"
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    for parts in (n.split(".") for n in names if n.split(".")[0] == "cf_utils"):
        for depth in range(1, len(parts) + 1):  # a package's __init__ runs on the way to a module
            base = package.joinpath(*parts[1:depth])
            for path in (base / "__init__.py", base.with_suffix(".py")):
                if path.is_file() and path not in seen:
                    seen.add(path)
                    modules(path.read_text(encoding="utf-8"), seen)
    return seen


def inputs(name: str) -> list[str]:
    """What a notebook's results depend on: itself, the modules it imports, and every checkpoint there is."""
    path = job.notebooks()[name]
    lines = [
        line
        for c in nbformat.read(path, 4).cells
        if c.cell_type == "code"
        for line in c.source.splitlines()
    ]
    code = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in lines)
    checkpoints = (results.project() / "results" / "checkpoints").glob("*.*")
    return [
        str(p)
        for p in (
            path,
            *sorted(modules(code)),
            *sorted(p for p in checkpoints if ".part-" not in p.name),
        )
    ]


def plan(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Snakemake's configuration: the jobs, checked, and what the report shows."""
    jobs = {}
    for name in names:
        parameters, shards = job.settings(name, args.profile, args.data, args.p)
        text = json.dumps(parameters, sort_keys=True)
        jobs[name] = {"parameters": text, "shards": args.shards or shards, "inputs": inputs(name)}
    units = sum(j["shards"] for j in jobs.values())
    gpus = gpu_count()
    finished = {
        n
        for n in job.notebooks()
        if (results.run_folder(args.profile, n) / "metrics.json").exists()
    }
    return {
        "profile": args.profile,
        "root": str(results.root()),
        "jobs": jobs,
        "gpu": int(gpus > 0),
        "gpus": gpus,
        "threads": max(
            1, args.cores // max(1, min(units, args.cores))
        ),  # more threads than cores slow all of them
        "report": str(report.path(args.profile)),
        "shown": sorted(finished | jobs.keys()),
        "report_inputs": report.inputs(),
    }


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def workflow(names: list[str], args: argparse.Namespace, extra: list[str]) -> int:
    """Let Snakemake do what is to be done; 0 when every notebook is done and every claim holds."""
    results.writable(results.root())
    with job.held(
        results.root() / ".locks" / "workflow.lock", "the workflow in this results folder"
    ) as lock:
        config = plan(names, args)
        path = results.root() / ".plans" / f"{args.profile}.json"
        files.write_json(path, config)
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(SNAKEFILE),
            "--configfile",
            str(path),
            "--directory",
            str(results.root()),
            "--cores",
            str(args.cores),
            "--nolock",
            "--rerun-incomplete",
            "--keep-going",
            "--scheduler",
            "greedy",
            "--max-checksum-file-size",
            "100MB",
            *(
                ["--dry-run"]
                if args.dry_run
                else ["--quiet", "host", "progress", "reason", "rules"]
            ),
        ]
        command += ["--resources", f"gpu={config['gpus']}"] if config["gpu"] else []
        before = stamps(config)
        # the child inherits the lock: should only this process be killed, a successor waits for the orphan instead of racing it
        rc = subprocess.run([*command, *extra], pass_fds=(lock,), check=False).returncode
        if args.dry_run:
            return rc
        if rc:
            report.write(args.profile)  # its rule waits for all; show what there is
        return summary(names, args.profile, rc, rc == 0 and stamps(config) == before)


def stamps(config: dict[str, Any]) -> list[int | None]:
    """When each result was written; None where it is missing."""
    made = [results.run_folder(config["profile"], n) / "metrics.json" for n in config["jobs"]]
    return [p.stat().st_mtime_ns if p.exists() else None for p in (*made, Path(config["report"]))]


def summary(names: list[str], profile: str, rc: int, unchanged: bool) -> int:
    """Say what is done, what failed and where to look; the exit status."""
    bad = bool(rc)
    for name in names:
        folder = results.run_folder(profile, name)
        if not (folder / "metrics.json").exists():
            bad, log = True, folder / "log" / "notebook.ipynb"
            print(f"{name}: not done" + (f"; see {log}" if log.exists() else ""))
        elif failed := job.failed_claims(folder):
            bad = True
            print(f"{name}: done, but {len(failed)} claims do not hold: {'; '.join(failed)}")
        elif not unchanged:
            print(f"{name}: done, results in {folder}")
    print(f"report: {report.path(profile)}")
    if unchanged:
        print("all is done: nothing has changed since the last run")
    return int(bad)


def claims(names: list[str], args: argparse.Namespace, extra: list[str]) -> int:
    """Run each notebook with 5 seeds and write how far each claim's value ranges to results/claims/<notebook>.json."""
    roots = [results.root() / ".claims" / f"seed-{seed}" for seed in SEEDS]
    bad = 0
    for seed, root in zip(SEEDS, roots, strict=True):
        own = argparse.Namespace(**{**vars(args), "p": [*args.p, f"seed={seed}"]})
        with job.environment(CF_RESULTS_ROOT=str(root), CF_CLAIMS="record"):
            workflow(names, own, extra)  # a claim that fails is what we are looking for
    for name in names:
        folders = [root / args.profile / name for root in roots]
        if missing := [f for f in folders if not (f / "claims.json").exists()]:
            bad = 1
            print(
                f"{name}: no claims from {', '.join(f.parent.parent.name for f in missing)}; not written"
            )
        else:
            print(f"{name}: {report.claim_ranges(name, folders)}")
    return bad


def one(args: argparse.Namespace) -> int:
    """A single job; 1 when it or one of its claims failed (with --keep-going only when it failed)."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that papermill takes its kernel along
    name = job.find(args.one)
    if args.parameters is not None:
        parameters = json.loads(args.parameters)
    else:
        parameters, _ = job.settings(name, args.profile, args.data, args.p)
    k, _, n = (args.shard or "1/1").partition("/")
    with job.environment(CF_SHARD=f"{k}/{n}"):
        shard = results.shard_from_env()
    folder = job.run_one(name, args.profile, parameters, shard)
    if failed := job.failed_claims(folder):
        print(f"{name}: {len(failed)} claims do not hold: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed) and not args.keep_going)


def listing() -> None:
    for name, path in job.notebooks().items():
        title = nbformat.read(path, 4).cells[0].source.splitlines()[0].lstrip("# ")
        done = [p.parent.parent.name for p in sorted(results.root().glob(f"*/{name}/metrics.json"))]
        print(f"{name:28} {title}" + (f"   [done: {', '.join(done)}]" if done else ""))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser = argparse.ArgumentParser(
        prog="python -m cf_utils.harness.run",
        allow_abbrev=False,
        description=__doc__.splitlines()[0],
        epilog="What follows a lone -- goes to Snakemake, e.g. -- --workflow-profile workflow/profiles/slurm",
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NB",
        help="number or name; none: all that the profile has a section for",
    )
    parser.add_argument(
        "--profile", default=results.DEMO, help="demo (default), or a file in notebooks/profiles"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder with official data sets; without it the embedded default",
    )
    parser.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="jobs a notebook is cut into (default: what the profile says)",
    )
    parser.add_argument(
        "--cores", type=int, default=cores, metavar="N", help=f"cores to use (here {cores})"
    )
    parser.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter, checked; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--list", action="store_true", help="list the notebooks")
    parser.add_argument(
        "--claims",
        action="store_true",
        help="5 seeds each; write the claims' ranges to results/claims",
    )
    parser.add_argument("--one", metavar="NB", help="run this one job here, without Snakemake")
    parser.add_argument("--shard", metavar="K/N", help="with --one: only this shard's batches")
    parser.add_argument(
        "--parameters",
        metavar="JSON",
        help="with --one: exactly these, instead of the profile's and -p",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="with --one: end with 0 although claims failed"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    args, extra = arguments().parse_args(argv[:cut]), argv[cut + 1 :]
    try:
        if args.list:
            listing()
            return 0
        if min(args.cores, 1 if args.shards is None else args.shards) < 1:
            raise ValueError(
                f"--shards, --cores: got {args.shards}, {args.cores}, expected whole numbers >= 1"
            )
        if args.one:
            return one(args)
        names = list(dict.fromkeys(job.find(n) for n in args.notebooks)) or list(
            job.profile_sections(args.profile)
        )
        if not names:
            raise ValueError(f"profile {args.profile!r} has no notebooks to run")
        return (claims if args.claims else workflow)(names, args, extra)
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except job.JobFailed as e:
        print(f"FAILED {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
