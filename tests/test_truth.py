"""Truth metrics in a world of three stripes, whose classifier, oracle and true counterfactuals have closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cf_utils import worlds
from cf_utils.datasets.rendered import Rendered
from cf_utils.evaluation import baselines
from cf_utils.evaluation.truth import displacement, localization, true_counterfactuals
from cf_utils.models import oracle_columns
from cf_utils.worlds import Factor, Label, World

LOW, SPAN = 0.2, 0.6
STRIPES = {
    "left": slice(0, 6),
    "right": slice(6, 12),
    "shade": slice(12, 16),
}  # columns of a 16 x 16 image


def draw(factors, height, width):
    x = torch.full((len(factors), 3, height, width), LOW)
    for name, at in STRIPES.items():
        x[..., at] += SPAN * factors[name][:, None, None, None]
    return x


TOY = World(
    "stripes",
    (
        Factor("left", "cause"),
        Factor("right", "cause"),
        Factor("shade"),
        Factor("noise"),
        Factor("echo", "child", parent="left", curve=((0, 0), (1, 1))),
    ),
    (Label("left", ("dark", "bright"), "left"),),
    {"independent": {}},
    draw,
    size=(16, 16),
    noise=("noise", 0.004, 0.008),
)
USES = {
    "left": {"r": 0.5, "flips": 0.9},
    "right": {"r": 0.0, "flips": 0.0},
    "shade": {"r": 0.01, "flips": 0.0},
}
BOTH = USES | {"right": {"r": 0.5, "flips": 0.9}}


class Stripe(nn.Module):
    """z_1 - z_0 = gain (mean of the left stripe - 0.5) + brittle (sum over a chequered stripe); `also`: the brighter of two."""

    def __init__(self, gain=20.0, brittle=0.0, also=False):
        super().__init__()
        self.gain, self.brittle, self.also = gain, brittle, also

    def forward(self, x):
        left, right = (x[..., STRIPES[k]].flatten(1).mean(1) for k in ("left", "right"))
        chequers = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2) * 2.0 - 1
        z = self.gain * ((torch.maximum(left, right) if self.also else left) - 0.5)
        z = z + self.brittle * (x * chequers).flatten(1).mean(
            1
        )  # stripes and even steps have none of it
        return torch.stack([torch.zeros_like(z), z], 1)


class Perfect:
    """Reads each stripe; disagrees about images with a bright first pixel (over 0.95)."""

    names = ("left", "right", "shade")
    sd, null = torch.full((3,), 0.02), torch.full((3,), 0.01)

    def read(self, x):
        value = torch.stack(
            [(x[..., at].flatten(1).mean(1) - LOW) / SPAN for at in STRIPES.values()], 1
        )
        return value, (x[:, 0, 0, 0] > 0.95).float()[:, None].expand(-1, 3) * torch.tensor(
            [1.0, 0.0, 1.0]
        )


def data(n=24, variant="independent"):
    factors = TOY.sample(n, "test", variant)
    x, y = TOY.render(factors), TOY.label("left")(factors)
    return Rendered(
        x, y, factors.ids, ("dark", "bright"), "embedded", factors, y[:, None], ("left",)
    )


def result(rows, f, cf, target):
    """Counterfactuals as an explainer would give them."""
    explain = baselines.NoChange(bounds=None)
    base = explain(f, rows.x, target, rows.ids)
    p = f(cf).softmax(1).gather(1, target[:, None])[:, 0]
    return dataclasses.replace(base, counterfactual=cf, score=p, valid=f(cf).argmax(1) == target)


@pytest.fixture(scope="module")
def toy():
    rows, f = data(), Stripe()
    return rows, f, 1 - f(rows.x).argmax(1)


def moved_render(rows, **moves):
    factors = rows.factors
    for name, value in moves.items():
        factors = factors.move(name, value)
    return TOY.render(factors)


# what the oracle reads


def test_a_category_that_is_read_in_part_has_not_moved():
    """One level moved, another one unread: the factor is not read, and a share of what was read stays one."""
    off, on = torch.tensor([[False, False, False]]), torch.tensor([[True, True, False]])
    d = displacement.Displacement(
        ("shade", "sky=0", "sky=1"),
        torch.zeros(1, 3),
        on,
        on,
        torch.tensor([[False, False, True]]),
        torch.tensor([False]),
    )
    assert [v.item() for v in d.read_factor("sky")] == [False, False] and [
        v.item() for v in d.read_factor("shade")
    ] == [True, True]
    uses = {"shade": {"r": 0.0, "flips": 1.0}, "sky": {"r": 0.0, "flips": 1.0}}
    assert (
        displacement.unused_factor_moved(d, uses).item() == 1.0
        and displacement.used_factor_moved(d, uses).item() == 1.0
    )
    whole = dataclasses.replace(d, unreadable=off)
    assert [v.item() for v in whole.read_factor("sky")] == [True, True] and displacement.unused_factor_moved(
        whole, uses
    ).item() == 1.0
    with pytest.raises(
        ValueError, match=r"uses: no factor changes the probability by less than 0\.05"
    ):
        displacement.unused_factor_moved(d, {"shade": {"r": 0.9, "flips": 1.0}})


def test_displacement_is_the_change_of_the_factor_and_only_that_counts_as_moved(toy):
    rows, f, target = toy
    to = 1 - rows.factors["right"]
    d = displacement.measure(result(rows, f, moved_render(rows, right=to), target), Perfect())
    expected = torch.stack([torch.zeros(24), to - rows.factors["right"], torch.zeros(24)], 1)
    torch.testing.assert_close(d.value, expected, atol=1e-4, rtol=0)
    assert torch.equal(d.moved, expected.abs() > 0.02) and not d.unreadable.any()
    coarse = displacement.measure(
        result(rows, f, moved_render(rows, right=to), target), Perfect(), torch.full((3,), 9.0)
    )
    assert not coarse.moved.any()  # another generator's null


def test_where_the_members_disagree_nothing_is_read(toy):
    rows, f, target = toy
    cf = moved_render(rows, left=0.9, right=0.9)
    cf[:5, :, 0, 0] = 1.0
    d = displacement.measure(result(rows, f, cf, target), Perfect())
    assert d.unreadable[:5].tolist() == [[True, False, True]] * 5 and not d.unreadable[5:].any()
    assert not d.moved[:5, 0].any() and d.moved[:5, 1].any()
    torch.testing.assert_close(
        displacement.unreadable_share(d), torch.tensor([2 / 3] * 5 + [0.0] * 19, dtype=torch.float64)
    )
    assert displacement.used_factor_moved(d, USES)[:5].isnan().all()  # the used factor was not read
    assert (
        displacement.unused_factor_moved(d, USES)[:5].tolist() == d.moved[:5, 1].double().tolist()
    )  # the shade was not


def test_null_is_the_root_mean_square_of_reading_nothing(toy):
    x = toy[0].x
    up = x.clone()
    up[..., STRIPES["right"]] += 0.06 * torch.tensor([1.0, -1.0]).repeat(12)[:, None, None, None]
    torch.testing.assert_close(
        displacement.null_sd(Perfect(), x, up), torch.tensor([0.0, 0.1, 0.0]), atol=1e-5, rtol=0
    )


def test_moved_is_over_two_null_sd_and_firm_over_two_sd_of_the_error_too(toy):
    """The oracle's error is 0.02: what an edit of nothing never does has moved from 0.02 on, and is firm from 0.04 on."""
    rows, f, target = toy
    start = rows.factors.move("left", 0.5)
    for size, null, moved, firm in (
        (0.018, 0.01, 0, 0),
        (0.022, 0.01, 1, 0),
        (0.045, 0.01, 1, 1),
        (0.045, 0.03, 0, 0),
    ):
        x, there = (
            rows.factors.world.render(one, noise=False)
            for one in (start, start.move("left", 0.5 + size))
        )
        seen = displacement.measure(
            dataclasses.replace(result(rows, f, there, target), query=x),
            Perfect(),
            torch.full((3,), null),
        )
        assert seen.moved[:, 0].eq(bool(moved)).all() and seen.reliable[:, 0].eq(bool(firm)).all(), size


