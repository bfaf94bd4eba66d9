"""Checks of exercises refuse each wrong answer and accept each right one; their form."""

from __future__ import annotations

import re

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cf_utils.core.files import ROOT
from cf_utils.harness import exercises
from cf_utils.harness.exercise_cases import CASES
from cf_utils.models.generators.diffusion import to_image, to_model
from tests.exercises import RIGHT, WRONG

NUMBERS = sorted(CASES)
WRONG_ANSWERS = [(number, name) for number in WRONG for name in WRONG[number]]


def read_cells(number: str) -> list:
    (path,) = (ROOT / "notebooks").glob(f"{int(number.split('.')[0]):02d}_*.ipynb")
    return nbformat.read(path, 4).cells


def find_exercise(number: str) -> int:
    """Return the position of the text cell that sets the exercise."""
    heads = [f"Exercise {number}**", f"Exercise {number} "]
    cells = read_cells(number)
    texts = [c.source if c.cell_type == "markdown" else "" for c in cells]
    (at,) = [i for i, text in enumerate(texts) if any(head in text for head in heads)]
    return at


def test_each_exercise_has_three_wrong_and_two_right_answers():
    assert NUMBERS == sorted(RIGHT) == sorted(WRONG)
    assert all(len(RIGHT[n]) >= 2 and len(WRONG[n]) >= 3 for n in NUMBERS)


@pytest.mark.parametrize(("number", "name"), WRONG_ANSWERS)
def test_a_wrong_answer_is_refused(number, name, capsys):
    assert exercises.count_mistakes(number, *WRONG[number][name]) > 0
    assert f"exercise {number}: " in capsys.readouterr().out


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("which", [0, 1])
def test_a_right_answer_is_accepted(number, which, capsys):
    assert exercises.mistakes(number, *RIGHT[number][which]) == []
    assert exercises.count_mistakes(number, *RIGHT[number][which]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_every_case_refuses_an_answer(number):
    """A case that no wrong answer fails could be left out."""
    met = {
        str(m).split(":")[0] for a in WRONG[number].values() for m in exercises.mistakes(number, *a)
    }
    assert [case.rule for case in CASES[number] if case.rule.split(":")[0] not in met] == []


@pytest.mark.parametrize("number", NUMBERS)
def test_the_notebooks_solution_is_right_and_its_stub_says_that_it_is_a_stub(number):
    cells, at = read_cells(number), find_exercise(number)
    stub, solution, check = cells[at + 1 : at + 4]
    assert "exercise" in stub.metadata["tags"] and "solution" in solution.metadata["tags"]
    assert f'NotImplementedError("Exercise {number}")' in stub.source
    space = {"torch": torch, "F": F, "to_image": to_image, "to_model": to_model}
    exec(compile(solution.source, number, "exec"), space)
    names = re.findall(r"^def (\w+)", solution.source, re.MULTILINE)
    assert exercises.mistakes(number, *(space[name] for name in names)) == []
    assert f'exercises.count_mistakes("{number}", {", ".join(names)})' in check.source


@pytest.mark.parametrize("number", NUMBERS)
def test_an_exercise_states_difficulty_and_minutes_and_has_a_folded_hint(number):
    text = read_cells(number)[find_exercise(number)].source
    assert re.search(r"\((easy|medium|hard), \d+ min\)", text)
    assert "<details><summary>I'm stuck</summary>" in text and "</details>" in text


def test_results_of_any_kind_are_read_and_errors_are_reported():
    def answer(result):
        return exercises.mistakes("2.2", lambda *_: result)

    assert len(answer("many")) == 3 and "got str" in answer("many")[0].found
    assert "got shape (1,), expected ()" in answer([0.5])[0].found
    assert len(answer(np.float32(0.5))) == len(answer(torch.tensor(0.5))) == len(answer(0.5)) == 2
    (first, *_) = exercises.mistakes("2.2", lambda a: a)
    assert "raised TypeError" in first.found
    with pytest.raises(NotImplementedError, match="still"):
        exercises.mistakes("2.2", lambda *_: (_ for _ in ()).throw(NotImplementedError("still")))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(("9.9", len), "number: got '9.9'"), (("3.1", len), "answers: got 1, expected 2")],
)
def test_unknown_exercises_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        exercises.mistakes(*arguments)
