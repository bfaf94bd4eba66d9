"""The fewest features that flip a row, against closed forms and a plain search."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cf_utils.core import Constraints
from cf_utils.evaluation.metrics import brute_force

NAN = float("nan")


class Linear(nn.Module):
    """Logits (0, w.x - b)."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        z = x @ self.w - self.b
        return torch.stack([torch.zeros_like(z), z], 1)


class Bump(nn.Module):
    """Class 1 where every named feature (f0=..., f1=...) lies within 0.01 of its value."""

    def __init__(self, **place):
        super().__init__()
        self.place = {int(k[1:]): v for k, v in place.items()}

    def forward(self, x):
        z = torch.stack([0.01 - (x[:, f] - v).abs() for f, v in self.place.items()]).amin(0) * 1000
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("tau", [0.5, 0.8])
def test_fewest_features_of_a_linear_classifier_have_a_closed_form(tau):
    gen = torch.Generator().manual_seed(0)
    x, target = torch.rand(200, 5, generator=gen).double(), torch.ones(200, dtype=torch.int64)
    w = torch.tensor([2.0, -1.5, 1.0, 0.7, -0.2]).double()
    low, high = torch.zeros(5).double(), torch.tensor([1.0, 1.0, 0.8, 1.0, 2.0]).double()
    b = 2.2 - np.log(tau / (1 - tau))
    gap = 2.2 - x @ w
    # the grid contains both ends of the range
    gain = torch.where(w > 0, high - x, low - x).mul(w).sort(1, descending=True).values
    two_or_more = torch.where(gain[:, :2].sum(1) >= gap, 2, 3)
    one_or_more = torch.where(gain[:, 0] >= gap, 1, two_or_more)
    expected = torch.where(gap <= 0, 0, one_or_more)
    found = brute_force.least_features(Linear(w, b), x, target, low=low, high=high, tau=tau)
    assert torch.equal(found, expected)
    assert torch.bincount(found).tolist() == [13, 91, 91, 5]  # every answer occurs


def search_plainly(net, x, target, grid, values):
    """Return 0 to 3 features, trying one input after the other."""

    def flips(z):
        return net(z[None]).argmax(1).item() == target.item()

    if flips(x):
        return 0
    for k in (1, 2):
        for chosen in itertools.combinations(range(len(x)), k):
            for at in itertools.product(range(grid), repeat=k):
                z = x.clone()
                for f, g in zip(chosen, at, strict=True):
                    z[f] = values[f, g]
                if flips(z):
                    return k
    return 3


def test_fewest_features_of_a_network_equal_a_plain_search():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[2].bias += torch.tensor([1.2, 0.0])
        x = torch.rand(24, 4).double()
        target = 1 - net(x).argmax(1)
        target[0] = 1 - target[0]
        values = torch.linspace(0, 1, 7).double().expand(4, 7)
        expected = [search_plainly(net, a, t, 7, values) for a, t in zip(x, target, strict=True)]
    found = brute_force.least_features(net, x, target, grid=7)
    assert found.tolist() == expected
    assert np.bincount(expected).tolist() == [1, 3, 10, 10]
    o = torch.randperm(24)
    shuffled = brute_force.least_features(net, x[o], target[o], grid=7)
    assert shuffled.tolist() == [expected[i] for i in o]


def least_of_middle(bump, features=4, **settings):
    """The fewest features for class 1 from the middle of the range."""
    x = torch.full((1, features), 0.5)
    return brute_force.least_features(bump, x, torch.tensor([1]), **settings).item()


def test_values_skipped_in_the_first_round_are_tried_in_the_second():
    assert least_of_middle(Bump(f1=0.55, f3=0.3)) == 2  # values 22 and 12 of 40
    for a, b in itertools.combinations(range(6), 2):  # 15 pairs: two batches of the second round
        assert least_of_middle(Bump(**{f"f{a}": 0.55, f"f{b}": 0.3}), features=6) == 2
    assert least_of_middle(Bump(f1=0.5625, f3=0.3)) == 3  # between two values of the grid
    assert least_of_middle(Bump(f2=0.3)) == 1
    assert least_of_middle(Bump(f0=0.1, f1=0.1, f2=0.1)) == 3


def test_range_and_single_features_are_respected():
    assert least_of_middle(Bump(f0=1.5)) == 3  # out of range
    assert least_of_middle(Bump(f0=1.5), high=2.0) == 1
    assert least_of_middle(Bump(f0=0.1), features=1) == 1  # a single feature: no pairs
    assert least_of_middle(Bump(f0=1.5), features=1) == 3


SECOND = torch.arange(4) == 1


def limit(**limits):
    return dataclasses.replace(Constraints.none(4), **limits)


def test_constraints_limit_the_values_tried():
    def least(bump, **limits):
        return least_of_middle(bump, constraints=limit(**limits))

    assert least(Bump(f1=0.8)) == 1
    assert least(Bump(f1=0.8), immutable=SECOND) == 3
    assert least(Bump(f1=0.8), only_down=SECOND) == 3
    assert least(Bump(f1=0.8), only_up=SECOND) == 1
    assert least(Bump(f1=0.8), step=SECOND * 0.25) == 3
    assert least(Bump(f1=0.75), step=SECOND * 0.25) == 1
    assert least(Bump(f1=0.8, f2=0.2), only_down=SECOND) == 3
    assert least(Bump(f1=0.8, f2=0.2), only_up=SECOND) == 2


def test_constraints_depend_on_the_row():
    x, target = torch.tensor([[0.5, 0.1, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]), torch.tensor([1, 1])

    def least(bump):
        rising = limit(only_up=SECOND)
        return brute_force.least_features(bump, x, target, constraints=rising).tolist()

    assert least(Bump(f1=0.2)) == [1, 3]
    assert least(Bump(f1=0.2, f2=0.3)) == [2, 3]  # values of the second round
    assert least(Bump(f1=0.25, f2=0.375)) == [2, 3]  # values of the first round


def test_rows_beyond_the_budget_of_pairs_are_unknown():
    x, target = torch.full((5, 4), 0.5), torch.ones(5, dtype=torch.int64)
    x[2, 3] = 0.3  # one feature flips this row, which needs no pair
    found = brute_force.least_features(Bump(f1=0.55, f3=0.3), x, target, pairs=3)
    assert found.tolist() == [2, 2, 1, 2, -1]


def test_excess_is_defined_only_where_the_fewest_are_known():
    changed, least = torch.tensor([1, 3, 0, 2, 5, 1]), torch.tensor([1, 2, 0, 3, -1, 2])
    expected = torch.tensor([0, 1, 0, NAN, NAN, -1]).double()
    found = brute_force.l1_excess(changed, least)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_invalid_input_is_refused():
    x, target = torch.rand(4, 3), torch.ones(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"target: got shape \(2,\)"):
        brute_force.least_features(Bump(f0=0.5), x, target[:2])
    with pytest.raises(ValueError, match="grid: got 1"):
        brute_force.least_features(Bump(f0=0.5), x, target, grid=1)
