"""Limits on what a row may do: the rules themselves, and gradual construction under them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cf_utils.core import Constraints, PassCounter, block_index
from cf_utils.explainers import presets
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
def test_a_snapped_row_keeps_every_rule_and_is_the_nearest_that_does(seed, dtype):
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(20, F, generator=gen).to(dtype)
    x[:, 3] = (4 * x[:, 3]).round() / 4
    x[:3] += 0.7  # rows outside the range keep what they have
    y = x + torch.randn(20, F, generator=gen).to(dtype)
    c = make_constraints()
    snapped = c.snap(y, x)
    assert c.allows(snapped, x).all()
    assert torch.equal(snapped[:, 0], x[:, 0])
    assert (snapped[:, 1] >= x[:, 1]).all() and (snapped[:, 2] <= x[:, 2]).all()
    changed = snapped[:, 3] != x[:, 3]
    assert torch.equal((4 * snapped[changed, 3]).round() / 4, snapped[changed, 3])
    assert (
        (snapped >= 0) & (snapped <= 1) | (snapped == x)
    ).all()  # kept where it was, or in the range
    torch.testing.assert_close(c.snap(snapped, x), snapped, rtol=0, atol=0)  # once is enough
    torch.testing.assert_close(c.snap(x, x), x, rtol=0, atol=0)
    allowed = torch.cat(
        [(torch.arange(5, dtype=dtype) / 4).expand(20, 5), x[:, 3:4]], 1
    )  # brute force: the grid, or x itself
    nearest = (y[:, 3, None] - allowed).abs().amin(1)
    torch.testing.assert_close((snapped[:, 3] - y[:, 3]).abs(), nearest)


def test_kept_refuses_each_broken_rule():
    x = torch.full((1, F), 0.5)
    c = make_constraints()
    for feature, value in ((0, 0.6), (1, 0.4), (2, 0.6), (3, 0.6), (4, 1.1), (4, -0.1)):
        y = x.clone()
        y[0, feature] = value
        assert not c.allows(y, x).any(), (feature, value)
    for feature, value in ((1, 0.6), (2, 0.4), (3, 0.75), (4, 1.0)):
        y = x.clone()
        y[0, feature] = value
        assert c.allows(y, x).all(), (feature, value)


def test_a_value_outside_the_range_stays_or_comes_in_and_stops_nowhere_between():
    """A code such as "no record" lies below the range: nobody can be advised to have half of it."""
    c, x = Constraints.none(1), torch.tensor([[-0.2]])
    assert (
        c.snap(torch.tensor([[-0.15]]), x).item() == x.item()
        and c.snap(torch.tensor([[-0.05]]), x).item() == 0.0
    )
    assert (
        not c.allows(torch.tensor([[-0.05]]), x).any() and c.allows(torch.tensor([[0.3]]), x).all()
    )
    never = replace(c, only_down=torch.tensor([True]))
    assert (
        never.snap(torch.tensor([[-0.5]]), x).item()
        == x.item()
        == never.snap(torch.tensor([[0.5]]), x).item()
    )


def test_whole_numbers_of_a_wide_range_survive_float32():
    """A million units on [0, 1]: the step is finer than float32's at 1, and a row is still on its own grid."""
    c = replace(Constraints.none(1), step=torch.tensor([1e-6]))
    x = (torch.arange(999_000, 1_000_000, 7).double() / 1e6).float()[:, None]
    assert torch.equal(c.snap(x, x), x)
    y = c.snap(x - 0.2500003, x)
    assert c.allows(y, x).all()
    assert ((y.double() * 1e6).round() - y.double() * 1e6).abs().max() <= 0.12


