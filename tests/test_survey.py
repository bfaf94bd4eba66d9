"""The class survey: statistics, blind order, votes on disk, and the voting form."""

from __future__ import annotations

import math
import os

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from cf_utils import core
from cf_utils.core import Counterfactuals, files
from cf_utils.evaluation.metrics.decision import vote
from cf_utils.viz.survey import Survey
from cf_utils.viz.survey_analysis import JUDGES, wilson
from cf_utils.viz.survey_votes import COLUMNS
from tests.workplace import kill_at_rename


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def make_results(
    n=6, methods=("ours", "rival"), failed=(), already=(), offset=0.0, ids=None
) -> dict[str, Counterfactuals]:
    """Random images (1, 4, 4) with targets 7 and 8 in turn.

    `failed` and `already`: rows of every method that failed or were the target already.
    """
    reasons = dict.fromkeys(already, core.ALREADY) | dict.fromkeys(failed, core.OTHER)
    out = {}
    for m, name in enumerate(methods):
        x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(m)) + offset
        reached = torch.tensor([i not in failed for i in range(n)])
        zero = torch.zeros(n, dtype=torch.int64)
        out[name] = Counterfactuals(
            query=x * 0,
            counterfactual=x,
            target=7 + torch.arange(n) % 2,
            source=zero,
            score=torch.ones(n),
            valid=reached,
            reached=reached,
            reason=tuple(reasons.get(i, "") for i in range(n)),
            ids=torch.arange(100, 100 + n) if ids is None else ids,
            settings={"method": name},
            seed=0,
            seconds=zero.double(),
            n_forward=zero,
            n_backward=zero,
        )
    return out


def vote_on_all(survey: Survey, accept: dict[str, int], voter: str) -> None:
    """Accept the first accept[method] items of each method and refuse the others."""
    left = dict(accept)
    for i, method in enumerate(survey.items["method"]):
        survey.vote(i, left[method] > 0, voter)
        left[method] -= 1


def find_widgets(form, kind) -> list:
    """Return all widgets of a kind in a form, in reading order."""
    found = [form] if isinstance(form, kind) else []
    return found + [w for child in getattr(form, "children", ()) for w in find_widgets(child, kind)]


def find_button(form, text: str) -> widgets.Button:
    return next(b for b in find_widgets(form, widgets.Button) if b.description == text)


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 25, 0.0071, 0.1954)],
)
def test_wilson_interval_equals_textbook_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)
    for p in wilson(k, n):  # each end solves (p - k/n)^2 = z^2 p(1-p)/n
        assert (p - k / n) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-12)


def test_table_equals_numbers_computed_by_hand():
    survey = Survey(make_results(n=10), n_each=10)
    vote_on_all(survey, {"ours": 6, "rival": 2}, "ann")
    vote_on_all(survey, {"ours": 9, "rival": 3}, "ben")
    table = survey.table()
    assert list(table.index) == ["ours", "rival"]
    assert table["shown"].tolist() == [10, 10]
    assert table["votes"].tolist() == [20, 20]
    assert table["accepted"].tolist() == [15, 5]
    assert table["acceptance"].tolist() == [0.75, 0.25]
    assert table["share"].tolist() == [0.75, 0.25]  # 15 and 5 of 20 accepted votes
    assert table.loc["ours", ["low", "high"]].tolist() == pytest.approx([0.5313, 0.8881], abs=1e-4)
    assert table.loc["rival", ["low", "high"]].tolist() == pytest.approx([0.1119, 0.4687], abs=1e-4)


@pytest.mark.parametrize("accepted", [1, 9])
def test_share_of_the_paper_hides_absolute_rates(accepted):
    names = ("a", "b", "c", "d")
    survey = Survey(make_results(n=10, methods=names), n_each=10)
    vote_on_all(survey, dict.fromkeys(names, accepted), "ann")
    table = survey.table()
    assert table["share"].tolist() == [0.25] * 4
    assert table["acceptance"].tolist() == [accepted / 10] * 4


def test_rates_without_votes_are_nan_not_zero():
    survey = Survey(make_results(), n_each=2)
    assert survey.table()[["acceptance", "low", "high", "share"]].isna().all(axis=None)
    vote_on_all(survey, {"ours": 0, "rival": 0}, "ann")
    assert survey.table()["acceptance"].tolist() == [0, 0]
    assert survey.table()["share"].isna().all()
    survey.figure()


