"""Figures that several notebooks draw: fixed ranges, one scale per figure, failures marked."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor
from torchvision.utils import make_grid

from cf_utils.core import Counterfactuals

FAILED = "#c0392b"  # colour of failures
LONGEST = 14  # characters of a class name that fit over a panel


def show(ax: Axes, image: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """Show one image (C, H, W), C = 1 (grey) or 3, with a fixed range of values."""
    a = image.detach().cpu().float().numpy()
    pixels = a[0] if len(a) == 1 else np.moveaxis(a, 0, -1).clip(0, 1)
    ax.imshow(pixels, cmap="gray", vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])


def show_change(ax: Axes, before: Tensor, after: Tensor, scale: float) -> None:
    """Show the signed change of an image (C, H, W), summed over channels: red added, blue removed.

    `scale`: the change at which red and blue are strongest.
    """
    change = (after - before).detach().cpu().float().sum(0).numpy()
    ax.imshow(change, cmap="RdBu_r", vmin=-scale, vmax=scale)
    ax.set(xticks=[], yticks=[])


def frame(ax: Axes, colour: str) -> None:
    """Draw a coloured border around the panel `ax`, which marks it without covering it."""
    for side in ax.spines.values():
        side.set(visible=True, color=colour, linewidth=2.5)


def grid(
    cfs: Counterfactuals,
    n: int = 8,
    rows: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw query, counterfactual and signed change of n items, one per column.

    A red border marks counterfactuals that did not reach the target. `rows`: items to draw, default
    the first n. `names`: of the classes; their numbers are shown if there are none, or long ones.
    """
    rows = list(range(min(n, len(cfs)))) if rows is None else list(rows)
    scale = max(float((cfs.counterfactual - cfs.query)[rows].abs().sum(1).max()), 1e-6)
    size = (1.2 * len(rows) + 0.4, 4.0)
    fig, axes = plt.subplots(
        3, len(rows), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for column, i in zip(axes.T, rows, strict=True):
        show(column[0], cfs.query[i])
        show(column[1], cfs.counterfactual[i])
        show_change(column[2], cfs.query[i], cfs.counterfactual[i], scale)
        column[0].set_title(_name_change(cfs, i, names), fontsize=10)
        if not cfs.reached[i]:
            frame(column[1], FAILED)
    labels = ("query", "counterfactual", f"change\n(±{scale:.2g})")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label, fontsize=9)
    return fig


def _name_change(cfs: Counterfactuals, i: int, names: Sequence[str]) -> str:
    """Return "old → new" of item i, with names on two lines if both are known and all fit."""
    old, new = int(cfs.source[i]), int(cfs.target[i])
    if max(old, new) < len(names) and max(map(len, names)) <= LONGEST:
        return f"{names[old]}\n→ {names[new]}"
    return f"{old} → {new}"


def methods_grid(
    results: dict[str, Counterfactuals], rows: Sequence[int], agree: dict[str, Tensor] | None = None
) -> Figure:
    """Draw counterfactuals, one row per method and one column per item.

    A red border marks those that did not reach the target.

    Args:
        results: method -> counterfactuals of the same queries.
        rows: items to draw.
        agree: method -> (B,) bool, whether judges see the target; shown as tick or cross.
    """
    first = next(iter(results.values()))
    size = (1.0 * len(rows) + 1.1, 1.12 * (1 + len(results)) + 0.3)
    fig, axes = plt.subplots(
        1 + len(results), len(rows), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for ax, i in zip(axes[0], rows, strict=True):
        show(ax, first.query[i])
        ax.set_title(f"{int(first.source[i])} → {int(first.target[i])}", fontsize=10)
    axes[0, 0].set_ylabel("query", fontsize=8)
    for line, (name, cfs) in zip(axes[1:], results.items(), strict=True):
        for ax, i in zip(line, rows, strict=True):
            show(ax, cfs.counterfactual[i])
            if not cfs.reached[i]:
                frame(ax, FAILED)
            elif agree is not None:
                _mark_agreement(ax, bool(agree[name][i]))
        line[0].set_ylabel(name, fontsize=8)
    return fig


def _mark_agreement(ax: Axes, agree: bool) -> None:
    symbol, colour = ("✓", "#2ecc71") if agree else ("✗", "#f1c40f")
    place = {"ha": "right", "va": "bottom", "transform": ax.transAxes}
    ax.text(0.97, 0.03, symbol, color=colour, fontsize=11, **place)


def strip(states: Tensor, titles: Sequence[str], width: float = 1.15) -> Figure:
    """Draw the states of a search (S, C, H, W) side by side, `width` inches each."""
    size = (width * len(states), width + 0.45)
    fig, axes = plt.subplots(
        1, len(states), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for ax, state, title in zip(axes[0], states, titles, strict=True):
        show(ax, state)
        ax.set_title(title, fontsize=8)
    return fig


def mosaic(images: Tensor, columns: int, panel: float) -> Figure:
    """Draw many images (N, C, H, W) in a single panel, `panel` inches wide each.

    Much faster than one panel per image.
    """
    tiles = images.detach().cpu().float()
    gap = max(images.shape[-1] // 32, 1)
    whole = make_grid(tiles, columns, padding=gap, pad_value=1.0)
    width = panel * min(columns, len(images))
    fig = plt.figure(figsize=(width, width * whole.shape[1] / whole.shape[2]), dpi=100)
    ax = fig.add_axes((0, 0, 1, 1))
    show(ax, whole)
    ax.axis("off")
    return fig


def draw_box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str, size: float = 9
) -> None:
    """Draw a rounded box with text in it; x, y, w, h in data coordinates, `size` of the font."""
    style = "round,pad=0.02,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=colour, ec="#444444", lw=1))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)