def test_used_and_unused_factors_by_hand(toy):
    rows, f, target = toy
    one, other = (
        displacement.measure(
            result(rows, f, moved_render(rows, **{k: 1 - rows.factors[k]}), target), Perfect()
        )
        for k in ("left", "shade")
    )
    far = (1 - 2 * rows.factors["left"]).abs() > 0.03
    assert (displacement.used_factor_moved(one, USES)[far] == 1).all() and (
        displacement.unused_factor_moved(one, USES) == 0
    ).all()
    assert (displacement.used_factor_moved(other, USES) == 0).all()
    far = (1 - 2 * rows.factors["shade"]).abs() > 0.03
    assert (displacement.unused_factor_moved(other, USES)[far] == 0.5).all()  # one of two
    assert displacement.used_factors(USES) == ("left",) and displacement.unused_factors(USES) == ("right", "shade")
    with pytest.raises(ValueError, match="uses"):
        displacement.used_factor_moved(one, USES, min_flips=0.95)


def test_items_with_nothing_to_explain_are_not_defined(toy):
    rows, f, target = toy
    same = target.clone()
    same[3] = 1 - same[3]
    cfs = result(rows, f, moved_render(rows, left=1 - rows.factors["left"]), same)
    d = displacement.measure(cfs, Perfect())
    for values in (
        displacement.used_factor_moved(d, USES),
        displacement.unused_factor_moved(d, USES),
        displacement.semantic_validity(cfs, rows.factors, f, d),
    ):
        assert values.isnan().nonzero().flatten().tolist() == [3]
    assert 3 not in true_counterfactuals.find(cfs, rows.factors, f, USES).item


