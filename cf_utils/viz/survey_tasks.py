"""A survey of multiple-choice questions: the three human tasks of progressive exaggeration.

Source: Singla et al. (ICLR 2020), Section 4.6 and Table 4. Eight people answered each question; the
majority is compared with the truth, and Fleiss' kappa states how far the raters agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets as widgets
import pandas as pd

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.evaluation.metrics.agreement import fleiss_kappa, interpret_kappa, majority_answer
from cf_utils.viz.survey_analysis import JUDGES, wilson
from cf_utils.viz.survey_form import VoteForm, encode_png, to_html, to_pixels
from cf_utils.viz.survey_questions import Question, join_images
from cf_utils.viz.survey_votes import QUESTION, Answers, check_vote, number_votes, shuffle

OVERALL = "overall"
EXPLANATION = (
    "<i>accuracy</i>: share of questions whose most frequent answer is the true one; a tie is "
    "wrong. <i>kappa</i>: agreement of raters above chance. It is low, too, where nearly all "
    "answers are equal: read it beside the accuracy."
)


class TaskSurvey:
    """Ask questions in mixed order, and compare the answers of the majority with the truth.

    The order depends on the seed and the questions alone. A voter's second answer to a question
    replaces the first.

    Args:
        questions: of any tasks; see `survey_questions`. No two may be equal.
        seed: of the order.
        path: CSV file of all answers, which several notebooks may share. A survey opened on it
            continues it. Answers to other questions stay in the file but do not count.
    """

    def __init__(
        self, questions: Sequence[Question], seed: int = 0, path: str | Path | None = None
    ) -> None:
        if not questions:
            raise ValueError("questions: got none, expected at least one")
        keys = [_key(question) for question in questions]
        if repeated := [key for key, n in Counter(keys).items() if n > 1]:
            raise ValueError(f"questions: got {repeated[0]} twice, expected different questions")
        order = [f"{'|'.join(key)}" for key in keys]
        self.questions = shuffle(list(questions), order, seed, "survey order")
        self.items = pd.DataFrame(shuffle(keys, order, seed, "survey order"), columns=QUESTION)
        self._all_votes = Answers(path)

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        tasks = ", ".join(dict.fromkeys(self.items["task"]))
        return f"Survey of {len(self)} questions ({tasks})"

    @property
    def note(self) -> str:
        """Caveats of the result: answers that do not count; empty if none."""
        other = len(self._all_votes.frame) - len(self.votes)
        return f"{other} answers in the file are to other questions and do not count" * bool(other)

    @property
    def votes(self) -> pd.DataFrame:
        """Answers to this survey's questions, one row each; `item` is the question's number."""
        return number_votes(self._all_votes.frame, self.items, QUESTION)

    def judged_by(self, voter: str) -> set[int]:
        """Read the answers again; return the questions that a voter has answered."""
        self._all_votes.read()
        votes = self.votes
        return set(votes.loc[votes["voter"] == voter, "item"])

    def vote(self, i: int, answer: str, voter: str) -> None:
        """Record a voter's answer to question i; raise ValueError on a bad argument."""
        name = check_vote(i, len(self), voter)
        check_choice("answer", answer, self.questions[i].options)
        self._record(name, {i: answer})

    def ask_judges(self, judges: Sequence[Callable[[Question], str]]) -> None:
        """Let functions answer every question, for runs without people. People replace them."""
        if not judges:
            raise ValueError("judges: got none, expected at least one function")
        for k, judge in enumerate(judges, 1):
            answers = {i: judge(question) for i, question in enumerate(self.questions)}
            for i, answer in answers.items():
                check_choice(f"answer of judge {k}", answer, self.questions[i].options)
            self._record(f"{JUDGES} {k}", answers)

    def table(self) -> pd.DataFrame:
        """Tabulate the answers as in Table 4: each task overall, then by category.

        Uses people's answers, or the judges' if no person has answered. Columns: `questions`,
        answered ones; `votes`; `accuracy` of the majority with Wilson's 95 % interval `low` to
        `high`; `ties`, questions without a majority, which count as wrong; `kappa`, from the
        `kappa_questions` with `raters` each (see `fleiss_kappa`), and its `agreement` in words.
        """
        votes = self.votes
        people = votes[~votes["voter"].str.startswith(JUDGES)]
        chosen = people if len(people) else votes
        given = {i: tuple(own) for i, own in chosen.groupby("item")["answer"]}
        rows = []
        for task, own in self.items.groupby("task", sort=False):
            groups = {OVERALL: own.index} | {
                c: own.index[own["category"] == c] for c in sorted(own["category"].unique())
            }
            if len(groups) == 2:
                del groups[OVERALL]
            for category, items in groups.items():
                rows.append({"task": task, "category": category, **self._summarise(items, given)})
        return pd.DataFrame(rows).set_index(["task", "category"])

    def form(self) -> widgets.VBox:
        """Build the form for one voter."""
        return TaskForm(self).box

    def _summarise(self, items: Sequence[int], given: dict[int, tuple[str, ...]]) -> dict:
        """Return one row of the table: what was answered to these questions."""
        answered = [i for i in items if i in given]
        decided = [majority_answer(given[i]) for i in answered]
        right = sum(d == self.questions[i].answer for d, i in zip(decided, answered, strict=True))
        low, high = wilson(right, len(answered))
        kappa, n, raters = fleiss_kappa([given[i] for i in answered])
        return {
            "questions": len(answered),
            "votes": sum(len(given[i]) for i in answered),
            "accuracy": right / len(answered) if answered else float("nan"),
            "low": low,
            "high": high,
            "ties": decided.count(None),
            "kappa": kappa,
            "agreement": interpret_kappa(kappa),
            "kappa_questions": n,
            "raters": raters,
        }

    def _record(self, voter: str, answers: dict[int, str]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = self.items.loc[list(answers)].assign(
            voter=voter, item=list(answers), answer=list(answers.values()), time=now
        )
        self._all_votes.add(new)


class TaskForm(VoteForm):
    """Form of one voter for a `TaskSurvey`: images side by side, one button per option."""

    width = 896

    def options(self, i: int) -> dict[str, str]:
        """Return the options of question i, all in one style."""
        return dict.fromkeys(self.survey.questions[i].options, "info")

    def ask(self, i: int) -> str:
        """Return the text of question i."""
        return self.survey.questions[i].text

    def draw(self, i: int) -> bytes:
        """Return the images of question i side by side."""
        images = self.survey.questions[i].images
        return encode_png(join_images(images), min(self.width, 256 * len(images)))

    def cast(self, i: int, option: str, voter: str) -> None:
        """Record an answer to question i."""
        self.survey.vote(i, option, voter)

    def report(self) -> list[widgets.Widget]:
        """Return the table of results."""
        return [widgets.HTML(to_html(self.survey.table()) + EXPLANATION)]


def _key(question: Question) -> tuple[str, str, str, str]:
    """Return what identifies a question, in the columns QUESTION."""
    pixels = to_pixels(join_images(question.images)).tobytes()
    content = [pixels, question.text, *question.options]
    parts = [c if isinstance(c, bytes) else c.encode() for c in content]
    return question.task, question.category, question.id, files.sha256(b"|".join(parts))[:12]
