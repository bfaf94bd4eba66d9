"""Displacement, semantic validity and true counterfactuals in a world with closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cf_utils import worlds
from cf_utils.evaluation import baselines
from cf_utils.evaluation.truth import displacement, localization, true_counterfactuals
from cf_utils.models import oracle_columns
from tests.stripes import (
    LOW,
    SPAN,
    STRIPES,
    TOY,
    USES,
    USES_BOTH,
    Perfect,
    Stripe,
    data,
    make_counterfactuals,
    render_moved,
)


@pytest.fixture(scope="module")
def toy():
    rows, f = data(), Stripe()
    return rows, f, 1 - f(rows.x).argmax(1)


# ---------------------------------------------------------------- what the oracle reads


def test_category_with_an_unreadable_level_has_not_moved():
    """One level moved and another is unreadable, so the factor counts as not read."""
    moved = torch.tensor([[True, True, False]])
    partly = displacement.Displacement(
        names=("shade", "sky=0", "sky=1"),
        value=torch.zeros(1, 3),
        moved=moved,
        reliable=moved,
        unreadable=torch.tensor([[False, False, True]]),
        undefined=torch.tensor([False]),
    )
    assert [v.item() for v in partly.read_factor("sky")] == [False, False]
    assert [v.item() for v in partly.read_factor("shade")] == [True, True]
    uses = {"shade": {"r": 0.0, "flips": 1.0}, "sky": {"r": 0.0, "flips": 1.0}}
    assert displacement.unused_factor_moved(partly, uses).item() == 1.0
    assert displacement.used_factor_moved(partly, uses).item() == 1.0
    readable = dataclasses.replace(partly, unreadable=torch.zeros(1, 3, dtype=torch.bool))
    assert [v.item() for v in readable.read_factor("sky")] == [True, True]
    assert displacement.unused_factor_moved(readable, uses).item() == 1.0
    message = r"uses: no factor changes the probability by less than 0\.05"
    with pytest.raises(ValueError, match=message):
        displacement.unused_factor_moved(partly, {"shade": {"r": 0.9, "flips": 1.0}})


def test_displacement_is_the_change_of_the_factor_that_was_moved(toy):
    rows, f, target = toy
    right = 1 - rows.factors["right"]
    cfs = make_counterfactuals(rows, f, render_moved(rows, right=right), target)
    d = displacement.measure(cfs, Perfect())
    expected = torch.stack([torch.zeros(24), right - rows.factors["right"], torch.zeros(24)], 1)
    torch.testing.assert_close(d.value, expected, atol=1e-4, rtol=0)
    assert torch.equal(d.moved, expected.abs() > 0.02) and not d.unreadable.any()
    coarse = displacement.measure(cfs, Perfect(), null=torch.full((3,), 9.0))
    assert not coarse.moved.any()


def test_nothing_is_read_where_the_members_disagree(toy):
    rows, f, target = toy
    cf = render_moved(rows, left=0.9, right=0.9)
    cf[:5, :, 0, 0] = 1.0
    d = displacement.measure(make_counterfactuals(rows, f, cf, target), Perfect())
    assert d.unreadable[:5].tolist() == [[True, False, True]] * 5 and not d.unreadable[5:].any()
    assert not d.moved[:5, 0].any() and d.moved[:5, 1].any()
    expected = torch.tensor([2 / 3] * 5 + [0.0] * 19, dtype=torch.float64)
    torch.testing.assert_close(displacement.unreadable_share(d), expected)
    # the only used factor is unreadable; of the unused ones "right" is readable, "shade" is not
    assert displacement.used_factor_moved(d, USES)[:5].isnan().all()
    unused = displacement.unused_factor_moved(d, USES)[:5]
    assert unused.tolist() == d.moved[:5, 1].double().tolist()


def test_null_is_the_root_mean_square_displacement_of_an_edit(toy):
    x = toy[0].x
    edited = x.clone()
    sign = torch.tensor([1.0, -1.0]).repeat(12)[:, None, None, None]
    edited[..., STRIPES["right"]] += 0.06 * sign
    found = displacement.null_sd(Perfect(), x, edited)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.1, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "null", "moved", "reliable"),
    [
        (0.018, 0.01, False, False),
        (0.022, 0.01, True, False),
        (0.045, 0.01, True, True),
        (0.045, 0.03, False, False),
    ],
)
def test_moved_exceeds_the_null_and_reliable_exceeds_the_oracles_error(
    toy, size, null, moved, reliable
):
    """The oracle's error is 0.02: displacements are reliable from 0.04 on."""
    rows, f, target = toy
    start = rows.factors.move("left", 0.5)
    end = start.move("left", 0.5 + size)
    before, after = (TOY.render(factors, noise=False) for factors in (start, end))
    cfs = make_counterfactuals(rows, f, after, target)
    cfs = dataclasses.replace(cfs, query=before)
    d = displacement.measure(cfs, Perfect(), torch.full((3,), null))
    assert d.moved[:, 0].eq(moved).all() and d.reliable[:, 0].eq(reliable).all()