def test_semantic_validity_knows_a_change_from_noise():
    rows, f = data(), Stripe(brittle=600.0)
    target = 1 - f(rows.x).argmax(1)
    assert (
        f(rows.x).argmax(1) == rows.y
    ).double().mean() > 0.5  # the camera's noise disturbs it: brittle
    found = baselines.baseline_rows(f, rows, target, USES, eps=8 / 255)
    assert set(found) == {"no change", "PGD", "true"}
    assert (
        found["PGD"].valid.all()
        and found["true"].valid.all()
        and not found["no change"].valid.any()
    )
    score = {
        k: displacement.semantic_validity(
            c, rows.factors, f, displacement.measure(c, Perfect())
        )
        for k, c in found.items()
    }
    assert (score["no change"] == 0).all() and score["true"].mean() > 0.85  # measured 1.0
    assert score["PGD"].mean() < 0.15  # measured 0.0


def test_semantic_validity_needs_the_change_to_be_large_enough(toy):
    rows, f, target = toy
    edge = torch.full((24,), 0.5)
    for past, expected in (
        (0.03, 1.0),
        (-0.03, 0.0),
    ):  # a little beyond the boundary, and short of it
        to = edge + past * (2 * target - 1)
        cfs = result(rows, f, moved_render(rows, left=to), target)
        cfs = dataclasses.replace(
            cfs, valid=torch.ones(24, dtype=torch.bool)
        )  # the metric asks f itself
        far = (to - rows.factors["left"]).abs() > 0.045
        assert (
            displacement.semantic_validity(
                cfs, rows.factors, f, displacement.measure(cfs, Perfect())
            )[far]
            == expected
        ).all()


def test_a_change_within_the_oracles_error_has_no_semantic_validity(toy):
    """From 0.015 short of the boundary to 0.015 beyond it: moved, and rendered again it would flip; but the error is 0.02."""
    rows, f, _ = toy
    start = rows.factors.move("left", 0.485)
    x, there = (start.world.render(one, noise=False) for one in (start, start.move("left", 0.515)))
    cfs = dataclasses.replace(
        result(rows, f, there, 1 - f(x).argmax(1)), query=x, valid=torch.ones(24, dtype=torch.bool)
    )
    seen = displacement.measure(cfs, Perfect())
    assert (
        seen.moved[:, 0].all()
        and displacement.semantic_validity(cfs, start, f, seen).nanmean() == 0
    )
    sure = dataclasses.replace(seen, reliable=seen.moved)
    assert displacement.semantic_validity(cfs, start, f, sure).nanmean() == 1


