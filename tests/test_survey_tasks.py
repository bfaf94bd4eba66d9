"""The three survey tasks: questions with a known truth, answers, majority, and Fleiss' kappa."""

from __future__ import annotations

import io
import itertools
import math

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cf_utils.core import files
from cf_utils.evaluation.metrics.agreement import fleiss_kappa, interpret_kappa, majority_answer
from cf_utils.viz.survey_analysis import JUDGES, wilson
from cf_utils.viz.survey_questions import (
    LEFT,
    RIGHT,
    Question,
    bias_questions,
    change_questions,
    join_images,
    largest_change,
    order_questions,
)
from cf_utils.viz.survey_tasks import TaskSurvey
from cf_utils.viz.survey_votes import ANSWER_COLUMNS
from tests.test_survey import find_button, find_widgets

SMILE, BOTH = "smile", "smile and wall"
ASKED = "In which image is the person smiling more?"


def ramps(n=6, k=10, seed=0, channels=1, side=4):
    """Progressions (n, k, channels, side, side): the first pixel is the position, 0 to 1."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, channels, side, side, generator=gen).expand(n, k, -1, -1, -1).clone()
    x[:, :, :, 0, 0] = torch.linspace(0, 1, k)[None, :, None]
    return x


def plain(n=4, category="easy", answer="a", task="t", options=("a", "b"), seed=0):
    """Questions with random images and one true answer."""
    x = ramps(n, 2, seed)
    return [
        Question(task, category, str(i), tuple(x[i]), "Which?", options, answer) for i in range(n)
    ]


def answer_all(survey, answers, voter):
    """Let a voter answer: answers maps a category to one answer per id."""
    for i, question in enumerate(survey.questions):
        survey.vote(i, answers[question.category][int(question.id)], voter)


# ---------------------------------------------------------------- statistics


def test_kappa_equals_values_computed_by_hand():
    # agreement 1, 0, 1; both options half of the time: (2/3 - 1/2) / (1 - 1/2)
    assert fleiss_kappa(["aa", "ab", "bb"]) == (pytest.approx(1 / 3), 3, 2)
    # 3 of 3 and 1 of 3 pairs agree, a 4 and b 2 of 6: (2/3 - 5/9) / (4/9)
    assert fleiss_kappa(["aaa", "abb"]) == (pytest.approx(0.25), 2, 3)
    assert fleiss_kappa(["ab", "ba"])[0] == pytest.approx(-1)
    assert fleiss_kappa(["aaaa", "bbbb", "cccc"])[0] == pytest.approx(1)


def test_kappa_equals_the_example_of_fleiss():
    """Fleiss' example as printed in textbooks: 10 subjects, 14 raters, 5 categories."""
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    answers = ["".join(c * n for c, n in zip("abcde", row, strict=True)) for row in table]
    kappa, n, raters = fleiss_kappa(answers)
    assert (round(kappa, 3), n, raters) == (0.210, 10, 14)


def test_kappa_equals_pairs_counted_by_brute_force():
    gen = np.random.default_rng(0)
    answers = ["".join(gen.choice(list("abc"), 8, p=[0.6, 0.3, 0.1])) for _ in range(20)]
    observed = np.mean([x == y for a in answers for x, y in itertools.combinations(a, 2)])
    every = "".join(answers)
    chance = sum((every.count(c) / len(every)) ** 2 for c in "abc")
    assert fleiss_kappa(answers)[0] == pytest.approx((observed - chance) / (1 - chance))


def test_kappa_keeps_most_answers_where_raters_differ_in_number():
    # r = 2 and r = 3 keep six answers each; the larger r wins: aab and aab
    kappa, n, raters = fleiss_kappa(["aab", "ab", "b", "aabb"])
    assert (n, raters) == (2, 3)
    assert kappa == pytest.approx((1 / 3 - 5 / 9) / (4 / 9))
    assert fleiss_kappa(["aa", "ab", "bb", "a", ""])[1:] == (3, 2)


