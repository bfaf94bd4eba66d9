"""What is made of finished runs: report.html, the published copy, the ranges of claims.

python -m cf_utils.harness.report html|publish [NB ...] --profile demo
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd

from cf_utils.core import files
from cf_utils.harness import job, results

TEMPLATE = Path(__file__).with_name("report.html")
ROWS = 60  # of a table, in the report


def path(profile: str) -> Path:
    """results/<profile>/report.html; inside CF_RESULTS_ROOT where that points elsewhere."""
    default = results.project() / "results" / "run"
    return (
        (default.parent if results.root() == default.resolve() else results.root())
        / profile
        / "report.html"
    )


def inputs() -> list[str]:
    """Files that every report depends on."""
    return [
        str(p)
        for p in (
            TEMPLATE,
            Path(__file__),
            *sorted((results.project() / "results" / "reported").glob("*.csv")),
        )
    ]


def source(profile: str, name: str) -> Path | None:
    """The folder to show or publish: of the run, else what was published, else None."""
    for folder in (
        results.run_folder(profile, name),
        results.project() / "results" / profile / name,
    ):
        if (folder / "metrics.json").exists():
            return folder
    return None


def section(profile: str, name: str) -> dict[str, Any]:
    """What the template shows of one notebook."""
    first = nbformat.read(job.notebooks()[name], 4).cells[0].source
    found: dict[str, Any] = {
        "name": name,
        "title": first.splitlines()[0].lstrip("# "),
        "folder": source(profile, name),
    }
    if (folder := found["folder"]) is None:
        log = results.run_folder(profile, name) / "log" / "notebook.ipynb"
        return {**found, "failed": str(log) if log.exists() else None}
    metrics = files.read_json(folder / "metrics.json")
    pictures = sorted((folder / "figures").glob("*.png"))
    return {
        **found,
        "metrics": metrics,
        "claims": files.read_json(folder / "claims.json"),
        "figures": [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in pictures],
        "tables": [
            (p.stem, html(pd.read_csv(p))) for p in sorted((folder / "tables").glob("*.csv"))
        ],
        "beside": html(beside(name, metrics)),
        "paper_claims": html(paper_claims(name)),
    }


def beside(name: str, metrics: dict[str, Any]) -> pd.DataFrame:
    """The papers' figures that this notebook measures too (results/reported/beside.csv says which), ours in the last columns."""
    links = results.project() / "results" / "reported" / "beside.csv"
    if not links.exists():
        return pd.DataFrame()
    links = pd.read_csv(links, keep_default_na=False, dtype=str)
    links = links[links["notebook"] == name]
    reported = results.reported()
    keys = ["paper", "table", "dataset", "task", "method", "metric"]
    joined = links.merge(reported, on=keys, how="left", validate="many_to_one")
    return joined.assign(
        ours=[metrics.get(k) for k in joined["key"]], our_data=metrics["data"]
    ).drop(columns=["notebook"])


def paper_claims(name: str) -> pd.DataFrame:
    """The papers' claims that this notebook tests, with the outcome."""
    file = results.project() / "results" / "reported" / "claims.csv"
    if not file.exists():
        return pd.DataFrame()
    frame = pd.read_csv(file, keep_default_na=False)
    return frame[frame["notebook"] == name].drop(columns="notebook")


def html(frame: pd.DataFrame) -> str:
    """An HTML table with at most ROWS rows (and a line saying so), '' for an empty one."""
    if frame.empty:
        return ""
    shown = frame.head(ROWS).to_html(
        index=False, border=0, na_rep="", float_format=lambda v: f"{v:.4g}"
    )
    return shown + (
        f"<p>{len(frame) - ROWS} more rows in the file.</p>" if len(frame) > ROWS else ""
    )


def write(profile: str) -> Path:
    """Write report.html: every notebook that has results in this profile, and those that failed."""
    shown = [section(profile, n) for n in job.notebooks()]
    shown = [s for s in shown if s["folder"] or s["failed"]]
    template = jinja2.Template(
        TEMPLATE.read_text(encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    files.write_text(
        path(profile),
        template.render(profile=profile, sections=shown, made=made, commit=results.commit()),
    )
    return path(profile)


def publish(profile: str, name: str) -> Path:
    """Copy metrics, claims, tables and figures of a run to the tracked results/<profile>/<notebook>/, and remove what it lost."""
    folder, to = results.run_folder(profile, name), results.project() / "results" / profile / name
    if not (folder / "metrics.json").exists():
        raise FileNotFoundError(f"{folder / 'metrics.json'} is missing: run the notebook first")
    copied = [
        f
        for kind in ("figures/*.png", "tables/*.csv", "claims.json", "metrics.json")
        for f in sorted(folder.glob(kind))
    ]
    if heavy := [
        f.name for f in copied if f.suffix == ".png" and f.stat().st_size > results.PNG_BYTES
    ]:
        raise ValueError(
            f"{name}: {', '.join(heavy)} weigh more than {results.PNG_BYTES} bytes; write figures by run.figure()"
        )
    (to / "metrics.json").unlink(
        missing_ok=True
    )  # comes back last: who finds it finds everything of one run
    for old in [*to.glob("figures/*.png"), *to.glob("tables/*.csv")]:
        if not (folder / old.relative_to(to)).exists():
            old.unlink()
    for file in copied:
        with files.whole_file(to / file.relative_to(folder)) as part:
            shutil.copyfile(file, part)
    return to


def claim_ranges(name: str, folders: list[Path]) -> Path:
    """results/claims/<notebook>.json: {claim: {low, high, min, max, opposite}} over several runs' claims.json."""
    ranges: dict[str, dict[str, Any]] = {}
    for claim in (c for folder in folders for c in files.read_json(folder / "claims.json")):
        values = [
            v
            for v in (
                claim["value"],
                *(ranges.get(claim["name"], {}).get(k) for k in ("min", "max")),
            )
            if v is not None
        ]
        ranges[claim["name"]] = {
            "low": claim["low"],
            "high": claim["high"],
            "min": min(values, default=None),
            "max": max(values, default=None),
            "opposite": claim["opposite"],
        }
    file = results.project() / "results" / "claims" / f"{name}.json"
    files.write_json(file, ranges)
    return file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cf_utils.harness.report", description=__doc__.splitlines()[0]
    )
    parser.add_argument("what", choices=("html", "publish"))
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NB",
        help="publish: number or name; none: every finished one",
    )
    parser.add_argument("--profile", default=results.DEMO)
    args = parser.parse_args(argv)
    try:
        if args.what == "html":
            print(write(args.profile))
            return 0
        finished = [
            n
            for n in job.notebooks()
            if (results.run_folder(args.profile, n) / "metrics.json").exists()
        ]
        for name in [job.find(n) for n in args.notebooks] or finished:
            print(publish(args.profile, name))
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