def test_a_failed_explanation_has_no_semantic_validity(toy):
    rows, f, target = toy
    cfs = result(rows, f, moved_render(rows, left=target.float()), target)
    assert (
        displacement.semantic_validity(
            cfs, rows.factors, f, displacement.measure(cfs, Perfect())
        ).mean()
        == 1
    )
    failed = dataclasses.replace(cfs, valid=~cfs.valid)
    assert (
        displacement.semantic_validity(
            failed, rows.factors, f, displacement.measure(failed, Perfect())
        ).mean()
        == 0
    )


def test_columns_and_displacements_of_categories_and_bundles():
    roads = worlds.get("roads")
    factors = roads.sample(6, "test")
    names = oracle_columns.list_columns(roads)
    assert {"scene=0", "scene=2", "weather=3", "braking"} <= set(names) and "scene" not in names
    value, shown = oracle_columns.true_readings(factors, names)
    at = names.index("scene=0")
    assert (
        torch.equal(value[:, at : at + 3].argmax(1).float(), factors["scene"])
        and (value[:, at : at + 3].sum(1) == 1).all()
    )
    own = factors["scene"] == 0
    assert (
        torch.equal(value[:, names.index("braking")], factors["braking"] * own)
        and shown[:, names.index("braking")].all()
    )
    assert torch.equal(shown[:, names.index("right_color")], factors["right_car"] >= 0.5)
    change, moved = torch.zeros(6, len(names)), torch.zeros(6, len(names), dtype=torch.bool)
    change[:, at + 1], moved[:4, at + 1] = 1.2, True  # the second scene, in four images
    change[:, names.index("sun")], moved[:, names.index("sun")] = 2.0, True
    new = oracle_columns.displace(factors, names, change, moved)
    assert (new["scene"][:4] == 1).all() and torch.equal(new["scene"][4:], factors["scene"][4:])
    assert (new["sun"] == 1).all()  # clamped to the scale
    assert torch.equal(new["exposure"], factors["exposure"])
    hidden = factors.move("braking", torch.ones(6)).move(
        "crossing", torch.ones(6)
    )  # on in every scene, seen in its own
    scene, there = change.clone().zero_(), moved.clone().zero_()
    scene[:, at : at + 3] = torch.tensor([1.2, -1.0, -1.0])
    there[:, at : at + 3] = True
    new = oracle_columns.displace(hidden, names, scene, there)
    assert (new["scene"] == 0).all() and torch.equal(
        new["braking"], own.float()
    )  # nobody read that lamps were lit
    unmoved = oracle_columns.displace(hidden, names, scene, torch.zeros_like(there))
    assert torch.equal(hidden.world.render(unmoved), hidden.world.render(hidden))
    crowd = worlds.get("faces").sample(4, "test")
    older = oracle_columns.displace(
        crowd, ("age",), torch.ones(4, 1), torch.tensor([[True], [False], [True], [True]])
    )
    assert (
        torch.equal(older.values[1], crowd.values[1]) and (older["wrinkles"][[0, 2, 3]] > 0.8).all()
    )


# the true counterfactuals


def place(score, target, gain=20.0):
    """Where on its scale the left stripe has this probability of the target."""
    z = torch.logit(score.double()) * (2 * target - 1)
    return (0.5 + z / gain - LOW) / SPAN