def test_walls_hold_where_the_step_is_finer_than_a_millionth():
    """An immutable value off its own grid has no grid point near enough: it must not move by a fraction of a step either."""
    c = replace(
        Constraints.none(2),
        step=torch.tensor([5e-7, 5e-7]),
        immutable=torch.tensor([True, False]),
        only_up=torch.tensor([False, True]),
    )
    x = torch.tensor([[0.1, 0.1]]).double() + 2.5e-7 * torch.linspace(0, 1.9, 40).double()[:, None]
    for away in (0.3, -0.3):
        y = c.snap(x + away, x)
        assert torch.equal(y[:, 0], x[:, 0]) and (y[:, 1] >= x[:, 1]).all() and c.allows(y, x).all()


def test_bad_constraints_are_named():
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
def test_gradual_keeps_them_exactly_and_still_flips(variant):
    net, x, target, proto = make_case()
    c = make_constraints()
    explain = presets.get("gradual", "table", variant).build(proto, constraints=c, steps=60)
    cfs = explain(net, x, target)
    assert c.allows(cfs.counterfactual, x).all() and torch.equal(cfs.counterfactual[:, 0], x[:, 0])
    assert not cfs.mask[:, 0].any()
    assert cfs.valid.sum() >= 4  # 7 and 8 of 12 can be flipped and are
    assert all(why for ok, why in zip(cfs.reached, cfs.reason, strict=True) if not ok)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    again = explain(net, x[order], target[order])
    torch.testing.assert_close(again.counterfactual, cfs.counterfactual[order], atol=1e-9, rtol=0)


def test_a_row_that_may_not_change_comes_back_with_its_reason():
    net, x, target, proto = make_case()
    nothing = replace(Constraints.none(F), immutable=flags(*range(F)))
    cfs = PROBING.build(proto, constraints=nothing, steps=5)(net, x, target)
    assert torch.equal(cfs.counterfactual, x) and set(cfs.reason) == {"nothing in it may change"}


def test_a_probe_is_the_best_single_feature_by_brute_force():
    net, x, target, proto = make_case()
    net.eval()
    limits, blocks = make_constraints(), block_index((F,), (1,))
    f, rows = PassCounter(net, len(x)), torch.arange(len(x))
    best, start = rank_by_probe(f, x, target, rows, blocks, x, limits)
    for i in range(len(x)):
        for j in range(F):
            low, high = (b[i, j] for b in limits.box(x))
            scores = {}
            for level in range(9):
                z = x[i : i + 1].clone()
                z[0, j] = low + (high - low) * level / 8
                z = limits.snap(z, x[i : i + 1])
                scores[float(z[0, j])] = float(net(z).log_softmax(1)[0, target[i]])
            assert float(best[i, j]) == pytest.approx(max(scores.values()), abs=1e-12)
            assert scores[float(start[i, j, j])] == pytest.approx(max(scores.values()), abs=1e-12)


def test_a_method_that_does_not_know_them_says_so_and_shapes_are_checked():
    from cf_utils.explainers.abele import ABELE

    net, x, target, proto = make_case()
    assert not ABELE.keeps_constraints
    with pytest.raises(ValueError, match="limits on 5 features for x of shape"):
        FREE.build(proto, constraints=make_constraints())(net, x[:, :4], target)


class Drifts(GradualConstruction):
    def search(self, f, x, target, ids, tau):
        found = super().search(f, x, target, ids, tau)
        found.counterfactual = found.counterfactual + 0.3
        return found


def test_a_method_that_breaks_them_is_stopped():
    net, x, target, proto = make_case()
    settings = PROBING.settings | {"constraints": make_constraints(), "steps": 3}
    drifts = Drifts(proto, **settings)
    with pytest.raises(RuntimeError, match="broke a constraint"):
        drifts(net, x, target)


def test_where_nothing_is_constrained_nothing_changes():
    net, x, target, proto = make_case()
    wide = replace(Constraints.none(F, -1e6, 1e6))
    free, loose = (FREE.build(proto, steps=40, constraints=c)(net, x, target) for c in (None, wide))
    torch.testing.assert_close(free.counterfactual, loose.counterfactual, atol=1e-9, rtol=0)
    assert isinstance(net, nn.Module) and free.valid.sum() >= 10
