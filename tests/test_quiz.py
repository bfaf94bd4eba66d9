"""Quizzes: well-formed questions, a form that explains each answer, a text without a kernel."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import ipywidgets as widgets
import nbformat
import pytest
from IPython.display import HTML

from cf_utils import core
from cf_utils.core.files import ROOT
from cf_utils.viz import quiz
from cf_utils.viz.quiz import Option, Question, QuizForm
from tests.test_survey import find_widgets

NUMBERS = quiz.list_quizzes()
ALL = [(number, k) for number in NUMBERS for k in range(5)]
PAIR = (
    Question("Is *this* `a < b`?", (Option("no", "wrong <b>"), Option("yes", "right", True))),
    Question("And that?", (Option("yes", "right too", True), Option("no", "wrong too"))),
)


def count_words(text: str) -> int:
    return len(text.split())


# ---------------------------------------------------------------- the questions


def test_the_notebooks_for_students_have_a_quiz():
    assert {"00", "01", "02", "03", "04", "05", "07", "09"} <= set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_quiz_has_five_questions_whose_right_answer_cannot_be_guessed(number):
    questions = quiz.load(number)
    assert len(questions) == 5
    letters = Counter(q.answer for q in questions)
    assert len(letters) >= 3 and max(letters.values()) <= 2
    lengths = [[len(o.text) for o in q.options] for q in questions]
    longest = [q.answer for q, n in zip(questions, lengths, strict=True) if n[q.answer] == max(n)]
    assert len(longest) <= 2, "the longest option is right too often"


@pytest.mark.parametrize(("number", "k"), ALL)
def test_a_question_has_three_or_four_short_options_each_with_its_own_explanation(number, k):
    question = quiz.load(number)[k]
    assert len(question.options) in (3, 4) and sum(o.right for o in question.options) == 1
    assert 5 <= count_words(question.text) <= 60
    reasons = [o.why for o in question.options]
    assert len(set(reasons)) == len(reasons)
    assert all(5 <= count_words(why) <= 45 for why in reasons), reasons
    assert all(count_words(o.text) <= 20 for o in question.options)
    texts = [question.text, *(o.text for o in question.options), *reasons]
    assert all(t == t.strip() and t.count("`") % 2 == 0 for t in texts)
    assert not re.search(r"\b[Oo]ption [a-d]\b|\([a-d]\)", " ".join(texts)), "letters are for forms"


def test_no_question_or_explanation_is_used_twice():
    questions = [q for number in NUMBERS for q in quiz.load(number)]
    texts = [t for q in questions for t in (q.text, *(o.why for o in q.options))]
    assert [t for t, n in Counter(texts).items() if n > 1] == []


@pytest.mark.parametrize("number", NUMBERS)
def test_the_last_cell_of_the_notebook_asks(number):
    for path in (ROOT / "notebooks").glob(f"{number}_*.ipynb"):
        cells = nbformat.read(path, 4).cells
        calls = re.findall(r'quiz\.ask\("(\d\d)"\)', "\n".join(c.source for c in cells))
        assert calls == [number] and "quiz.ask(" in cells[-1].source


@pytest.mark.parametrize("right", [(False, False), (True, True)])
def test_a_question_with_no_or_two_right_answers_is_refused(right):
    with pytest.raises(ValueError, match=r"options: got [02] right ones, expected 1, in 'Q'"):
        Question("Q", tuple(Option(f"text {i}", "why", r) for i, r in enumerate(right)))


def test_a_repeated_option_a_misspelt_key_and_an_unknown_notebook_are_refused(
    tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="distinct"):
        Question("Q", (Option("same", "a", True), Option("same", "b")))
    with pytest.raises(ValueError, match="number: got '99', expected one of 00, 01"):
        quiz.load("99")
    (tmp_path / "01.yaml").write_text("- question: Q\n  options: [{txt: a, why: b}]\n")
    monkeypatch.setattr(quiz, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"01\.yaml: .*txt"):
        quiz.load("01")


# ---------------------------------------------------------------- the form


def test_each_answer_is_explained_and_only_the_first_one_counts():
    form = QuizForm(PAIR)
    *blocks, score = form.box.children
    assert score is form.score and "0 of 2 right at the first try</b>, 2 to go" in score.value
    for block in blocks:
        assert find_widgets(block, widgets.HTML)[-1].value == ""
    (no, yes), comment = find_widgets(blocks[0], widgets.Button), blocks[0].children[-1]
    no.click()
    assert "(a) ✗ No.</b> wrong &lt;b&gt;" in comment.value and no.icon == "times"
    yes.click()
    assert "(b) ✓ Right.</b> right" in comment.value and yes.icon == "check"
    assert "0 of 2 right at the first try</b>, 1 to go" in score.value
    assert blocks[1].children[-1].value == ""
    find_widgets(blocks[1], widgets.Button)[0].click()
    find_widgets(blocks[1], widgets.Button)[1].click()
    assert score.value == "<b>1 of 2 right at the first try</b>"


@pytest.mark.parametrize("number", NUMBERS)
def test_the_form_is_usable_by_keyboard_and_hides_the_answers(number):
    """Buttons are native controls; nothing else has to be reached, and none is taken out of Tab."""
    questions = quiz.load(number)
    form = QuizForm(questions)
    controls = [
        w
        for w in find_widgets(form.box, widgets.DOMWidget)
        if not isinstance(w, widgets.HTML | widgets.Box)
    ]
    assert len(controls) == sum(len(q.options) for q in questions)
    assert all(isinstance(w, widgets.Button) and w.tabbable is not False for w in controls)
    assert len({w.tooltip for w in controls}) == len(controls)
    shown = "".join(w.value for w in find_widgets(form.box, widgets.HTML))
    for q in questions:
        assert quiz.mark(q.text) in shown
        assert all(quiz.mark(o.text) in shown and o.why not in shown for o in q.options)


# ---------------------------------------------------------------- without a kernel


class Outline(HTMLParser):
    """Collects tags, and the text outside of folded parts."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.visible, self.depth = Counter(), [], "", 0

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.open.append(tag)
        self.depth += tag == "details"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.depth -= tag == "details"

    def handle_data(self, data):
        self.visible += "" if self.depth else data


@pytest.mark.parametrize("number", NUMBERS)
def test_a_headless_run_shows_the_same_text_each_time_with_folded_answers(number, monkeypatch):
    shown = []
    monkeypatch.setattr(quiz, "display", shown.append)
    monkeypatch.setattr(core, "headless", lambda: True)
    quiz.ask(number)
    quiz.ask(number)
    first, second = shown
    assert isinstance(first, HTML) and first.data == second.data
    outline = Outline()
    outline.feed(first.data)
    assert not outline.open and outline.tags["details"] == 5
    assert not {"script", "input", "img", "link"} & set(outline.tags)
    assert "✓" not in outline.visible and "✗" not in outline.visible
    assert first.data.count("✓ Right.") == 5


def test_a_kernel_shows_the_form(monkeypatch):
    shown = []
    monkeypatch.setattr(quiz, "display", shown.append)
    monkeypatch.setattr(core, "headless", lambda: False)
    quiz.ask("00")
    assert isinstance(shown[0], widgets.VBox)


def test_marks_are_html_and_everything_else_is_escaped():
    assert quiz.mark("*a* <b> `x < y` & z") == "<em>a</em> &lt;b&gt; <code>x &lt; y</code> &amp; z"