def test_the_true_counterfactual_is_the_closed_form_at_the_explanations_own_score(toy):
    rows, f, target = toy
    cfs = result(rows, f, moved_render(rows, left=0.5 + 0.2 * (2 * target - 1)), target)
    assert cfs.valid.all()
    members = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=10)
    assert (
        members.item.tolist() == list(range(24))
        and set(members.factor) == {"left"}
        and members.reached.all()
    )
    torch.testing.assert_close(
        members.value.double(), torch.where(target == 1, 0.7, 0.3).double(), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(members.value.double(), place(cfs.score, target), atol=2e-3, rtol=0)
    assert (members.score >= cfs.score.double() - 1e-6).all()
    assert torch.equal(
        members.image, TOY.render(members.member_factors(rows.factors))
    )  # the same streams: bit-equal
    lax = true_counterfactuals.find(
        dataclasses.replace(cfs, score=torch.full((24,), 0.1)), rows.factors, f, USES, steps=10
    )
    torch.testing.assert_close(
        lax.value, torch.full((24,), 0.5), atol=2e-3, rtol=0
    )  # a failure is held to the boundary


def test_a_score_out_of_reach_ends_at_the_best_place():
    rows, f = data(), Stripe(gain=4.0)  # at most p = 0.77
    target = 1 - f(rows.x).argmax(1)
    cfs = dataclasses.replace(result(rows, f, rows.x, target), score=torch.full((24,), 0.999))
    members = true_counterfactuals.find(cfs, rows.factors, f, USES)
    assert not members.reached.any() and torch.equal(members.value, target.float())
    assert members.score == pytest.approx(1 / (1 + math.exp(-4 * 0.3)), abs=0.01)


def test_the_set_holds_each_way_and_the_gain_takes_the_nearest():
    rows, f = data(40), Stripe(also=True)
    dark = f(rows.x).argmax(1) == 0
    rows, target = (
        rows.take(dark.nonzero().flatten()),
        torch.ones(int(dark.sum()), dtype=torch.int64),
    )
    n = len(rows)
    for name in ("left", "right"):  # either stripe is an explanation
        cfs = result(rows, f, moved_render(rows, **{name: torch.full((n,), 0.8)}), target)
        members = true_counterfactuals.find(cfs, rows.factors, f, BOTH, steps=12)
        assert len(members) == 2 * n and sorted(set(members.factor)) == ["left", "right"]
        gain = true_counterfactuals.true_gain(cfs, members)
        assert (gain > 0.98).all() and (gain <= 1).all()
        regions = localization.member_regions(members, rows.factors)
        both = localization.true_region(members, regions)
        assert both[..., :12].all() and not both[..., 12:].any()
        assert (true_counterfactuals.true_gain(cfs, members, regions) > 0.98).all()
        only = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=12)
        assert ((true_counterfactuals.true_gain(cfs, only) > 0.98) == (name == "left")).all()


def test_gain_of_nothing_is_zero_of_half_is_half_and_of_harm_is_negative(toy):
    rows, f, target = toy
    cfs = result(rows, f, moved_render(rows, left=0.5 + 0.2 * (2 * target - 1)), target)
    members = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=14)
    regions = localization.member_regions(members, rows.factors)
    assert regions[..., :6].all() and not regions[..., 6:].any()

    def gain(x, region=None, **how):
        return true_counterfactuals.true_gain(
            dataclasses.replace(cfs, counterfactual=x), members, region, **how
        )

    step = members.image - rows.x
    for region in (None, regions):
        torch.testing.assert_close(gain(rows.x, region), torch.zeros(24, dtype=torch.float64))
        torch.testing.assert_close(gain(rows.x + step, region), torch.ones(24, dtype=torch.float64))
        torch.testing.assert_close(
            gain(rows.x + step / 2, region), torch.full((24,), 0.5).double(), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            gain(rows.x - step, region), torch.full((24,), -1.0).double(), atol=1e-5, rtol=0
        )
    hidden = regions.clone()
    hidden[:3] = False  # nothing to be seen of these: nothing to gain or lose
    for x in (rows.x, rows.x + step):
        assert gain(x, hidden)[:3].isnan().all() and gain(x, hidden)[3:].isfinite().all()
    aside = rows.x + step
    aside[..., 12:] = 0  # harm elsewhere: not inside the region
    assert (gain(aside, regions) > 0.999).all() and (gain(aside) < 0.9).all()
    absolute = gain(rows.x + step / 4, distance=lambda a, b: (a - b).abs().flatten(1).sum(1))
    torch.testing.assert_close(absolute, torch.full((24,), 0.25).double(), atol=1e-5, rtol=0)


