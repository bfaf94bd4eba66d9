"""Growing Spheres against a plain loop, closed forms, brute force in the plane, and the contracts of every method."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from torch import nn

from cf_utils.core import Constraints, item_noise
from cf_utils.explainers.growing_spheres import GrowingSpheres, in_layer
from tests.small import TAU, Bent, assert_kept, plane, table, tables

FREE = GrowingSpheres.tables(tau=TAU, n=200)


def linear(features, rows=6):
    """z_1 - z_0 = w.x + b in float64: model, x, target 1, w / |w|, and each row's distance to where p_1 = TAU."""
    gen = torch.Generator().manual_seed(0)
    model = nn.Linear(features, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(2 * torch.randn(2, features, generator=gen))
        model.bias.copy_(torch.tensor([2.0, 0.0]))
    x = 0.2 * torch.rand(rows, features, generator=gen).double()
    w = (model.weight[1] - model.weight[0]).detach()
    gap = torch.logit(torch.tensor(TAU, dtype=torch.float64)) - (x @ w - 2)
    assert (gap > 0).all()
    return model, x, torch.ones(rows, dtype=torch.int64), w / w.norm(), gap / w.norm()


@pytest.mark.parametrize(("d", "inner", "outer"), [(2, 0.0, 0.3), (5, 0.2, 0.3), (23, 0.1, 0.2)])
def test_draws_are_uniform_in_volume_and_in_direction(d, inner, outer):
    gen = torch.Generator().manual_seed(d)
    p = in_layer(
        torch.randn(20_000, d, generator=gen).double(),
        torch.rand(20_000, generator=gen).double(),
        torch.tensor(inner),
        torch.tensor(outer),
    )
    r = p.norm(dim=1)
    assert r.min() >= inner - 1e-9 and r.max() <= outer + 1e-9
    volume = (r**d - inner**d) / (outer**d - inner**d)
    along = (p / r[:, None])[:, 0]
    assert stats.kstest(volume, "uniform").pvalue > 0.1  # measured 0.95, 0.92, 0.68
    assert (
        stats.kstest(along**2, "beta", args=(0.5, (d - 1) / 2)).pvalue > 0.1
    )  # measured 0.83, 0.32, 0.95
    assert (along > 0).double().mean().sub(0.5).abs() < 0.02
    assert abs(stats.pearsonr(r, along.abs())[0]) < 0.03  # the radius says nothing of the direction


def test_a_small_radius_in_many_dimensions_does_not_vanish():
    gen = torch.Generator().manual_seed(0)  # 1e-3 ** 300 is 0 in any float
    normal, u = torch.randn(500, 300, generator=gen), torch.rand(500, generator=gen)
    r = in_layer(normal, u, torch.tensor(1e-3), torch.tensor(2e-3)).norm(dim=1)
    assert r.min() > 1.9e-3 and r.max() <= 2.001e-3


def one_by_one(explain, model, x, target, ids):
    """The method again: a row, a draw and a feature at a time."""
    out, enemies = [], []
    for q, t, i in zip(x, target, ids, strict=True):

        def enemy(y, t=t):
            z = model(y[None])[0].detach()
            return int(z.argmax()) == t and z.softmax(0)[t] >= explain.tau

        inner, outer, unit, best, near = 0.0, explain.eta, explain.eta, None, float("inf")
        for k in range(explain.layers):
            normal = item_noise(0, i[None], (explain.n, len(q)), f"layer {k}")[0].to(x)
            u = item_noise(0, i[None], (explain.n,), f"radius {k}", "uniform")[0].to(x)
            hits = 0
            for direction, share in zip(normal, u, strict=True):
                d = len(q)
                r = (inner**d + share * (outer**d - inner**d)) ** (1 / d)
                y = q + r * direction / direction.norm()
                if enemy(y):
                    hits += 1
                    if (y - q).norm() < near:
                        best, near = y, (y - q).norm()
            if inner == 0 and hits:
                unit = outer = unit / 2
            elif hits:
                break
            else:
                inner = unit if inner == 0 else outer
                outer = inner + unit
        enemies.append(best)
        y = best.clone()
        for j in (best - q).abs().argsort():
            less = y.clone()
            less[j] = q[j]
            if not enemy(less):
                if explain.selection == "stop":
                    break
                continue
            y = less
        out.append(y)
    return torch.stack(enemies), torch.stack(out)


@pytest.mark.parametrize("selection", ["stop", "each"])
def test_batched_is_the_same_as_one_by_one(selection):
    model, x, target, *_ = linear(4)
    explain = FREE.with_(n=25, eta=0.4, selection=selection)
    cfs = explain(model, x, target, torch.arange(10, 16))
    enemy, final = one_by_one(explain, model, x, target, torch.arange(10, 16))
    torch.testing.assert_close(cfs.path[:, 1], enemy, atol=1e-9, rtol=0)
    torch.testing.assert_close(cfs.counterfactual, final, atol=1e-9, rtol=0)
    torch.testing.assert_close(cfs.path[:, 2], final, atol=1e-9, rtol=0)
    moved = (final != x).sum(1)
    assert cfs.reached.all() and (moved < 4).any()  # features were put back, and exactly


@pytest.mark.parametrize(("d", "n", "far"), [(2, 2000, 1.02), (8, 1000, 1.4)])
def test_comes_close_to_the_distance_to_the_plane_from_above(d, n, far):
    model, x, target, _, least = linear(d)
    ratio = []
    for eta in (0.3, 0.05):
        cfs = FREE.with_(n=n, eta=eta)(model, x, target)
        ratio.append((cfs.path[:, 1] - x).norm(dim=1) / least)
        assert cfs.reached.all() and (ratio[-1] >= 1).all()
    assert (
        ratio[1].max() < far and ratio[1].mean() < ratio[0].mean() + 0.02
    )  # measured 1.005, 1.200 at eta 0.05


def test_a_ball_that_holds_enemies_is_halved():
    model, x, target, _, least = linear(2)
    for eta in (0.5, 50.0):  # from outside and from far outside
        cfs = FREE.with_(n=2000, eta=float(least.max()) * eta * 4)(model, x, target)
        assert ((cfs.path[:, 1] - x).norm(dim=1) < 1.03 * least).all()  # measured 1.006, 1.009


def test_brute_force_in_the_plane():
    x, good = plane()
    least = torch.cdist(x, good).amin(1)
    cfs = FREE.with_(n=2000, eta=0.02, bounds=(0.0, 1.0), clamp=True)(
        Bent(), x, torch.ones(5, dtype=torch.int64)
    )
    away = (cfs.path[:, 1] - x).norm(dim=1)
    assert cfs.reached.all() and (away >= least - 2 / 800).all()
    assert (away <= 1.01 * least + 2 / 800).all()  # measured 1.0022 of the grid's least


def test_official_tries_every_feature_and_so_changes_no_more():
    model, x, target, *_ = linear(8)
    few, many = (FREE.with_(selection=s)(model, x, target) for s in ("each", "stop"))
    torch.testing.assert_close(few.path[:, 1], many.path[:, 1])
    n = [(c.counterfactual != x).sum(1) for c in (few, many)]
    assert (n[0] <= n[1]).all() and (n[0] < n[1]).any()
    official = GrowingSpheres.official(tau=TAU, n=300)
    assert official.selection == "each" and official(model, x, target).reached.all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(tables())
def test_any_constraints_hold_exactly(case):
    net, x, target, limits = case
    assert_kept(GrowingSpheres.tables(constraints=limits, n=60, layers=15)(net, x, target), limits)


def test_directions_lie_in_the_free_subspace():
    """An immutable feature is as if it were not there: the same enemies as in the table without it."""
    model, x, target, *_ = linear(4)
    smaller = nn.Linear(3, 2).double()
    with torch.no_grad():
        x[:, 3] = 0.1
        smaller.weight.copy_(model.weight[:, :3])
        smaller.bias.copy_(model.bias + 0.1 * model.weight[:, 3])
    limits = dataclasses.replace(
        Constraints.none(4, -9.0, 9.0), immutable=torch.tensor([False, False, False, True])
    )
    whole, part = FREE.with_(constraints=limits)(model, x, target), FREE(smaller, x[:, :3], target)
    assert part.reached.all()
    torch.testing.assert_close(
        whole.counterfactual, torch.cat([part.counterfactual, x[:, 3:]], 1), atol=1e-9, rtol=0
    )


def test_rows_that_cannot_flip_say_why_and_come_back_unchanged():
    net, x, target, limits = table(rows=24)
    cfs = GrowingSpheres.tables(constraints=limits, n=300)(net, x, target)
    assert_kept(cfs, limits)
    assert cfs.reached.float().mean() > 0.8  # measured 0.958
    still = GrowingSpheres.tables(
        constraints=table(immutable=range(6), only_up=[], only_down=[])[3]
    )(net, x, target)
    assert torch.equal(still.counterfactual, x) and set(still.reason) == {
        "every feature is immutable"
    }
    model, x, target, *_ = linear(4)
    short = FREE.with_(layers=2, eta=1e-3)(model, x, target)
    assert torch.equal(short.counterfactual, x) and short.path_len.tolist() == [1] * 6
    assert all("no enemy out to radius 0.002 in 2 layers" in r for r in short.reason)
    narrow = table(high=[0.5] * 6, only_up=[], only_down=[], immutable=[5], step=[0] * 6)[3]
    never = type(
        "Never",
        (nn.Module,),
        {"forward": lambda self, x: torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)},
    )()
    x = torch.full((2, 6), 0.25, dtype=torch.float64)
    seen = GrowingSpheres.tables(constraints=narrow, n=20)(
        never, x, torch.ones(2, dtype=torch.int64)
    )
    assert (seen.n_forward < 20 * 12).all()  # no search beyond the box's farthest corner


