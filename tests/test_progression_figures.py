"""What the figures of progressions show: values, order, outlines, missing entries."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from cf_utils.evaluation.metrics.deletion import DeletionCurve
from cf_utils.viz import progressions


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_the_grid_shows_query_then_bins_with_both_numbers_and_the_outline():
    levels = torch.arange(8).view(2, 4) / 10
    images = levels[:, :, None, None, None].expand(2, 4, 1, 6, 6)
    masks = torch.zeros(2, 4, 6, 6, dtype=torch.bool)
    masks[:, 1:, 2:4, 2:4] = True  # the query's mask is empty
    numbers = levels + 1
    numbers[1, 3] = torch.nan
    fig = progressions.progression_grid(
        images[:, 0], images[:, 1:], levels[:, 0], levels[:, 1:] / 2, masks, numbers, ["one", "two"]
    )
    axes = np.array(fig.axes).reshape(2, 4)
    for i in range(2):
        for k in range(4):
            shown = axes[i, k].images[0].get_array()
            assert np.allclose(shown, levels[i, k])
            above = levels[i, k] / (1 if k == 0 else 2)
            second = "–" if (i, k) == (1, 3) else f"{numbers[i, k]:.2f}"
            assert axes[i, k].get_title() == f"{above:.2f}\n({second})"
            lines = [c for c in axes[i, k].collections if len(c.get_paths())]
            assert len(lines) == (k > 0)
        assert axes[i, 0].get_ylabel() == ("one", "two")[i]
    outline = axes[0, 1].collections[0].get_paths()[0].vertices
    assert outline.min() == 1.5 and outline.max() == 3.5  # half a pixel around rows 2 and 3


def test_bins_are_summarised_by_mean_and_quantiles_and_empty_ones_left_out():
    gen = torch.Generator().manual_seed(0)
    expected = torch.rand(40, 10, generator=gen)
    expected[expected < 0.2] = 1.0
    actual = expected.square()
    at, mean, low, high = progressions.summarise_by_bin(expected, actual)
    assert len(at) == 8
    for k in range(2, 10):
        inside = (expected >= k / 10) & ((expected < (k + 1) / 10) | (k == 9))
        values = actual[inside].double().numpy()
        assert mean[k - 2] == pytest.approx(values.mean())
        assert (low[k - 2], high[k - 2]) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
    fig = progressions.response_curves({"f": (expected, actual)}, "smile")
    diagonal, line = fig.axes[0].lines
    assert np.allclose(line.get_ydata(), mean) and np.allclose(diagonal.get_ydata(), [0, 1])
    assert "n = 40" in fig.axes[0].get_legend_handles_labels()[1][0]
    of_networks = progressions.response_curves({"f": (expected, actual)}, rows="networks").axes[0]
    assert of_networks.get_legend_handles_labels()[1] == ["f (40 networks)"]


def test_the_flip_matrix_frames_the_explained_attribute():
    table = pd.DataFrame({"a": [0.9, 0.1], "b": [0.0, 0.3], "c": [0.2, 0.8], "n": 5}, ["a", "c"])
    ax = progressions.flip_matrix(table).axes[0]
    assert [t.get_text() for t in ax.texts] == ["0.90", "0.00", "0.20", "0.10", "0.30", "0.80"]
    assert [(p.get_x() + 0.5, p.get_y() + 0.5) for p in ax.patches] == [(0, 0), (2, 1)]
    assert ax.images[0].get_clim() == (0, 1)


def test_deletion_curves_are_means_and_name_missing_maps():
    grid = torch.tensor([0.0, 0.5]).double()
    heights = torch.tensor([[1.0, 0.0], [1.0, 0.5]]).double()
    curves = {"ours": DeletionCurve(grid, heights, heights / 2), "LRP": "no rule"}
    ax = progressions.deletion_curves(curves, "probability").axes[0]
    assert ax.lines[0].get_ydata().tolist() == [1, 0.25]
    assert ax.lines[0].get_xdata().tolist() == [0, 50]
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["ours (area 0.62, n = 2)", "LRP: not available"]


def test_heart_sizes_leave_out_what_could_not_be_measured():
    expected = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    sizes = expected + 0.3
    sizes[0, :5] = torch.nan
    groups = {"healthy": torch.rand(4), "healthy_to_abnormal": torch.tensor([0.5, torch.nan])}
    groups |= {"abnormal": torch.tensor([]), "abnormal_to_healthy": torch.rand(3)}
    left, right = progressions.heart_size_plot(expected, sizes, groups, "ratio").axes
    y = left.lines[0].get_ydata()
    assert np.isfinite(y).all() and np.allclose(y - left.lines[0].get_xdata(), 0.3)
    labels = [t.get_text() for t in right.get_xticklabels()]
    assert [label.split("n = ")[1] for label in labels] == ["4", "1", "0", "3"]
    assert labels[1].startswith("healthy\n→ abnormal") and left.get_ylabel() == "ratio"


def test_the_true_sizes_are_a_second_line_and_unknown_sizes_leave_the_plot_empty():
    expected = torch.tensor([[0.05, 0.55], [0.15, 0.65]])
    groups = {k: torch.zeros(0) for k in ("healthy", "healthy_to_abnormal")}
    reference = torch.tensor([[1.0, 2.0], [torch.nan, 4.0]])
    left, _ = progressions.heart_size_plot(expected, 0 * expected, groups, "r", reference).axes
    (_, dashed) = left.lines
    assert np.allclose(dashed.get_xdata(), [0.05, 0.55, 0.65])
    assert np.allclose(dashed.get_ydata(), [1, 2, 4]) and dashed.get_linestyle() == "--"
    left, _ = progressions.heart_size_plot(expected, torch.nan * expected, groups).axes
    assert len(left.lines) == 1 and not len(left.lines[0].get_xdata())