def test_used_and_unused_factors_are_counted(toy):
    rows, f, target = toy
    left, shade = (
        displacement.measure(
            make_counterfactuals(rows, f, render_moved(rows, **{k: 1 - rows.factors[k]}), target),
            Perfect(),
        )
        for k in ("left", "shade")
    )
    far = (1 - 2 * rows.factors["left"]).abs() > 0.03
    assert (displacement.used_factor_moved(left, USES)[far] == 1).all()
    assert (displacement.unused_factor_moved(left, USES) == 0).all()
    assert (displacement.used_factor_moved(shade, USES) == 0).all()
    far = (1 - 2 * rows.factors["shade"]).abs() > 0.03
    assert (displacement.unused_factor_moved(shade, USES)[far] == 0.5).all()  # one of two
    assert displacement.used_factors(USES) == ("left",)
    assert displacement.unused_factors(USES) == ("right", "shade")
    with pytest.raises(ValueError, match="uses"):
        displacement.used_factor_moved(left, USES, min_flips=0.95)


def test_metrics_are_undefined_where_there_is_nothing_to_explain(toy):
    rows, f, target = toy
    same = target.clone()
    same[3] = 1 - same[3]
    moved = render_moved(rows, left=1 - rows.factors["left"])
    cfs = make_counterfactuals(rows, f, moved, same)
    d = displacement.measure(cfs, Perfect())
    for values in (
        displacement.used_factor_moved(d, USES),
        displacement.unused_factor_moved(d, USES),
        displacement.semantic_validity(cfs, rows.factors, f, d),
    ):
        assert values.isnan().nonzero().flatten().tolist() == [3]
    assert 3 not in true_counterfactuals.find(cfs, rows.factors, f, USES).item


# ---------------------------------------------------------------- semantic validity


def measure_semantic_validity(cfs, factors, f):
    d = displacement.measure(cfs, Perfect())
    return displacement.semantic_validity(cfs, factors, f, d)


def test_semantic_validity_accepts_true_changes_and_refuses_noise():
    rows, f = data(), Stripe(brittle=600.0)
    target = 1 - f(rows.x).argmax(1)
    assert (f(rows.x).argmax(1) == rows.y).double().mean() > 0.5  # noise of the camera disturbs it
    found = baselines.baseline_rows(f, rows, target, USES, eps=8 / 255)
    assert set(found) == {"no change", "PGD", "true"}
    assert found["PGD"].valid.all() and found["true"].valid.all()
    assert not found["no change"].valid.any()
    score = {k: measure_semantic_validity(c, rows.factors, f) for k, c in found.items()}
    assert (score["no change"] == 0).all()
    assert score["true"].mean() > 0.85  # measured 1.0
    assert score["PGD"].mean() < 0.15  # measured 0.0


