"""Compatibility of a progression: closed forms, scipy, brute force and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from cf_utils.evaluation.metrics import response


def draw(rows=7, bins=10, seed=0):
    gen = torch.Generator().manual_seed(seed)
    f = torch.rand(rows, generator=gen, dtype=torch.float64)
    expected = response.expected_response(f, bins)
    noise = torch.randn(expected.shape, generator=gen, dtype=torch.float64)
    return f, expected, (expected + 0.2 * noise).clamp(0, 1)


class Brightness(nn.Module):
    """Class 1 with probability sigmoid(8 (mean - 0.5))."""

    def forward(self, x):
        z = 8 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_respond_gives_the_probability_of_class_1_of_images_and_progressions():
    images = torch.rand(3, 4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.sigmoid(8 * (images.double().mean((2, 3, 4)) - 0.5))
    found = response.respond(Brightness(), images, batch_size=5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(response.respond(Brightness(), images[:, 2]), expected[:, 2])
    with pytest.raises(ValueError, match=r"^classifier: returned"):
        response.respond(nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), images[:, 0])
    with pytest.raises(ValueError, match=r"^images: got"):
        response.respond(Brightness(), images[0, 0, 0])


def test_bins_are_equal_tenths_and_the_expected_response_steps_by_a_tenth():
    f = torch.tensor([0.0, 0.0999, 0.1, 0.55, 0.999, 1.0], dtype=torch.float64)
    assert response.bin_of(f).tolist() == [0, 0, 1, 5, 9, 9]
    expected = response.expected_response(f)
    rows = torch.arange(6)
    torch.testing.assert_close(expected[rows, response.bin_of(f)], f)  # delta = 0 in the own bin
    torch.testing.assert_close(expected.diff(dim=1), torch.full((6, 9), 0.1).double())
    torch.testing.assert_close(expected[3], torch.arange(10) / 10 + 0.05, check_dtype=False)
    torch.testing.assert_close(
        response.expected_response(f, 4)[3], torch.tensor([0.05, 0.3, 0.55, 0.8]).double()
    )
    for wrong in (torch.tensor([1.2]), torch.tensor([torch.nan]), torch.rand(2, 2)):
        with pytest.raises(ValueError, match=r"^response: got"):
            response.expected_response(wrong)


@given(st.floats(0, 1), st.sampled_from([2, 5, 10]))
def test_every_expected_response_lies_in_its_own_bin(f, bins):
    expected = response.expected_response(torch.tensor([f], dtype=torch.float64), bins)
    k = torch.arange(bins).double()
    assert (expected >= k / bins - 1e-9).all() and (expected <= (k + 1) / bins + 1e-9).all()


def test_correlations_equal_scipy_overall_and_within():
    _, expected, actual = draw()
    actual = (actual * 5).round() / 5  # ties
    e, a = expected.numpy(), actual.numpy()
    for kind, second in (("rank", stats.spearmanr), ("linear", stats.pearsonr)):
        whole = second(e.ravel(), a.ravel()).statistic
        assert abs(response.correlation(expected, actual, kind) - whole) < 1e-12
        rows = [second(x, y).statistic for x, y in zip(e, a, strict=True)]
        np.testing.assert_allclose(response.correlation_within(expected, actual, kind), rows)
    with pytest.raises(ValueError, match=r"^kind: got 'kendall'"):
        response.correlation(expected, actual, "kendall")


def test_correlations_of_constant_or_unknown_responses_are_undefined():
    _, expected, actual = draw(4)
    actual[1] = 0.3  # its mean is not exactly 0.3
    actual[2, 3] = torch.nan
    for kind in ("rank", "linear"):
        within = response.correlation_within(expected, actual, kind)
        assert within.isnan().tolist() == [False, True, True, False]
    assert np.isnan(response.correlation(expected, torch.full_like(expected, 0.1)))
    assert response.correlation(expected, expected) == pytest.approx(1)
    assert response.correlation(expected, -expected.exp(), "rank") == pytest.approx(-1)


def test_differences_between_queries_count_overall_but_not_within():
    """Each query's response falls along the path, while queries with larger f respond more."""
    expected = torch.arange(5)[:, None] + torch.arange(3) / 10
    actual = torch.arange(5)[:, None] - torch.arange(3) / 10
    assert (response.correlation_within(expected, actual) == -1).all()
    assert response.correlation(expected, actual) > 0.9


def test_errors_equal_loops():
    _, expected, actual = draw(3, 4)
    table = [[abs(float(a - e)) for a, e in zip(r, s, strict=True)]
             for r, s in zip(actual, expected, strict=True)]  # fmt: skip
    np.testing.assert_allclose(response.response_error(expected, actual), np.mean(table, 1))
    np.testing.assert_allclose(response.response_error_per_bin(expected, actual), np.mean(table, 0))
    for metric in (response.correlation, response.response_error, response.response_error_per_bin):
        with pytest.raises(ValueError, match=r"^expected, actual"):
            metric(expected, actual[:, :2])


@pytest.mark.parametrize(
    "path,tolerance,risen",
    [
        ([0, 1, 2], 0, 1),
        ([0, 0, 1], 0, 1),  # a tie is allowed
        ([1, 1, 1], 0, 0),  # but something must rise
        ([0, 2, 1], 0, 0),
        ([0, 2, 1.5], 0.6, 1),  # a setback within the tolerance
        ([0, 2, 1.5, 1.3], 0.6, 0),  # setbacks add up
        ([3, 2.6, 2.2, 1.8], 0.5, 0),  # small steps down do not rise
        ([0, 0.4, 0.4], 0.5, 0),  # the whole rise is a tie
        ([2, 1, 0], 0, 0),
    ],
)
def test_monotone_share_by_its_definition(path, tolerance, risen):
    values = torch.tensor([path, [-p for p in path]], dtype=torch.float64)
    assert response.rises(values, tolerance)[0] == risen
    values[0, 1] = torch.nan
    assert response.rises(values, tolerance).isnan().tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8), st.integers(0, 4))
def test_rises_equals_a_loop_over_all_pairs(path, tolerance):
    values = torch.tensor([path]).double()
    setback = any(
        path[j] < path[i] - tolerance for i in range(len(path)) for j in range(i, len(path))
    )
    expected = not setback and path[-1] - path[0] > tolerance
    assert bool(response.rises(values, tolerance)) == expected
    # neither shifting nor scaling everything changes the answer
    assert bool(response.rises(3 * values + 7, 3 * tolerance)) == expected


def test_a_negative_tolerance_or_a_path_of_one_state_is_refused():
    for values, tolerance in (
        (torch.rand(2, 1), 0.0),
        (torch.rand(2, 3), -0.1),
        (torch.rand(3), 0),
    ):
        with pytest.raises(ValueError, match=r"^values, tolerance"):
            response.rises(values, tolerance)


def test_rows_do_not_depend_on_each_other():
    _, expected, actual = draw(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for metric in (response.correlation_within, response.response_error):
        torch.testing.assert_close(
            metric(expected[order], actual[order]), metric(expected, actual)[order]
        )
