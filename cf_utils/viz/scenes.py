"""Figures of wide images, such as roads: rows under one another, maps over images, curves, bars."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.viz.ace import draw_masks as masks
from cf_utils.viz.plots import show

PANEL = 1.75  # width of an image in inches


def gallery(images: Tensor, titles: Sequence[str], columns: int = 3, panel: float = 3.0) -> Figure:
    """Draw images (N, 3, H, W) with a title each, `panel` inches wide, some per line."""
    lines = -(-len(images) // columns)
    fig, axes = _axes(lines, columns, panel, images, extra=0.3)
    panels = [ax for line in axes for ax in line]
    for ax in panels[len(images) :]:
        ax.axis("off")
    for ax, image, title in zip(panels, images, titles, strict=False):
        show(ax, image)
        ax.set_title(title, fontsize=9)
    return fig


def scene_grid(
    rows: Mapping[str, Tensor], titles: Sequence[str] = (), panel: float = PANEL
) -> Figure:
    """Draw images (N, 3, H, W), one row per entry with its name, one column per item.

    titles: of the items, above the first row. panel: width of an image in inches.
    """
    first = next(iter(rows.values()))
    fig, axes = _axes(len(rows), len(first), panel, first)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            show(ax, image)
        line[0].set_ylabel(_wrap(name), fontsize=8)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=8)
    return fig


def explanation_grid(cfs: Counterfactuals, names: Sequence[str], n: int = 6) -> Figure:
    """Draw the first n queries, ACE's answers and their masks; failures are marked in the title.

    names: of the two classes.
    """
    rows = {"query": cfs.query, "ACE": cfs.counterfactual, "mask": masks(cfs)}
    pairs = zip(cfs.source[:n].tolist(), cfs.target[:n].tolist(), cfs.valid[:n], strict=True)
    titles = [f"{names[s]}\nto {names[t]}" + ("" if ok else "\n(failed)") for s, t, ok in pairs]
    return scene_grid({name: images[:n] for name, images in rows.items()}, titles)


def answer_grid(found: Mapping[str, Counterfactuals], names: Sequence[str], n: int = 6) -> Figure:
    """Draw the first n queries, and under each the answers of several methods, one row per method.

    names: of the two classes.
    """
    first = next(iter(found.values()))
    rows = {"query": first.query, **{name: cfs.counterfactual for name, cfs in found.items()}}
    titles = [f"to {names[t]}" for t in first.target[:n].tolist()]
    panel = PANEL if len(titles) > 3 else 1.5 * PANEL
    return scene_grid({name: images[:n] for name, images in rows.items()}, titles, panel)


def overlay(ax: Axes, image: Tensor, m: Tensor) -> None:
    """Draw a map (H, W) >= 0 in red, scaled by its maximum, over the grey image (3, H, W)."""
    share = (m / m.max().clamp(min=1e-12)).clamp(0, 1).cpu().numpy()
    ax.imshow(image.mean(0).cpu(), cmap="gray", vmin=-1, vmax=1)
    ax.imshow(share, cmap="Reds", vmin=-0.6, vmax=1, alpha=share**0.5)
    ax.set(xticks=[], yticks=[])


def overlay_grid(
    images: Tensor, maps: Mapping[str, Tensor], titles: Sequence[str], n: int = 6
) -> Figure:
    """Draw the first n images (B, 3, H, W), and under each its maps (B, H, W) over the grey image.

    Each map has a scale of its own.
    """
    fig, axes = _axes(len(maps) + 1, min(n, len(images)), PANEL, images, extra=0.3)
    for i, ax in enumerate(axes[0]):
        show(ax, images[i])
        ax.set_title(titles[i], fontsize=8)
    for line, m in zip(axes[1:], maps.values(), strict=True):
        for i, ax in enumerate(line):
            overlay(ax, images[i], m[i].double())
    for line, name in zip(axes, ["query", *maps], strict=True):
        line[0].set_ylabel(_wrap(name), fontsize=8)
    return fig


def window_curves(window: pd.DataFrame, steps: int) -> Figure:
    """Draw what a filter keeps and what it undoes against its noise level.

    Args:
        window: of `road_arms.filter_window`, with one row per number of steps.
        steps: the row of the method's own level, which a dotted line marks.
    """
    fig, ax = plt.subplots(figsize=(5.4, 2.8), dpi=100, layout="constrained")
    counts = {"decisions kept": "n", "PGD undone": "n_pgd"}
    for (column, n), colour in zip(counts.items(), sns.color_palette("colorblind"), strict=False):
        label = f"{column} (n {window[n].iloc[0]})"
        ax.plot(window["sd of the noise"], window[column], "o-", color=colour, label=label)
    own = window["sd of the noise"][steps]
    ax.axvline(own, color="grey", linestyle=":", label="ACE's level")
    ax.set_xlabel("standard deviation of the noise, images in [-1, 1]")
    ax.set(ylabel="share", ylim=(-0.04, 1.04))
    ax.legend(fontsize=8)
    sns.despine(fig)
    return fig


def moved_bars(moved: pd.DataFrame, n: int = 12) -> Figure:
    """Draw how often each factor moved for several classifiers, the n largest bars.

    Args:
        moved: of `road_truth.compare_moves`: one row per factor, one column of shares per
            classifier, and the column "R2 of the oracle"; `attrs["n"]` holds the numbers of
            explanations.
    """
    bars, r2 = moved.drop(columns="R2 of the oracle"), moved["R2 of the oracle"]
    top = bars.loc[bars.max(axis=1).sort_values(ascending=False, kind="stable").index[:n]]
    top = top.rename(index=lambda k: f"{k} (R² {r2[k]:.2f})")
    fig, ax = plt.subplots(figsize=(6, 3.6), dpi=100, layout="constrained")
    top.plot.barh(ax=ax, color=sns.color_palette("colorblind", len(bars.columns)))
    n_text = ", ".join(map(str, moved.attrs["n"]))
    ax.set_xlabel(f"share of valid explanations in which it moved (n {n_text})")
    ax.invert_yaxis()
    sns.despine(fig)
    return fig


def _wrap(name: str) -> str:
    """Break the name of a row into lines that fit beside an image."""
    return "\n".join(textwrap.wrap(name, 14))


def _axes(
    rows: int, columns: int, panel: float, images: Tensor, extra: float = 0.45
) -> tuple[Figure, list[list[Axes]]]:
    """Return panels of the images' proportions; `extra` inches are left for titles."""
    height = panel * images.shape[2] / images.shape[3] + 0.08
    size = (panel * columns + 0.5, height * rows + extra)
    fig, axes = plt.subplots(
        rows, columns, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    return fig, axes