@pytest.mark.parametrize(("beyond", "expected"), [(0.03, 1.0), (-0.03, 0.0)])
def test_semantic_validity_needs_a_change_beyond_the_boundary(toy, beyond, expected):
    rows, f, target = toy
    left = 0.5 + beyond * (2 * target - 1)
    cfs = make_counterfactuals(rows, f, render_moved(rows, left=left), target)
    cfs = dataclasses.replace(cfs, valid=torch.ones(24, dtype=torch.bool))
    found = measure_semantic_validity(cfs, rows.factors, f)
    far = (left - rows.factors["left"]).abs() > 0.045  # large enough to be reliable
    assert (found[far] == expected).all()


def test_change_within_the_oracles_error_has_no_semantic_validity(toy):
    """From 0.015 before the boundary to 0.015 beyond it, with an error of 0.02."""
    rows, f, _ = toy
    start = rows.factors.move("left", 0.485)
    end = start.move("left", 0.515)
    before, after = (TOY.render(factors, noise=False) for factors in (start, end))
    cfs = make_counterfactuals(rows, f, after, 1 - f(before).argmax(1))
    cfs = dataclasses.replace(cfs, query=before, valid=torch.ones(24, dtype=torch.bool))
    d = displacement.measure(cfs, Perfect())
    assert d.moved[:, 0].all()
    assert displacement.semantic_validity(cfs, start, f, d).nanmean() == 0
    trusted = dataclasses.replace(d, reliable=d.moved)
    assert displacement.semantic_validity(cfs, start, f, trusted).nanmean() == 1


def test_failed_explanation_has_no_semantic_validity(toy):
    rows, f, target = toy
    cfs = make_counterfactuals(rows, f, render_moved(rows, left=target.float()), target)
    assert measure_semantic_validity(cfs, rows.factors, f).mean() == 1
    failed = dataclasses.replace(cfs, valid=~cfs.valid)
    assert measure_semantic_validity(failed, rows.factors, f).mean() == 0


# ---------------------------------------------------------------- columns of categories


def test_columns_read_levels_of_categories_and_causes_of_their_own_scene():
    roads = worlds.get("roads")
    factors = roads.sample(6, "test")
    names = oracle_columns.list_columns(roads)
    assert {"scene=0", "scene=2", "weather=3", "braking"} <= set(names) and "scene" not in names
    value, shown = oracle_columns.true_readings(factors, names)
    scene = slice(names.index("scene=0"), names.index("scene=0") + 3)
    assert torch.equal(value[:, scene].argmax(1).float(), factors["scene"])
    assert (value[:, scene].sum(1) == 1).all()
    braking = names.index("braking")
    in_scene = factors["scene"] == 0
    assert torch.equal(value[:, braking], factors["braking"] * in_scene)
    assert shown[:, braking].all()
    assert torch.equal(shown[:, names.index("right_color")], factors["right_car"] >= 0.5)


def test_displaced_category_takes_its_highest_level_and_values_are_clamped():
    roads = worlds.get("roads")
    factors, names = roads.sample(6, "test"), oracle_columns.list_columns(roads)
    change, moved = torch.zeros(6, len(names)), torch.zeros(6, len(names), dtype=torch.bool)
    second, sun = names.index("scene=1"), names.index("sun")
    change[:, second], moved[:4, second] = 1.2, True
    change[:, sun], moved[:, sun] = 2.0, True
    new = oracle_columns.displace(factors, names, change, moved)
    assert (new["scene"][:4] == 1).all()
    assert torch.equal(new["scene"][4:], factors["scene"][4:])
    assert (new["sun"] == 1).all() and torch.equal(new["exposure"], factors["exposure"])


