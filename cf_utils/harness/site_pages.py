"""Notebook pages of the static site: stored notebooks with the outputs of a published run.

Notebooks are stored without figures and tables. A published run has them as files, by the names
that the notebook gives to `run.figure` and `run.table`, and the values of its claims. A page shows
each of them below the cell that makes it.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat.v4 import new_markdown_cell

from cf_utils.harness import folders, notebooks, records, story
from cf_utils.viz import quiz

PROFILES = ("demo", "embedded", "paper")  # the first with a published run is shown
FOLDED = ("parameters", "setup", "solution")  # tags of cells whose code is folded
MAX_ROWS = 25  # of a table on a page
_QUIZ = re.compile(r"^quiz\.ask\(\"(\d\d)\"\)", re.MULTILINE)
_CLAIM = re.compile(r"(?P<name>.*) in \[.*\]: (ok|FAILED)")
_DETAILS = re.compile(r"<details><summary>(.*?)</summary>\s*(.*?)\s*</details>", re.DOTALL)
_IMAGES = ("image/png", "image/svg+xml")


def published(name: str) -> Path | None:
    """Return the folder of the published run that a notebook's page shows, or None."""
    for profile in PROFILES:
        folder = folders.published_folder(profile, name)
        if records.read(folder / "metrics.json"):
            return folder
    return None


def build(name: str, extra: str = "") -> nbformat.NotebookNode:
    """Return the page of a notebook, for Sphinx with MyST-NB.

    Args:
        extra: HTML that follows the first cell tagged `slider`; without one, the title.
    """
    notebook, folder = notebooks.read(name), published(name)
    captions = {p.name: p.caption for p in story.list_pictures(name, folder)} if folder else {}
    cells = [(cell, _below(cell, folder, captions)) for cell in notebook.cells]
    notebook.cells = []
    for cell, below in cells:
        notebook.cells.append(_page_cell(cell))
        if not notebook.cells[1:]:
            below = _origin(name, folder)
        if extra and notebooks.has_tag(cell, "slider"):
            below, extra = f"{below}\n\n{extra}", ""
        if below.strip():
            notebook.cells.append(new_markdown_cell(below))
    if extra:
        notebook.cells.insert(2, new_markdown_cell(extra))
    return notebook


def _page_cell(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Fold the code of set-up and solution; let Markdown inside <details> be read as Markdown."""
    if cell.cell_type == "markdown":
        cell.source = _DETAILS.sub(
            r"<details><summary>\1</summary>\n\n\2\n\n</details>", cell.source
        )
    elif notebooks.has_tag(cell, *FOLDED):
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
    return cell


def _origin(name: str, folder: Path | None) -> str:
    """Say where the outputs come from, and offer the notebook."""
    link = f"{{download}}`Download the notebook <original/{name}.ipynb>`."
    if folder is None:
        return (
            f":::{{note}}\nNo run of this notebook is published, so it has no outputs. {link}\n:::"
        )
    metrics = records.read(folder / "metrics.json")
    gallery = folder / "README.md"
    more = f" [All figures and claims](../results/{folder.parent.name}/{name}/README.md)."
    return (
        f":::{{note}}\nOutputs are those of the published run with the profile "
        f"`{folder.parent.name}`: n = {metrics.get('n')}, {metrics.get('data')} data, "
        f"{metrics.get('seconds', 0):.0f} s.{more if gallery.exists() else ''} {link}\n:::"
    )


def _below(cell: nbformat.NotebookNode, folder: Path | None, captions: Mapping[str, str]) -> str:
    """Return the Markdown below a cell: its quiz, and what it made in the published run.

    Printed lines of claims are replaced by a table with the values, if all of them are known.
    """
    if cell.cell_type != "code":
        return ""
    parts = [_in_one_line(quiz.to_html(quiz.load(n))) for n in _QUIZ.findall(cell.source)]
    if folder is None:
        return "\n\n".join(parts)
    drawn = any(mime in output.get("data", {}) for output in cell.outputs for mime in _IMAGES)
    for kind, pattern in _calls(cell.source):
        if kind == "table":
            parts += [_table(path) for path in _matches(folder / "tables", pattern, "csv")]
        elif not drawn:
            found = _matches(folder / "figures", pattern, "png")
            parts += [_figure(path, captions[path.stem]) for path in found]
    if claims := _claims(cell, folder):
        parts.append(claims)
        cell.outputs = []
    return "\n\n".join(parts)


def _calls(source: str) -> Iterator[tuple[str, str]]:
    """Yield ("figure" or "table", pattern of its name) per call of a cell, in order.

    A name that the code puts together is matched by its fixed parts.
    """
    tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        f = call.func
        if not (isinstance(f, ast.Attribute) and f.attr in ("figure", "table")):
            continue
        if isinstance(f.value, ast.Name) and f.value.id == "run":
            yield f.attr, _pattern(call.args[0])


def _pattern(node: ast.expr) -> str:
    """Return a regular expression for the texts that a string expression can be."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(
            ".+" if isinstance(p, ast.FormattedValue) else _pattern(p) for p in node.values
        )
    return r"(?!)"  # a name that only the run knows: matches nothing


