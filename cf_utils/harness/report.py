"""report.html: figures, tables, claims and metrics of each notebook that has run in a profile."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from cf_utils.core import files
from cf_utils.harness import (
    folders,
    notebooks,
    parameters,
    provenance,
    publish,
    records,
    results,
)

TEMPLATE = Path(__file__).with_name("report.html")
MAX_ROWS = 60  # of a table in the report


def path(profile: str) -> Path:
    """Return results/<profile>/report.html, or its place in CF_RESULTS_ROOT if that is set.

    Raises ValueError for a profile that does not exist.
    """
    parameters.check_profile(profile)
    default = folders.project() / "results" / "run"
    base = default.parent if folders.root() == default.resolve() else folders.root()
    return base / profile / "report.html"


def input_files() -> list[Path]:
    """Return the files that every report depends on."""
    reported = folders.project() / "results" / "reported"
    return [TEMPLATE, Path(__file__), *sorted(reported.glob("*.csv"))]


def write(profile: str) -> Path:
    """Write the report of all notebooks that have results in a profile or failed in it."""
    target = path(profile)
    sections = [_section(profile, name) for name in notebooks.paths()]
    template = jinja2.Template(
        TEMPLATE.read_text(encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = template.render(
        profile=profile,
        sections=[section for section in sections if section["folder"] or section["failed"]],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=provenance.commit(),
    )
    files.write_text(target, page)
    return target


def _section(profile: str, name: str) -> dict[str, Any]:
    """Return what the template shows of one notebook.

    A notebook whose records are damaged is shown as not finished.
    """
    folder = _source(profile, name)
    section = {"name": name, "title": notebooks.title(name), "folder": folder, "failed": None}
    if folder is None:
        run = folders.run_folder(profile, name)
        log = run / "log" / "notebook.ipynb"
        problems = [f"{run / file} cannot be read" for file in records.damaged(run)]
        section["failed"] = "; ".join([*problems, *([str(log)] if log.exists() else [])])
        return section
    metrics = records.read(folder / "metrics.json")
    pictures = sorted((folder / "figures").glob("*.png"))
    tables = sorted((folder / "tables").glob("*.csv"))
    return {
        **section,
        "metrics": metrics,
        "claims": records.read(folder / "claims.json") or [],
        "changes": _changed_parameters(profile, name, folder),
        "figures": [(p.stem, base64.b64encode(p.read_bytes()).decode()) for p in pictures],
        "tables": [(p.stem, _read_table(p)) for p in tables],
        "beside": _html(_reported_beside_ours(name, metrics)),
        "paper_claims": _html(_claims_of_papers(name)),
    }


def _source(profile: str, name: str) -> Path | None:
    """Return the folder to show: of the run, else the published one, else None."""
    for folder in (folders.run_folder(profile, name), folders.published_folder(profile, name)):
        if records.read(folder / "metrics.json"):
            return folder
    return None


def _changed_parameters(profile: str, name: str, folder: Path) -> str:
    """Say in which parameters the results differ from the profile; '' if they do not."""
    if folder != folders.run_folder(profile, name):
        return ""  # only the profile's results are published
    if name not in parameters.profile_sections(profile):
        return "unknown, because the profile has no section for this notebook"
    found = publish.changed_parameters(profile, name)
    if found is None:
        return "unknown, because the notebook was not started by `cf run`"
    return ", ".join(found)


def _reported_beside_ours(name: str, metrics: dict[str, Any]) -> pd.DataFrame:
    """Return the papers' figures that this notebook measures too, with our values beside them.

    results/reported/beside.csv names the metric for each figure.
    """
    source = folders.project() / "results" / "reported" / "beside.csv"
    if not source.exists():
        return pd.DataFrame()
    links = pd.read_csv(source, keep_default_na=False, dtype=str)
    links = links[links["notebook"] == name]
    keys = ["paper", "table", "dataset", "task", "method", "metric"]
    merged = links.merge(results.reported(), on=keys, how="left", validate="many_to_one")
    ours = [metrics.get(key) for key in merged["key"]]
    return merged.assign(ours=ours, our_data=metrics["data"]).drop(columns=["notebook"])


def _claims_of_papers(name: str) -> pd.DataFrame:
    """Return the papers' claims that this notebook tests, with the outcome."""
    source = folders.project() / "results" / "reported" / "claims.csv"
    if not source.exists():
        return pd.DataFrame()
    frame = pd.read_csv(source, keep_default_na=False)
    return frame[frame["notebook"] == name].drop(columns="notebook")


def _read_table(source: Path) -> str:
    """Read a CSV file as an HTML table, or say that it is empty or damaged."""
    try:
        return _html(pd.read_csv(source)) or "<p>No rows.</p>"
    except pd.errors.EmptyDataError:
        return "<p>No rows.</p>"
    except (pd.errors.ParserError, UnicodeDecodeError):
        return "<p>This file cannot be read.</p>"


def _html(frame: pd.DataFrame) -> str:
    """Return an HTML table of at most MAX_ROWS rows, or '' for an empty one."""
    if frame.empty:
        return ""
    shown = frame.head(MAX_ROWS).to_html(
        index=False, border=0, na_rep="", float_format=lambda value: f"{value:.4g}"
    )
    more = len(frame) - MAX_ROWS
    return shown + (f"<p>{more} more rows in the file.</p>" if more > 0 else "")