def test_figure_draws_both_rates_and_names_the_voters():
    survey = Survey(make_results(n=4), n_each=4)
    vote_on_all(survey, {"ours": 3, "rival": 1}, "ann")
    fig = survey.figure()
    heights = [[p.get_height() for p in ax.patches] for ax in fig.axes]
    assert heights == [[0.75, 0.25], [0.75, 0.25]]
    assert fig.get_suptitle() == "8 votes of 1 person"


# ---------------------------------------------------------------- pictures drawn


def test_only_reached_counterfactuals_are_drawn_and_a_shortage_is_noted():
    survey = Survey(make_results(n=6, failed=(0, 2), already=(3,)), n_each=4)
    assert set(survey.items["id"]) == {"101", "104", "105"} and len(survey) == 6
    assert "ours: 3 of the 4" in survey.note and "rival: 3 of the 4" in repr(survey)
    assert survey.table()["reached"].tolist() == pytest.approx([4 / 6] * 2)
    assert survey.table()["shown"].tolist() == [3, 3]
    assert Survey(make_results(), n_each=4).note == ""


def test_method_without_pictures_stays_in_the_table():
    results = make_results() | make_results(methods=("hopeless",), failed=range(6))
    survey = Survey(results, n_each=3)
    vote_on_all(survey, {"ours": 3, "rival": 0}, "ann")
    row = survey.table().loc["hopeless"]
    assert row["shown"] == row["votes"] == row["reached"] == row["share"] == 0
    assert math.isnan(row["acceptance"])


def test_draw_and_order_depend_on_the_seed_alone():
    results = make_results(n=12, ids=tuple(f"0{i}" for i in range(12)))
    items = Survey(results, n_each=5, seed=3).items
    reversed_ = {name: cfs.select(range(11, -1, -1)) for name, cfs in reversed(results.items())}
    torch.manual_seed(5)
    # neither the order of rows nor of methods matters
    pd.testing.assert_frame_equal(Survey(reversed_, n_each=5, seed=3).items, items)
    alone = Survey({"ours": results["ours"]}, n_each=5, seed=3).items  # nor do other methods
    assert alone["id"].tolist() == items.loc[items["method"] == "ours", "id"].tolist()
    assert items["id"].tolist() != Survey(results, n_each=5, seed=4).items["id"].tolist()
    methods = items["method"].tolist()
    assert methods.count("ours") == methods.count("rival") == 5
    assert methods not in (sorted(methods), sorted(methods)[::-1])  # mixed


def test_pictures_belong_to_their_items():
    results = make_results()
    survey = Survey(results, n_each=3)
    rows = survey.items.itertuples(index=False)
    for picture, (method, i, target, _) in zip(survey.pictures, rows, strict=True):
        row = results[method].ids.tolist().index(int(i))
        assert torch.equal(picture, results[method].counterfactual[row])
        assert target == results[method].target[row]


# ---------------------------------------------------------------- votes on disk


def test_votes_are_continued_from_the_file_and_voters_add_up(tmp_path):
    path = tmp_path / "class" / "votes.csv"
    results = make_results(ids=tuple(f"00{i}" for i in range(6)))
    first = Survey(results, n_each=3, path=path)
    first.vote(0, True, "NA")  # pandas would read this name as missing
    first.vote(1, False, 'Zoë, "Z"')
    second = Survey(results, n_each=3, path=path)  # another notebook on the same file
    pd.testing.assert_frame_equal(second.votes, first.votes, check_dtype=False)
    second.vote(0, False, 'Zoë, "Z"')
    first.vote(2, True, "NA")  # must keep the vote above, cast after `first` was opened
    assert list(pd.read_csv(path).columns) == COLUMNS
    votes = Survey(results, n_each=3, path=path).votes
    assert list(zip(votes["voter"], votes["item"], votes["accepted"], strict=True)) == [
        ("NA", 0, True),
        ('Zoë, "Z"', 1, False),
        ('Zoë, "Z"', 0, False),
        ("NA", 2, True),
    ]
    assert Survey(results, n_each=3, path=path).table()["votes"].sum() == 4


