"""Figures of counterfactual digits: blocks of a search, thresholds, logits, relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils import core
from cf_utils.viz import plots

SIDE = 4  # of a block, in pixels


def plot_sensitivity(x: Tensor, gradient: Tensor, title: str) -> Figure:
    """Draw a digit (1, H, W), its absolute gradient, and the gradient's mean over blocks."""
    index, n = core.block_index(x.shape, (SIDE, SIDE))
    pooled = core.block_mean(gradient[None], index, n)[0][index]
    fig, axes = plt.subplots(1, 3, figsize=(6.6, 2.5), layout="constrained")
    plots.show(axes[0], x)
    axes[0].set_title(title)
    titles = ("|gradient| per pixel", "mean per block")
    for ax, image, name in zip(axes[1:], (gradient[0], pooled[0]), titles, strict=True):
        ax.imshow(image, cmap="magma")
        ax.set(title=name, xticks=[], yticks=[])
    return fig


def plot_path(states: Tensor, scores: Tensor) -> Figure:
    """Draw the states (S, 1, H, W) of a search; a red outline marks the newly unmasked block."""
    titles = [f"{k} block{'s' * (k != 1)}\np = {p:.2f}" for k, p in enumerate(scores.tolist())]
    fig = plots.strip(states, titles)
    index, n = core.block_index(states.shape[1:], (SIDE, SIDE))
    touched = core.block_mean((states - states[:1]).abs(), index, n) > 0  # (S, blocks)
    for k in range(1, len(states)):
        for block in (touched[k] & ~touched[k - 1]).nonzero().flatten():
            row, column = (index[0] == block).nonzero()[0].tolist()
            corner = column - 0.5, row - 0.5
            outline = plt.Rectangle(corner, SIDE, SIDE, fill=False, ec="red", lw=1.5)
            fig.axes[k].add_patch(outline)
    return fig


def plot_logits(image: Tensor, logits: Tensor, prototype: Tensor, target: int, title: str) -> None:
    """Draw a digit beside its logits (K,) and the target's mean logits (K,)."""
    _, (left, right) = plt.subplots(
        1, 2, figsize=(6.5, 2.5), layout="constrained", width_ratios=(1, 2)
    )
    plots.show(left, image)
    classes = range(len(logits))
    colours = ["#c0392b" if k == target else "#95a5a6" for k in classes]
    right.bar(classes, logits, color=colours, label=f"logits (dark: {target})")
    right.plot(classes, prototype, "k_", ms=14, label="mean of the target's training digits")
    right.set(xticks=classes, ylim=(-30, 30), title=title)
    right.legend(fontsize=9, loc="upper right")
    plt.show()


def plot_tau(curve: pd.DataFrame) -> Figure:
    """Draw `evaluation.digits.follow_tau`: shares at the left, changed blocks at the right."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    odds = np.log10(1 / (1 - curve["tau"]))
    for column, style in (("judges (reached)", "o-"), ("judges (all)", "s--"), ("reached", "^:")):
        left.plot(odds, curve[column], style, label=column)
    right.plot(odds, curve["blocks"], "o-")
    for ax, title in ((left, "share of digits"), (right, "blocks changed, of 49")):
        ax.set(title=title, xlabel="τ", xticks=odds, ylim=(0, None))
        ax.set_xticklabels([f"{t:g}" for t in curve["tau"]], rotation=60)
    left.legend(fontsize=9)
    sns.despine(fig)
    return fig


def plot_class_logits(logits: Mapping[str, Tensor]) -> Figure:
    """Draw boxes of the logits (N, K) of several sets of images, class by class."""
    frames = [
        pd.DataFrame(z.numpy())
        .melt(var_name="class", value_name="logit")
        .assign(of=f"{name} (n = {len(z)})")
        for name, z in logits.items()
    ]
    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    sns.boxplot(pd.concat(frames), x="class", y="logit", hue="of", fliersize=1, linewidth=0.7)
    ax.legend(fontsize=9, title=None)
    sns.despine(fig)
    return fig


def plot_relevance(
    images: Tensor, relevance: Tensor, titles: Sequence[str], labels: Sequence[str]
) -> Figure:
    """Draw digits (N, 1, H, W) above their relevance: red supports the class, blue opposes it."""
    size = 1.5 * len(images), 3.4
    fig, axes = plt.subplots(2, len(images), figsize=size, layout="constrained", squeeze=False)
    scale = relevance.abs().max().item()
    for j, (top, bottom) in enumerate(axes.T):
        plots.show(top, images[j])
        top.set_title(titles[j], fontsize=9)
        bottom.imshow(relevance[j, 0].detach(), cmap="RdBu_r", vmin=-scale, vmax=scale)
        bottom.set(xticks=[], yticks=[])
        bottom.set_xlabel(labels[j], fontsize=9)
    return fig


def plot_changes(query: Tensor, images: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """Draw altered copies of a digit (1, H, W), one per row, beside the query and the change.

    All changes share one scale. `titles` stand above the copies.
    """
    scale = max(float((z - query).abs().max()) for z in images.values())
    size = 6.6, 2.45 * len(images)
    fig, axes = plt.subplots(len(images), 3, figsize=size, layout="constrained", squeeze=False)
    for row, (name, z), title in zip(axes, images.items(), titles, strict=True):
        plots.show(row[0], query)
        plots.show(row[1], z)
        plots.show_change(row[2], query, z, scale)
        row[0].set_ylabel(name, fontsize=11)
        row[0].set_title("query", fontsize=10)
        row[1].set_title(title, fontsize=10)
        row[2].set_title(f"change, at most {float((z - query).abs().max()):.2f}", fontsize=10)
    fig.suptitle(f"one scale for all changes: ±{scale:.2f}; red added, blue removed", fontsize=9)
    return fig


def plot_votes(
    images: Mapping[str, Tensor], votes: Mapping[str, Tensor], source: Tensor, target: Tensor
) -> Figure:
    """Draw digits, one row per kind and one column per item, with what the judges see in a corner.

    Args:
        images: label -> (N, 1, H, W).
        votes: label -> the judges' class (N,), -1 where no majority exists.
        source, target: classes (N,).
    """
    n = len(source)
    size = n + 0.4, 1.15 * len(images)
    fig, axes = plt.subplots(len(images), n, figsize=size, layout="constrained", squeeze=False)
    for row, (name, x) in zip(axes, images.items(), strict=True):
        for ax, image, seen, wanted in zip(row, x, votes[name], target, strict=True):
            plots.show(ax, image)
            text = f"{int(seen)}{'✓' if seen == wanted else ''}" if seen >= 0 else "?"
            colour = "#2ecc71" if seen == wanted else "#f1c40f"
            place = {"ha": "right", "weight": "bold", "transform": ax.transAxes}
            ax.text(0.96, 0.03, text, color=colour, fontsize=12, **place)
        row[0].set_ylabel(name)
    for ax, before, after in zip(axes[0], source.tolist(), target.tolist(), strict=True):
        ax.set_title(f"{before} → {after}", fontsize=10)
    note = "corner: what the judges see (green with ✓: the target; yellow: not; ?: no majority)"
    fig.suptitle(note, fontsize=9)
    return fig
