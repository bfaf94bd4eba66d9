"""Files that a notebook's results depend on, so that it runs again when one of them changes."""

from __future__ import annotations

import ast
from pathlib import Path

from cf_utils import worlds
from cf_utils.explainers import presets
from cf_utils.harness import folders, notebooks
from cf_utils.models import checkpoints

# modules that import others by name when they are used
LAZY_IMPORTS = {
    "cf_utils.models.checkpoints": {a.module for a in checkpoints.REGISTRY.values()},
    "cf_utils.explainers.presets": {
        f"cf_utils.explainers.{module}" for module, _ in presets.CLASSES.values()
    },
    "cf_utils.worlds": {f"cf_utils.worlds.{name}" for name in worlds.NAMES},
}


def input_files(name: str) -> list[Path]:
    """Return the notebook and the modules of cf_utils that it imports.

    The checkpoints that it loads are not known before it has run; `records` compares those.
    """
    return [notebooks.paths()[name], *sorted(imported_files(notebooks.code(name)))]


def imported_files(source: str, seen: set[Path] | None = None) -> set[Path]:
    """Return the files of cf_utils that Python code imports, directly or through each other."""
    seen = set() if seen is None else seen
    for module in _imported_modules(source):
        parts = module.split(".")
        if parts[0] != "cf_utils":
            continue
        for depth in range(1, len(parts) + 1):  # importing a module runs its packages, too
            base = (folders.project() / "cf_utils").joinpath(*parts[1:depth])
            for path in (base / "__init__.py", base.with_suffix(".py")):
                if path.is_file() and path not in seen:
                    seen.add(path)
                    imported_files(path.read_text(encoding="utf-8"), seen)
    return seen


def _imported_modules(source: str) -> set[str]:
    """Return the modules that code imports; of `from a import b`, both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names.union(*(LAZY_IMPORTS.get(name, ()) for name in names))