@pytest.mark.parametrize("answers", [[], ["a", "b"], ["aaa", "aaa"]])
def test_kappa_without_pairs_or_with_one_answer_is_nan(answers):
    assert math.isnan(fleiss_kappa(answers)[0])
    assert interpret_kappa(fleiss_kappa(answers)[0]) == ""


@pytest.mark.parametrize(
    ("kappa", "name"),
    [  # the paper's Table 4, and the ends of Viera and Garrett's ranges
        (0.41, "moderate"), (0.31, "fair"), (0.51, "moderate"), (0.28, "fair"), (0.14, "slight"),
        (0.09, "slight"), (0.02, "slight"), (0.35, "fair"), (-0.01, "poor"), (0.0, "slight"),
        (0.2, "slight"), (0.204, "slight"), (0.21, "fair"), (0.4, "fair"), (0.6, "moderate"),
        (0.61, "substantial"), (0.8, "substantial"), (0.81, "almost perfect"),
        (1.0, "almost perfect"),
    ],
)  # fmt: skip
def test_kappa_is_named_as_in_the_paper(kappa, name):
    assert interpret_kappa(kappa) == name


def test_kappa_above_one_is_refused():
    with pytest.raises(ValueError, match=r"kappa: got 1\.2"):
        interpret_kappa(1.2)


def test_the_majority_is_the_most_frequent_answer():
    assert majority_answer("aab") == "a"
    assert majority_answer("aabbc") is None and majority_answer("") is None
    assert majority_answer("aabc") == "a"  # more than any other, not more than half


# ---------------------------------------------------------------- questions


def test_order_questions_know_which_image_has_more():
    x = ramps(40)
    questions = order_questions(x, range(40), "order (smile)", ASKED)
    assert len(questions) == 80
    spans = {"easy": [], "hard": []}
    for question in questions:
        left, right = (image[0, 0, 0].item() for image in question.images)
        assert question.answer == (LEFT if left > right else RIGHT)
        assert question.options == (LEFT, RIGHT) and question.text == ASKED
        own = x[int(question.id)]
        assert all(any(torch.equal(image, step) for step in own) for image in question.images)
        spans[question.category].append(round(abs(left - right) * 9))
    assert set(spans["easy"]) == {9}
    assert set(spans["hard"]) >= {1, 2, 3, 4, 5} and min(spans["hard"]) >= 1
    for category in spans:
        sides = [q.answer == LEFT for q in questions if q.category == category]
        assert 0.25 < np.mean(sides) < 0.75  # measured 0.45 and 0.5


def test_order_questions_do_not_depend_on_the_other_items():
    x = ramps(8)
    whole = order_questions(x, range(8), "order", ASKED)
    alone = order_questions(x[5:6], [5], "order", ASKED)
    for one, same in zip(alone, whole[10:12], strict=True):
        assert one.answer == same.answer and one.category == same.category
        assert all(torch.equal(a, b) for a, b in zip(one.images, same.images, strict=True))
    other = order_questions(x, range(8), "order", ASKED, seed=1)
    assert [q.answer for q in other] != [q.answer for q in whole]


def test_change_and_bias_questions_show_whole_progressions():
    smile, age = ramps(3, 5, 0), ramps(2, 5, 1)
    asked = change_questions(
        {SMILE: (smile, range(3)), "age": (age, [7, 8])}, [SMILE, "age", "hat"]
    )
    assert [(q.category, q.id, q.answer) for q in asked] == [
        (SMILE, "0", SMILE), (SMILE, "1", SMILE), (SMILE, "2", SMILE), ("age", "7", "age"),
        ("age", "8", "age"),
    ]  # fmt: skip
    assert torch.equal(torch.stack(asked[4].images), age[1])
    truth = {"biased": BOTH, "unbiased": SMILE}
    both = {"biased": (smile, range(3)), "unbiased": (ramps(3, 5, 2), range(3))}
    asked = bias_questions(both, (SMILE, BOTH), truth)
    assert [(q.category, q.answer) for q in asked] == [("biased", BOTH)] * 3 + [
        ("unbiased", SMILE)
    ] * 3
    assert TaskSurvey(asked).items["task"].tolist() == ["bias"] * 6