def test_rows_depend_neither_on_their_batch_nor_on_the_order(toy):
    rows, f, target = toy
    cfs = result(rows, f, moved_render(rows, left=0.5 + 0.2 * (2 * target - 1)), target)
    whole, order = (
        true_counterfactuals.find(cfs, rows.factors, f, USES),
        torch.tensor([5, 0, 17]),
    )
    some = true_counterfactuals.find(
        cfs.select(order), rows.factors.take(order), f, USES
    )
    assert torch.equal(some.value, whole.value[order]) and torch.equal(
        some.image, whole.image[order]
    )
    d, few = (displacement.measure(c, Perfect()) for c in (cfs, cfs.select(order)))
    a = displacement.semantic_validity(cfs, rows.factors, f, d)
    assert torch.equal(
        displacement.semantic_validity(cfs.select(order), rows.factors.take(order), f, few),
        a[order],
    )


def test_the_true_change_is_an_explainer_that_reaches_its_score(toy):
    rows, f, target = toy
    scores = torch.linspace(0.6, 0.95, 24)
    explain = baselines.TrueChange(
        renderer=baselines.Renderer(rows.factors), names=("left",), scores=scores, tau=0.55
    )
    cfs = explain(f, rows.x, target, rows.ids)
    assert (
        cfs.reached.all()
        and (cfs.score >= scores - 1e-4).all()
        and (cfs.score < scores + 0.05).all()
    )
    order = torch.tensor([7, 2])  # by id, not by position
    again = explain(f, rows.x[order], target[order], rows.ids[order])
    assert torch.equal(again.counterfactual, cfs.counterfactual[order])
    with pytest.raises(ValueError, match="ids"):
        explain(f, rows.x, target, torch.arange(24))
    never = dataclasses.replace(explain, names=("shade",), scores=None)(f, rows.x, target, rows.ids)
    assert not never.valid.any() and set(never.reason) == {"no factor alone flips this image"}
    with pytest.raises(ValueError, match="names"):
        dataclasses.replace(explain, names=())(f, rows.x, target, rows.ids)


def test_of_several_true_changes_the_smallest_is_shown():
    rows, f = data(40), Stripe(also=True)
    rows = rows.take((f(rows.x).argmax(1) == 0).nonzero().flatten())
    explain = baselines.TrueChange(
        renderer=baselines.Renderer(rows.factors), names=("left", "right")
    )
    cfs = explain(f, rows.x, torch.ones(len(rows), dtype=torch.int64), rows.ids)
    change = (cfs.counterfactual - rows.x).abs().sum((1, 2))  # by column
    nearer = rows.factors["left"] > rows.factors["right"]
    assert cfs.reached.all() and nearer.any() and not nearer.all()
    assert torch.equal(change[:, 0] > 0, nearer) and torch.equal(change[:, 8] > 0, ~nearer)


def test_pgd_of_a_linear_model_is_the_corner_of_its_ball(toy):
    rows, f, target = toy
    eps = 0.05
    cfs = baselines.PGD(eps=eps)(f, rows.x, target, rows.ids)
    sign = (2 * target - 1).float()[:, None, None, None]
    torch.testing.assert_close(
        cfs.counterfactual[..., :6], (rows.x + eps * sign)[..., :6], atol=1e-6, rtol=0
    )
    assert torch.equal(cfs.counterfactual[..., 6:], rows.x[..., 6:])  # no gradient there
    assert (cfs.n_forward == 22).all() and (cfs.n_backward == 20).all()
    with pytest.raises(ValueError, match="eps"):
        baselines.PGD(eps=0.0)(f, rows.x, target)


# maps


def test_share_inside_and_area_by_hand():
    region = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    region[:2, :, :2] = True
    maps = torch.ones(3, 4, 4)
    maps[1, :2] = 3.0
    share = localization.share_inside(maps, region)
    torch.testing.assert_close(share[:2], torch.tensor([0.5, 0.75], dtype=torch.float64))
    assert (
        share[2].isnan()
        and localization.area(region)[2].isnan()
        and localization.area(region)[0] == 0.5
    )
    assert localization.share_inside(torch.zeros(3, 4, 4), region).isnan().all()
    with pytest.raises(ValueError, match="negative"):
        localization.share_inside(-maps, region)


