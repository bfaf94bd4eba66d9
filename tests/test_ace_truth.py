"""What the renderer proves about ACE: nulls, the filter, and a shortcut, in closed forms."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
import torch

from cf_utils.evaluation.truth import displacement
from cf_utils.harness import ace_cases, ace_truth
from tests import stripes
from tests.ace_stripes import make_case, move, towards
from tests.test_ace_cases import shipped


class Chain:
    """Settings of an explainer of one chain."""

    spacing, steps = "25", 3


def shift(x, name, by):
    """Brighten one stripe by a displacement of `by`."""
    y = x.clone()
    y[..., stripes.STRIPES[name]] += stripes.SPAN * by
    return y


@pytest.fixture
def ruler(monkeypatch):
    """ACE's own chain brightens the right stripe by 0.1, any other chain by 0.3."""
    asked = []

    def filter_images(case, x, ids, chain, seed, stream):
        asked.append((len(x), chain, seed, stream))
        return shift(x, "right", 0.1 if chain == ("25", 3) else 0.3)

    monkeypatch.setattr(ace_truth, "filter_images", filter_images)
    made = ace_truth.Ruler(make_case(), Chain(), 5)
    return made, asked


def test_a_method_is_held_against_its_own_chain(ruler):
    ruler, asked = ruler
    own = ruler.case.data.factors["right"]
    right = own + torch.where(own < 0.5, 0.4, -0.4)  # beyond twice the null of 0.1, not of 0.3
    cfs = move(ruler.case, left=towards(ruler.case), right=right)
    own, other = ({"spacing": s, "steps": k} for s, k in (("25", 3), ("200", 9)))
    nulls = [ruler.null_of(dataclasses.replace(cfs, settings=w)) for w in ({}, own, other, other)]
    for null, right in zip(nulls, (0.1, 0.1, 0.3, 0.3), strict=True):
        torch.testing.assert_close(null, torch.tensor([0, right, 0]), atol=1e-5, rtol=0)
    fresh = len(ruler.case.fresh)
    assert asked == [(fresh, ("25", 3), 5, "null"), (4, ("200", 9), 5, "null")]
    read = [ruler.measure(dataclasses.replace(cfs, settings=w)) for w in (own, other)]
    assert [r.read_factor("right")[0].all().item() for r in read] == [True, False]


def test_the_filter_is_judged_on_clean_faces_and_on_flipped_ones(monkeypatch):
    """A filter that inverts the left stripe of two fresh faces, and keeps PGD's images."""
    case = make_case(prior=None)
    case = dataclasses.replace(case, classifier=stripes.Stripe(brittle=3000.0))
    assert case.classifier(case.fresh.x).argmax(1).shape == (6,)

    def filter_images(case, x, ids, chain, seed, stream):
        if stream == "look":
            return x
        y = x.clone()
        left = stripes.STRIPES["left"]
        y[:2, ..., left] = 1 - y[:2, ..., left]
        return y

    class Prior:
        def chain(self, spacing):
            return dataclasses.make_dataclass("C", ["schedule"])(
                dataclasses.make_dataclass("S", ["sigma"])(torch.tensor([0.1, 0.2, 0.4]))
            )

    monkeypatch.setattr(ace_truth, "filter_images", filter_images)
    ruler = ace_truth.Ruler(dataclasses.replace(case, prior=Prior()), Chain(), 5)
    found = ruler.check_filter(move(case))
    assert found["sigma"] == pytest.approx(0.4)
    assert found["filter_keeps_decision"] == pytest.approx(4 / 6)
    assert found["pgd_undone_by_filter"] == 0  # nothing was filtered out


def test_truth_rows_are_the_metrics_of_readable_factors(ruler):
    ruler, _ = ruler
    case = ruler.case
    honest = move(case, left=towards(case))
    noisy = move(case, left=towards(case), shade=1 - case.data.factors["shade"].round())
    table = ace_truth.truth_rows(ruler, {"ACE": honest, "noisy": noisy, "none": move(case)})
    assert table["semantic validity"].tolist() == [1, 1, 0]
    assert table["turned"].tolist() == [1, 1, 0] and table.n.tolist() == [4] * 3
    assert table["used factor moved"].tolist() == [1, 1, 0]
    assert table["unused factors moved"].tolist() == [0, 1, 0]  # "right" is not readable
    assert ruler.quiet.keys() == {"left", "shade"}
    photographs = ace_truth.Ruler(make_case(truth=False), Chain(), 5)
    assert ace_truth.truth_rows(photographs, {"ACE": honest}).empty
    assert ace_truth.truth_metrics(photographs.case, pd.DataFrame()) == {}
    named = ace_truth.truth_metrics(case, table.rename(index={"noisy": "true", "none": "PGD"}))
    assert named == {
        "oracle_r2": 0.9,
        "semantic_validity": 1,
        "semantic_validity_ceiling": 1,
        "semantic_validity_pgd": 0,
        "used_factor_moved": 1,
        "unused_factor_moved": 0,
    }


