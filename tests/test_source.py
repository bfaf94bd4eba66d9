"""Rules for the source of cf_utils that no linter knows: lengths, docstrings, explainers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cf_utils.core import files

ROOT = files.ROOT
SOURCES = sorted((ROOT / "cf_utils").rglob("*.py"))
EXPLAINERS = [
    path for path in SOURCES if "explainers" in path.parts and not path.name.startswith("presets")
]
DATA_SETS = re.compile(
    r"\b(mnist|imdb|heloc|german[ _-]credit|uci|celeba(mask)?(-?hq)?|bdd(100k|-oia)?|imagenet|"
    r"chexpert|osic|faces|roads|radiographs|lung_ct)\b",
    re.IGNORECASE,
)
DECIMAL = re.compile(r"\b\d*\.\d+\b")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef | ast.Module]:
    """Yield everything in a file that can have a docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_functions_and_lines_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == []
    long = {}
    for node in definitions(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if (length := node.end_lineno - first + 1) > 60:
                long[node.name] = length
    assert long == {}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_state_a_contract_and_no_measurements(path):
    for node in definitions(path):
        doc = ast.get_docstring(node) or ""
        assert len(DECIMAL.findall(doc)) <= 2, (getattr(node, "name", "module"), doc)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_public_functions_and_classes_have_a_docstring(path):
    if path.name == "__init__.py":
        pytest.skip("a package")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("path", EXPLAINERS, ids=name_of)
def test_explainers_neither_import_nor_name_a_data_set(path):
    text = path.read_text(encoding="utf-8")
    imported = re.findall(r"cf_utils(?:\.|\s+import\s+)(datasets|worlds)\b", text)
    assert imported == []
    assert sorted({m.group(0) for m in DATA_SETS.finditer(text)}) == []


def test_the_rules_would_notice_an_offender(tmp_path):
    """Each rule fails on a file that breaks it."""
    path = tmp_path / "explainers" / "bad.py"
    path.parent.mkdir()
    body = "\n".join(["    x = 1"] * 61)
    path.write_text(f'"""Measured 0.1, 0.2 and 0.3 on MNIST."""\n\ndef long():\n{body}\n')
    for rule in (
        test_files_functions_and_lines_are_short,
        test_docstrings_state_a_contract_and_no_measurements,
        test_public_functions_and_classes_have_a_docstring,
        test_explainers_neither_import_nor_name_a_data_set,
    ):
        with pytest.raises(AssertionError):
            rule(path)
