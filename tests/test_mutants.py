"""The faults of `make mutants` fit today's code, and the engine that injects them works."""

from __future__ import annotations

import ast

import pytest

from tests.faults import FAULTS, Fault
from tests.mutants import ROOT, mutate

SOURCE = """
def first(x):
    return x.abs()


class Search:
    def step(self, x):
        y = ( x.abs()   # a comment
              + 1 )
        log(y)
        return y
"""


def fault(where: str, old: str, new: str) -> Fault:
    return Fault("unused.py", where, old, new, ())


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_its_file(name):
    source = (ROOT / FAULTS[name].file).read_text(encoding="utf-8")
    changed = mutate(source, FAULTS[name])
    ast.parse(changed)
    assert changed != ast.unparse(ast.parse(source))


@pytest.mark.parametrize("name", FAULTS)
def test_its_tests_exist(name):
    for selected in FAULTS[name].tests:
        file, _, start = selected.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {start}" in text, selected


def test_a_fault_ignores_formatting_and_other_functions():
    changed = mutate(SOURCE, fault("Search.step", "x.abs() + 1", "x"))
    assert "y = x\n" in changed and "return x.abs()" in changed


def test_an_empty_replacement_removes_a_statement():
    assert "log" not in mutate(SOURCE, fault("Search.step", "log(y)", ""))


@pytest.mark.parametrize(
    ("where", "old"), [("", "x.abs()"), ("Search.step", "x.sign()"), ("Search.stop", "y")]
)
def test_a_piece_that_is_not_there_exactly_once_is_an_error(where, old):
    with pytest.raises(ValueError, match=r"times, expected once|there is no"):
        mutate(SOURCE, fault(where, old, "0"))