def test_second_vote_replaces_the_first(tmp_path):
    survey = Survey(make_results(), n_each=3, path=tmp_path / "votes.csv")
    survey.vote(0, True, "ann")
    survey.vote(0, False, " ann ")
    assert survey.votes["accepted"].tolist() == [False]


def test_votes_on_other_pictures_are_kept_but_do_not_count(tmp_path):
    path = tmp_path / "votes.csv"
    old, new = (Survey(make_results(offset=o), n_each=3, path=path) for o in (0.0, 0.1))
    old.vote(0, True, "ann")
    new.vote(1, True, "ann")
    assert new.table()["votes"].sum() == 1
    assert "1 votes in the file are about other pictures" in new.note
    # more of the old pictures in another order: the vote still counts, for the same picture
    again = Survey(make_results(), n_each=6, seed=1, path=path)
    assert again.table()["votes"].sum() == 1
    pictures = list(zip(again.items["method"], again.items["id"], strict=True))
    picture = tuple(old.items.loc[0, ["method", "id"]])
    assert again.votes["item"].tolist() == [pictures.index(picture)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_during_a_vote_leaves_the_old_votes_or_the_new_ones(tmp_path, when):
    path = tmp_path / "votes.csv"
    survey = Survey(make_results(), n_each=3, path=path)
    survey.vote(0, True, "ann")
    before = path.read_bytes()
    assert kill_at_rename(lambda: survey.vote(1, True, "ann"), 1, when) == -9
    assert (path.read_bytes() == before) == (when == "before")
    reopened = Survey(make_results(), n_each=3, path=path)
    reopened.vote(2, True, "ann")  # the lock of the killed process does not block
    assert len(reopened.votes) == (2 if when == "before" else 3)


def test_failed_write_leaves_the_old_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "votes.csv"
    survey = Survey(make_results(), n_each=3, path=path)
    survey.vote(0, True, "ann")
    before = path.read_bytes()

    def write_half(frame, part, **kw):
        part.write_text("voter,it")
        raise OSError("disk full")

    with monkeypatch.context() as m, pytest.raises(OSError, match="disk full"):
        m.setattr(pd.DataFrame, "to_csv", write_half)
        survey.vote(1, True, "ann")
    assert path.read_bytes() == before and len(survey.votes) == 1
    assert not [p for p in os.listdir(tmp_path) if ".part" in p]


# ---------------------------------------------------------------- the form


def test_buttons_vote_and_the_last_vote_shows_the_result(tmp_path):
    survey = Survey(make_results(n=3), n_each=2, path=tmp_path / "votes.csv")
    form = survey.form()
    (picture,), (question,) = (find_widgets(form, kind) for kind in (widgets.Image, widgets.HTML))
    find_widgets(form, widgets.Text)[0].value = "ann"
    for i, accepted in enumerate([True, False, False, True]):
        article = {7: "a 7", 8: "an 8"}[survey.items["target"][i]]
        assert f"Does this look like {article}?" in question.value
        assert find_widgets(form, widgets.Label)[0].value == f"{i} of 4 judged"
        assert bytes(picture.value).startswith(b"\x89PNG")
        texts = [str(w.value) for w in find_widgets(form, (widgets.HTML, widgets.Label))]
        assert not any(method in text for method in survey.reached for text in texts)  # blind
        find_button(form, "Yes" if accepted else "No").click()
    assert survey.votes[["voter", "item", "accepted"]].to_numpy().tolist() == [
        ["ann", 0, True],
        ["ann", 1, False],
        ["ann", 2, False],
        ["ann", 3, True],
    ]
    table, plot = (find_widgets(form, kind)[-1] for kind in (widgets.HTML, widgets.Image))
    assert "rival" in table.value and "hides absolute rates" in table.value
    assert plot is not picture
    assert find_button(form, "Yes").disabled and not plt.get_fignums()
    find_button(form, "Yes").click()
    assert len(survey.votes) == 4


def test_form_continues_for_a_returning_voter_and_starts_for_a_new_one(tmp_path):
    survey = Survey(make_results(n=3), n_each=2, path=tmp_path / "votes.csv")
    survey.vote(0, True, "ann")
    form = survey.form()
    name, progress = (find_widgets(form, kind)[0] for kind in (widgets.Text, widgets.Label))
    assert progress.value == "0 of 4 judged"
    name.value = "ann"
    assert progress.value == "1 of 4 judged"
    find_button(form, "No").click()
    assert survey.votes["item"].tolist() == [0, 1]
    name.value = JUDGES
    assert "reserved" in progress.value
    find_button(form, "No").click()
    assert len(survey.votes) == 2 and find_button(form, "No").disabled
    name.value = "ben"
    assert progress.value == "0 of 4 judged" and not find_button(form, "No").disabled


def test_voters_without_a_name_are_distinct_and_voting_hides_the_result():
    survey = Survey(make_results(n=3), n_each=2)
    first, second = survey.form(), survey.form()
    find_button(first, "Yes").click()
    find_button(second, "No").click()
    assert survey.votes["voter"].nunique() == 2
    assert survey.votes["voter"].str.startswith("guest-").all()
    assert len(find_widgets(first, widgets.HTML)) == 1
    find_button(first, "Show result").click()
    assert len(find_widgets(first, widgets.HTML)) == 2
    find_button(first, "Yes").click()
    assert len(find_widgets(first, widgets.HTML)) == 1


# ---------------------------------------------------------------- judges


class Judge(nn.Module):
    """Decides 7 or 8 by the sign of a fixed projection."""

    def __init__(self, seed: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        z = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([z * 0 - 99] * 7 + [z, -z], 1)


def test_judges_vote_by_majority_and_people_replace_them(tmp_path):
    results = make_results(n=12, offset=0.2)  # some values exceed 1 and are shown clamped
    judges = [Judge(seed) for seed in range(3)]
    survey = Survey(results, n_each=12, path=tmp_path / "votes.csv")
    survey.ask_judges(judges)
    survey.ask_judges(judges)  # does not count twice
    table = survey.table()
    for name, cfs in results.items():
        accepted = vote(judges, cfs.counterfactual) == cfs.target
        assert table.loc[name, "accepted"] == accepted.sum()
    assert 0 < table["accepted"].sum() < 24 and set(survey.votes["voter"]) == {JUDGES}
    assert "judges (models, no people)" in survey.figure().get_suptitle()
    survey.vote(0, True, "ann")
    assert survey.table()["votes"].sum() == 1 and len(survey.votes) == 25


# ---------------------------------------------------------------- invalid input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": {}}, "results: expected a dict of at least one"),
        ({"results": [1]}, "results: expected"),
        ({"results": {"a": 1}}, "results: expected"),
        ({"n_each": 0}, "n_each: got 0"),
        ({"n_each": 2.5}, "n_each"),
        ({"n_each": True}, "n_each"),
        ({"results": make_results(failed=range(6))}, "results: no method reached"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Survey(**({"results": make_results()} | change))


def test_rows_of_tables_are_refused():
    cfs = make_results()["ours"]
    fields = {f: getattr(cfs, f) for f in cfs.__dataclass_fields__}
    flat = Counterfactuals(**fields | {"counterfactual": torch.rand(6, 16)})
    with pytest.raises(ValueError, match=r"results: got items of shapes .*\(16,\)"):
        Survey({"ours": flat})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, True, "ann"), "i: got 4, expected .* 0 to 3"),
        ((-1, True, "ann"), "i: got"),
        (("0", True, "ann"), "i: got"),
        ((0, "yes", "ann"), "accepted: got 'yes'"),
        ((0, 1, "ann"), "accepted"),
        ((0, True, " "), "voter"),
        ((0, True, None), "voter"),
        ((0, True, "a\nb"), "voter"),
        ((0, True, JUDGES), "voter: got 'judges'"),
    ],
)
def test_invalid_votes_are_refused_and_not_recorded(arguments, message):
    survey = Survey(make_results(), n_each=2)
    with pytest.raises(ValueError, match=message):
        survey.vote(*arguments)
    with pytest.raises(ValueError, match="judges: got none, expected at least one"):
        survey.ask_judges([])
    assert len(survey.votes) == 0


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\nann,0,ours,1,7,maybe,now,abc\n", 'a,"b\n']
)
def test_file_without_votes_is_refused_and_kept(tmp_path, text):
    path = tmp_path / "votes.csv"
    files.write_text(path, text)
    with pytest.raises(ValueError, match=r"path: .*votes\.csv is no CSV of votes"):
        Survey(make_results(), path=path)
    assert path.read_text() == text
