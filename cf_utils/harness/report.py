"""report.html: figures, tables, claims and metrics of each notebook that has run in a profile."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from cf_utils.core import files
from cf_utils.harness import (
    folders,
    notebooks,
    pages,
    parameters,
    provenance,
    publish,
    records,
    story,
    verdicts,
)

TEMPLATE = Path(__file__).with_name("report.html")
MAX_ROWS = 40  # of a table in the report
MAX_BYTES = 3_000_000  # of the page
# (quality, scale) of the pictures, tried in this order
REDUCTIONS = ((80, 1.0), (60, 1.0), (60, 0.8), (50, 0.7), (40, 0.5))


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
    own = [TEMPLATE, TEMPLATE.with_name("page.html"), story.SUMMARIES, Path(__file__)]
    return [*own, *sorted(reported.glob("*.csv"))]


def write(profile: str) -> Path:
    """Write the report of all notebooks that have results in a profile or failed in it.

    The pictures become smaller until the page weighs at most MAX_BYTES.
    """
    target = path(profile)
    sections = [_section(profile, name) for name in notebooks.paths()]
    sections = [section for section in sections if section["folder"] or section["failed"]]
    for quality, scale in REDUCTIONS:
        page = pages.render(
            TEMPLATE.name,
            profile=profile,
            sections=[_with_pictures(section, quality, scale) for section in sections],
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            commit=provenance.commit(),
        )
        if len(page.encode()) <= MAX_BYTES:
            break
    files.write_text(target, page)
    return target


def _with_pictures(section: dict[str, Any], quality: int, scale: float) -> dict[str, Any]:
    shown = [
        {
            "name": picture.name,
            "caption": picture.caption,
            "data": pages.encode_picture(picture.path.read_bytes(), quality, scale),
        }
        for picture in section.get("pictures", ())
    ]
    return {**section, "pictures": shown}


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
    claims = records.read(folder / "claims.json") or []
    numbers = [(story.to_words(key), value) for key, value in metrics.items()]
    tables = sorted((folder / "tables").glob("*.csv"))
    return {
        **section,
        "metrics": metrics,
        "n": verdicts.format_number(metrics.get("n")),
        "summary": story.summarise(name, metrics),
        "claims": claims,
        "changes": _changed_parameters(profile, name, folder),
        "pictures": story.list_pictures(name, folder),
        "verdicts": verdicts.list_verdicts(name, metrics, claims),
        "unmeasured": pages.make_table(verdicts.list_unmeasured(name, metrics), MAX_ROWS),
        "tables": [(story.to_words(p.stem), pages.read_table(p, MAX_ROWS)) for p in tables],
        "numbers": pages.make_table(pd.DataFrame(numbers, columns=["metric", "value"]), 1000),
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
