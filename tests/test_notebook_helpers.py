"""What notebooks 00 to 03 compute and draw through `evaluation` and `viz`, against small cases."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from cf_utils.core import Counterfactuals
from cf_utils.datasets import credit
from cf_utils.datasets.glove import Glove
from cf_utils.evaluation import advice, digits
from cf_utils.evaluation.metrics import decision, words
from cf_utils.explainers.gradual_words import last_vectors, replace_by_words
from cf_utils.viz import advice as show
from cf_utils.viz import digits as draw
from cf_utils.viz import family_map, replacements


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def make_result(query, cf, target, valid=None, path=None) -> Counterfactuals:
    """A result that reached its target where `valid`."""
    n = len(query)
    valid = torch.ones(n, dtype=torch.bool) if valid is None else torch.tensor(valid)
    zero = torch.zeros(n, dtype=torch.int64)
    return Counterfactuals(
        query=query,
        counterfactual=cf,
        target=target,
        source=1 - target,
        score=torch.where(valid, 0.95, 0.2),
        valid=valid,
        reached=valid,
        reason=tuple("" if v else "failed" for v in valid.tolist()),
        ids=torch.arange(n) + 100,
        settings={},
        seed=0,
        seconds=torch.full((n,), 0.5).double(),
        n_forward=zero + 3,
        n_backward=zero + 2,
        path=path,
        path_len=None if path is None else torch.full((n,), path.shape[1]),
    )


# ---------------------------------------------------------------- digits


class Corner(nn.Module):
    """Sees class 1 if the first pixel is over `least`, else class 0."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, x):
        z = x[:, 0, 0, 0] - self.least
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def dots():
    """Four blank digits with the first pixel raised; the last was not reached."""
    x = torch.zeros(4, 1, 28, 28)
    y = x.clone()
    y[:, 0, 0, 0] = torch.tensor([0.9, 0.5, 0.1, 0.9])
    y[1, 0, 20, 20] = 0.3  # a second block
    return make_result(x, y, torch.ones(4, dtype=torch.int64), [True, True, True, False])


JUDGES = [Corner(0.2), Corner(0.4), Corner(0.95)]  # the majority: over 0.4


def test_methods_are_compared_over_the_items_that_were_reached(dots):
    agrees = digits.judge(JUDGES, {"a": dots})
    assert agrees["a"].tolist() == [True, True, False, True]
    line = digits.compare({"a": dots}, agrees).loc["a"]
    assert line["n"] == 4 and line["n reached"] == 3 and line["reached"] == 0.75
    assert line["judges (reached)"] == pytest.approx(2 / 3) and line["judges (all)"] == 0.5
    assert line["blocks"] == pytest.approx(4 / 3)
    assert line["L1"] == pytest.approx((0.9 + 0.8 + 0.1) / 3)
    named = digits.name_metrics(digits.compare({"a": dots}, agrees), "a", "_x")
    assert named["judge_n_x"] == 3 and named["blocks_mean_x"] == pytest.approx(4 / 3)
    assert set(named) == {
        f"{k}_x"
        for k in (
            "validity",
            "judge_agreement",
            "judge_n",
            "judge_agreement_all",
            "blocks_mean",
            "n",
        )
    } and "n" not in digits.name_metrics(digits.compare({"a": dots}, agrees), "a")
    assert named["judge_agreement_x"] == line["judges (reached)"]
    assert named["judge_agreement_all_x"] == line["judges (all)"]


def test_agreement_is_subtracted_over_the_items_that_both_reached(dots):
    other = dataclasses.replace(dots, reached=torch.tensor([True, False, True, True]))
    agrees = {"a": torch.tensor([1, 1, 1, 1]).bool(), "b": torch.tensor([0, 1, 1, 0]).bool()}
    d = digits.subtract_agreement({"a": dots, "b": other}, agrees, "a", ["b"])["b"]
    assert d["n"] == 2 and d["mean"] == 0.5  # items 0 and 2: 1 - 0 and 1 - 1


def test_the_curve_over_tau_has_a_row_per_tau(dots):
    curve = digits.follow_tau({0.5: dots, 0.9: dots.select([2, 3])}, JUDGES)
    assert curve["tau"].tolist() == [0.5, 0.9] and curve["n"].tolist() == [3, 1]
    assert curve["judges (all)"].tolist() == [0.5, 0.0] and curve["blocks"].tolist()[1] == 1
    left, right = draw.plot_tau(curve).axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([2 / 3, 0.0])
    assert [t.get_text() for t in right.get_xticklabels()] == ["0.5", "0.9"]


def test_the_path_outlines_each_newly_changed_block():
    states = torch.zeros(3, 1, 28, 28)
    states[1:, 0, 5, 10] = 1.0  # block row 1, column 2
    states[2, 0, 27, 0] = 0.5  # block row 6, column 0
    fig = draw.plot_path(states, torch.tensor([0.0, 0.5, 0.9]))
    corners = [[p.get_xy() for p in ax.patches] for ax in fig.axes]
    assert corners == [[], [(7.5, 3.5)], [(-0.5, 23.5)]]
    assert fig.axes[1].get_title() == "1 block\np = 0.50"