def test_a_judge_names_what_changes_most_between_the_outer_images():
    x = torch.zeros(2, 3, 1, 4, 4)
    x[0, :, 0, 0, 0] = torch.tensor([0.2, 0.2, 0.4])
    x[0, :, 0, 1, 1] = torch.tensor([0.0, 0.9, 0.1])  # the middle image does not count
    x[1, :, 0, 1, 1] = torch.tensor([0.9, 0.0, 0.1])  # falls

    def read(images):
        return torch.stack([images[:, 0, 0, 0], images[:, 0, 1, 1]], 1)

    judge = largest_change(read, (SMILE, "age"))
    questions = change_questions({SMILE: (x, [0, 1])}, (SMILE, "age"))
    assert [judge(question) for question in questions] == [SMILE, "age"]


def test_images_are_joined_with_white_gaps():
    strip = join_images(list(torch.zeros(3, 1, 4, 5)), gap=2)
    assert strip.shape == (1, 4, 19)
    assert strip[0, 0].tolist() == [0] * 5 + [1] * 2 + [0] * 5 + [1] * 2 + [0] * 5


# ---------------------------------------------------------------- results


def test_the_table_equals_numbers_computed_by_hand():
    questions = plain(4, "easy", "a") + plain(4, "hard", "b", seed=1)
    survey = TaskSurvey(questions)
    # one row per voter; the columns are the questions 0 to 3
    votes = {
        "ann": {"easy": "aaab", "hard": "bbaa"},
        "ben": {"easy": "aaab", "hard": "bbab"},
        "cem": {"easy": "aabb", "hard": "baaa"},
        "dee": {"easy": "aabb", "hard": "aaab"},
    }
    for voter, answers in votes.items():
        answer_all(survey, answers, voter)
    table = survey.table()
    assert list(table.index) == [("t", "overall"), ("t", "easy"), ("t", "hard")]
    # easy: aaaa, aaaa, aabb (tie, wrong), bbbb (wrong); hard: bbba (right), bbaa, aaaa, abab
    assert table["questions"].tolist() == [8, 4, 4] and table["votes"].tolist() == [32, 16, 16]
    assert table["accuracy"].tolist() == [3 / 8, 2 / 4, 1 / 4]
    assert table["ties"].tolist() == [3, 1, 2]
    assert table.loc[("t", "easy"), ["low", "high"]].tolist() == pytest.approx(wilson(2, 4))
    # easy: pairs 1, 1, 1/3, 1; a 10 of 16: chance (100 + 36) / 256
    easy = ((1 + 1 + 1 / 3 + 1) / 4 - 136 / 256) / (1 - 136 / 256)
    # hard: pairs 1/2, 1/3, 1, 1/3; a 9 of 16: chance (81 + 49) / 256
    hard = ((1 / 2 + 1 / 3 + 1 + 1 / 3) / 4 - 130 / 256) / (1 - 130 / 256)
    both = ((10 / 3 + 13 / 6) / 8 - (19**2 + 13**2) / 32**2) / (1 - (19**2 + 13**2) / 32**2)
    assert table["kappa"].tolist() == pytest.approx([both, easy, hard])
    assert table["agreement"].tolist() == ["fair", "substantial", "slight"]
    assert table["kappa_questions"].tolist() == [8, 4, 4] and set(table["raters"]) == {4}


def test_an_unanswered_task_has_no_accuracy():
    table = TaskSurvey(plain(2)).table()
    row = table.loc[("t", "easy")]  # one category needs no overall row
    assert len(table) == 1 and row["questions"] == row["votes"] == 0
    assert math.isnan(row["accuracy"]) and math.isnan(row["kappa"]) and row["agreement"] == ""


