"""Figures of ACE: what each panel shows, and its title."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from cf_utils.viz import ace as viz
from tests import stripes
from tests.ace_stripes import make_case, move, towards


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def shown(ax):
    """The image of a panel, or None."""
    return np.asarray(ax.images[0].get_array()) if ax.images else None


def grid(fig, rows):
    return np.array(fig.axes, dtype=object).reshape(rows, -1)


def test_rows_have_labels_titles_and_blanks():
    x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    axes = grid(viz.draw_rows({"query": x[:3], "few": x[5:6], "many": x}, ["a", "b"]), 3)
    assert axes.shape == (3, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["query", "few", "many"]
    assert [ax.get_title() for ax in axes[0]] == ["a", "b", ""]
    assert shown(axes[1, 1]) is None and shown(axes[1, 2]) is None
    assert shown(axes[2, 2]) == pytest.approx(x[2].permute(1, 2, 0).numpy())
    assert grid(viz.draw_rows({"many": x}), 1).shape == (1, viz.MOST)


def test_rows_of_explanations_mark_those_that_are_not_valid():
    cfs = dataclasses.replace(move(make_case()), valid=torch.tensor([True, False, True, True]))
    axes = grid(viz.draw_rows({"query": cfs.query, "ACE": cfs}), 2)
    assert shown(axes[1, 1]) == pytest.approx(cfs.counterfactual[1].permute(1, 2, 0).numpy())
    red = [ax.spines["left"].get_edgecolor()[0] > 0.5 for ax in axes.flat]
    assert red == [k == 5 for k in range(8)]


def test_titles_name_the_target_and_failures():
    case = make_case()
    cfs = dataclasses.replace(move(case), valid=torch.tensor([True, False, True, True]))
    titles = viz.name_targets(cfs, ["dark", "bright"])
    wanted = [f"to {['dark', 'bright'][t]}" for t in cfs.target]
    assert titles == [wanted[0], f"{wanted[1]}\n(failed)", *wanted[2:]]


def test_masks_are_white_where_the_answer_may_differ():
    cfs, mask = move(make_case()), torch.zeros(4, 3, 16, 16, dtype=torch.bool)
    mask[1, :, 2:4] = True
    drawn = viz.draw_masks(dataclasses.replace(cfs, mask=mask))
    assert drawn.shape == (4, 3, 16, 16) and torch.equal(drawn.bool(), mask)
    with pytest.raises(ValueError, match="cfs: got a result without masks"):
        viz.draw_masks(cfs)


def test_the_path_counts_iterations():
    cfs = move(make_case())
    path = torch.rand(4, 5, 3, 16, 16)
    fig = viz.draw_path(dataclasses.replace(cfs, path=path, path_len=torch.full((4,), 5)), 2, 10)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles == ["query", "attack, 10", "attack, 20", "pre-CE", "ACE"]
    assert shown(fig.axes[3]) == pytest.approx(path[2, 3].permute(1, 2, 0).numpy())


def test_the_factors_that_moved_most_are_on_top():
    names = [f"f{i}" for i in range(15)]
    table = pd.DataFrame({"one": np.arange(15) / 20, "two": 0.1, "n, one": 3.0}, index=names)
    table.loc["f0", "two"] = 0.9
    ax = viz.plot_moved(table, 46).axes[0]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[:3] == ["f0", "f14", "f13"] and len(labels) == viz.N_FACTORS
    assert ax.yaxis_inverted() and "15 of 46" in ax.get_xlabel()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["one (n ≤ 3)", "two"]


def test_a_threshold_pastes_what_changed_most():
    case = make_case()
    cfs = move(case, left=towards(case))
    pre = cfs.counterfactual.clone()
    pre[:, :, :, stripes.STRIPES["shade"]] += 0.05  # a small change elsewhere
    low = viz.draw_threshold(case.classifier, cfs, pre, 0.01, 1)
    high = viz.draw_threshold(case.classifier, cfs, pre, 0.3, 1)
    area = (16 * 6) / (16 * 16)
    assert f"threshold 0.3: {area:.1%} of the image, flipped 1.00" == high.get_suptitle()
    assert f"{area:.1%}" not in low.get_suptitle()
    pasted = shown(grid(high, 2)[1, 0])
    assert pasted[:, :6] == pytest.approx(pre[0, :, :, :6].permute(1, 2, 0).numpy())
    assert pasted[:, 12:] == pytest.approx(cfs.query[0, :, :, 12:].permute(1, 2, 0).numpy())


def test_the_change_is_magnified_and_counted():
    cfs = move(make_case())
    x = cfs.query.clone()
    x[0, 0, :4] += 0.05  # a quarter of the pixels
    x[0, 0, 4:8] += 0.002  # too little to notice
    fig = viz.draw_change(dataclasses.replace(cfs, counterfactual=x), 4, "λ")
    assert [ax.get_title() for ax in fig.axes] == ["query", "answer", "change x 4"]
    assert fig.get_suptitle() == f"λ: p = {cfs.score[0]:.2f}, 25% of the pixels moved"
    assert shown(fig.axes[2])[0, 0] == pytest.approx(np.full(3, 0.2), abs=1e-6)


def test_seeds_stand_beside_the_query():
    case = make_case()
    one, two = (move(case, left=v) for v in (0.1, 0.9))
    fig = viz.draw_seeds(case.data.x, {"same": [one, two], "varied": [two, one]}, ["s0", "s1"])
    axes = grid(fig, 2)
    assert [ax.get_title() for ax in axes[0]] == ["query", "s0", "s1"]
    assert shown(axes[0, 1]) == pytest.approx(one.counterfactual[0].permute(1, 2, 0).numpy())
    assert shown(axes[1, 1]) == pytest.approx(two.counterfactual[0].permute(1, 2, 0).numpy())
