"""Metrics on tables against plain second implementations, closed forms and the paper's own rows."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

from cf_utils.core import Constraints, median_absolute_deviation
from cf_utils.evaluation.metrics import brute_force, decision, tabular

NAN = float("nan")


def rows(n=60, features=6, seed=0, levels=5):
    """Coarse values, so that neighbours share features and some rows are twins; counterfactuals, decisions, validity."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (n, features), generator=gen) / (levels - 1)
    x[1::7] = x[0::7][: len(x[1::7])]
    cf = torch.where(
        torch.rand(n, features, generator=gen) < 0.4, torch.rand(n, features, generator=gen), x
    )
    return x, cf, torch.randint(2, (n,), generator=gen), torch.rand(n, generator=gen) < 0.8


def coherence_by_hand(x, cf, decided, epsilon, valid, summary):
    """One pair after the other, in numpy."""
    x, cf, out = x.double().numpy(), cf.double().numpy(), []
    for i, j_all in itertools.groupby(
        itertools.product(range(len(x)), repeat=2), key=lambda p: p[0]
    ):
        ratios = [
            np.linalg.norm(cf[i] - cf[j]) / np.linalg.norm(x[i] - x[j])
            for _, j in j_all
            if valid[i]
            and valid[j]
            and decided[i] == decided[j]
            and not np.array_equal(x[i], x[j])
            and sum(abs(a - b) >= 0.001 for a, b in zip(x[i], x[j], strict=True)) <= epsilon
        ]
        out.append((max if summary == "max" else np.median)(ratios) if ratios else np.nan)
    return torch.tensor(out, dtype=torch.float64)


def test_a_feature_that_falls_counts_like_one_that_rises():
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).double()
    moved = x + torch.tensor([[0.2, -0.2, 0.0009, -0.0011]]).double()
    assert tabular.features_changed(x, moved).tolist() == [3]  # Eq. 9 as printed: 1
    x, cf, _, _ = rows()
    by_hand = [
        sum(abs(a - b) >= 0.001 for a, b in zip(p, q, strict=True))
        for p, q in zip(x.tolist(), cf.tolist(), strict=True)
    ]
    assert tabular.features_changed(x, cf).tolist() == by_hand
    assert tabular.features_changed(cf, x).tolist() == by_hand


@pytest.mark.parametrize("summary", ["max", "median"])
@pytest.mark.parametrize("epsilon", [2, 4, 6])
def test_coherence_as_pair_after_pair(summary, epsilon):
    x, cf, decided, valid = rows()
    got = tabular.coherence(x, cf, decided, epsilon, valid, summary)
    torch.testing.assert_close(
        got, coherence_by_hand(x, cf, decided, epsilon, valid, summary), equal_nan=True
    )
    assert 10 < got.isfinite().sum() <= valid.sum()  # measured 15, 50, 50 of 50 valid


def test_coherence_in_chunks():
    x, cf, decided, valid = rows(n=600, features=23, levels=2)
    cf = torch.rand(
        x.shape, generator=torch.Generator().manual_seed(3)
    )  # 8.3 M differences: three chunks
    got, few = tabular.coherence(x, cf, decided, 8, valid), slice(590, None)
    a, b = x.double(), cf.double()
    differ = (a[few, None] != a).sum(2)
    near = (differ <= 8) & (differ > 0) & (decided[few, None] == decided) & valid & valid[few, None]
    ratio = torch.where(
        near, (b[few, None] - b).norm(dim=2) / (a[few, None] - a).norm(dim=2), -1
    ).amax(1)
    torch.testing.assert_close(got[few].nan_to_num(-1), ratio)


def test_reference_points_of_coherence():
    x, _, decided, _ = rows()
    shift = tabular.coherence(x.double(), x.double() + torch.linspace(-1, 1, 6), decided, 4)
    torch.testing.assert_close(
        shift[shift.isfinite()], torch.ones(int(shift.isfinite().sum())).double()
    )
    constant = tabular.coherence(x, torch.full_like(x, 0.3), decided, 4)
    assert (
        constant[constant.isfinite()] == 0
    ).all() and constant.isfinite().sum() > 20  # measured 60


