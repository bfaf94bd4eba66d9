"""Figures of a diffusion model: noised, guessed, sampled and filtered images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.models.generators.schedule import Schedule
from cf_utils.viz.plots import show


def numbered_grid(images: Tensor, columns: int, panel: float = 1.1) -> Figure:
    """Draw images (N, C, H, W) in rows of `columns`, numbered from 1; `panel`: inches each."""
    rows = -(-len(images) // columns)
    size = (panel * columns, (panel + 0.2) * rows)
    fig, axes = plt.subplots(
        rows, columns, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(images) :]:
        ax.axis("off")
    for k, image in enumerate(images):
        show(axes.flat[k], image)
        axes.flat[k].set_title(k + 1, fontsize=8)
    return fig


def image_rows(
    rows: Mapping[str, Tensor], titles: Sequence[str] = (), panel: float = 1.2
) -> Figure:
    """Draw several rows of images, name -> (N, C, H, W), with the name on the left.

    Args:
        titles: of the columns. panel: width of an image in inches.
    """
    columns = max(map(len, rows.values()))
    size = (panel * columns + 0.3, panel * len(rows) + 0.3)
    fig, axes = plt.subplots(
        len(rows), columns, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax in line[len(images) :]:
            ax.axis("off")
        for ax, image in zip(line, images, strict=False):
            show(ax, image)
        line[0].set_ylabel(name, fontsize=9)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=9)
    return fig


def guess_rows(guesses: Mapping[float, tuple[Tensor, Tensor, float]], item: int) -> Figure:
    """Draw one item at several noise levels, and below it what the network guesses behind it.

    guesses: sigma -> noised images and guesses, (N, C, H, W) each, and an error that is not drawn.
    """
    noised, guessed = (torch.stack([one[k][item] for one in guesses.values()]) for k in (0, 1))
    titles = [f"σ = {sigma}" for sigma in guesses]
    return image_rows({"noised": noised, "estimate": guessed}, titles)


def forward_process(images: Tensor, levels: Sequence[int], schedule: Schedule) -> Figure:
    """Draw noised images (N, C, H, W) above the amplitudes of image and noise at every level.

    levels: N levels of the schedule, those of the images.
    """
    fig = plt.figure(figsize=(9, 3.3), dpi=100, layout="constrained")
    grid = fig.add_gridspec(2, len(levels), height_ratios=(1, 1.3))
    for k, (image, t) in enumerate(zip(images, levels, strict=True)):
        ax = fig.add_subplot(grid[0, k])
        show(ax, image)
        ax.set_title(f"t = {t}", fontsize=8)
    ax = fig.add_subplot(grid[1, :])
    ax.plot(schedule.abar.sqrt(), label=r"image, $\sqrt{\bar\alpha_t}$")
    ax.plot(schedule.sigma, label=r"noise, $\sigma_t$")
    ax.set(xlabel="t", ylabel="amplitude", ylim=(0, 1.02), xlim=(0, len(schedule) - 1))
    ax.legend(fontsize=8)
    return fig


def survival_map(table: pd.DataFrame) -> Figure:
    """Draw a table of correlations, one row per factor and one column per noise level."""
    fig, ax = plt.subplots(figsize=(4.6, 0.4 + 0.21 * len(table)), dpi=100, layout="constrained")
    bar = {"label": "correlation before and after"}
    sns.heatmap(table, vmin=0, vmax=1, cmap="viridis", ax=ax, yticklabels=True, cbar_kws=bar)
    ax.set(xlabel="noise level σ", ylabel="")
    ax.tick_params(labelsize=7)
    return fig
