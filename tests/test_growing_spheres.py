"""Growing Spheres against a plain loop, closed forms, and brute force in the plane."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from torch import nn

from cf_utils.core import Constraints, item_noise
from cf_utils.explainers import presets
from cf_utils.explainers.growing_spheres import in_layer
from tests.small import TAU, Bent, assert_kept, plane, table, tables

TABLE = presets.get("growing_spheres", "table").build()
FREE = TABLE.with_(tau=TAU, n=200)


class Never(nn.Module):
    """Always decided as class 0."""

    def forward(self, x):
        return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)


def ones(x):
    return torch.ones(len(x), dtype=torch.int64)


def linear(features, rows=6):
    """z_1 - z_0 = w.x + b in float64.

    Returns the model, x, target 1, and each item's distance to where p_1 = TAU.
    """
    gen = torch.Generator().manual_seed(0)
    model = nn.Linear(features, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(2 * torch.randn(2, features, generator=gen))
        model.bias.copy_(torch.tensor([2.0, 0.0]))
    x = 0.2 * torch.rand(rows, features, generator=gen).double()
    w = (model.weight[1] - model.weight[0]).detach()
    gap = torch.logit(torch.tensor(TAU, dtype=torch.float64)) - (x @ w - 2)
    assert (gap > 0).all()
    return model, x, ones(x), gap / w.norm()


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize(("d", "inner", "outer"), [(2, 0.0, 0.3), (5, 0.2, 0.3), (23, 0.1, 0.2)])
def test_draws_are_uniform_in_volume_and_in_direction(d, inner, outer):
    gen = torch.Generator().manual_seed(d)
    normal = torch.randn(20_000, d, generator=gen).double()
    u = torch.rand(20_000, generator=gen).double()
    points = in_layer(normal, u, torch.tensor(inner), torch.tensor(outer))
    r = points.norm(dim=1)
    assert r.min() >= inner - 1e-9 and r.max() <= outer + 1e-9
    volume = (r**d - inner**d) / (outer**d - inner**d)
    along = (points / r[:, None])[:, 0]
    assert stats.kstest(volume, "uniform").pvalue > 0.1  # measured 0.95, 0.92, 0.68
    squared = stats.kstest(along**2, "beta", args=(0.5, (d - 1) / 2))
    assert squared.pvalue > 0.1  # measured 0.83, 0.32, 0.95
    assert (along > 0).double().mean().sub(0.5).abs() < 0.02
    # radius and direction are independent
    assert abs(stats.pearsonr(r, along.abs())[0]) < 0.03


def test_a_small_radius_in_many_dimensions_does_not_underflow():
    gen = torch.Generator().manual_seed(0)  # 1e-3 ** 300 is 0 in any float
    normal, u = torch.randn(500, 300, generator=gen), torch.rand(500, generator=gen)
    r = in_layer(normal, u, torch.tensor(1e-3), torch.tensor(2e-3)).norm(dim=1)
    assert r.min() > 1.9e-3 and r.max() <= 2.001e-3


# ---------------------------------------------------------------- a plain loop


def find_enemy(explain, is_enemy, x, item):
    """The nearest enemy of one query, one draw at a time."""
    inner, outer, ball, d = 0.0, explain.eta, explain.eta, len(x)
    best, distance = None, float("inf")
    for k in range(explain.layers):
        normal = item_noise(0, item[None], (explain.n, d), f"layer {k}")[0].to(x)
        u = item_noise(0, item[None], (explain.n,), f"radius {k}", "uniform")[0].to(x)
        n_hits = 0
        for direction, share in zip(normal, u, strict=True):
            r = (inner**d + share * (outer**d - inner**d)) ** (1 / d)
            y = x + r * direction / direction.norm()
            if is_enemy(y):
                n_hits += 1
                if (y - x).norm() < distance:
                    best, distance = y, (y - x).norm()
        if inner == 0 and n_hits:
            ball = outer = ball / 2
        elif n_hits:
            break
        else:
            inner = ball if inner == 0 else outer
            outer = inner + ball
    return best


def make_sparse(explain, is_enemy, x, enemy):
    """Reset one feature after the other."""
    y = enemy.clone()
    for j in (enemy - x).abs().argsort():
        candidate = y.clone()
        candidate[j] = x[j]
        if is_enemy(candidate):
            y = candidate
        elif explain.selection == "stop":
            break
    return y


def search_in_a_loop(explain, model, x, target, ids):
    """The method again: one item, draw and feature at a time."""
    enemies, results = [], []
    for query, t, item in zip(x, target, ids, strict=True):

        def is_enemy(y, t=t):
            logits = model(y[None])[0].detach()
            return int(logits.argmax()) == t and logits.softmax(0)[t] >= explain.tau

        enemies.append(find_enemy(explain, is_enemy, query, item))
        results.append(make_sparse(explain, is_enemy, query, enemies[-1]))
    return torch.stack(enemies), torch.stack(results)


@pytest.mark.parametrize("selection", ["stop", "each"])
def test_the_batched_search_equals_a_plain_loop(selection):
    model, x, target, _ = linear(4)
    explain = FREE.with_(n=25, eta=0.4, selection=selection)
    cfs = explain(model, x, target, torch.arange(10, 16))
    enemy, sparse = search_in_a_loop(explain, model, x, target, torch.arange(10, 16))
    torch.testing.assert_close(cfs.path[:, 1], enemy, atol=1e-9, rtol=0)
    torch.testing.assert_close(cfs.counterfactual, sparse, atol=1e-9, rtol=0)
    torch.testing.assert_close(cfs.path[:, 2], sparse, atol=1e-9, rtol=0)
    n_changed = (sparse != x).sum(1)
    assert cfs.reached.all() and (n_changed < 4).any()  # some features were reset exactly


# ---------------------------------------------------------------- other answers


@pytest.mark.parametrize(("d", "n", "far"), [(2, 2000, 1.02), (8, 1000, 1.4)])
def test_the_distance_is_close_to_that_of_the_plane_and_not_below_it(d, n, far):
    model, x, target, least = linear(d)
    ratio = []
    for eta in (0.3, 0.05):
        cfs = FREE.with_(n=n, eta=eta)(model, x, target)
        ratio.append((cfs.path[:, 1] - x).norm(dim=1) / least)
        assert cfs.reached.all() and (ratio[-1] >= 1).all()
    assert ratio[1].max() < far  # measured 1.005, 1.200
    assert ratio[1].mean() < ratio[0].mean() + 0.02


def test_a_ball_that_contains_enemies_is_halved():
    model, x, target, least = linear(2)
    for factor in (2.0, 200.0):  # the first ball is larger, and much larger, than needed
        cfs = FREE.with_(n=2000, eta=float(least.max()) * factor)(model, x, target)
        assert ((cfs.path[:, 1] - x).norm(dim=1) < 1.03 * least).all()  # measured 1.006, 1.009


def test_the_enemy_is_close_to_brute_force_in_the_plane():
    x, good = plane()
    least = torch.cdist(x, good).amin(1)
    explain = FREE.with_(n=2000, eta=0.02, bounds=(0.0, 1.0), clamp=True)
    cfs = explain(Bent(), x, ones(x))
    away = (cfs.path[:, 1] - x).norm(dim=1)
    assert cfs.reached.all() and (away >= least - 2 / 800).all()
    assert (away <= 1.01 * least + 2 / 800).all()  # measured 1.0022 of the grid's least


def test_trying_every_feature_changes_no_more_features():
    model, x, target, _ = linear(8)
    each, stop = (FREE.with_(selection=s)(model, x, target) for s in ("each", "stop"))
    torch.testing.assert_close(each.path[:, 1], stop.path[:, 1])
    n_each, n_stop = ((cfs.counterfactual != x).sum(1) for cfs in (each, stop))
    assert (n_each <= n_stop).all() and (n_each < n_stop).any()


def test_the_official_preset_tries_every_feature_and_reaches_the_target():
    model, x, target, _ = linear(8)
    official = presets.get("growing_spheres", "table", "official", tau=TAU, n=300).build()
    assert official.selection == "each" and official(model, x, target).reached.all()


# ---------------------------------------------------------------- constraints and bounds


@settings(max_examples=15, deadline=None, derandomize=True)
@given(tables())
def test_any_constraints_hold_exactly(case):
    net, x, target, limits = case
    assert_kept(TABLE.with_(constraints=limits, n=60, layers=15)(net, x, target), limits)


def test_directions_lie_in_the_free_subspace():
    """With an immutable feature, the enemies are those in the table without it."""
    model, x, target, _ = linear(4)
    smaller = nn.Linear(3, 2).double()
    with torch.no_grad():
        x[:, 3] = 0.1
        smaller.weight.copy_(model.weight[:, :3])
        smaller.bias.copy_(model.bias + 0.1 * model.weight[:, 3])
    immutable = torch.tensor([False, False, False, True])
    limits = dataclasses.replace(Constraints.none(4, -9.0, 9.0), immutable=immutable)
    whole = FREE.with_(constraints=limits)(model, x, target).counterfactual
    part = FREE(smaller, x[:, :3], target)
    assert part.reached.all()
    expected = torch.cat([part.counterfactual, x[:, 3:]], 1)
    torch.testing.assert_close(whole, expected, atol=1e-9, rtol=0)


def test_most_items_flip_inside_their_constraints():
    net, x, target, limits = table(rows=24)
    cfs = TABLE.with_(constraints=limits, n=300)(net, x, target)
    assert_kept(cfs, limits)
    assert cfs.reached.float().mean() > 0.8  # measured 0.958


def test_items_that_cannot_flip_come_back_unchanged_with_their_reason():
    net, x, target, _ = table(rows=24)
    immutable = table(immutable=range(6), only_up=[], only_down=[])[3]
    still = TABLE.with_(constraints=immutable)(net, x, target)
    assert torch.equal(still.counterfactual, x)
    assert set(still.reason) == {"every feature is immutable"}
    model, x, target, _ = linear(4)
    short = FREE.with_(layers=2, eta=1e-3)(model, x, target)
    assert torch.equal(short.counterfactual, x) and short.path_len.tolist() == [1] * 6
    assert all("no enemy out to radius 0.002 in 2 layers" in reason for reason in short.reason)


def test_no_layer_lies_beyond_the_farthest_corner_of_the_box():
    limits = table(high=[0.5] * 6, only_up=[], only_down=[], immutable=[5], step=[0] * 6)[3]
    x = torch.full((2, 6), 0.25, dtype=torch.float64)
    cfs = TABLE.with_(constraints=limits, n=20)(Never(), x, ones(x))
    assert (cfs.n_forward < 20 * 12).all()


def test_the_number_of_layers_in_a_reason_is_that_of_the_item():
    """Items with nearer walls stop earlier, and their reason does not depend on the batch."""
    limits = table(only_up=[], only_down=[], immutable=[], step=[0] * 6, high=[1] * 6)[3]
    x = torch.stack([torch.full((6,), 0.5), torch.zeros(6)]).double()  # centre and corner
    explain = TABLE.with_(constraints=limits, n=20)
    both = explain(Never(), x, ones(x), torch.arange(2))
    assert both.reason[0] != both.reason[1] and both.n_forward[0] < both.n_forward[1]
    for i in range(2):
        n_layers = (int(both.n_forward[i]) - 2) // 20  # without the call's first and last pass
        assert f" in {n_layers} layers of 20 draws" in both.reason[i]
        alone = explain(Never(), x[i : i + 1], ones(x[:1]), torch.arange(i, i + 1))
        assert alone.reason[0] == both.reason[i]


def test_draws_stay_inside_bounds_where_clamp_is_set():
    model, x, target, _ = linear(8)
    free = FREE(model, x, target)
    inside = FREE.with_(bounds=(0.0, 1.0), clamp=True)(model, x, target)
    assert free.counterfactual.min() < 0 and inside.reached.all()
    assert inside.counterfactual.min() >= 0 and inside.counterfactual.max() <= 1


# ---------------------------------------------------------------- contracts


def test_an_item_depends_neither_on_its_batch_nor_on_the_order(monkeypatch):
    model, x, target, _ = linear(8)
    ids, order = torch.arange(20, 26), torch.tensor([3, 0, 5, 1, 4, 2])
    whole = FREE(model, x, target, ids).counterfactual
    mixed = FREE(model, x[order], target[order], ids[order]).counterfactual
    alone = [FREE(model, x[i : i + 1], target[:1], ids[i : i + 1]).counterfactual for i in range(6)]
    torch.testing.assert_close(mixed, whole[order], atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.cat(alone), whole, atol=1e-9, rtol=0)
    monkeypatch.setattr("cf_utils.explainers.growing_spheres.MAX_POINTS", 500)
    in_parts = FREE(model, x, target, ids).counterfactual
    torch.testing.assert_close(in_parts, whole, atol=1e-9, rtol=0)
    other_seed = FREE.with_(seed=1)(model, x, target, ids).counterfactual
    other_ids = FREE(model, x, target, ids + 9).counterfactual
    for other in (other_seed, other_ids):
        assert not torch.isclose(other, whole).all(1).any()


def test_a_point_with_nan_logits_is_no_enemy():
    model, x, target, _ = linear(2)

    class Holes(nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > 0.2, torch.nan, model(x))

    cfs = FREE(Holes(), x.clamp(max=0.2), target)
    assert cfs.counterfactual.isfinite().all() and cfs.reached.any()
    assert (cfs.counterfactual[cfs.reached, 0] <= 0.2).all()


def test_passes_equal_those_that_a_hook_counts():
    model, x, target, _ = linear(8)
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    cfs = FREE(model, x, target)
    assert int(cfs.n_forward.sum()) == sum(seen) and cfs.n_backward.sum() == 0
    # beside layers of 200: the selection, and the first and last pass of the call
    assert ((cfs.n_forward - 2 - 8) % 200 == 0).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n": 0}, "n, layers"),
        ({"layers": 0}, "layers"),
        ({"eta": 0.0}, "eta"),
        ({"shrink": 1.0}, "shrink"),
        ({"start": 0.0}, "start"),
        ({"width": 0.0}, "width"),
        ({"selection": "all"}, "selection"),
        ({"clamp": True}, "bounds"),
    ],
)
def test_bad_settings_are_refused_by_name(change, word):
    model, x, target, _ = linear(4)
    with pytest.raises(ValueError, match=word):
        FREE.with_(**change)(model, x, target)


def test_images_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"expected \(B, F\)"):
        FREE(net, torch.rand(2, 1, 4, 4), torch.ones(2, dtype=torch.int64))