def test_displaced_scene_does_not_reveal_causes_that_were_not_visible():
    roads = worlds.get("roads")
    factors, names = roads.sample(6, "test"), oracle_columns.list_columns(roads)
    everywhere = factors.move("braking", torch.ones(6)).move("crossing", torch.ones(6))
    scene = slice(names.index("scene=0"), names.index("scene=0") + 3)
    change, moved = torch.zeros(6, len(names)), torch.zeros(6, len(names), dtype=torch.bool)
    change[:, scene], moved[:, scene] = torch.tensor([1.2, -1.0, -1.0]), True
    new = oracle_columns.displace(everywhere, names, change, moved)
    assert (new["scene"] == 0).all()
    assert torch.equal(new["braking"], (factors["scene"] == 0).float())
    unmoved = oracle_columns.displace(everywhere, names, change, torch.zeros_like(moved))
    assert torch.equal(roads.render(unmoved), roads.render(everywhere))


def test_children_follow_a_displaced_factor():
    faces = worlds.get("faces").sample(4, "test")
    moved = torch.tensor([[True], [False], [True], [True]])
    older = oracle_columns.displace(faces, ("age",), torch.ones(4, 1), moved)
    assert torch.equal(older.values[1], faces.values[1])
    assert (older["wrinkles"][[0, 2, 3]] > 0.8).all()


# ---------------------------------------------------------------- true counterfactuals


def place_of_score(score, target, gain=20.0):
    """The value of the left stripe with this probability of the target."""
    z = torch.logit(score.double()) * (2 * target - 1)
    return (0.5 + z / gain - LOW) / SPAN


def explain_by_left_stripe(toy):
    """Counterfactuals with the left stripe at 0.3 or 0.7, beyond the boundary at 0.5."""
    rows, f, target = toy
    cf = render_moved(rows, left=0.5 + 0.2 * (2 * target - 1))
    return make_counterfactuals(rows, f, cf, target)


def test_true_counterfactual_at_the_explanations_own_score_has_a_closed_form(toy):
    rows, f, target = toy
    cfs = explain_by_left_stripe(toy)
    assert cfs.valid.all()
    members = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=10)
    assert members.item.tolist() == list(range(24)) and set(members.factor) == {"left"}
    assert members.reached.all() and (members.score >= cfs.score.double() - 1e-6).all()
    value, expected = members.value.double(), torch.where(target == 1, 0.7, 0.3).double()
    torch.testing.assert_close(value, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(value, place_of_score(cfs.score, target), atol=2e-3, rtol=0)
    # the same random streams: bit-equal
    assert torch.equal(members.image, TOY.render(members.member_factors(rows.factors)))


def test_true_counterfactual_of_a_failure_lies_on_the_boundary(toy):
    rows, f, _ = toy
    failed = dataclasses.replace(explain_by_left_stripe(toy), score=torch.full((24,), 0.1))
    members = true_counterfactuals.find(failed, rows.factors, f, USES, steps=10)
    torch.testing.assert_close(members.value, torch.full((24,), 0.5), atol=2e-3, rtol=0)


def test_unreachable_score_gives_the_value_with_the_highest_score():
    rows, f = data(), Stripe(gain=4.0)  # at most p = 0.77
    target = 1 - f(rows.x).argmax(1)
    cfs = make_counterfactuals(rows, f, rows.x, target)
    cfs = dataclasses.replace(cfs, score=torch.full((24,), 0.999))
    members = true_counterfactuals.find(cfs, rows.factors, f, USES)
    assert not members.reached.any() and torch.equal(members.value, target.float())
    assert members.score == pytest.approx(1 / (1 + math.exp(-4 * 0.3)), abs=0.01)


@pytest.mark.parametrize("name", ["left", "right"])
def test_set_has_a_member_per_factor_and_the_gain_takes_the_nearest(name):
    """Either stripe explains a classifier that takes the brighter one."""
    rows, f = data(40), Stripe(also=True)
    rows = rows.take((f(rows.x).argmax(1) == 0).nonzero().flatten())
    n, target = len(rows), torch.ones(len(rows), dtype=torch.int64)
    moved = render_moved(rows, **{name: torch.full((n,), 0.8)})
    cfs = make_counterfactuals(rows, f, moved, target)
    members = true_counterfactuals.find(cfs, rows.factors, f, USES_BOTH, steps=12)
    assert len(members) == 2 * n and sorted(set(members.factor)) == ["left", "right"]
    gain = true_counterfactuals.true_gain(cfs, members)
    assert (gain > 0.98).all() and (gain <= 1).all()
    regions = localization.member_regions(members, rows.factors)
    assert (true_counterfactuals.true_gain(cfs, members, regions) > 0.98).all()
    region = localization.true_region(members, regions)
    assert region[..., :12].all() and not region[..., 12:].any()
    left_alone = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=12)
    gain = true_counterfactuals.true_gain(cfs, left_alone)
    assert ((gain > 0.98) == (name == "left")).all()