def test_figures_of_digits_show_what_they_were_given():
    x = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    pooled = draw.plot_sensitivity(x, x, "8 → 3").axes[2].images[0].get_array()
    assert pooled[0, 0] == pytest.approx(x[0, :4, :4].mean()) and np.ptp(pooled[:4, :4]) == 0
    fig = draw.plot_changes(x, {"A": x + 0.2, "B": x - 0.5}, ["one", "two"])
    assert fig.axes[2].get_title() == "change, at most 0.20"
    assert fig.axes[2].images[0].get_clim() == fig.axes[5].images[0].get_clim()
    votes = {"A": torch.tensor([1, -1])}
    fig = draw.plot_votes({"A": x.expand(2, 1, 28, 28)}, votes, torch.zeros(2), torch.ones(2))
    assert [ax.texts[0].get_text() for ax in fig.axes] == ["1✓", "?"]
    fig = draw.plot_class_logits({"a": torch.rand(5, 3)})
    assert fig.axes[0].get_legend().get_texts()[0].get_text() == "a (n = 5)"
    fig = draw.plot_relevance(x[None], x[None], ["query: 1"], ["delta 0"])
    low, high = fig.axes[1].images[0].get_clim()
    assert high == -low == pytest.approx(x.max())
    draw.plot_logits(x, torch.arange(10.0), torch.zeros(10), 3, "a title")
    right = plt.gcf().axes[1]
    assert [bar.get_height() for bar in right.patches] == list(range(10))


def test_the_map_names_the_notebooks_of_each_filled_box():
    texts = [t.get_text() for t in family_map.draw_map().axes[0].texts]
    for _, _, methods in family_map.FAMILIES:
        for what, example, notebooks in methods:
            assert f"{what}\n{example}" in texts
            assert notebooks is None or f"notebook {notebooks}" in texts


# ---------------------------------------------------------------- advice


@pytest.fixture(scope="module")
def german():
    """Training rows, and a result on four of them: three changed by hand, one failed."""
    train = credit.load("", "train", None)
    x = train.x[:4]
    y = x.clone()
    at = {name: train.features.index(name) for name in ("DURATION", "AMOUNT", "AGE")}
    y[0, at["DURATION"]] += 0.5 if x[0, at["DURATION"]] < 0.4 else -0.3
    y[1, at["AGE"]] = -2.0
    y[1, at["AMOUNT"]] = 0.5 * (x[1, at["AMOUNT"]] + 1)
    y[2, at["AMOUNT"]] += 0.0005  # too little to count
    y[3] = 0.0
    target = torch.tensor([1, 1, 0, 0])
    return train, make_result(x, y, target, [True, True, True, False]), at


def test_advice_is_measured_per_row_and_failures_are_left_out(german):
    train, cfs, _ = german
    values = advice.measure(cfs, train, train.constraints(), 5, torch.ones(train.x.shape[1]))
    assert values["l1"].tolist()[:3] == [1, 2, 0] and values["l1"][3].isnan()
    expected = decision.l2(cfs.query, cfs.counterfactual)[:3]
    torch.testing.assert_close(values["l2"][:3], expected.double())
    n = train.x.shape[1]
    assert values["share_out_of_range"].tolist() == pytest.approx([0, 1 / n, 0, 0])
    assert values["can_be"][1] == 0 and values["can_be"][3] == 0
    line = advice.summarise(cfs, values)
    assert line["l1_mean"] == 1 and line["l1_sd"] == 1 and line["validity"] == 0.75
    assert line["rows_out_of_range"] == 0.25 and line["seconds_item"] == 0.5
    named = advice.name_for_paper({"a": line}, "heloc", 0.7)
    assert named["l1_mean_a_heloc"] == 1 and named["classifier_accuracy_percent_heloc"] == 70
    assert advice.name_for_paper({"a": line}, "german_credit", 0.7) == {}


def test_the_worst_advice_is_listed_in_units(german):
    train, cfs, at = german
    first = advice.list_impossible(cfs, train, 2).iloc[0]
    assert (first["row"], first["feature"]) == (101, "AGE")
    low, high = train.low[at["AGE"]].item(), train.high[at["AGE"]].item()
    assert first["is advised"] == pytest.approx(low - 2 * (high - low), rel=1e-5)
    assert first["smallest"] == low and first["largest"] == high


