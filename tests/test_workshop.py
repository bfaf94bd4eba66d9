"""Student copies without solutions and outputs; a key with all answers."""

from __future__ import annotations

import re

import nbformat
import pytest

from cf_utils import cli
from cf_utils.harness import exercise_cases, notebooks, workshop
from cf_utils.viz import quiz

NAMES = list(notebooks.paths())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return workshop.write_workshop(tmp_path_factory.mktemp("class"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def read_pair(written, name):
    """The notebook and its student copy."""
    (path,) = [p for p in written[0] if p.stem == name]
    return notebooks.read(name), nbformat.read(path, 4)


def test_there_is_a_copy_of_each_notebook(written):
    assert [p.stem for p in written[0]] == NAMES
    assert all(p.parent.name == "student" for p in written[0])


def test_a_copy_has_no_solution_and_no_output_and_all_the_rest(written, name):
    original, student = read_pair(written, name)
    nbformat.validate(student)
    kept = [c for c in original.cells if not notebooks.has_tag(c, "solution")]
    assert len(kept) < len(original.cells)
    assert [(c.cell_type, c.source, c.id) for c in student.cells] == [
        (c.cell_type, c.source, c.id) for c in kept
    ]
    for cell in student.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_a_solution_stands_nowhere_in_a_copy(written, name):
    original, student = read_pair(written, name)
    text = "\n".join(c.source for c in student.cells)
    for cell in original.cells:
        if notebooks.has_tag(cell, "solution"):
            body = re.sub(r'^def .*:\n(    """(?:.|\n)*?"""\n)?', "", cell.source)
            assert body not in text and cell.source not in text
    assert text.count("raise NotImplementedError(") >= 1


def test_the_key_holds_every_solution_hint_rule_and_answer(written, name):
    key, number = written[1].read_text(encoding="utf-8"), name[:2]
    part = key.split(f"# {notebooks.title(name)}\n")[1].split("\n# ")[0]
    cells = notebooks.read(name).cells
    solutions = [c.source for c in cells if notebooks.has_tag(c, "solution")]
    assert all(f"```python\n{source}\n```" in part for source in solutions)
    texts = [c.source for c in cells if c.cell_type == "markdown"]
    for summary, answer in (f for text in texts for f in workshop.FOLD.findall(text)):
        assert answer.strip() in part, summary
    for exercise, cases in exercise_cases.CASES.items():
        if int(exercise.split(".")[0]) == int(number):
            assert f"**Exercise {exercise}**" in part
            assert all(f"- {case.rule}" in part for case in cases)
    if number in quiz.list_quizzes():
        questions = quiz.load(number)
        assert part.count("   - ✓ (") == len(questions)
        for q in questions:
            assert q.text in part and all(o.why in part for o in q.options)
            letter, right = quiz.LETTERS[q.answer], q.options[q.answer]
            assert f"✓ ({letter}) **{right.text.rstrip('.')}.** {right.why}" in part


def test_each_prediction_stands_in_the_key_before_its_answer():
    def markdown(*texts):
        return [nbformat.v4.new_markdown_cell(text) for text in texts]

    first, second = "**Predict.** Up or down?", "Now **Predict**: left or right?"
    fold = "<details><summary>Why?</summary>Up.</details>\n\nMore."
    hint = "<details><summary>I'm stuck</summary>No answer.</details>"
    asked = list(workshop._answers(markdown(f"Text.\n\n{first}", hint, fold, fold, second)))
    assert asked == [
        (first, "Why?", "Up."),
        ("", "Why?", "Up."),
        (second, "", workshop.NO_ANSWER),
    ]
    assert next(workshop._answers(markdown(first, second)))[2] == workshop.NO_ANSWER


def test_an_edited_copy_is_kept_unless_it_may_be_overwritten(tmp_path):
    (path,), _ = workshop.write_workshop(tmp_path, ["0"])
    workshop.write_workshop(tmp_path, ["0"])  # nothing was edited
    edited = nbformat.read(path, 4)
    edited.cells[0].source += "\nMy notes."
    nbformat.write(edited, path)
    with pytest.raises(ValueError, match=r"00_start_here\.ipynb\), expected no edited copy"):
        workshop.write_workshop(tmp_path, ["0", "1"])
    assert "My notes." in path.read_text(encoding="utf-8")
    assert not (path.parent / "01_gradual_mnist.ipynb").exists()
    workshop.write_workshop(tmp_path, ["0"], overwrite=True)
    assert "My notes." not in path.read_text(encoding="utf-8")


def test_the_command_writes_the_chosen_notebooks(tmp_path, capsys):
    assert cli.main(["workshop", "00", "03", "--out", str(tmp_path)]) == 0
    assert "wrote 2 student copies" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == [
        "00_start_here.ipynb",
        "03_gradual_credit.ipynb",
    ]
    assert "# 01 ·" not in (tmp_path / "key.md").read_text(encoding="utf-8")
    assert cli.main(["workshop", "77", "--out", str(tmp_path)]) == 2
