"""Constraints on the rows of a table: the contract itself, and gradual construction under it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cf_utils.core import Constraints, PassCounter, block_index
from cf_utils.explainers import presets
from cf_utils.explainers.abele import ABELE
from cf_utils.explainers.gradual import GradualConstruction
from cf_utils.explainers.shared.ranking import rank_by_probe
from tests.conftest import make_net

F = 5
FREE, PROBING = (presets.get("gradual", "table", v) for v in (None, "constrained"))


def flags(*on, n=F):
    return torch.tensor([i in on for i in range(n)])


def make_constraints(**changes):
    """0 immutable, 1 only up, 2 only down, 3 on a grid of quarters, 4 free."""
    plain = {
        "immutable": flags(0),
        "only_up": flags(1),
        "only_down": flags(2),
        "step": torch.tensor([0, 0, 0, 0.25, 0]),
    }
    return replace(Constraints.none(F), **(plain | changes))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_a_snapped_row_keeps_every_constraint_and_is_the_nearest_that_does(seed, dtype):
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(20, F, generator=gen).to(dtype)
    x[:, 3] = (4 * x[:, 3]).round() / 4
    x[:3] += 0.7  # rows outside the range keep their values
    y = x + torch.randn(20, F, generator=gen).to(dtype)
    c = make_constraints()
    snapped = c.snap(y, x)
    assert c.allows(snapped, x).all()
    assert torch.equal(snapped[:, 0], x[:, 0])
    assert (snapped[:, 1] >= x[:, 1]).all() and (snapped[:, 2] <= x[:, 2]).all()
    changed = snapped[:, 3] != x[:, 3]
    assert torch.equal((4 * snapped[changed, 3]).round() / 4, snapped[changed, 3])
    in_range = (snapped >= 0) & (snapped <= 1)
    assert (in_range | (snapped == x)).all()
    torch.testing.assert_close(c.snap(snapped, x), snapped, rtol=0, atol=0)  # once is enough
    torch.testing.assert_close(c.snap(x, x), x, rtol=0, atol=0)
    grid = (torch.arange(5, dtype=dtype) / 4).expand(20, 5)
    allowed = torch.cat([grid, x[:, 3:4]], 1)  # brute force: the grid, or x itself
    nearest = (y[:, 3, None] - allowed).abs().amin(1)
    torch.testing.assert_close((snapped[:, 3] - y[:, 3]).abs(), nearest)


def test_allows_refuses_each_broken_constraint():
    x = torch.full((1, F), 0.5)
    c = make_constraints()
    broken = ((0, 0.6), (1, 0.4), (2, 0.6), (3, 0.6), (4, 1.1), (4, -0.1))
    kept = ((1, 0.6), (2, 0.4), (3, 0.75), (4, 1.0))
    for values, allowed in ((broken, False), (kept, True)):
        for feature, value in values:
            y = x.clone()
            y[0, feature] = value
            assert c.allows(y, x).item() is allowed, (feature, value)


def test_a_value_outside_the_range_stays_or_moves_into_the_range():
    """A code such as "no record" lies below the range; no point between the two makes sense."""
    c, x = Constraints.none(1), torch.tensor([[-0.2]])
    inside, between = torch.tensor([[0.3]]), torch.tensor([[-0.05]])
    assert c.snap(torch.tensor([[-0.15]]), x).item() == x.item()
    assert c.snap(between, x).item() == 0.0
    assert not c.allows(between, x).any() and c.allows(inside, x).all()
    only_down = replace(c, only_down=torch.tensor([True]))
    for away in (-0.5, 0.5):
        assert only_down.snap(torch.tensor([[away]]), x).item() == x.item()


def test_whole_numbers_of_a_wide_range_survive_float32():
    """A million units in [0, 1]: the step is close to float32's, but each row is on its grid."""
    c = replace(Constraints.none(1), step=torch.tensor([1e-6]))
    x = (torch.arange(999_000, 1_000_000, 7).double() / 1e6).float()[:, None]
    assert torch.equal(c.snap(x, x), x)
    y = c.snap(x - 0.2500003, x)
    assert c.allows(y, x).all()
    assert ((y.double() * 1e6).round() - y.double() * 1e6).abs().max() <= 0.12


def test_constraints_hold_where_the_step_is_finer_than_a_millionth():
    """An immutable value off its grid has no grid point near it and must not move by a fraction."""
    c = replace(
        Constraints.none(2),
        step=torch.tensor([5e-7, 5e-7]),
        immutable=torch.tensor([True, False]),
        only_up=torch.tensor([False, True]),
    )
    x = torch.tensor([[0.1, 0.1]]).double() + 2.5e-7 * torch.linspace(0, 1.9, 40).double()[:, None]
    for away in (0.3, -0.3):
        y = c.snap(x + away, x)
        assert torch.equal(y[:, 0], x[:, 0]) and (y[:, 1] >= x[:, 1]).all()
        assert c.allows(y, x).all()