def test_who_is_no_neighbour():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [0.9, 0.9]])
    cf = torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.1, 0.0], [9.0, 9.0], [0.0, 0.0]])
    decided = torch.tensor([0, 0, 0, 1, 0])
    valid = torch.tensor([True, False, True, True, True])
    got = tabular.coherence(x, cf, decided, 1, valid)
    # 0 has a twin (failed), 2 near by, 3 decided otherwise, 4 far away: only 0 and 2 are neighbours, and both were shifted by 1
    torch.testing.assert_close(
        got, torch.tensor([1.0, NAN, 1.0, NAN, NAN]).double(), equal_nan=True, rtol=0, atol=1e-6
    )
    assert tabular.coherence(x, cf, decided, 1)[
        0
    ].isfinite()  # a valid twin gives no infinite ratio
    everyone = tabular.coherence(x, cf, torch.zeros(5), 1, valid)
    assert everyone[0] > 40  # measured 60.2: what decisions leave out


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(20)), st.integers(1, 6))
def test_the_order_of_rows_changes_nothing(order, epsilon):
    x, cf, decided, valid = rows(n=20)
    o = torch.tensor(order)
    one = tabular.coherence(x, cf, decided, epsilon, valid)
    torch.testing.assert_close(
        tabular.coherence(x[o], cf[o], decided[o], epsilon, valid[o]), one[o], equal_nan=True
    )
    near = tabular.plausibility(cf, decided, x, decided, 3)
    torch.testing.assert_close(tabular.plausibility(cf, decided, x[o], decided[o], 3), near)
    f = torch.tensor(order)[torch.tensor(order) < 6]  # features in another order
    torch.testing.assert_close(
        tabular.coherence(x[:, f], cf[:, f], decided, epsilon, valid), one, equal_nan=True
    )


def test_distance_in_median_absolute_deviations():
    training = torch.tensor([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0], [3.0, 40.0], [4.0, 50.0]])
    mad = median_absolute_deviation(training)  # 1 and 10
    x, cf = torch.tensor([[1.0, 20.0], [1.0, 20.0]]), torch.tensor([[3.0, 20.0], [0.5, 35.0]])
    torch.testing.assert_close(tabular.mad_distance(x, cf, mad), torch.tensor([2.0, 2.0]))
    unit = torch.tensor([100.0, 0.01])  # other units, the same distance
    torch.testing.assert_close(
        tabular.mad_distance(x * unit, cf * unit, median_absolute_deviation(training * unit)),
        torch.tensor([2.0, 2.0]),
    )


# Tables 4 and 5 of the paper, the features that any column changes: input, CEM, Ours; +1: a rise speaks for class 1
HELOC = {
    "AverageMInFile": (0.465, 0.504, 0.465, 1),
    "PercentInstallTrades": (0.55, 0.544, 0.55, 0),  # 1: loanable
    "NumInqLast6M": (0, 0, 0.057, -1),
    "NumInqLast6Mexcl7days": (0, -0.03, 0, -1),
    "NetFractionRevolvingBurden": (0.507, 0.507, 0.507, -1),
    "NumRevolvingTradesWBalance": (0.3, 0.298, 0.3, 0),
}
UCI = {
    "LIMIT_BAL": (0.113, 0.113, 0.113, 0),
    "PAY_0": (0.4, 0.452, 0.423, 1),
    "PAY_2": (0.444, 0.446, 0.444, 1),  # 1: default
    "PAY_AMT1": (0, 0.002, 0, -1),
    "PAY_AMT2": (0, -0.012, 0, -1),
    "PAY_AMT5": (0, -0.004, 0, -1),
}