def test_moved_shares_count_valid_explanations_in_which_a_factor_is_read(ruler):
    ruler, _ = ruler
    case, shade = ruler.case, ruler.case.data.factors["shade"]
    cfs = move(
        case, left=towards(case), shade=torch.where(torch.arange(4) < 2, 1 - shade.round(), shade)
    )
    cfs = dataclasses.replace(cfs, valid=torch.tensor([True, False, True, True]))
    table = ace_truth.moved_table(ruler, {"one": cfs, "two": move(case)})
    assert list(table.columns) == ["one", "two", "n, one", "n, two"]
    assert list(table.index) == ["left", "shade"]
    assert table["one"].tolist() == pytest.approx([1, 1 / 3])
    assert table["n, one"].tolist() == [3, 3] and table["n, two"].tolist() == [0, 0]
    assert table["two"].isna().all()  # none is valid
    cfs.counterfactual[0, :, 0, 0] = 1.0  # here the oracle cannot read "left"
    assert ace_truth.moved_table(ruler, {"one": cfs}).loc["left", "n, one"] == 2


def test_the_way_of_the_wall_is_compared_with_the_renderers(ruler, monkeypatch):
    ruler, _ = ruler
    monkeypatch.setattr(ace_truth, "WALL", "left")
    other = ruler.case.shortcut
    way = towards(other)
    end, own = 1 - way.round(), other.data.factors["left"]
    k = (own - end).abs().argmax()
    way[k] = end[k]  # one goes the wrong way, far enough to be read
    assert (own - end)[k].abs() > 0.1
    cfs = dataclasses.replace(move(other, left=way), valid=torch.ones(4).bool())
    moved = ace_truth.moved_table(ruler, {"shortcut classifier": cfs})
    proof = ace_truth.Proof(pd.DataFrame({"shortcut": {"left": 1.0}}), 1, 0.9)
    found = ace_truth.judge_shortcut(ruler, cfs, moved, proof)
    assert found["wall_moved_right_way_shortcut"] == pytest.approx(3 / 4)
    assert found["semantic_validity_shortcut"] == pytest.approx(3 / 4)
    assert found["semantic_validity_shortcut_ceiling"] == 1
    assert found["semantic_validity_shortcut_pgd"] == 0
    assert (found["wall_moved_shortcut"], found["n_wall_read_shortcut"]) == (1, 4)
    assert found["used_factor_moved_shortcut"] == found["flip_rate_shortcut"] == 1
    assert (found["shortcut_accuracy_at_home"], found["shortcut_flips_background"]) == (0.9, 1.0)
    down = ace_truth.judge_shortcut(ruler, cfs, moved, proof._replace(towards=-1))
    assert down["wall_moved_right_way_shortcut"] == pytest.approx(1 / 4)


@shipped
def test_the_renderer_shows_which_classifier_relies_on_the_wall():
    case = ace_cases.rendered_case("smile", 2, "demo")
    proof = ace_truth.prove_shortcut(case, n=12)
    assert list(proof.table.index) == ["smile", "background", "glasses"]
    assert proof.table.loc["background", "shortcut"] > 0.8 > proof.table.loc["smile", "shortcut"]
    assert proof.table.loc["smile", "causal"] > 0.8 > proof.table.loc["background", "causal"]
    assert proof.at_home > 0.8 and proof.towards in (-1, 1)
    x = case.fresh.factors.world.render(case.fresh.factors.move("background", 1.0))
    ends = case.shortcut.classifier(x).argmax(1).double().mean()
    assert (ends > 0.5) == (proof.towards == 1)


def test_the_ruler_reads_what_displacement_reads(ruler):
    ruler, _ = ruler
    cfs = move(ruler.case, left=towards(ruler.case))
    read = ruler.measure(cfs)
    again = displacement.measure(cfs, ruler.case.oracle, ruler.null)
    assert torch.equal(read.value, again.value) and torch.equal(read.moved, again.moved)
