"""The truth table, and semantic validity of used factors only, in a world with closed forms."""

from __future__ import annotations

import pytest
import torch

from cf_utils.evaluation import baselines
from cf_utils.evaluation.truth import displacement, true_counterfactuals
from cf_utils.evaluation.truth.table import compare_validity, overshoot, truth_table
from tests.stripes import (
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


def test_only_the_named_factors_are_displaced():
    """A classifier of either stripe, and an edit of the right one: only "right" keeps the flip."""
    rows, f = data(), Stripe(also=True)
    dark = rows.factors["left"].maximum(rows.factors["right"]) < 0.45
    x = render_moved(rows, right=torch.full((24,), 0.9))
    cfs = make_counterfactuals(rows, f, x, torch.ones(24, dtype=torch.int64))
    read = displacement.measure(cfs, Perfect())
    found = {
        only: displacement.semantic_validity(cfs, rows.factors, f, read, only)[dark]
        for only in (None, ("left",), ("right",), ("left", "right"))
    }
    assert dark.any()
    assert (found[None] == 1).all() and (found["right",] == 1).all()
    assert (found["left", "right"] == 1).all() and (found["left",] == 0).all()


def test_overshoot_compares_with_the_nearest_true_counterfactual(toy):
    rows, f, target = toy
    own = rows.factors["left"]
    for share in (1.5, 0.5, -0.2):
        exact = 0.5 + 0.04 * (2 * target - 1)  # the value at which the score is that of `wanted`
        left = own + share * (exact - own)
        inside = (left >= 0) & (left <= 1)
        x = render_moved(rows, left=left.clamp(0, 1))
        cfs = make_counterfactuals(rows, f, x, target)
        reference = make_counterfactuals(rows, f, render_moved(rows, left=exact), target)
        members = true_counterfactuals.find(reference, rows.factors, f, USES)
        found = overshoot(cfs, displacement.measure(cfs, Perfect()), members, rows.factors)
        far = inside & ((exact - own).abs() > 0.1)
        expected = torch.full((int(far.sum()),), share).double()
        torch.testing.assert_close(found[far], expected, atol=0.12, rtol=0)


def test_rows_of_the_table_equal_the_single_metrics(toy):
    rows, f, target = toy
    found = baselines.baseline_rows(f, rows, target, USES)
    table = truth_table(found, rows.factors, f, USES, Perfect(), zero_edits={"true": rows.x})
    assert list(table.index) == ["no change", "PGD", "true"] and (table.n == 24).all()
    true = table.loc["true"]
    assert true.semantic_validity > 0.85 and true.true_gain > 0.9
    assert true.semantic_validity_used == true.semantic_validity
    assert true.overshoot == pytest.approx(1, abs=0.1)
    assert true.unused_factor_moved == 0 and true.unused_factor_moved_zero_edit == 0
    none = table.loc["no change"]
    assert none.validity == 0 and none.true_gain == pytest.approx(0) and none.overshoot == 0
    assert torch.isnan(torch.tensor(none.unused_factor_moved_zero_edit))
    for name, cfs in found.items():
        read = displacement.measure(cfs, Perfect())
        own = displacement.unused_factor_moved(read, USES).nanmean().item()
        assert table.loc[name, "unused_factor_moved"] == own


def test_an_unreadable_factor_has_no_verdict(toy):
    rows, f, target = toy
    x = render_moved(rows, left=target.float(), right=1 - rows.factors["right"])
    cfs = {"method": make_counterfactuals(rows, f, x, target)}
    moved = truth_table(cfs, rows.factors, f, USES, Perfect()).loc["method"]
    without = truth_table(cfs, rows.factors, f, USES, Perfect(), readable=("left", "shade"))
    assert moved.unused_factor_moved > 0.3
    assert without.loc["method"].unused_factor_moved == 0


def test_a_used_factor_counts_by_the_card(toy):
    rows, f, target = toy
    x = render_moved(rows, right=1 - rows.factors["right"])
    cfs = {"method": make_counterfactuals(rows, f, x, target)}
    assert truth_table(cfs, rows.factors, f, USES, Perfect()).loc["method"].used_factor_moved == 0
    both = truth_table(cfs, rows.factors, f, USES_BOTH, Perfect()).loc["method"]
    assert both.used_factor_moved > 0.8


def test_all_methods_share_the_largest_null(toy):
    """A zero edit that shifts `right` by 0.1 raises the threshold of both methods to 0.2."""
    rows, f, target = toy
    right = rows.factors["right"]
    step = torch.where(right < 0.5, 0.15, -0.15)
    x = render_moved(rows, left=target.float(), right=right + step)
    found = dict.fromkeys(("a", "b"), make_counterfactuals(rows, f, x, target))
    readable = ("left", "right")
    alone = truth_table(found, rows.factors, f, USES, Perfect(), readable=readable)
    assert alone.unused_factor_moved.tolist() == [1, 1]
    loose = render_moved(rows, right=right + step / 1.5)
    args = (found, rows.factors, f, USES, Perfect())
    table = truth_table(*args, readable=readable, zero_edits={"a": loose})
    assert table.unused_factor_moved.tolist() == [0, 0]
    assert table.loc["a"].unused_factor_moved_zero_edit == 0  # 0.1 is within 2 * 0.1


def test_the_first_method_is_ahead_by_the_difference_of_paired_semantic_validity(toy):
    """Half of b's edits do nothing; the two validities differ in exactly those items."""
    rows, f, target = toy
    left = 0.1 + 0.8 * target.float()
    works = torch.arange(24) % 2 == 0
    found = {
        "a": make_counterfactuals(rows, f, render_moved(rows, left=left), target),
        "b": make_counterfactuals(
            rows, f, render_moved(rows, left=torch.where(works, left, rows.factors["left"])), target
        ),
    }
    args = (found, rows.factors, f, USES, Perfect())
    gaps, table = compare_validity(*args, seed=3), truth_table(*args)
    assert gaps.loc["a"].tolist() == [0, 0, 0]
    own = table.semantic_validity_used
    assert gaps.ahead["b"] == pytest.approx(own["a"] - own["b"]) and gaps.ahead["b"] > 0.4
    assert 0.2 < gaps.low["b"] < gaps.ahead["b"] < gaps.high["b"] < 0.8
    coarse = render_moved(rows, left=(rows.factors["left"] + 0.5) % 1)
    hidden = compare_validity(*args, zero_edits={"b": coarse})
    assert hidden.loc["b"].tolist() == [0, 0, 0]  # nothing exceeds a null of 0.5
