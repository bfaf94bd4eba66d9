"""Figures of Progressive Exaggeration (Singla et al., ICLR 2020), Figs. 2 to 4, 7 and 10 to 12."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.evaluation.metrics.deletion import DeletionCurve
from cf_utils.viz.plots import show

OUTLINE = "#f1c40f"  # of a mask, visible on grey and on colour
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#666666")
MARKERS = "os^Dv*P"  # of curves, in the order of `COLOURS`


def progression_grid(
    query: Tensor,
    progression: Tensor,
    query_response: Tensor,
    responses: Tensor,
    masks: Tensor | None = None,
    numbers: Tensor | None = None,
    names: Sequence[str] | None = None,
    panel: float = 0.95,
) -> Figure:
    """Draw each query and its K explanations in one row, the classifier's output above (Fig. 2).

    Args:
        query: (B, C, H, W); progression: (B, K, C, H, W); images in [0, 1].
        query_response: (B,), f(x); responses: (B, K), f(x_delta).
        masks: (B, 1 + K, H, W) bool, of query and explanations, drawn as outlines.
        numbers: (B, 1 + K), second numbers, such as the size of the heart, in parentheses.
        names: B names of the rows.
        panel: width of an image in inches.
    """
    rows, columns = progression.shape[:2]
    images = torch.cat([query[:, None], progression], 1)
    above = torch.cat([query_response[:, None].cpu(), responses.cpu()], 1)
    height = panel * query.shape[2] / query.shape[3] + (0.22 if numbers is None else 0.36)
    fig, axes = plt.subplots(
        rows, 1 + columns, figsize=(panel * (1 + columns) + 0.3, height * rows + 0.1), dpi=100,
        squeeze=False, layout="constrained", gridspec_kw={"width_ratios": [1.0] * (1 + columns)},
    )  # fmt: skip
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.0, hspace=0.0)
    for i, line in enumerate(axes):
        for k, ax in enumerate(line):
            show(ax, images[i, k])
            second = "" if numbers is None else f"\n({_format(numbers[i, k])})"
            ax.set_title(f"{_format(above[i, k])}{second}", fontsize=7, pad=2)
            if masks is not None:
                draw_outline(ax, masks[i, k])
        for side in line[0].spines.values():
            side.set(visible=True, linewidth=2, color="black")
        if names is not None:
            line[0].set_ylabel(names[i], fontsize=8)
    if names is None:
        axes[0, 0].set_ylabel("query", fontsize=8)
    return fig


def _format(value: Tensor) -> str:
    return "–" if value.isnan() else f"{float(value):.2f}"


def draw_outline(ax: Axes, mask: Tensor) -> None:
    """Draw the outline of a mask (H, W) bool over an image of the same size."""
    if mask.any() and not mask.all():
        ax.contour(mask.cpu().numpy().astype(float), [0.5], colors=OUTLINE, linewidths=1.0)


def response_curves(
    curves: Mapping[str, tuple[Tensor, Tensor]], label: str = "", bins: int = 10, rows: str = ""
) -> Figure:
    """Draw the actual against the expected response (Figs. 3, 11 and 12).

    A line shows the mean, a band the quantiles from 5 to 95 %, over the queries of each bin of the
    expected response. The dashed diagonal is a perfect response.

    Args:
        curves: name -> (expected, actual), both (B, K).
        label: name of class 1.
        rows: what the B rows are, if they are no queries, such as "networks".
    """
    height = 4.0 + 0.18 * len(curves)  # inches, with the legend
    fig, ax = plt.subplots(figsize=(4.2, height), dpi=100, layout="constrained")
    ax.plot([0, 1], [0, 1], "--", color="#999999", linewidth=1, zorder=1)
    colours = zip(curves.items(), _colours(curves), strict=True)
    for ((name, (expected, actual)), colour), mark in zip(colours, cycle(MARKERS), strict=False):
        at, mean, low, high = summarise_by_bin(expected, actual, bins)
        ax.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
        ax.plot(at, mean, f"{mark}-", color=colour, markersize=4.5)
        count = f"{len(expected)} {rows}" if rows else f"n = {len(expected)}"
        ax.lines[-1].set_label(f"{name} ({count})")
    what = f" for {label}" if label else ""
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set_xlabel(f"expected response f(x) + δ{what}")
    ax.set_ylabel(r"actual response f(x$_δ$)")
    title = f"mean of {rows}" if rows else "mean, and quantiles from 5 to 95 %"
    fig.legend(fontsize=9, loc="outside lower center", title=title, title_fontsize=9)
    return fig


def summarise_by_bin(
    expected: Tensor, actual: Tensor, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean expected response, and mean and 5 and 95 % quantiles of the actual one, per bin.

    Bins without a pair are left out. Arguments (B, K); returns four arrays of equal length.
    """
    x, y = (t.detach().cpu().double().flatten().numpy() for t in (expected, actual))
    own = np.clip((x * bins).astype(int), 0, bins - 1)
    groups = [(x[own == k], y[own == k]) for k in range(bins) if (own == k).any()]
    rows = [(a.mean(), b.mean(), *np.quantile(b, [0.05, 0.95])) for a, b in groups]
    at, mean, low, high = np.array(rows).reshape(-1, 4).T
    return at, mean, low, high