def test_inside_bounds_where_asked():
    model, x, target, *_ = linear(8)
    free, inside = (
        FREE(model, x, target),
        FREE.with_(bounds=(0.0, 1.0), clamp=True)(model, x, target),
    )
    assert free.counterfactual.min() < 0 and inside.reached.all()
    assert inside.counterfactual.min() >= 0 and inside.counterfactual.max() <= 1


def test_a_row_depends_neither_on_its_batch_nor_on_the_order(monkeypatch):
    model, x, target, *_ = linear(8)
    ids, order = torch.arange(20, 26), torch.tensor([3, 0, 5, 1, 4, 2])
    whole, mixed = FREE(model, x, target, ids), FREE(model, x[order], target, ids[order])
    alone = torch.cat(
        [FREE(model, x[i : i + 1], target[:1], ids[i : i + 1]).counterfactual for i in range(6)]
    )
    torch.testing.assert_close(mixed.counterfactual, whole.counterfactual[order], atol=1e-9, rtol=0)
    torch.testing.assert_close(alone, whole.counterfactual, atol=1e-9, rtol=0)
    monkeypatch.setattr("cf_utils.explainers.growing_spheres.POINTS", 500)
    torch.testing.assert_close(
        FREE(model, x, target, ids).counterfactual, whole.counterfactual, atol=1e-9, rtol=0
    )
    other = FREE.with_(seed=1)(model, x, target, ids)
    assert not torch.isclose(other.counterfactual, whole.counterfactual).all(1).any()
    assert (
        not torch.isclose(FREE(model, x, target, ids + 9).counterfactual, whole.counterfactual)
        .all(1)
        .any()
    )


def test_nan_beyond_an_edge_is_no_enemy():
    model, x, target, *_ = linear(2)
    holes = type(
        "Holes",
        (nn.Module,),
        {"forward": lambda self, x: torch.where(x[:, :1] > 0.2, torch.nan, model(x))},
    )()
    cfs = FREE(holes, x.clamp(max=0.2), target)
    assert (
        cfs.counterfactual.isfinite().all()
        and cfs.reached.any()
        and (cfs.counterfactual[cfs.reached, 0] <= 0.2).all()
    )


def test_passes_are_those_that_a_hook_counts():
    model, x, target, *_ = linear(8)
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    cfs = FREE(model, x, target)
    assert int(cfs.n_forward.sum()) == sum(seen) and cfs.n_backward.sum() == 0
    assert ((cfs.n_forward - 2 - 8) % 200 == 0).all()  # layers, the selection, first and last look


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
    model, x, target, *_ = linear(4)
    with pytest.raises(ValueError, match=word):
        FREE.with_(**change)(model, x, target)


def test_images_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, F\)"):
        FREE(
            nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
            torch.rand(2, 1, 4, 4),
            torch.ones(2, dtype=torch.int64),
        )