def _matches(folder: Path, pattern: str, ending: str) -> list[Path]:
    return [p for p in sorted(folder.glob(f"*.{ending}")) if re.fullmatch(pattern, p.stem)]


def _figure(path: Path, caption: str) -> str:
    """Return a MyST figure, whose caption is its alternative text, too."""
    place = "/".join(("..", "results", *path.parts[-4:]))
    alt = re.sub(r"[*$`]", "", caption)
    return f":::{{figure}} {place}\n:alt: {alt}\n\n{caption}\n:::"


def _table(path: Path) -> str:
    """Return a CSV file as an HTML table that scrolls by itself, or '' if it has no rows."""
    try:
        frame = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
        return ""
    return table_html(frame, f"Table {path.stem.replace('_', ' ')}") if len(frame) else ""


def table_html(frame: pd.DataFrame, label: str) -> str:
    """Return at most MAX_ROWS rows as HTML inside a region that a keyboard can scroll."""
    names = {c: "" if str(c).startswith("Unnamed: ") else str(c).replace("_", " ") for c in frame}
    body = frame.rename(columns=names).head(MAX_ROWS)
    table = body.to_html(index=False, border=0, na_rep="", float_format=lambda v: f"{v:.4g}")
    more = len(frame) - MAX_ROWS
    note = f"<p>{more} more rows in the file.</p>" if more > 0 else ""
    region = f'<div class="cf-table" role="region" tabindex="0" aria-label="{html.escape(label)}">'
    return f"{region}{_in_one_line(table)}</div>{note}"


def _in_one_line(text: str) -> str:
    """Return HTML without line breaks: Markdown would end it at an empty line."""
    return re.sub(r"\s*\n\s*", " ", text)


def _claims(cell: nbformat.NotebookNode, folder: Path) -> str:
    """Return a table of the claims that a cell printed, with the run's values; '' if unknown."""
    text = "".join(output.get("text", "") for output in cell.outputs)
    printed = [_CLAIM.fullmatch(line) for line in text.splitlines()]
    known = {claim["name"]: claim for claim in records.read(folder / "claims.json") or []}
    if not printed or any(line is None or line["name"] not in known for line in printed):
        return ""
    rows: list[dict[str, Any]] = []
    for claim in (known[line["name"]] for line in printed if line):
        value = "none" if claim["value"] is None else f"{claim['value']:.3g}"
        bounds = f"{claim['low']:g} to {claim['high']:g}"
        rows.append(
            {
                "claim": claim["name"],
                "value": value,
                "expected": bounds,
                "holds": "yes" if claim["ok"] else "no",
            }
        )
    return table_html(pd.DataFrame(rows), "Claims of this cell")