def test_directions_count_rises_and_falls_of_valid_rows(german):
    train, cfs, _ = german
    share = advice.count_directions(cfs, train)
    assert share[("refused → approved", "falls")]["AGE"] == 0.5
    assert share[("refused → approved", "rises")]["AMOUNT"] == 0.5
    assert share["approved → refused"].to_numpy().sum() == 0  # one too little, one failed
    rates = advice.change_rates({"a": cfs}, train)["a"]
    assert rates["AGE"] == rates["AMOUNT"] == pytest.approx(1 / 3)
    fig = show.plot_features(share, advice.change_rates({"a": cfs}, train), "a")
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert set(names[:3]) == {"AGE", "AMOUNT", "DURATION"}


def test_the_worst_pair_has_the_largest_ratio_of_distances(german):
    train, _, _ = german
    x = train.x[:1].repeat(4, 1)
    x[:, 1] = torch.tensor([0.1, 0.2, 0.5, 0.9])
    y = x.clone()
    y[:, 1] = torch.tensor([0.1, 0.3, 0.5, 0.8])
    y[3, 0] = 5.0  # far, but decided otherwise
    cfs = make_result(x, y, torch.tensor([1, 1, 1, 0]))
    assert sorted(advice.worst_pair(cfs, {"a": cfs}, 1)) == [0, 1]
    assert advice.ratio_of_pair(cfs, 0, 1) == pytest.approx(2.0, rel=1e-5)
    failed = dataclasses.replace(cfs, valid=torch.tensor([False, True, True, True]))
    assert sorted(advice.worst_pair(cfs, {"a": cfs, "b": failed}, 1)) == [1, 2]
    fig = show.plot_pairs({"a": cfs, "b": cfs}, {"p": (0, 1), "q": (1, 2)}, train)
    assert fig.axes[0].get_title() == "a: 2.00"


def test_the_table_of_one_applicant_marks_changes_and_impossible_values(german):
    train, cfs, _ = german
    torch.manual_seed(0)
    f = nn.Linear(train.x.shape[1], 2)
    units = show.compare_advice({"a": cfs}, 1, f, train)
    assert units.index.tolist() == ["AMOUNT", "AGE", "p(approved)", "features changed"]
    assert units.loc["features changed"].tolist() == [0, 2]
    p = f(cfs.counterfactual[1:2]).softmax(1)[0, 1].item()
    assert units.loc["p(approved)", "a"] == pytest.approx(p, rel=1e-5)
    html = show.style_advice(units, train).to_html()
    assert html.count("underline") == 1 and html.count("font-weight: bold") == 2


# ---------------------------------------------------------------- words


TABLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [2.0, -1.0]])
GLOVE = Glove(("good", "bad", "film", "fine"), TABLE, "embedded")


def make_text() -> Counterfactuals:
    query = TABLE[[0, 2]][None].clone()
    moved = query.clone()
    moved[0, 0] = torch.tensor([0.2, 0.9])
    cf = query.clone()
    cf[0, 0] = TABLE[1]
    path = torch.stack([query, moved], 1)
    return make_result(query, cf, torch.tensor([0]), path=path)


def test_vectors_are_replaced_by_words_where_they_moved():
    cfs = make_text()
    torch.testing.assert_close(last_vectors(cfs)[0, 0], torch.tensor([0.2, 0.9]))
    assert torch.equal(replace_by_words(cfs, TABLE), cfs.counterfactual)
    other = replace_by_words(cfs, TABLE[[0, 2, 3]], "cosine")
    assert torch.equal(other[0, 0], TABLE[2]) and torch.equal(other[0, 1], cfs.query[0, 1])
    with pytest.raises(ValueError, match="cfs: got a result without a path"):
        last_vectors(dataclasses.replace(cfs, path=None, path_len=None))


def test_replacements_are_told_in_words():
    cfs = make_text()
    assert replacements.list_words(cfs, GLOVE) == [[(0, "good", "bad")]]
    assert replacements.list_word_pairs(cfs, GLOVE) == [[("good", "bad")]]
    assert replacements.mark(cfs, 0, "Good film!", GLOVE) == "[Good → bad] film!"
    relevance = torch.tensor([[0.5, -1.0, 0.1]])
    fig = replacements.relevance_strip(["Good film"], relevance, ["positive"], GLOVE)
    assert [t.get_text() for t in fig.axes[0].texts] == ["Good", "film"]
    assert fig.axes[0].images[0].get_clim() == (-1.0, 1.0)


def test_shares_of_target_words_are_compared_over_the_same_valid_texts():
    lexicon = {"good": 1.0, "fine": 0.5, "bad": -1.0}
    a = [[("film", "good")], [("film", "good"), ("x", "bad")], [("film", "bad")], []]
    b = [[("film", "bad")], [("film", "fine")], [("film", "bad")], [("film", "good")]]
    valid = torch.tensor([True, True, False, True])
    got = words.compare_target_words(a, b, torch.tensor([1, 1, 1, 1]), lexicon, valid)
    assert (got["a"], got["b"], got["n"]) == (0.75, 0.5, 2)
    assert (got["found_a"], got["found_b"]) == (3, 2) and got["mean"] == 0.25
    assert {"low", "high"} < set(got)
