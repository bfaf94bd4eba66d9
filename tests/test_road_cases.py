"""Cases of ACE on roads: balanced scenes, methods with the right settings, filters, nulls."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import worlds
from cf_utils.core import describe
from cf_utils.datasets import rendered
from cf_utils.datasets.base import InMemory
from cf_utils.evaluation.truth import displacement
from cf_utils.harness import road_cases
from cf_utils.models import checkpoints
from cf_utils.models.generators import diffusion
from cf_utils.training.tuning import grids

TINY = {
    "size": (16, 32),
    "unshuffle": 4,
    "widths": (16, 16),
    "attention": (False, False),
    "blocks": 1,
    "head_width": 16,
    "groups": 4,
}
NEEDED = ("roads_action_causal", "roads_action_shortcut", "roads_oracle", "roads_attributes")
shipped = pytest.mark.skipif(
    not all(map(checkpoints.exists, NEEDED)), reason="no shipped models of roads"
)


class Bright(nn.Module):
    """Decides for class 1 if the mean of an image exceeds 0.5."""

    def forward(self, x):
        logit = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-logit, logit], 1)


def photographs(n=4, sizes="demo", **changes):
    """A case without known factors: random images and an untrained prior."""
    torch.manual_seed(0)
    x = torch.rand(n, 3, 16, 32) * torch.linspace(0.6, 1.4, n)[:, None, None, None]
    x = x.clamp(0, 1)
    y = (x.flatten(1).mean(1) > 0.5).long()
    parts = {
        "name": "small",
        "dataset": "bdd",
        "data": InMemory(x, y, torch.arange(n) + 7, ("forward", "slow down"), "official"),
        "classifier": Bright(),
        "prior": diffusion.build(**TINY, steps=1000).eval(),
        "label": "action",
        "sizes": replace(road_cases.SIZES[sizes], batch=3),
    }
    return road_cases.RoadCase(**(parts | changes))


def test_balanced_renders_take_each_scene_with_each_answer_in_turn():
    factors = worlds.get("roads").sample(60, "test")
    y = worlds.get("roads").label("action")(factors)
    kind = (2 * factors["scene"].long() + y).tolist()
    rows = []
    data = SimpleNamespace(factors=factors, y=y, take=lambda found: rows.extend(found) or found)
    road_cases.balance_scenes(data, 12)
    assert [kind[r] for r in rows] == [0, 1, 2, 3, 4, 5] * 2
    for k in range(6):  # the first two of each kind, in the order of the data set
        assert [r for r in rows if kind[r] == k] == [i for i, v in enumerate(kind) if v == k][:2]


def test_scenes_beside_a_car_are_no_scenes_about_the_car_ahead():
    factors = worlds.get("roads").sample(40, "test")
    expected = [
        i for i in range(40) if factors["scene"][i] in (1, 2) and factors["right_car"][i] >= 0.5
    ]
    assert road_cases.beside_a_car(factors).tolist() == expected and 0 < len(expected) < 40


def test_a_short_attack_has_a_higher_threshold_of_the_mask():
    case = photographs(dataset="roads")
    whole, half, short = (case.ace(n, "l1", 3) for n in (0, 25, 1))
    assert (whole.iterations, whole.threshold) == (50, 0.05) and whole.seed == 3
    assert (half.iterations, half.threshold) == (25, pytest.approx(0.1))
    assert (short.iterations, short.threshold) == (1, 0.5)
    assert whole.distance == "l1" and case.ace(0, "l2", 3).distance == "l2"
    assert describe(case.ace(0, "l2", 3)) == describe(whole.l2())


def test_the_other_attacks_differ_from_ours_as_the_text_says():
    case = photographs(dataset="roads", truth=object())
    explain = case.ace(25, "l1", 3)
    other = case.other_attacks(explain, 3)
    script = grids.build_paper_setting("roads", "ace", case.prior, 3)
    script = script.with_(iterations=25, threshold=explain.threshold)
    assert describe(other["BDD's script"]) == describe(script)
    back = other["signed steps"].with_(attack=explain.attack, step=explain.step)
    assert other["signed steps"].attack == "pgd" and describe(back) == describe(explain)
    assert photographs().other_attacks(explain, 3) == {}


def test_dime_takes_the_steps_of_the_sizes_and_imagenet_has_none():
    assert photographs().dime(0).steps == road_cases.SIZES["demo"].dime_steps
    assert photographs(sizes="paper").dime(0).steps == 45
    assert photographs(dataset="imagenet").dime(0) is None


def test_noise_levels_hold_aces_own_and_those_nearest_to_the_wanted_ones():
    case = photographs()
    explain = case.ace(1, "l1", 0)
    levels = case.noise_levels(explain)
    sigma = case.prior.chain(explain.spacing).schedule.sigma
    assert explain.steps in levels and list(levels) == sorted(levels)
    assert all(sd == pytest.approx(sigma[k - 1].item()) for k, sd in levels.items())
    for wanted in case.sizes.sigmas:
        nearest = min(sigma.tolist(), key=lambda sd: abs(sd - wanted))
        assert nearest in levels.values()


def test_a_filtered_image_depends_on_seed_id_and_stream_alone():
    case = photographs()
    x, ids, chain = case.data.x, case.data.ids, ("50", 2)
    whole = case.filter(x, ids, chain, 1)
    assert whole.shape == x.shape and not torch.equal(whole, x)
    torch.testing.assert_close(case.filter(x[3:], ids[3:], chain, 1), whole[3:])
    walk = case.prior.chain("50")
    with torch.no_grad():
        noise = diffusion.noise_of(1, ids[:1], x[:1], "look")
        torch.testing.assert_close(walk.filter(x[:1], 2, noise), whole[:1])
    for other in (case.filter(x, ids, chain, 2), case.filter(x, ids, chain, 1, "null")):
        assert (other - whole).abs().flatten(1).amax(1).min() > 1e-3
    assert case.filter(x[:0], ids[:0], chain, 1).shape == (0, 3, 16, 32)


class Reader:
    """An oracle that reads the mean of each channel."""

    names = ("a", "b", "c")

    def read(self, x):
        return x.mean((2, 3)), torch.zeros(len(x), 3)


def test_the_null_is_read_in_fresh_renders_through_the_chain():
    case, other = photographs(), photographs(6)
    case.__dict__["fresh"] = other.data  # cached properties
    case.__dict__["oracle"] = Reader()
    x, ids = other.data.x, other.data.ids
    for n in (None, 2, 100):
        some = slice(0, n)
        unedited = case.filter(x[some], ids[some], ("50", 2), 1, "null")
        expected = displacement.null_sd(Reader(), x[some], unedited)
        torch.testing.assert_close(case.null(("50", 2), 1, n), expected)
    assert case.null(("50", 2), 1, 2) is case.null(("50", 2), 1, 2)  # computed once
    assert not torch.equal(case.null(("50", 2), 1, 2), case.null(("50", 1), 1, 2))


def test_photographs_have_neither_truth_nor_a_second_driver():
    case = photographs()
    assert case.official and case.causes == {} and case.readable == {}
    assert case.oracle is None and case.judge is None
    assert road_cases.second_driver(case, 0) is None


def test_labels_and_accuracy_of_photographs_without_labels():
    case = photographs()
    assert case.accuracy == 1.0 and torch.equal(case.labels, case.data.y)
    y = case.data.y.clone()
    y[0], y[1] = -1, 1 - y[1]  # one of three labels is wrong
    some = photographs(data=replace(case.data, y=y))
    assert some.accuracy == pytest.approx(2 / 3) and torch.equal(some.labels, torch.ones(4).long())


def test_unknown_sizes_are_refused():
    with pytest.raises(ValueError, match="sizes: got 'huge'"):
        road_cases.load_case("bdd", "", "action", 2, "huge")


@shipped
def test_a_rendered_case_and_the_second_driver():
    case = road_cases.load_case("bdd", "", "action", 6, "demo")
    factors = case.data.factors
    assert not case.official and case.truth.factors is factors and case.dataset == "roads"
    assert (2 * factors["scene"].long() + case.data.y).tolist() == [0, 1, 2, 3, 4, 5]
    assert set(case.causes) == {"braking", "red", "crossing"} and len(case.readable) > 5
    assert case.accuracy == case.card.quality["test_accuracy"]
    assert any(case.layer is module for module in case.classifier.modules())
    second = road_cases.second_driver(case, 0)
    assert len(second.data) == 3 and second.truth.factors is second.data.factors
    assert len(road_cases.beside_a_car(second.data.factors)) == 3
    assert second.classifier is not case.classifier
    test = rendered.load("roads", "test", n=6)
    assert (case.judge(test.x).argmax(1) == test.y).double().mean() > 0.8
