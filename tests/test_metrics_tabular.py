"""Metrics on tables against plain loops, closed forms, scikit-learn and the paper's own rows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from cf_utils.core import median_absolute_deviation
from cf_utils.evaluation.metrics import decision, tabular

NAN = float("nan")


def make_rows(n=60, features=6, seed=0, levels=5):
    """Rows, counterfactuals, decisions and validity.

    Values are coarse, so that neighbours share features and some rows are duplicates.
    """
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (n, features), generator=gen) / (levels - 1)
    x[1::7] = x[0::7][: len(x[1::7])]
    change = torch.rand(n, features, generator=gen) < 0.4
    cf = torch.where(change, torch.rand(n, features, generator=gen), x)
    return x, cf, torch.randint(2, (n,), generator=gen), torch.rand(n, generator=gen) < 0.8


def count_changes(a, b):
    return sum(abs(p - q) >= 0.001 for p, q in zip(a, b, strict=True))


def test_features_that_fall_count_like_features_that_rise():
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).double()
    changed = x + torch.tensor([[0.2, -0.2, 0.0009, -0.0011]]).double()
    assert tabular.features_changed(x, changed).tolist() == [3]  # Eq. 9 as printed gives 1
    x, cf, _, _ = make_rows()
    by_hand = [count_changes(p, q) for p, q in zip(x.tolist(), cf.tolist(), strict=True)]
    assert tabular.features_changed(x, cf).tolist() == by_hand
    assert tabular.features_changed(cf, x).tolist() == by_hand


# ---------------------------------------------------------------- coherence


def coherence_by_hand(x, cf, decision, epsilon, valid, summary):
    """Coherence in numpy, pair by pair."""
    x, cf, out = x.double().numpy(), cf.double().numpy(), []
    for i in range(len(x)):
        ratios = [
            np.linalg.norm(cf[i] - cf[j]) / np.linalg.norm(x[i] - x[j])
            for j in range(len(x))
            if valid[i]
            and valid[j]
            and decision[i] == decision[j]
            and not np.array_equal(x[i], x[j])
            and count_changes(x[i], x[j]) <= epsilon
        ]
        out.append((max if summary == "max" else np.median)(ratios) if ratios else np.nan)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("summary", ["max", "median"])
@pytest.mark.parametrize("epsilon", [2, 4, 6])
def test_coherence_equals_a_loop_over_pairs(summary, epsilon):
    x, cf, decided, valid = make_rows()
    found = tabular.coherence(x, cf, decided, epsilon, valid, summary)
    expected = coherence_by_hand(x, cf, decided, epsilon, valid, summary)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert 10 < found.isfinite().sum() <= valid.sum()  # measured 15, 50, 50 of 50 valid


def test_coherence_of_many_rows_is_computed_in_chunks():
    x, _, decided, valid = make_rows(n=600, features=23, levels=2)
    cf = torch.rand(x.shape, generator=torch.Generator().manual_seed(3))
    found = tabular.coherence(x, cf, decided, 8, valid)  # 8.3 M differences: three chunks
    last = slice(590, None)
    a, b = x.double(), cf.double()
    differ = (a[last, None] != a).sum(2)
    near = (differ <= 8) & (differ > 0) & valid & valid[last, None]
    near &= decided[last, None] == decided
    ratio = (b[last, None] - b).norm(dim=2) / (a[last, None] - a).norm(dim=2)
    expected = torch.where(near, ratio, -1).amax(1)
    torch.testing.assert_close(found[last].nan_to_num(-1), expected)


def test_coherence_is_one_for_a_constant_shift_and_zero_for_a_constant_output():
    x, _, decided, _ = make_rows()
    shifted = tabular.coherence(x.double(), x.double() + torch.linspace(-1, 1, 6), decided, 4)
    shifted = shifted[shifted.isfinite()]
    torch.testing.assert_close(shifted, torch.ones(len(shifted)).double())
    constant = tabular.coherence(x, torch.full_like(x, 0.3), decided, 4)
    constant = constant[constant.isfinite()]
    assert (constant == 0).all() and len(constant) > 20  # measured 60


def test_failed_duplicate_distant_and_differently_decided_rows_are_no_neighbours():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [0.9, 0.9]])
    cf = torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.1, 0.0], [9.0, 9.0], [0.0, 0.0]])
    decided = torch.tensor([0, 0, 0, 1, 0])
    valid = torch.tensor([True, False, True, True, True])
    found = tabular.coherence(x, cf, decided, 1, valid)
    # row 0: row 1 is a failed duplicate, 3 decided differently, 4 distant; 0 and 2 shift by 1
    expected = torch.tensor([1.0, NAN, 1.0, NAN, NAN]).double()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-6)
    # a valid duplicate does not give an infinite ratio
    assert tabular.coherence(x, cf, decided, 1)[0].isfinite()
    without_decisions = tabular.coherence(x, cf, torch.zeros(5), 1, valid)
    assert without_decisions[0] > 40  # measured 60.2


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(20)), st.integers(1, 6))
def test_order_of_rows_and_features_does_not_matter(order, epsilon):
    x, cf, decided, valid = make_rows(n=20)
    o = torch.tensor(order)
    expected = tabular.coherence(x, cf, decided, epsilon, valid)
    found = tabular.coherence(x[o], cf[o], decided[o], epsilon, valid[o])
    torch.testing.assert_close(found, expected[o], equal_nan=True)
    near = tabular.plausibility(cf, decided, x, decided, 3)
    torch.testing.assert_close(tabular.plausibility(cf, decided, x[o], decided[o], 3), near)
    f = o[o < 6]
    found = tabular.coherence(x[:, f], cf[:, f], decided, epsilon, valid)
    torch.testing.assert_close(found, expected, equal_nan=True)


# ---------------------------------------------------------------- distances


def test_mad_distance_does_not_depend_on_units():
    training = torch.tensor([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0], [3.0, 40.0], [4.0, 50.0]])
    mad = median_absolute_deviation(training)  # 1 and 10
    x, cf = torch.tensor([[1.0, 20.0], [1.0, 20.0]]), torch.tensor([[3.0, 20.0], [0.5, 35.0]])
    expected = torch.tensor([2.0, 2.0])
    torch.testing.assert_close(tabular.mad_distance(x, cf, mad), expected)
    unit = torch.tensor([100.0, 0.01])
    mad = median_absolute_deviation(training * unit)
    torch.testing.assert_close(tabular.mad_distance(x * unit, cf * unit, mad), expected)


def test_plausibility_equals_nearest_neighbours_of_scikit_learn():
    training, _, labels, _ = make_rows(n=300, seed=1, levels=50)
    x, _, target, _ = make_rows(n=40, seed=2, levels=50)
    found = tabular.plausibility(x, target, training, labels, k=4)
    for c in (0, 1):
        neighbours = NearestNeighbors(n_neighbors=4).fit(training[labels == c])
        distance, _ = neighbours.kneighbors(x[target == c])
        expected = torch.from_numpy(distance.mean(1))
        torch.testing.assert_close(found[target == c], expected, rtol=1e-5, atol=1e-6)
    own = tabular.plausibility(training[:3], labels[:3], training, labels, k=1)
    torch.testing.assert_close(own, torch.zeros(3).double())


def test_plausibility_of_real_rows_is_the_mean_per_class():
    training, _, labels, _ = make_rows(n=300, seed=1, levels=50)
    x, _, target, _ = make_rows(n=40, seed=2, levels=50)
    real, _, real_labels, _ = make_rows(n=30, seed=3, levels=50)
    found = tabular.plausibility_of_real(target, real, real_labels, training, labels, k=4)
    own = tabular.plausibility(real, real_labels, training, labels, k=4)
    expected = torch.stack([own[real_labels == c].mean() for c in (0, 1)])[target]
    torch.testing.assert_close(found, expected)
    distant = tabular.plausibility(x + 2, target, training, labels, k=4)
    assert (distant > 2 * found).all()


# ---------------------------------------------------------------- common sense

# features that Tables 4 and 5 of the paper change: input, CEM, theirs, direction for class 1
HELOC = {  # class 1: good credit
    "AverageMInFile": (0.465, 0.504, 0.465, 1),
    "PercentInstallTrades": (0.55, 0.544, 0.55, 0),
    "NumInqLast6M": (0, 0, 0.057, -1),
    "NumInqLast6Mexcl7days": (0, -0.03, 0, -1),
    "NetFractionRevolvingBurden": (0.507, 0.507, 0.507, -1),
    "NumRevolvingTradesWBalance": (0.3, 0.298, 0.3, 0),
}
UCI = {  # class 1: default
    "LIMIT_BAL": (0.113, 0.113, 0.113, 0),
    "PAY_0": (0.4, 0.452, 0.423, 1),
    "PAY_2": (0.444, 0.446, 0.444, 1),
    "PAY_AMT1": (0, 0.002, 0, -1),
    "PAY_AMT2": (0, -0.012, 0, -1),
    "PAY_AMT5": (0, -0.004, 0, -1),
}


@pytest.mark.parametrize(
    ("table", "target", "cem_violations", "cem_changes", "changed"),
    [(HELOC, 1, 0, 4, "NumInqLast6M"), (UCI, 0, 4, 5, "PAY_0")],
)
def test_rows_of_the_paper_violate_common_sense_once_each(
    table, target, cem_violations, cem_changes, changed
):
    x, cem, theirs, sensible = torch.tensor(list(table.values())).double().T
    query, both, t = x.expand(2, -1), torch.stack([cem, theirs]), torch.tensor([target, target])
    assert tabular.features_changed(query, both).tolist() == [cem_changes, 1]
    violations = tabular.monotone_violations(query, both, t, sensible)
    assert violations.tolist() == [cem_violations, 1]
    moved = (theirs - x).abs() >= 1e-3
    assert list(itertools.compress(table, moved)) == [changed]
    # the same change is sensible for the other class
    assert tabular.monotone_violations(x[None], theirs[None], 1 - t[:1], sensible).tolist() == [0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_violations_equal_a_loop_over_features(seed):
    x, cf, target, _ = make_rows(n=12, seed=seed)
    sensible = torch.randint(-1, 2, (6,), generator=torch.Generator().manual_seed(seed))
    by_hand = []
    for a, b, t in zip(x.tolist(), cf.tolist(), target.tolist(), strict=True):
        wanted = [s if t == 1 else -s for s in sensible.tolist()]
        wrong = [
            (w == 1 and p - q >= 1e-3) or (w == -1 and q - p >= 1e-3)
            for p, q, w in zip(a, b, wanted, strict=True)
        ]
        by_hand.append(sum(wrong))
    found = tabular.monotone_violations(x, cf, target, sensible)
    assert found.tolist() == by_hand
    # of a change and its reverse exactly one is wrong
    reverse = tabular.monotone_violations(cf, x, target, sensible)
    assert torch.equal(found + reverse, (((cf - x).abs() >= 1e-3) & (sensible != 0)).sum(1))


# ---------------------------------------------------------------- metrics of decisions


def test_failed_items_are_masked_and_left_out_of_paired_differences():
    found = decision.mask_failed(torch.tensor([2, 3]), torch.tensor([True, False]))
    torch.testing.assert_close(found, torch.tensor([2.0, NAN]).double(), equal_nan=True)
    a, b = torch.tensor([1.0, NAN, 3.0, 4.0]), torch.tensor([0.0, 1.0, NAN, 1.0])
    both = torch.tensor([0, 3])
    assert decision.paired_difference(a, b) == decision.paired_difference(a[both], b[both])
    assert decision.paired_difference(a, b)["n"] == 2


def test_range_may_differ_per_feature():
    x = torch.tensor([[0.5, 5.0], [-0.5, 5.0], [2.0, 11.0]])
    share = decision.share_out_of_range(x, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 10.0]))
    assert share.tolist() == [0, 0.5, 1]


# ---------------------------------------------------------------- invalid input

X, ONES, VALID = torch.rand(4, 3), torch.ones(4, dtype=torch.int64), torch.ones(4).bool()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tabular.features_changed(X, X[:3]),
            r"query, counterfactual: got shapes \(4, 3\) and \(3, 3\)",
        ),
        (lambda: tabular.features_changed(X[:, None], X[:, None]), "expected the same"),
        (lambda: tabular.coherence(X, X, ONES, 2, VALID, "mean"), "summary: got 'mean'"),
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
    ],
)
def test_invalid_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