def test_a_perfect_rater_is_right_in_every_task():
    x = ramps(5)
    questions = (
        order_questions(x, range(5), "order", ASKED)
        + change_questions({SMILE: (x, range(5))}, (SMILE, "age"))
        + bias_questions(
            {"biased": (x, range(5)), "unbiased": (ramps(5, seed=1), range(5))},
            (SMILE, BOTH),
            {"biased": BOTH, "unbiased": SMILE},
        )
    )

    def perfect(question):
        if question.options == (LEFT, RIGHT):
            return question.options[int(question.images[1][0, 0, 0] > question.images[0][0, 0, 0])]
        return question.answer

    survey = TaskSurvey(questions, seed=3)
    survey.ask_judges([perfect, perfect])
    table = survey.table()
    assert (table["accuracy"] == 1).all() and (table["ties"] == 0).all()
    assert table.loc[("bias", "overall"), "kappa"] == pytest.approx(1)
    assert math.isnan(table.loc[("bias", "biased"), "kappa"])  # all answers are equal
    assert survey.votes["voter"].unique().tolist() == [f"{JUDGES} 1", f"{JUDGES} 2"]
    survey.vote(0, survey.questions[0].answer, "ann")  # a person replaces the judges
    assert survey.table()["votes"].sum() == 2  # once in its category, once overall


def test_the_order_mixes_the_tasks_and_depends_on_the_seed_alone():
    questions = plain(6, "easy") + plain(6, "hard", seed=1)
    items = TaskSurvey(questions, seed=2).items
    pd.testing.assert_frame_equal(TaskSurvey(questions[::-1], seed=2).items, items)
    assert items["category"].tolist() not in (["easy"] * 6 + ["hard"] * 6,)
    assert items["id"].tolist() != TaskSurvey(questions, seed=4).items["id"].tolist()
    for question, row in zip(TaskSurvey(questions, 2).questions, items.itertuples(), strict=True):
        assert (question.category, question.id) == (row.category, row.id)


# ---------------------------------------------------------------- answers on disk, and the form


def test_answers_are_continued_from_the_file(tmp_path):
    path = tmp_path / "class" / "answers.csv"
    first = TaskSurvey(plain(3), path=path)
    first.vote(0, "a", "NA")
    second = TaskSurvey(plain(3), path=path)
    second.vote(1, "b", "ben")
    second.vote(1, "a", " ben ")  # replaces
    first.vote(2, "b", "NA")
    assert list(pd.read_csv(path).columns) == ANSWER_COLUMNS
    again = TaskSurvey(plain(3), path=path)
    assert again.votes[["voter", "item", "answer"]].to_numpy().tolist() == [
        ["NA", 0, "a"],
        ["ben", 1, "a"],
        ["NA", 2, "b"],
    ]
    assert again.note == "" and again.judged_by("NA") == {0, 2}
    other = TaskSurvey(plain(3, options=("a", "b", "c")), path=path)  # other options
    assert len(other.votes) == 0 and "3 answers in the file are to other questions" in other.note


@pytest.mark.parametrize("text", ["", "voter,item\nann,1\n"])
def test_a_file_without_answers_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "answers.csv"
    files.write_text(path, text)
    with pytest.raises(ValueError, match=r"path: .*answers\.csv is no CSV of votes"):
        TaskSurvey(plain(), path=path)
    assert path.read_text() == text


