"""The notebooks of the project: find one by number or name, read its parameters and its code."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from cf_utils.core.choices import unknown_name
from cf_utils.harness import folders

SHARD_TAGS = {"parameters", "setup", "compute"}  # cells that a shard runs


def paths() -> dict[str, Path]:
    """Return name -> path of all notebooks, in teaching order."""
    folder = folders.project() / "notebooks"
    return {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}


def find(wanted: str) -> str:
    """Return the name of the notebook for '1', '01', '01_gradual_mnist' or a path.

    Raises ValueError with the known names, and the nearest one, if there is none.
    """
    stem, known = Path(wanted).stem, paths()
    for name in known:
        if name == stem or (stem.isdigit() and int(name[:2]) == int(stem)):
            return name
    raise unknown_name("notebook", wanted, known, {name[3:]: name for name in known})


def find_all(wanted: Sequence[str]) -> list[str]:
    """Return the names of several notebooks, each once, in the given order."""
    return list(dict.fromkeys(find(text) for text in wanted))


def read(name: str) -> nbformat.NotebookNode:
    """Read a notebook by its name."""
    return nbformat.read(paths()[name], 4)


def title(name: str) -> str:
    """Return the heading of a notebook."""
    return read(name).cells[0].source.splitlines()[0].lstrip("# ")


def has_tag(cell: nbformat.NotebookNode, *tags: str) -> bool:
    """Return whether a cell has one of the tags."""
    return not set(tags).isdisjoint(cell.metadata.get("tags", []))


def can_be_sharded(notebook: nbformat.NotebookNode) -> bool:
    """Return whether a cell is tagged 'compute', so that shards of the notebook do some work."""
    return any(has_tag(cell, "compute") for cell in notebook.cells)


def code(name: str) -> str:
    """Return the Python code of a notebook, with `pass` in place of IPython's magic commands."""
    cells = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(cells))


def defaults(name: str) -> dict[str, Any]:
    """Return the literals in the notebook's cell tagged `parameters`: the demo profile.

    Raises ValueError unless there is exactly one such cell, of lines `name = literal`.
    """
    cells = [cell for cell in read(name).cells if has_tag(cell, "parameters")]
    if len(cells) != 1:
        raise ValueError(f"{name}: {len(cells)} cells are tagged 'parameters', expected one")
    found = {}
    for node in ast.parse(cells[0].source).body:  # papermill misses annotated assignments
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name):
            raise ValueError(
                f"{name}: line {node.lineno} of the parameters cell is not a plain `name = literal`"
            )
        found[target.id] = ast.literal_eval(node.value)
    return found