@pytest.fixture
def gain_of(toy):
    """Return a function from images to their true gain, and the true counterfactuals."""
    rows, f, _ = toy
    cfs = explain_by_left_stripe(toy)
    members = true_counterfactuals.find(cfs, rows.factors, f, USES, steps=14)

    def gain(x, regions=None, **settings):
        images = dataclasses.replace(cfs, counterfactual=x)
        return true_counterfactuals.true_gain(images, members, regions, **settings)

    return gain, members, localization.member_regions(members, rows.factors)


def test_gain_is_zero_without_change_and_proportional_along_the_true_change(toy, gain_of):
    (gain, members, regions), x = gain_of, toy[0].x
    assert regions[..., :6].all() and not regions[..., 6:].any()
    step = members.image - x
    for region in (None, regions):
        for share, tolerance in ((0.0, 1e-7), (1.0, 1e-7), (0.5, 1e-5), (-1.0, 1e-5)):
            expected = torch.full((24,), share, dtype=torch.float64)
            found = gain(x + share * step, region)
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)

    def absolute(a, b):
        return (a - b).abs().flatten(1).sum(1)

    expected = torch.full((24,), 0.25).double()
    found = gain(x + step / 4, distance=absolute)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gain_inside_a_region_ignores_other_pixels_and_is_undefined_if_it_is_empty(toy, gain_of):
    (gain, members, regions), x = gain_of, toy[0].x
    step = members.image - x
    empty = regions.clone()
    empty[:3] = False
    for image in (x, x + step):
        assert gain(image, empty)[:3].isnan().all() and gain(image, empty)[3:].isfinite().all()
    harmed = x + step
    harmed[..., 12:] = 0  # outside the region
    assert (gain(harmed, regions) > 0.999).all() and (gain(harmed) < 0.9).all()


def test_items_depend_neither_on_their_batch_nor_on_the_order(toy):
    rows, f, _ = toy
    cfs, order = explain_by_left_stripe(toy), torch.tensor([5, 0, 17])
    some, factors = cfs.select(order), rows.factors.take(order)
    whole = true_counterfactuals.find(cfs, rows.factors, f, USES)
    members = true_counterfactuals.find(some, factors, f, USES)
    assert torch.equal(members.value, whole.value[order])
    assert torch.equal(members.image, whole.image[order])
    expected = measure_semantic_validity(cfs, rows.factors, f)
    assert torch.equal(measure_semantic_validity(some, factors, f), expected[order])


def test_factors_of_other_images_are_refused(toy):
    rows, f, target = toy
    cfs = make_counterfactuals(rows, f, rows.x, target)
    d = displacement.measure(cfs, Perfect())
    with pytest.raises(ValueError, match="factors: got 3 rows for 24 items"):
        displacement.semantic_validity(cfs, rows.factors.take(range(3)), f, d)
    with pytest.raises(ValueError, match="factors: got ids"):
        backwards = rows.factors.take(range(23, -1, -1))
        true_counterfactuals.find(cfs, backwards, f, USES)
    with pytest.raises(ValueError, match="factor: got 'smile'"):
        d.read_factor("smile")
