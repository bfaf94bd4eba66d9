"""ACE beside its rivals: names of metrics, costs, pairing, and which rivals are compared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from cf_utils.harness import ace_rivals, ace_truth
from tests import stripes
from tests.ace_stripes import SIZES, make_case, move, towards
from tests.test_ace_truth import Chain


@pytest.fixture
def ruler(monkeypatch):
    """A chain that changes nothing, and no networks for LPIPS and KID."""
    monkeypatch.setattr(ace_truth, "filter_images", lambda case, x, *rest: x)
    monkeypatch.setattr(ace_rivals, "FEWEST", 100)
    case = make_case()
    case.__dict__["lpips"] = None
    return ace_truth.Ruler(case, Chain(), 5)


def test_metric_names_are_those_of_the_published_results():
    names = ["ACE", "FastDiME", "DiME, pasted", "ACE, paper's", "DiME, paper's"]
    tags = ["", "_fastdime", "_dime_pasted", "_paper", "_dime_paper"]
    whole = pd.DataFrame({"n": range(5), "cout": 0.5, "mean change": 0.1}, index=names)
    lines = {("FastDiME", "semantic validity"): {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 4}}
    lines |= {("FastDiME", "change"): {"mean": 9, "low": 9, "high": 9, "n": 4}}
    found = ace_rivals.Comparison(whole, whole, ("FastDiME",), pd.DataFrame(lines).T).metrics()
    expected = {f"n{tag}": i for i, tag in enumerate(tags)} | {f"cout{tag}": 0.5 for tag in tags}
    less = "semantic_validity_less_fastdime"
    assert found == expected | {less: 0.2, f"{less}_low": 0.1, f"{less}_high": 0.3}


def test_a_row_adds_the_cost_of_earlier_searches_on_the_same_queries(ruler):
    cfs = move(ruler.case, left=towards(ruler.case))
    before = dataclasses.replace(cfs, seconds=torch.tensor([1.0, 3.0, 50.0, 50.0]).double())
    row = ace_rivals.measure_row(ruler, cfs.select(range(2)), before)
    assert row["seconds_per_image"] == 2 + 2 and row["UNet passes"] == 7 + 7
    alone = ace_rivals.measure_row(ruler, cfs)
    assert alone["seconds_per_image"] == 2 and alone["UNet passes"] == 7
    assert (row["n"], alone["n"]) == (2, 4)
    assert alone["flip_rate"] == alone["semantic_validity"] == alone["used_factor_moved"] == 1
    assert alone["unused_factor_moved"] == 0 and alone["kid_embedded"] != alone["kid_embedded"]
    assert "true_gain_inside" in alone and "true_gain_lpips" not in alone
    assert alone["mean change"] == pytest.approx(
        (cfs.counterfactual - cfs.query).abs().mean().item()
    )


def test_true_gain_is_one_at_a_true_counterfactual_and_less_beyond_it(ruler):
    case = ruler.case
    true = stripes_anchor(case)
    near = ace_rivals.measure_row(ruler, true)["true_gain"]
    shade = 1 - case.data.factors["shade"].round()
    far = ace_rivals.measure_row(ruler, move(case, left=towards(case), shade=shade))
    assert near == pytest.approx(1, abs=1e-6) and far["true_gain"] < 0.9
    assert far["true_gain_inside"] > far["true_gain"]  # the shade lies outside the true region


def stripes_anchor(case):
    """The true counterfactuals of a case, as an explainer's result."""
    target = 1 - case.classifier(case.data.x).argmax(1)
    left = 0.5 + 0.4 * (2 * target - 1)
    cfs = move(case, left=left)
    anchors = ace_rivals.true_counterfactuals.find(
        cfs, case.data.factors, case.classifier, stripes.USES
    )
    image = cfs.counterfactual.clone()
    image[anchors.item] = anchors.image
    return dataclasses.replace(cfs, counterfactual=image)


def test_rivals_are_paired_on_dimes_queries_and_dropped_below_the_floor(ruler):
    case = ruler.case
    good = move(case, left=towards(case))
    loud = move(case, left=towards(case), shade=1 - case.data.factors["shade"].round())
    few, lazy = range(SIZES.n_dime), move(case)
    rivals = {"FastDiME": loud, "DiME": loud.select(few), "DiME, pasted": lazy.select(few)}
    found = ace_rivals.compare(ruler, good, rivals, {"true": good})
    assert found.whole.n.tolist() == [4, 4, 2, 2]
    assert found.paired.n.tolist() == [2] * 5 and found.paired.index[-1] == "true"
    assert found.able == ("FastDiME", "DiME")  # the pasted rival flips nothing
    unused = found.differences.loc[("DiME", "unused factors moved")]
    assert (unused["mean"], unused["n"]) == (-1, 2)
    change = found.differences.loc[("FastDiME", "change"), "mean"]
    per_item = [(c.counterfactual - c.query).abs().mean((1, 2, 3))[:2] for c in (good, loud)]
    assert change == pytest.approx((per_item[0] - per_item[1]).mean().item(), abs=1e-6)
    cost = found.whole.loc["DiME, pasted", "UNet passes"]
    assert cost == 7 + 7 and found.whole.loc["DiME", "UNet passes"] == 7
    assert list(found.both.index.get_level_values(0).unique()) == [
        "all its queries",
        "the same queries",
    ]


def test_photographs_have_no_anchors_and_no_differences(ruler, monkeypatch):
    case = make_case(truth=False)
    monkeypatch.setattr(
        ace_rivals.tables,
        "ace_table",
        lambda cfs, f, columns, **more: pd.DataFrame({"value": dict.fromkeys(columns, 1.0)}),
    )
    cfs = move(make_case(), left=0.9)
    found = ace_rivals.compare(
        ace_truth.Ruler(case, Chain(), 5), cfs, {"DiME": cfs.select(range(2))}, {"PGD": cfs}
    )
    assert found.differences.empty and list(found.paired.index) == ["ACE", "DiME"]
    assert {"fid", "fva", "mnac"} <= set(found.whole.columns)
    assert "semantic_validity" not in found.whole.columns


def test_seconds_are_those_of_whole_searches(monkeypatch):
    case = make_case()
    whole = SimpleNamespace(build=lambda prior: SimpleNamespace(steps=3))
    monkeypatch.setattr(ace_rivals.presets, "get", lambda *names: whole)
    paired = pd.DataFrame({"seconds_per_image": {"ACE": 4.0, "DiME": 3.0}})
    table = ace_rivals.Comparison(paired, paired, (), pd.DataFrame())
    # DiME made 2 of 3 steps, so 3 of 6 passes; ACE 5 of 10 iterations
    assert ace_rivals.relative_seconds(table, case, (5, 10)) == pytest.approx((3 * 2) / (4 * 2))
    assert ace_rivals.relative_seconds(table, case, (10, 10)) == pytest.approx((3 * 2) / 4)