def test_pixel_auroc_is_that_of_scikit_learn_with_ties():
    gen = torch.Generator().manual_seed(0)
    maps = (torch.randn(6, 8, 8, generator=gen) * 3).round()
    region = (
        torch.rand(6, 1, 8, 8, generator=gen)
        < torch.tensor([0.1, 0.5, 0.9, 0.3, 0.0, 1.0])[:, None, None, None]
    )
    found = localization.pixel_auroc(maps, region)
    for i in range(4):
        expected = roc_auc_score(region[i].flatten().numpy(), maps[i].flatten().numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert found[4:].isnan().all()
    assert np.allclose(localization.pixel_auroc(torch.ones(6, 8, 8), region)[:4], 0.5)


def test_pixels_beside_a_region_count_on_neither_side():
    gen = torch.Generator().manual_seed(1)
    maps = (torch.randn(5, 8, 8, generator=gen) * 3).round()
    region, beside = (torch.rand(5, 1, 8, 8, generator=gen) < 0.3 for _ in range(2))
    beside[4] = True  # nothing is left outside
    found = localization.pixel_auroc(maps, region, beside)
    for i in range(4):
        kept = region[i] | ~beside[i]
        expected = roc_auc_score(region[i][kept].numpy(), maps[i][kept[0]].numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert found[4].isnan()
    torch.testing.assert_close(
        localization.pixel_auroc(maps, region, region),
        localization.pixel_auroc(maps, region),
    )


class Weighted(nn.Module):
    """Logits (0, sum of weight x image - 1)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return torch.stack(
            [torch.zeros(len(x), dtype=x.dtype), (x[:, 0] * self.weight).flatten(1).sum(1) - 1], 1
        )


def test_the_decisive_part_of_a_region_turns_the_decision_with_the_strongest_parts_first():
    regions = torch.zeros(5, 1, 6, 9, dtype=torch.bool)
    spots = {
        "a": ([0, 1], [0, 1]),
        "b": ([0, 0], [4, 5]),
        "c": ([4, 5, 4], [6, 7, 8]),
    }  # by corner, by edge
    for spot in spots.values():
        regions[:, 0, spot[0], spot[1]] = True
    regions[3] = False
    weight = torch.zeros(6, 9)
    for name, share in (("a", 0.3), ("b", 0.4), ("c", 0.5)):
        weight[spots[name]] = share / len(spots[name][0])
    image, query = (
        torch.ones(len(v), 1, 6, 9) * torch.tensor(v)[:, None, None, None]
        for v in ([0.7, 2.2, 1.3, 1.0, 0.7], [0.0, 0.05, 1.0])
    )
    item, none = torch.tensor([2, 0, 1, 0, 0]), torch.zeros(5)
    members = true_counterfactuals.TrueSet(item, ("k",) * 5, none, image, none, none == 0, 3)
    found = localization.decisive_regions(
        members, regions, query, torch.tensor([1, 1, 0]), Weighted(weight)
    )
    # to class 0 from 1.2: 1.05, 0.93; 2.2 x 0.5 > 1; 0.06 + 1.25 x 0.5 < 1, x 0.9 > 1; empty; 0.7 x 1.2 < 1
    for m, names in enumerate(("cb", "c", "cb", "", "abc")):
        expected = torch.zeros(6, 9, dtype=torch.bool)
        for name in names:
            expected[spots[name]] = True
        assert torch.equal(found[m, 0], expected), m


def test_rows_of_other_images_are_refused(toy):
    rows, f, target = toy
    cfs = result(rows, f, rows.x, target)
    d = displacement.measure(cfs, Perfect())
    with pytest.raises(ValueError, match="factors"):
        displacement.semantic_validity(cfs, rows.factors.take(range(3)), f, d)
    with pytest.raises(ValueError, match="ids"):
        true_counterfactuals.find(
            cfs, rows.factors.take(range(23, -1, -1)), f, USES
        )
    with pytest.raises(ValueError, match="factor"):
        d.read_factor("smile")