def test_the_form_asks_every_question_with_its_own_options():
    questions = plain(1, "easy", "a") + plain(
        1, "ha<r>d", "yes & no", options=("yes & no", "no", "<i>"), seed=1
    )
    survey = TaskSurvey(questions)
    form = survey.form()
    picture, text = find_widgets(form, widgets.Image)[0], find_widgets(form, widgets.HTML)[0]
    find_widgets(form, widgets.Text)[0].value = "ann"
    for i, question in enumerate(survey.questions):
        buttons = [b.description for b in find_widgets(form, widgets.Button)]
        assert buttons == [*question.options, "Show result"]
        assert text.value == "<b>Which?</b>"
        assert find_widgets(form, widgets.Label)[0].value == f"{i} of 2 judged"
        width, height = Image.open(io.BytesIO(picture.value)).size
        assert width / height == pytest.approx(10 / 4)  # two images of 4 pixels and a gap of 2
        shown = "".join(str(w.value) for w in find_widgets(form, widgets.HTML))
        assert "easy" not in shown and "ha<r>d" not in shown  # raters must not see the category
        find_button(form, question.answer).click()
    assert survey.votes[["voter", "item", "answer"]].to_numpy().tolist() == [
        ["ann", i, q.answer] for i, q in enumerate(survey.questions)
    ]
    result = find_widgets(form, widgets.HTML)[-1].value
    assert "accuracy" in result and "ha&lt;r&gt;d" in result
    assert all(b.disabled for b in find_widgets(form, widgets.Button)[:-1])


# ---------------------------------------------------------------- invalid input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (torch.rand(1, 4, 4),)}, "images: got shapes"),
        ({"images": (torch.rand(1, 4, 4), torch.rand(1, 5, 4))}, "images: got shapes"),
        ({"images": (torch.rand(2, 4, 4),) * 2}, "images: got shapes"),
        ({"options": ("a",)}, "options: got"),
        ({"options": ("a", "b", "a")}, "options: got"),
        ({"answer": "c"}, "answer: got 'c'"),
    ],
)
def test_bad_questions_are_refused(change, message):
    good = {
        "task": "t",
        "category": "c",
        "id": "0",
        "images": (torch.rand(1, 4, 4),) * 2,
        "text": "Which?",
        "options": ("a", "b"),
        "answer": "a",
    }
    Question(**good)
    with pytest.raises(ValueError, match=message):
        Question(**good | change)


def test_bad_progressions_are_refused():
    for x in (ramps(2)[:, :1], ramps(2)[0], ramps(3), ramps(2, channels=2)):
        with pytest.raises(ValueError, match=r"progressions: got shape .* and 2 ids"):
            order_questions(x, [0, 1], "order", ASKED)
    with pytest.raises(ValueError, match=r"progressions\['smile'\]: got shape"):
        change_questions({SMILE: (ramps(3), [0])}, (SMILE, "age"))
    with pytest.raises(ValueError, match="answer: got 'smile'"):
        change_questions({SMILE: (ramps(1), [0])}, ("age", "hat"))
    with pytest.raises(ValueError, match=r"answers: got none for \['biased'\]"):
        bias_questions({"biased": (ramps(1), [0])}, (SMILE, BOTH), {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, "a", "ann"), "i: got 4, expected .* 0 to 3"),
        ((0, "c", "ann"), "answer: got 'c'"),
        ((0, "a", ""), "voter: got ''"),
        ((0, "a", f"{JUDGES} 1"), "voter: got 'judges 1'"),
    ],
)
def test_bad_answers_are_refused_and_not_recorded(arguments, message):
    survey = TaskSurvey(plain())
    with pytest.raises(ValueError, match=message):
        survey.vote(*arguments)
    with pytest.raises(ValueError, match="judges: got none"):
        survey.ask_judges([])
    with pytest.raises(ValueError, match="answer of judge 1: got 'z'"):
        survey.ask_judges([lambda question: "z"])
    assert len(survey.votes) == 0


def test_surveys_without_or_with_equal_questions_are_refused():
    with pytest.raises(ValueError, match="questions: got none"):
        TaskSurvey([])
    with pytest.raises(ValueError, match=r"questions: got \('t', 'easy', '0'.*twice"):
        TaskSurvey(plain() + plain())
