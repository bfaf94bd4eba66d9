"""Multiple-choice questions on a notebook: a form, or a text with folded answers.

The questions are data, `quiz_questions/NN.yaml`: a list of `question` and `options`. Each option
has a `text` and says `why` it is right or wrong; the right one has `right: true`. Texts may contain
`code` and *emphasis*, marked as here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import ipywidgets as widgets
import yaml
from IPython.display import HTML, display

from cf_utils import core

FOLDER = Path(__file__).with_name("quiz_questions")
LETTERS = "abcdef"


@dataclass(frozen=True)
class Option:
    """One possible answer, and why it is right or wrong."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with its options, of which exactly one is right. Raises ValueError otherwise."""

    text: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        n, texts = sum(o.right for o in self.options), {o.text for o in self.options}
        if n != 1:
            raise ValueError(f"options: got {n} right ones, expected 1, in {self.text!r}")
        if len(texts) < len(self.options) or len(self.options) > len(LETTERS):
            raise ValueError(f"options: expected up to 6 distinct ones in {self.text!r}")

    @property
    def answer(self) -> int:
        """Position of the right option."""
        return next(i for i, o in enumerate(self.options) if o.right)


def list_quizzes() -> list[str]:
    """Return the numbers of the notebooks that have a quiz, such as "01"."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(number: str) -> tuple[Question, ...]:
    """Read the questions on the notebook `number`, such as "01".

    Raises ValueError for a notebook without a quiz, and for a question that is not well formed.
    """
    path = FOLDER / f"{number}.yaml"
    if number not in list_quizzes():
        raise ValueError(f"number: got {number!r}, expected one of {', '.join(list_quizzes())}")
    found = []
    for item in yaml.safe_load(path.read_text(encoding="utf-8")):
        try:
            found.append(Question(item["question"], tuple(Option(**o) for o in item["options"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path.name}: {error} in {item}") from error
    return tuple(found)


def ask(number: str) -> None:
    """Show the quiz on a notebook: a form, or its text with folded answers in a headless run."""
    questions = load(number)
    display(HTML(to_html(questions)) if core.headless() else QuizForm(questions).box)


class QuizForm:
    """A form with one button per option, shown as `box`; an answer is explained at once.

    Only the first answer to a question counts. All controls are buttons, which the keyboard reaches
    (Tab) and presses (Enter or Space).
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = tuple(questions)
        self.first: dict[int, bool] = {}  # question -> whether the first answer was right
        self.score = widgets.HTML()
        self.box = widgets.VBox([*map(self._build, range(len(questions))), self.score])
        self._count()

    def _build(self, k: int) -> widgets.VBox:
        """Return the text, the buttons and the place for the explanation of question k."""
        question, comment = self.questions[k], widgets.HTML()
        buttons = []
        for i in range(len(question.options)):
            hint = f"Answer {LETTERS[i]} to question {k + 1}"
            button = widgets.Button(description=LETTERS[i], tooltip=hint, layout={"width": "4em"})
            button.on_click(lambda pressed, i=i: self._answer(k, i, pressed, comment))
            buttons.append(button)
        return widgets.VBox([widgets.HTML(_show(k, question)), widgets.HBox(buttons), comment])

    def _answer(self, k: int, i: int, pressed: widgets.Button, comment: widgets.HTML) -> None:
        right = self.questions[k].options[i].right
        pressed.icon = "check" if right else "times"
        comment.value = f"<p role='status'>{explain(self.questions[k], i)}</p>"
        self.first.setdefault(k, right)
        self._count()

    def _count(self) -> None:
        n, given = len(self.questions), len(self.first)
        text = f"{sum(self.first.values())} of {n} right at the first try"
        self.score.value = f"<b>{text}</b>" + ("" if given == n else f", {n - given} to go")


def explain(question: Question, i: int) -> str:
    """Return whether option i is right, and why, as HTML."""
    option = question.options[i]
    verdict = "✓ Right." if option.right else "✗ No."
    return f"<b>({LETTERS[i]}) {verdict}</b> {mark(option.why)}"


def to_html(questions: Sequence[Question]) -> str:
    """Return the questions with folded answers; needs neither a kernel nor a script."""
    parts = []
    for k, question in enumerate(questions):
        lines = "".join(f"<p>{explain(question, i)}</p>" for i in range(len(question.options)))
        fold = f"<details><summary>Answer to question {k + 1}</summary>{lines}</details>"
        parts.append(f"<section>{_show(k, question)}{fold}</section>")
    return f"<div style='max-width:60em'>{''.join(parts)}</div>"


def mark(text: str) -> str:
    """Return a text as HTML: escaped, with `code` and *emphasis*."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)


def _show(k: int, question: Question) -> str:
    """Return question k and its options as HTML."""
    options = "".join(f"<li>{mark(o.text)}</li>" for o in question.options)
    head = f"<p><b>Question {k + 1}.</b> {mark(question.text)}</p>"
    return f"<div style='max-width:60em'>{head}<ol type='a'>{options}</ol></div>"
