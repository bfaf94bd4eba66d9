"""Figures of patients of several CT slices: Figs. 2 and 3 of DiffExplainer (Fang et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.viz.plots import show
from cf_utils.viz.progressions import draw_outline

SCALE = 250.0  # HU at which red and blue are strongest


def slice_grid(rows: Mapping[str, Tensor], names: Sequence[str] = (), panel: float = 1.5) -> Figure:
    """Draw patients (S, H, W), one per row with its name, one slice per column.

    names: of the slices, above the first row.
    """
    fig, axes = _axes(len(rows), len(next(iter(rows.values()))), panel)
    for line, (name, patient) in zip(axes, rows.items(), strict=True):
        for ax, plane in zip(line, patient, strict=True):
            show(ax, plane[None])
        line[0].set_ylabel(name, fontsize=9)
    for ax, name in zip(axes[0], names, strict=False):
        ax.set_title(name, fontsize=9)
    return fig


def draw_change(ax: Axes, change: Tensor, scale: float = SCALE) -> None:
    """Draw a signed change (H, W) in HU: red is added, blue is removed."""
    ax.imshow(change.detach().cpu().numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale)
    ax.set(xticks=[], yticks=[])


def both_ways(
    down: Tensor,
    up: Tensor,
    scores: tuple[Tensor, Tensor],
    names: tuple[str, str],
    scale: float = 1.0,
) -> Figure:
    """Draw one slice on its way to either class (Fig. 2), and what has changed at the end.

    Args:
        down, up: (K, H, W), from the reconstruction to class 0, and to class 1.
        scores: probability of class 1 of their states, (K,) each.
        names: of the classes.
        scale: values of x per HU, to convert the change.
    """
    fig, axes = _axes(2, len(up) + 1, 2.0)
    for line, states, p, name in zip(axes, (up, down), scores[::-1], names[::-1], strict=True):
        for ax, state, value in zip(line, states, p, strict=False):
            show(ax, state[None])
            ax.set_title(f"{value:.2f}", fontsize=9)
        draw_change(line[-1], (states[-1] - states[0]) / scale)
        line[-1].set_title(f"change, ±{SCALE:g} HU", fontsize=9)
        line[0].set_ylabel(f"→ {name}", fontsize=9)
    return fig


def change_grid(
    before: Tensor,
    after: Mapping[str, Tensor],
    names: Sequence[str],
    scale: float,
    outline: Tensor | None = None,
) -> Figure:
    """Draw the slices of a patient in a row, and below each counterfactual and what it changes.

    Args:
        before: (S, H, W), the reconstruction.
        after: name -> counterfactual (S, H, W).
        names: of the slices. scale: values of x per HU.
        outline: bool (S, H, W), true voxels, outlined in the changes.
    """
    fig, axes = _axes(1 + 2 * len(after), len(before), 1.5)
    for ax, plane, name in zip(axes[0], before, names, strict=True):
        show(ax, plane[None])
        ax.set_title(name, fontsize=9)
    axes[0, 0].set_ylabel("reconstruction", fontsize=9)
    for k, (name, patient) in enumerate(after.items()):
        for i, (ax, below) in enumerate(zip(axes[2 * k + 1], axes[2 * k + 2], strict=True)):
            show(ax, patient[i][None])
            draw_change(below, (patient[i] - before[i]) / scale)
            if outline is not None:
                draw_outline(below, outline[i])
        axes[2 * k + 1, 0].set_ylabel(name, fontsize=9)
        axes[2 * k + 2, 0].set_ylabel("change", fontsize=9)
    return fig


def map_grid(
    images: Tensor,
    truth: Tensor,
    maps: Mapping[str, Tensor | str],
    signed: Collection[str] = (),
    columns: int = 6,
) -> Figure:
    """Draw slices, and every method's map of them (Fig. 3), with the true voxels outlined.

    Args:
        images (B, H, W); truth bool (B, H, W).
        maps: method -> (B, H, W) or the reason why there is none, which is left out. Each is drawn
            from 0 to its own 99.5 % quantile; those in `signed` from minus that, in red and blue.
        columns: panels in a line; an image takes as many lines as it needs.
    """
    drawn = {name: m for name, m in maps.items() if isinstance(m, Tensor)}
    columns = min(columns, 1 + len(drawn))
    lines = -(-(1 + len(drawn)) // columns)
    fig, axes = _axes(lines * len(images), columns, 1.6)
    for i, image in enumerate(images):
        panels = [ax for line in axes[i * lines : (i + 1) * lines] for ax in line]
        show(panels[0], image[None])
        panels[0].set_title("query", fontsize=9)
        draw_outline(panels[0], truth[i])
        for ax, (name, m) in zip(panels[1:], drawn.items(), strict=False):
            high = max(float(torch.quantile(m[i].abs().float().flatten(), 0.995)), 1e-12)
            style = ("RdBu_r", -high) if name in signed else ("magma", 0.0)
            ax.imshow(m[i].detach().cpu().numpy(), cmap=style[0], vmin=style[1], vmax=high)
            ax.set(xticks=[], yticks=[])
            ax.set_title(name.replace("_", " "), fontsize=9)
            draw_outline(ax, truth[i])
        for ax in panels[1 + len(drawn) :]:
            ax.axis("off")
    return fig


def _axes(rows: int, columns: int, panel: float) -> tuple[Figure, list[list[Axes]]]:
    size = (panel * columns + 0.3, panel * rows + 0.3)
    fig, axes = plt.subplots(
        rows, columns, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    fig.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    return fig, axes