def test_bad_constraints_are_refused_by_name():
    with pytest.raises(ValueError, match="shapes"):
        make_constraints(step=torch.zeros(3))
    with pytest.raises(ValueError, match="low <= high"):
        make_constraints(low=torch.full((F,), 2.0))
    with pytest.raises(ValueError, match=r"features \[1\]"):
        make_constraints(only_down=flags(1))


def make_case(n=12, seed=2):
    net = make_net((F,), classes=2, hidden=6)
    x = torch.rand(n, F, generator=torch.Generator().manual_seed(seed)).double()
    x[:, 3] = (4 * x[:, 3]).round() / 4
    with torch.no_grad():
        target = 1 - net(x).argmax(1)
    return net, x, target, 3.0 * torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("variant", [None, "constrained"])
def test_gradual_construction_keeps_them_exactly_and_still_flips(variant):
    net, x, target, prototypes = make_case()
    c = make_constraints()
    explain = presets.get("gradual", "table", variant).build(prototypes, constraints=c, steps=60)
    cfs = explain(net, x, target)
    assert c.allows(cfs.counterfactual, x).all()
    assert torch.equal(cfs.counterfactual[:, 0], x[:, 0]) and not cfs.mask[:, 0].any()
    assert cfs.valid.sum() >= 4  # measured 7 and 8 of 12
    assert all(why for ok, why in zip(cfs.reached, cfs.reason, strict=True) if not ok)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    again = explain(net, x[order], target[order])
    torch.testing.assert_close(again.counterfactual, cfs.counterfactual[order], atol=1e-9, rtol=0)


def test_a_row_that_may_not_change_comes_back_with_its_reason():
    net, x, target, prototypes = make_case()
    immutable = replace(Constraints.none(F), immutable=flags(*range(F)))
    cfs = PROBING.build(prototypes, constraints=immutable, steps=5)(net, x, target)
    assert torch.equal(cfs.counterfactual, x)
    assert set(cfs.reason) == {"nothing in it may change"}


def test_a_probe_is_the_best_single_feature_by_brute_force():
    net, x, target, _ = make_case()
    net.eval()
    limits, blocks = make_constraints(), block_index((F,), (1,))
    f, rows = PassCounter(net, len(x)), torch.arange(len(x))
    with torch.no_grad():
        best, start = rank_by_probe(f, x, target, rows, blocks, x, limits)
        for i in range(len(x)):
            for j in range(F):
                low, high = (bound[i, j] for bound in limits.box(x))
                scores = {}
                for level in range(9):
                    z = x[i : i + 1].clone()
                    z[0, j] = low + (high - low) * level / 8
                    z = limits.snap(z, x[i : i + 1])
                    scores[float(z[0, j])] = float(net(z).log_softmax(1)[0, target[i]])
                most = pytest.approx(max(scores.values()), abs=1e-12)
                assert float(best[i, j]) == most
                assert scores[float(start[i, j, j])] == most


def test_a_method_that_cannot_keep_them_refuses_them():
    net, x, target, _ = make_case()
    assert not ABELE.keeps_constraints
    explain = ABELE(nn.Identity(), constraints=make_constraints())
    with pytest.raises(ValueError, match=r"^constraints: ABELE cannot keep them, expected None"):
        explain(net, x, target)


def test_constraints_on_another_number_of_features_are_refused():
    net, x, target, prototypes = make_case()
    with pytest.raises(ValueError, match="limits on 5 features for x of shape"):
        FREE.build(prototypes, constraints=make_constraints())(net, x[:, :4], target)


class Drifts(GradualConstruction):
    """A method with a bug: its results leave the constraints."""

    def search(self, f, x, target, ids, tau):
        found = super().search(f, x, target, ids, tau)
        found.counterfactual = found.counterfactual + 0.3
        return found


def test_a_method_that_breaks_them_is_stopped():
    net, x, target, prototypes = make_case()
    settings = PROBING.settings | {"constraints": make_constraints(), "steps": 3}
    drifts = Drifts(prototypes, **settings)
    with pytest.raises(RuntimeError, match="broke a constraint"):
        drifts(net, x, target)


def test_constraints_without_limits_change_nothing():
    net, x, target, prototypes = make_case()
    wide = replace(Constraints.none(F, -1e6, 1e6))
    free, loose = (
        FREE.build(prototypes, steps=40, constraints=c)(net, x, target) for c in (None, wide)
    )
    torch.testing.assert_close(free.counterfactual, loose.counterfactual, atol=1e-9, rtol=0)
    assert free.valid.sum() >= 10