def flip_matrix(table: pd.DataFrame) -> Figure:
    """Draw `progression_effects.flip_matrix_table` as a heat map (Fig. 7), from 0 to 1.

    Rows are the explained attributes, columns those that flip; frames mark the diagonal.
    """
    names = [name for name in table.columns if name != "n"]
    values = table[names].to_numpy(dtype=float)
    size = (0.75 * len(names) + 2.0, 0.55 * len(values) + 1.3)
    fig, ax = plt.subplots(figsize=size, dpi=100, layout="constrained")
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize=9,
            color="white" if value > 0.6 else "black",
        )  # fmt: skip
        if table.index[i] == names[j]:
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="#d95f02", lw=2))
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(values)), list(table.index))
    ax.set_xlabel("attribute that flips")
    ax.set_ylabel("explained attribute")
    fig.colorbar(image, ax=ax, label="share of explanations")
    return fig


def deletion_curves(curves: Mapping[str, DeletionCurve | str], of: str = "accuracy") -> Figure:
    """Draw deletion curves, mean over images (Fig. 4c); the lower, the better the map.

    Maps that could not be computed (strings) are named in the legend. `of`: "accuracy" or
    "probability".
    """
    fig, ax = plt.subplots(figsize=(5.0, 3.6), dpi=100, layout="constrained")
    for (name, curve), colour in zip(curves.items(), _colours(curves), strict=True):
        if isinstance(curve, str):
            ax.plot([], [], " ", label=f"{name}: not available")
            continue
        style = {"linestyle": ":"} if name == "random" else {}
        area = float(curve.area(of).mean())
        height = getattr(curve, of).mean(0).numpy()
        text = f"{name} (area {area:.2f}, n = {len(curve)})"
        ax.plot(100 * curve.fractions.numpy(), height, color=colour, label=text, **style)
    ax.set(ylim=(0, 1.02), xlabel="pixels replaced by noise, most relevant first (%)")
    ax.set_xlim(left=0)
    ax.set_ylabel("accuracy" if of == "accuracy" else "probability of the class")
    ax.legend(fontsize=7)
    return fig


def heart_size_plot(
    expected: Tensor,
    sizes: Tensor,
    groups: Mapping[str, Tensor],
    unit: str = "heart size",
    reference: Tensor | None = None,
) -> Figure:
    """Draw size against the condition (Fig. 4a), and its distribution in four groups (Fig. 4b).

    Args:
        expected, sizes: (B, K), f(x) + delta and the size measured in each explanation.
        groups: of `progression_effects.heart_size_groups`; NaN are left out.
        unit: what the sizes are, for the axes.
        reference: (B, K), the true sizes at the condition, drawn as a dashed line.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), dpi=100, layout="constrained")
    known = ~sizes.isnan()
    at, mean, low, high = summarise_by_bin(expected[known], sizes[known])
    left.fill_between(at, low, high, color=COLOURS[0], alpha=0.18, linewidth=0, label="5–95 %")
    left.plot(at, mean, "o-", color=COLOURS[0], markersize=4, label=f"mean (n = {len(sizes)})")
    if reference is not None:
        known = ~reference.isnan()
        at, mean, *_ = summarise_by_bin(expected[known], reference[known])
        left.plot(at, mean, "--", color=COLOURS[-1], linewidth=1.5, label="renderer")
    left.set(xlabel="condition f(x) + δ", ylabel=unit, xlim=(0, 1))
    left.legend(fontsize=8, loc="upper left")
    values = [v[~v.isnan()].cpu().numpy() for v in groups.values()]
    drawn = [i for i, v in enumerate(values) if len(v)]
    if drawn:
        _draw_boxes(right, [values[i] for i in drawn], drawn)
    ticks = [
        f"{name.replace('_to_', chr(10) + '→ ')}\nn = {len(v)}"
        for name, v in zip(groups, values, strict=True)
    ]
    right.set_xticks(range(len(values)), ticks, fontsize=8)
    right.set(xlim=(-0.6, len(values) - 0.4), ylabel=unit)
    return fig


def _draw_boxes(ax: Axes, values: Sequence[np.ndarray], positions: Sequence[int]) -> None:
    """Draw a box per group; pairs of groups share a colour, the second of a pair paler."""
    parts = ax.boxplot(values, positions=positions, widths=0.6, patch_artist=True, showfliers=False)
    for box, i in zip(parts["boxes"], positions, strict=True):
        box.set(facecolor=COLOURS[i // 2], alpha=0.75 if i % 2 == 0 else 0.3)
    plt.setp(parts["medians"], color="black")


def _colours(names: Mapping[str, object]) -> list[str]:
    """Return one colour per name; `random` is grey."""
    free = [COLOURS[i % (len(COLOURS) - 1)] for i in range(len(names))]
    return [COLOURS[-1] if name == "random" else c for name, c in zip(names, free, strict=True)]
