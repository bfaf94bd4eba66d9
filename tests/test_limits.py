"""Limits of a notebook's form: cells, lines, words, parameters, and where the first question is."""

from __future__ import annotations

import ast
import re

import nbformat
import pytest

from cf_utils.core.files import ROOT

CELLS, LINES, WORDS, PARAMETERS, BEFORE_QUESTION = 45, 12, 120, 10, 10
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NAMES)
def cells(request):
    return nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", 4).cells


def has_tag(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def is_folded(cell) -> bool:
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def count_words(text: str) -> int:
    """Count words as a reader does: HTML tags, rules of tables and addresses are none."""
    text = re.sub(r"<[^>]+>|\]\([^)]*\)|[|*#$`]|\|?-{3,}\|?", " ", text)
    return len([word for word in text.split() if re.search(r"\w", word)])


def test_a_notebook_has_few_cells_and_parameters(cells):
    assert len(cells) <= CELLS
    (cell,) = [c for c in cells if has_tag(c, "parameters")]
    assert len(ast.parse(cell.source).body) <= PARAMETERS


def test_cells_of_code_are_short(cells):
    imports = next(c for c in cells if has_tag(c, "setup"))
    code = [c for c in cells if c.cell_type == "code" and c is not imports]
    assert [c.source for c in code if len(c.source.splitlines()) > LINES] == []


def test_cells_of_text_are_short(cells):
    text = {c.source: count_words(c.source) for c in cells if c.cell_type == "markdown"}
    assert {source: n for source, n in text.items() if n > WORDS} == {}


def test_the_first_question_comes_within_ten_lines_of_visible_code(cells):
    lines = 0
    for cell in cells:
        if cell.cell_type == "markdown" and "?" in cell.source:
            break
        if cell.cell_type == "code" and not is_folded(cell):
            lines += len(cell.source.splitlines())
    assert lines <= BEFORE_QUESTION


def test_setup_and_solutions_are_folded(cells):
    assert all(is_folded(c) for c in cells if has_tag(c, "setup") or has_tag(c, "solution"))


def test_a_text_stands_between_any_two_outputs(cells):
    """Code that shows something is followed by text, possibly after a cell of claims."""
    show = re.compile(r"plt\.show\(\)|\.style|print\(|display\(|markup\.|run\.table\(.*\)$")
    if cells[0].source.startswith(("# 04", "# 05")):
        pytest.skip("a figure is followed by its slider")
    for cell, after, then in zip(cells, cells[1:], cells[2:], strict=False):
        if cell.cell_type == "code" and not is_folded(cell) and show.search(cell.source):
            checked = has_tag(after, "nbval-check-output")
            followed = then if checked or is_folded(after) else after
            assert followed.cell_type == "markdown" or followed is cells[-1], cell.source


def test_the_counter_of_words_counts_words():
    assert count_words("## One *two* `three`, [four](a_b.ipynb) <b>five</b> | --- |") == 5
