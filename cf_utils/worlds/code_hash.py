"""A hash of the code that an image of a world depends on.

The hash covers the syntax trees of all modules of this package that draw the world, and a few draws
of its random stream. It ignores what cannot change an image: comments, docstrings, annotations,
imports, error messages, text layout, the order of top-level definitions, and the file that holds
them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from cf_utils import core
from cf_utils.core import files

PACKAGE = __name__.rpartition(".")[0]
FOLDER = Path(__file__).parent
LATER_FIELDS = {"channels": 3}  # of World, with the value that worlds had before they existed
IGNORED_FIELDS = {"annotation", "returns", "ctx", "kind", "type_comment", "type_params"}


def hash_world(name: str, module: str) -> str:
    """Hash the code and the random stream that the images of a world depend on.

    The code is that of the renderer's module, of world.py, and of all modules of this package that
    these import.

    name: the world's name. module: dotted name of the module that holds `draw`.
    Raises ValueError if that module has no file, as in an interactive session.
    """
    source = getattr(sys.modules[module], "__file__", None)
    if source is None:
        raise ValueError(
            f"draw: got a function of {module!r}, which has no file; define the world in a module"
        )
    stream = core.item_noise(0, ["0"], (4,), name, "uniform")
    return files.sha256(*list_statements(Path(source), FOLDER / "world.py"), stream)


def list_statements(*starts: Path) -> list[str]:
    """Return the canonical forms of all top-level statements in `find_modules(*starts)`, sorted."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in find_modules(*starts))
    return sorted({canonical(node) for tree in trees for node in tree.body if not is_wording(node)})


def find_modules(*starts: Path) -> set[Path]:
    """Return the files `starts` and all modules of this package that they import.

    Indirect imports count. This module is left out, because no image depends on it.
    """
    itself = FOLDER / Path(__file__).name
    found: set[Path] = {itself}
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        imports = find_imports(ast.parse(path.read_text(encoding="utf-8")))
        paths = (FOLDER / f"{name.removeprefix(PACKAGE + '.')}.py" for name in imports)
        waiting += [path for path in paths if path.exists()]
    return found - {itself}


def find_imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names inside this package that a module imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.startswith(f"{PACKAGE}."))


def is_wording(node: object) -> bool:
    """Return whether a statement is an import or a bare constant such as a docstring."""
    if isinstance(node, ast.If):  # `if TYPE_CHECKING:` holds imports only
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    is_constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Import | ast.ImportFrom) or is_constant


def later_field(node: object) -> str | None:
    """Return the name if a node is `self.<name>` with one of `LATER_FIELDS`, else None."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" and node.attr in LATER_FIELDS else None
    return None


def declares_later_field(node: object) -> bool:
    """Return whether a statement declares one of `LATER_FIELDS` with its value there."""
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
        return False
    name, value = node.target.id, node.value
    constant = isinstance(value, ast.Constant)
    return constant and name in LATER_FIELDS and value.value == LATER_FIELDS[name]


def canonical(node: object) -> str:
    """Write a syntax tree as text that is equal for equal code in every version of Python.

    Fields that are absent or empty are left out, because new versions of Python add such fields.
    A field of `LATER_FIELDS` is written as its value, so that it leaves the hashes of older worlds.
    """
    if isinstance(node, list):
        code = [item for item in node if not is_wording(item) and not declares_later_field(item)]
        return "[" + ", ".join(map(canonical, code)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if (name := later_field(node)) is not None:
        return repr(LATER_FIELDS[name])
    if isinstance(node, ast.Raise):
        return "Raise"
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        node = ast.Assign(targets=[node.target], value=node.value)
    fields = [
        f"{name}={canonical(value)}"
        for name, value in ast.iter_fields(node)
        if name not in IGNORED_FIELDS and value is not None and value != []
    ]
    return f"{type(node).__name__}({', '.join(fields)})"
