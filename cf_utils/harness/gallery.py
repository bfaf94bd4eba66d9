"""README.md of a published run: figures, claims, and the paper beside ours, on any git host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import folders, notebooks, parameters, records, story, verdicts
from cf_utils.harness.verdicts import format_number

INTRODUCTION = """# Gallery

What each notebook found, without installing anything. The profile *demo* is what `make demo` runs:
few items, for looking. *embedded* has enough items for firm claims, on data that ship with the
project. *paper* has the papers' settings on their official data.
"""


def write_all(wanted: Sequence[str], profile: str = "") -> list[Path]:
    """Write the galleries of published runs again, and their index; return the files.

    Args:
        wanted: notebooks, by default all that are published.
        profile: of the runs; '' is every profile.
    """
    if profile:
        parameters.check_profile(profile)
    profiles = [profile] if profile else parameters.profiles()
    names = notebooks.find_all(wanted) or list(notebooks.paths())
    published = [(p, n) for p in profiles for n in names if _metrics(p, n)]
    if not published:
        raise FileNotFoundError("no run is published; run `cf report publish` first")
    return [write(p, n) for p, n in published] + [write_index()]


def write(profile: str, name: str) -> Path:
    """Write results/<profile>/<notebook>/README.md from what is published there."""
    folder = folders.published_folder(profile, name)
    metrics = _metrics(profile, name) or {}
    claims = records.read(folder / "claims.json") or []
    summary = story.summarise(name, metrics)
    parts = [
        f"# {notebooks.title(name)}\n",
        *([f"**{summary.question}**\n", f"{summary.answer}\n"] if summary else []),
        _describe(profile, name, metrics),
        _figures(name, folder),
        _paper(name, metrics, claims),
        _claims(claims),
        _tables(folder),
    ]
    target = folder / "README.md"
    files.write_text(target, "\n".join(part for part in parts if part))
    return target


def write_index() -> Path:
    """Write results/README.md: the best figure of each notebook, with links to all galleries."""
    parts = [INTRODUCTION]
    for name in notebooks.paths():
        runs = [p for p in parameters.profiles() if _metrics(p, name)]
        if not runs:
            continue
        links = " · ".join(f"[{profile}]({profile}/{name}/README.md)" for profile in runs)
        parts += [f"## {notebooks.title(name)}\n", f"Runs: {links}\n"]
        best = "embedded" if "embedded" in runs else runs[-1]
        metrics = _metrics(best, name) or {}
        if summary := story.summarise(name, metrics):
            pictures = story.list_pictures(name, folders.published_folder(best, name))
            shown = [p for p in pictures if p.name == summary.figure]
            parts += [f"**{summary.question}** {summary.answer}\n"]
            parts += [f"![{p.caption}]({best}/{name}/figures/{p.path.name})\n" for p in shown]
            parts += [f"*{p.caption}*\n" for p in shown]
    target = folders.project() / "results" / "README.md"
    files.write_text(target, "\n".join(parts))
    return target


def _metrics(profile: str, name: str) -> dict[str, Any] | None:
    return records.read(folders.published_folder(profile, name) / "metrics.json")


def _describe(profile: str, name: str, metrics: dict[str, Any]) -> str:
    held = metrics.get("claims", 0) - metrics.get("claims_failed", 0)
    n = "" if metrics.get("n") is None else f", n = {format_number(metrics['n'])}"
    return (
        f"Profile *{profile}*: {metrics['data']} data{n}, seed {metrics.get('seed')}; "
        f"{held} of {metrics.get('claims', 0)} claims hold. "
        f"[Notebook](../../../notebooks/{name}.ipynb) · [all galleries](../../README.md)\n"
    )


def _figures(name: str, folder: Path) -> str:
    lines = [
        f"![{picture.caption}](figures/{picture.path.name})\n\n*{k}. {picture.caption}*\n"
        for k, picture in enumerate(story.list_pictures(name, folder), 1)
    ]
    return "\n".join(["## Figures\n", *lines]) if lines else ""


def _paper(name: str, metrics: dict[str, Any], claims: list[dict[str, Any]]) -> str:
    rows = [
        (v.statement, v.paper, v.ours, v.unit, v.n or "", v.holds)
        for v in verdicts.list_verdicts(name, metrics, claims)
    ]
    heads = ("statement", "paper", "ours", "unit", "n", "holds?")
    return "## The paper beside ours\n\n" + to_markdown(heads, rows) if rows else ""


def _claims(claims: list[dict[str, Any]]) -> str:
    rows = [
        (
            claim["name"],
            format_number(claim["value"]),
            f"{claim['low']:g} to {claim['high']:g}",
            "yes" if claim["ok"] else "**no**",
            claim["opposite"] or "",
        )
        for claim in claims
    ]
    heads = ("claim", "value", "expected", "holds?", "a value beyond would mean")
    return "## Claims\n\n" + to_markdown(heads, rows) if rows else ""


def _tables(folder: Path) -> str:
    paths = sorted((folder / "tables").glob("*.csv"))
    links = [f"- [{story.to_words(path.stem)}](tables/{path.name})" for path in paths]
    return "\n".join(["## Tables\n", *links, ""]) if links else ""


def to_markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; bars and line breaks in the cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
