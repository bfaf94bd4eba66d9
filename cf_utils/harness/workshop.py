"""Material for a class: student copies of the notebooks, and an instructor's key.

A student copy has neither solutions nor outputs. The key holds the answers to predictions, the
solutions of exercises, and the quizzes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat

from cf_utils.core import files
from cf_utils.harness import notebooks
from cf_utils.harness.exercise_cases import CASES
from cf_utils.viz import quiz

STUCK = "I'm stuck"  # summary of a folded hint
FOLD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
EXERCISE = re.compile(r"\*\*Exercise (\d+\.\d+)\*\*")
NO_ANSWER = "The figure or table below it shows the answer."
PREDICTION = re.compile(r"\*\*(?:Predict|Before you move)")


def write_workshop(
    out: Path, names: Sequence[str] = (), overwrite: bool = False
) -> tuple[list[Path], Path]:
    """Write `out`/student/NAME.ipynb for each notebook and `out`/key.md; return their paths.

    Args:
        names: numbers or names of notebooks; all by default.
        overwrite: replace student copies that were edited.

    Raises ValueError for an unknown notebook, and for an edited copy unless `overwrite`.
    """
    chosen = notebooks.find_all(names) if names else list(notebooks.paths())
    copies = {out / "student" / f"{name}.ipynb": make_copy(notebooks.read(name)) for name in chosen}
    edited = [path.name for path, new in copies.items() if path.exists() and not _equal(path, new)]
    if edited and not overwrite:
        raise ValueError(
            f"out: got {out}, where copies differ ({', '.join(edited)}), expected no edited copy; "
            "move them away, or pass --overwrite"
        )
    for path, student in copies.items():
        files.write_text(path, nbformat.writes(student) + "\n")
    key = "\n\n".join([INTRODUCTION, *(write_key(name) for name in chosen)])
    files.write_text(out / "key.md", key + "\n")
    return list(copies), out / "key.md"


def make_copy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a student's copy of a notebook: no solutions, no outputs, no execution counts."""
    student = copy.deepcopy(notebook)
    student.cells = [cell for cell in student.cells if not notebooks.has_tag(cell, "solution")]
    for cell in student.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return student


def write_key(name: str) -> str:
    """Return the key of one notebook as Markdown: predictions, exercises, quiz."""
    cells, number = notebooks.read(name).cells, name[:2]
    parts = [f"# {notebooks.title(name)}"]
    predictions = [_prediction(*answer) for answer in _answers(cells)]
    if predictions:
        parts += ["## Predictions", *predictions]
    exercises = [_exercise(cells, i) for i, cell in enumerate(cells) if _number_of(cell)]
    if exercises:
        parts += ["## Exercises", *exercises]
    if number in quiz.list_quizzes():
        parts += ["## Quiz", *(_question(k, q) for k, q in enumerate(quiz.load(number), 1))]
    return "\n\n".join(parts)


INTRODUCTION = """# Instructor's key

Written by `make workshop`; it belongs to the student copies beside it. Do not hand it out.
Where a check has fixed cases, they are listed: a student's function must satisfy each of them."""


def _answers(cells: Sequence[nbformat.NotebookNode]) -> Iterator[tuple[str, str, str]]:
    """Yield (prediction, label, folded answer) in order; an answer without a question has ''."""
    asked = ""
    for cell in cells:
        for part in re.split(r"\n\n+", cell.source) if cell.cell_type == "markdown" else ():
            if PREDICTION.search(part):
                if asked:
                    yield asked, "", NO_ANSWER
                asked = part
            for label, text in FOLD.findall(part):
                if label != STUCK:
                    yield asked, label, text.strip()
                    asked = ""
    if asked:
        yield asked, "", NO_ANSWER


def _prediction(asked: str, label: str, answer: str) -> str:
    """Return a prediction and its answer as an item of a list."""
    given = " ".join(part for part in (label and f"**{label}**", answer) if part)
    return f"- {asked}\n\n  {given}" if asked else f"- {given}"


def _number_of(cell: nbformat.NotebookNode) -> str:
    """Return the number of the exercise that a cell sets, or ''."""
    found = EXERCISE.search(cell.source) if cell.cell_type == "markdown" else None
    return found.group(1) if found else ""


def _exercise(cells: Sequence[nbformat.NotebookNode], at: int) -> str:
    """Return text, hint, solution and rules of the exercise that cell `at` sets."""
    number, source = _number_of(cells[at]), cells[at].source
    text = source[source.index(f"**Exercise {number}**") :]
    hint = dict(FOLD.findall(text)).get(STUCK, "")
    solution = next(c.source for c in cells[at:] if notebooks.has_tag(c, "solution"))
    rules = "\n".join(f"- {case.rule}" for case in CASES.get(number, ()))
    parts = [FOLD.sub("", text).strip(), f"*Hint.* {hint}" if hint else ""]
    parts += [f"```python\n{solution}\n```", f"The check asks:\n\n{rules}" if rules else ""]
    return "\n\n".join(part for part in parts if part)


def _question(k: int, question: quiz.Question) -> str:
    """Return a question with its options, each with its explanation; the right one in bold."""
    lines = []
    for letter, option in zip(quiz.LETTERS, question.options, strict=False):
        text = option.text.rstrip(".")
        shown = f"✓ ({letter}) **{text}.**" if option.right else f"({letter}) {text}."
        lines.append(f"   - {shown} {option.why}")
    return "\n".join([f"{k}. {question.text}", "", *lines])


def _equal(path: Path, student: nbformat.NotebookNode) -> bool:
    """Return whether a stored copy has the cells of `student` and no outputs."""
    stored = nbformat.read(path, 4)
    return stored.cells == nbformat.reads(nbformat.writes(student), 4).cells
