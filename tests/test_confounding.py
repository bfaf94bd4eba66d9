"""Confounding metric, flip matrix, tests of groups: brute force, scipy's formulas by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cf_utils.evaluation.metrics import confounding, group_tests

A = torch.tensor([1, 0, 1, 0])
AFTER = torch.tensor([[1, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
SELECTED = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).bool()


def test_confounding_counts_the_selected_explanations_whose_attribute_differs():
    found = confounding.attribute_flips(A, AFTER, SELECTED)
    assert found[:3].tolist() == [1, 1, 0] and found[3].isnan()
    # the mean is a share; the paper's further division by |D| would give 2/9 instead of 2/3
    assert found.nanmean().item() == pytest.approx(2 / 3)
    share = confounding.attribute_share(AFTER, SELECTED)
    assert share[:3].tolist() == [0, 1, 1] and share[3].isnan()
    other = confounding.attribute_share(AFTER, SELECTED, value=0)
    torch.testing.assert_close((share + other)[:3], torch.ones(3).double())
    one_of_two = confounding.attribute_flips(A, AFTER, SELECTED | (torch.arange(3) == 0))
    assert one_of_two[0].item() == pytest.approx(2 / 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 999))
def test_confounding_equals_loops(rows, columns, seed):
    gen = torch.Generator().manual_seed(seed)
    a = torch.randint(2, (rows,), generator=gen)
    after = torch.randint(2, (rows, columns), generator=gen)
    selected = torch.rand(rows, columns, generator=gen) < 0.6
    expected = []
    for i in range(rows):
        counted = [int(after[i, k] != a[i]) for k in range(columns) if selected[i, k]]
        expected.append(np.mean(counted) if counted else np.nan)
    np.testing.assert_allclose(confounding.attribute_flips(a, after, selected), expected)


def test_the_difference_is_paired_and_leaves_out_queries_without_both():
    gen = torch.Generator().manual_seed(0)
    hard = (torch.rand(400, generator=gen) < 0.5).double()  # flipped by both classifiers
    extra = torch.where(hard == 1, 0.0, (torch.rand(400, generator=gen) < 0.1).double())
    biased, unbiased = hard + extra, hard.clone()
    biased[:5], unbiased[5:9] = torch.nan, torch.nan
    found = confounding.confounding_difference(biased, unbiased)
    assert found["n"] == 391
    assert found["mean"] == pytest.approx(extra[9:].mean().item())
    assert found["low"] > 0.02 and found["high"] < 0.1  # measured 0.033 .. 0.074
    alone = 1.96 * 2 * (0.25 / 391) ** 0.5  # width of an interval of either share alone
    assert found["high"] - found["low"] < 0.6 * alone
    with pytest.raises(ValueError, match=r"^first, second"):
        confounding.confounding_difference(biased, unbiased[:3])


@pytest.mark.parametrize(
    "a,after,selected", [(A[:2], AFTER, SELECTED), (A, AFTER[:, :2], SELECTED), (A, AFTER, AFTER)]
)
def test_confounding_refuses_other_shapes_and_types(a, after, selected):
    with pytest.raises(ValueError, match=r"^(a, after, selected|selected): got"):
        confounding.attribute_flips(a, after, selected)


def test_flip_rates_and_summary():
    before = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]]).bool()
    after = torch.tensor([[0, 0, 1], [1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    assert confounding.flip_rates(before, after).tolist() == [1, 0.25, 0.25]
    matrix = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.0, 0.8]])
    own, rest = confounding.diagonal_and_rest(matrix, torch.tensor([0, 2]))
    assert own == pytest.approx(0.85) and rest == pytest.approx((0.1 + 0.3 + 0.2 + 0.0) / 4)
    for diagonal in (torch.tensor([0, 3]), torch.tensor([0]), torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"^matrix, diagonal"):
            confounding.diagonal_and_rest(matrix, diagonal)
    with pytest.raises(ValueError, match=r"^before, after"):
        confounding.flip_rates(before, after[:, :2])


def samples(n=30, m=50, seed=0):
    gen = np.random.default_rng(seed)
    return torch.from_numpy(gen.normal(5, 1, n)), torch.from_numpy(gen.normal(5.4, 1, m))


def test_paired_test_by_its_formula():
    a, b = samples(30, 30)
    d = (b - a).numpy()
    t = d.mean() / (d.std(ddof=1) / math.sqrt(30))
    found = group_tests.paired_test(a, b)
    assert found["n"] == 30 and found["difference"] == pytest.approx(d.mean())
    assert found["statistic"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 29))
    half = stats.t.ppf(0.975, 29) * d.std(ddof=1) / math.sqrt(30)
    assert found["high"] - found["difference"] == pytest.approx(half)
    with_gap = group_tests.paired_test(
        torch.cat([a, a[:1]]), torch.cat([b, torch.tensor([torch.nan])])
    )
    assert with_gap == pytest.approx(found)


def test_pairing_sees_a_small_common_shift_that_two_samples_hide():
    a = samples(40)[0] * 3
    b = a + 0.2 + 0.05 * torch.from_numpy(np.random.default_rng(1).normal(size=40))
    assert group_tests.paired_test(a, b)["p"] < 1e-6
    assert group_tests.two_sample_test(a, b)["p"] > 0.5
    assert group_tests.paired_test(a, b)["difference"] > 0  # b - a


def test_two_sample_test_by_its_formula():
    a, b = samples()
    x, y = a.numpy(), b.numpy()
    pooled = (29 * x.var(ddof=1) + 49 * y.var(ddof=1)) / 78
    error = math.sqrt(pooled * (1 / 30 + 1 / 50))
    t = (y.mean() - x.mean()) / error
    found = group_tests.two_sample_test(a, b)
    assert found["n"] == 80 and found["statistic"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 78))
    assert found["low"] == pytest.approx(y.mean() - x.mean() - stats.t.ppf(0.975, 78) * error)


@pytest.mark.parametrize("paired", [False, True])
def test_equivalence_is_two_one_sided_tests(paired):
    a, b = samples(30, 30)
    margin = 1.0
    if paired:
        d = (b - a).numpy()
        error, df, difference = d.std(ddof=1) / math.sqrt(30), 29, d.mean()
    else:
        x, y = a.numpy(), b.numpy()
        error = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 30)
        df, difference = 58, y.mean() - x.mean()
    above = stats.t.sf((difference + margin) / error, df)
    below = stats.t.cdf((difference - margin) / error, df)
    found = group_tests.equivalence_test(a, b, margin, paired)
    assert found["p"] == pytest.approx(max(above, below))
    assert found["difference"] == pytest.approx(difference) and found["n"] == (30 if paired else 60)
    assert group_tests.equivalence_test(b, a, margin, paired)["p"] == pytest.approx(found["p"])


def test_a_large_p_of_few_samples_is_no_equivalence():
    few = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([4.4, 5.2, 6.1])
    assert group_tests.two_sample_test(*few)["p"] > 0.5
    assert group_tests.equivalence_test(*few, margin=0.3)["p"] > 0.3
    a, b = samples(2000, 2000)
    assert group_tests.equivalence_test(a, b - 0.4, margin=0.3)["p"] < 0.001


def test_groups_that_are_too_small_and_margins_without_meaning_are_refused():
    a, b = samples()
    for call in (
        lambda: group_tests.two_sample_test(a[:1], b),
        lambda: group_tests.paired_test(a[:1], b[:1]),
        lambda: group_tests.paired_test(a, b),
        lambda: group_tests.equivalence_test(a, torch.full_like(b, torch.nan), 0.1),
        lambda: group_tests.two_sample_test(a, b / 0),
    ):
        with pytest.raises(ValueError, match=r"^(a|b|a, b): got"):
            call()
    with pytest.raises(ValueError, match=r"^margin: got 0"):
        group_tests.equivalence_test(a, b, 0)