@pytest.mark.parametrize(
    ("table", "target", "cem", "cem_changes", "where"),
    [(HELOC, 1, 0, 4, "NumInqLast6M"), (UCI, 0, 4, 5, "PAY_0")],
)
def test_the_papers_own_rows_go_against_sense_once_each(table, target, cem, cem_changes, where):
    x, theirs, ours, sensible = torch.tensor(list(table.values())).double().T
    both, t = torch.stack([theirs, ours]), torch.tensor([target, target])
    assert tabular.features_changed(x.expand(2, -1), both).tolist() == [cem_changes, 1]
    assert tabular.monotone_violations(x.expand(2, -1), both, t, sensible).tolist() == [cem, 1]
    assert [k for k, moved in zip(table, (ours - x).abs() >= 1e-3, strict=True) if moved] == [where]
    # the other direction: the same change is sensible advice for the other class
    assert tabular.monotone_violations(x[None], ours[None], 1 - t[:1], sensible).tolist() == [0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_violations_as_feature_after_feature(seed):
    x, cf, target, _ = rows(n=12, seed=seed)
    sensible = torch.randint(-1, 2, (6,), generator=torch.Generator().manual_seed(seed))
    by_hand = []
    for a, b, t in zip(x.tolist(), cf.tolist(), target.tolist(), strict=True):
        wanted = [s if t == 1 else -s for s in sensible.tolist()]
        by_hand.append(
            sum(
                (w == 1 and p - q >= 1e-3) or (w == -1 and q - p >= 1e-3)
                for p, q, w in zip(a, b, wanted, strict=True)
            )
        )
    got = tabular.monotone_violations(x, cf, target, sensible)
    assert got.tolist() == by_hand
    back = tabular.monotone_violations(
        cf, x, target, sensible
    )  # there and back: each change is wrong once
    assert torch.equal(got + back, (((cf - x).abs() >= 1e-3) & (sensible != 0)).sum(1))


def test_plausibility_as_scikit_learn_finds_neighbours():
    training, _, labels, _ = rows(n=300, seed=1, levels=50)
    x, _, target, _ = rows(n=40, seed=2, levels=50)
    got = tabular.plausibility(x, target, training, labels, k=4)
    for c in (0, 1):
        far, _ = (
            NearestNeighbors(n_neighbors=4).fit(training[labels == c]).kneighbors(x[target == c])
        )
        torch.testing.assert_close(
            got[target == c], torch.from_numpy(far.mean(1)), rtol=1e-5, atol=1e-6
        )
    real, _, real_labels, _ = rows(n=30, seed=3, levels=50)
    beside = tabular.plausibility_of_real(target, real, real_labels, training, labels, k=4)
    own = tabular.plausibility(real, real_labels, training, labels, k=4)
    torch.testing.assert_close(
        beside, torch.stack([own[real_labels == c].mean() for c in (0, 1)])[target]
    )
    assert (
        tabular.plausibility(x + 2, target, training, labels, k=4) > 2 * beside
    ).all()  # where nobody lives
    torch.testing.assert_close(
        tabular.plausibility(training[:3], labels[:3], training, labels, k=1),
        torch.zeros(3).double(),
    )


class Linear(nn.Module):
    """Logits (0, w.x - b): single features and pairs that flip have a closed form."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x):
        z = x @ self.w - self.b
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("tau", [0.5, 0.8])
def test_least_features_of_a_linear_classifier(tau):
    gen = torch.Generator().manual_seed(0)
    x, w = (
        torch.rand(200, 5, generator=gen).double(),
        torch.tensor([2.0, -1.5, 1.0, 0.7, -0.2]).double(),
    )
    low, high = torch.zeros(5).double(), torch.tensor([1.0, 1.0, 0.8, 1.0, 2.0]).double()
    b = 2.2 - np.log(tau / (1 - tau))
    gap = 2.2 - x @ w
    gain = (
        torch.where(w > 0, high - x, low - x).mul(w).sort(1, descending=True).values
    )  # the grid holds both ends
    expected = torch.where(
        gap <= 0, 0, torch.where(gain[:, 0] >= gap, 1, torch.where(gain[:, :2].sum(1) >= gap, 2, 3))
    )
    got = brute_force.least_features(
        Linear(w, b), x, torch.ones(200, dtype=torch.int64), low=low, high=high, tau=tau
    )
    assert torch.equal(got, expected)
    assert torch.bincount(got).tolist() == [13, 91, 91, 5]  # each answer is asked for


def brute(net, x, target, grid, values):
    """0 to 3 features, one input after the other."""

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


class Bump(nn.Module):
    """Class 1 where every named feature lies within 0.01 of its place."""

    def __init__(self, **place):
        super().__init__()
        self.place = {int(k[1:]): v for k, v in place.items()}

    def forward(self, x):
        z = torch.stack([0.01 - (x[:, f] - v).abs() for f, v in self.place.items()]).amin(0) * 1000
        return torch.stack([torch.zeros_like(z), z], 1)


def test_least_features_of_a_bent_classifier():
    torch.manual_seed(3)
    bent = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        bent[0].weight.mul_(3)
        bent[2].bias += torch.tensor([1.2, 0.0])
        x = torch.rand(24, 4).double()
        target = 1 - bent(x).argmax(1)
        target[0] = 1 - target[0]
        values = torch.linspace(0, 1, 7).double().expand(4, 7)
        expected = [brute(bent, a, t, 7, values) for a, t in zip(x, target, strict=True)]
    got = brute_force.least_features(bent, x, target, grid=7)
    assert got.tolist() == expected
    assert np.bincount(expected).tolist() == [1, 3, 10, 10]
    o = torch.randperm(24)
    assert brute_force.least_features(bent, x[o], target[o], grid=7).tolist() == [
        expected[i] for i in o
    ]


def test_what_the_first_round_skips_is_found_in_the_second():
    x, one = torch.full((1, 4), 0.5), torch.tensor([1])
    assert (
        brute_force.least_features(Bump(f1=0.55, f3=0.3), x, one).item() == 2
    )  # values 22 and 12 of 40
    six = torch.full((1, 6), 0.5)
    for a, b in itertools.combinations(range(6), 2):  # 15 pairs: two batches of the second round
        assert brute_force.least_features(Bump(**{f"f{a}": 0.55, f"f{b}": 0.3}), six, one).item() == 2
    assert (
        brute_force.least_features(Bump(f1=0.5625, f3=0.3), x, one).item() == 3
    )  # between two values of the grid
    assert brute_force.least_features(Bump(f2=0.3), x, one).item() == 1
    assert brute_force.least_features(Bump(f0=0.1, f1=0.1, f2=0.1), x, one).item() == 3
    assert brute_force.least_features(Bump(f0=1.5), x, one).item() == 3  # out of range
    assert brute_force.least_features(Bump(f0=1.5), x, one, high=2.0).item() == 1
    assert brute_force.least_features(Bump(f0=0.1), x[:, :1], one).item() == 1  # one feature: no pair
    assert brute_force.least_features(Bump(f0=1.5), x[:, :1], one).item() == 3


def test_constraints_and_the_budget_of_pairs():
    x, one = torch.full((5, 4), 0.5), torch.ones(5, dtype=torch.int64)
    free = Constraints.none(4)
    second = torch.arange(4) == 1

    def least(bump, **limits):
        return brute_force.least_features(
            bump, x[:1], one[:1], constraints=dataclasses.replace(free, **limits)
        ).item()

    assert least(Bump(f1=0.8)) == 1
    assert least(Bump(f1=0.8), immutable=second) == least(Bump(f1=0.8), only_down=second) == 3
    assert least(Bump(f1=0.8), only_up=second) == 1
    assert (
        least(Bump(f1=0.8), step=second * 0.25) == 3
        and least(Bump(f1=0.75), step=second * 0.25) == 1
    )
    assert (
        least(Bump(f1=0.8, f2=0.2), only_down=second) == 3
        and least(Bump(f1=0.8, f2=0.2), only_up=second) == 2
    )
    low_and_high = torch.tensor(
        [[0.5, 0.1, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
    )  # each row has its own room to rise
    rising = dataclasses.replace(free, only_up=second)
    assert brute_force.least_features(
        Bump(f1=0.2), low_and_high, one[:2], constraints=rising
    ).tolist() == [1, 3]
    for place in (
        {"f1": 0.2, "f2": 0.3},
        {"f1": 0.25, "f2": 0.375},
    ):  # values of the second round, of the first
        assert brute_force.least_features(
            Bump(**place), low_and_high, one[:2], constraints=rising
        ).tolist() == [2, 3]
    x[2, 3] = 0.3
    got = brute_force.least_features(Bump(f1=0.55, f3=0.3), x, one, pairs=3)
    assert got.tolist() == [2, 2, 1, 2, -1]  # the third needs no pair


def test_excess_only_where_the_least_is_known():
    got = brute_force.l1_excess(torch.tensor([1, 3, 0, 2, 5, 1]), torch.tensor([1, 2, 0, 3, -1, 2]))
    torch.testing.assert_close(got, torch.tensor([0, 1, 0, NAN, NAN, -1]).double(), equal_nan=True)


def test_failed_items_and_ranges_of_features():
    torch.testing.assert_close(
        decision.mask_failed(torch.tensor([2, 3]), torch.tensor([True, False])),
        torch.tensor([2.0, NAN]).double(),
        equal_nan=True,
    )
    a, b = torch.tensor([1.0, NAN, 3.0, 4.0]), torch.tensor([0.0, 1.0, NAN, 1.0])
    assert decision.paired_difference(a, b) == decision.paired_difference(a[[0, 3]], b[[0, 3]])
    assert decision.paired_difference(a, b)["n"] == 2
    x = torch.tensor([[0.5, 5.0], [-0.5, 5.0], [2.0, 11.0]])
    share = decision.share_out_of_range(x, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 10.0]))
    assert share.tolist() == [0, 0.5, 1]


X, ONES, YES = torch.rand(4, 3), torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: tabular.features_changed(X, X[:3]),
            r"query, counterfactual: got shapes \(4, 3\) and \(3, 3\)",
        ),
        (lambda: tabular.features_changed(X[:, None], X[:, None]), "expected the same"),
        (lambda: tabular.coherence(X, X, ONES, 2, YES, "mean"), "summary: got 'mean'"),
        (lambda: tabular.coherence(X, X, ONES, 0), "epsilon: got 0"),
        (
            lambda: tabular.coherence(X, X, ONES[:3], 2),
            r"decision: got shape \(3,\), expected \(4,\)",
        ),
        (lambda: tabular.mad_distance(X, X, torch.tensor([1.0, 0.0, 1.0])), "mad: .* least 0"),
        (lambda: tabular.mad_distance(X, X, torch.ones(4)), r"mad: got shape \(4,\)"),
        (
            lambda: tabular.monotone_violations(X, X, 2 * ONES, torch.ones(3)),
            "target: values from 2 to 2",
        ),
        (lambda: tabular.monotone_violations(X, X, ONES, torch.full((3,), 0.5)), "sensible: "),
        (lambda: tabular.plausibility(X, ONES, X[:, :2], ONES), r"training: got shape \(4, 2\)"),
        (
            lambda: tabular.plausibility(X, ONES, X, ONES, k=5),
            "k: got 5, expected 1 to 4, the training rows of class 1",
        ),
        (
            lambda: tabular.plausibility_of_real(ONES, X, 0 * ONES, X, ONES, k=1),
            "real_labels: got no row of class 1",
        ),
        (lambda: brute_force.least_features(Bump(f0=0.5), X, ONES[:2]), r"target: got shape \(2,\)"),
        (lambda: brute_force.least_features(Bump(f0=0.5), X, ONES, grid=1), "grid: got 1"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
