"""Figures of ACE: rows of images, masks, and the factors that explanations moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.explainers.shared.inpaint import change_mask
from cf_utils.models.classifiers import predict
from cf_utils.viz import plots

MOST = 6  # columns of a figure; more would lose their colours in a file of 150 kB
NOTICEABLE = 0.01  # change of a pixel, summed over channels
N_FACTORS = 12  # bars of the figure of moved factors


def draw_rows(
    rows: Mapping[str, Tensor | Counterfactuals],
    titles: Sequence[str] = (),
    scale: float = 1.15,
    most: int = MOST,
) -> Figure:
    """Draw rows of images below one another.

    Args:
        rows: label -> images (N, C, H, W); a row may have fewer images than the first one. Of
            explanations, the counterfactuals are drawn, with a red border where they are not valid.
        titles: of the first columns.
        scale: side of an image in inches.
        most: columns that are drawn.
    """
    n = min(most, len(next(iter(rows.values()))))
    size = (scale * n + 0.6, scale * len(rows) + 0.2)
    fig, axes = plt.subplots(
        len(rows), n, figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        images = row.counterfactual if isinstance(row, Counterfactuals) else row
        line[0].set_ylabel(label, fontsize=8)
        if isinstance(row, Counterfactuals):
            for k in (~row.valid[:n]).nonzero().flatten().tolist():
                plots.frame(line[k], plots.FAILED)
        for ax, image in zip(line, images, strict=False):
            plots.show(ax, image)
        for ax in line[len(images) :]:
            ax.axis("off")
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=8)
    return fig


def draw_masks(cfs: Counterfactuals) -> Tensor:
    """Return masks as images (B, 3, H, W): white where the explanation may differ."""
    if cfs.mask is None:
        raise ValueError("cfs: got a result without masks, expected one of ACE")
    return cfs.mask[:, :1].expand(-1, 3, -1, -1).float()


def name_targets(cfs: Counterfactuals, names: Sequence[str]) -> list[str]:
    """Return a title per item: its target, and whether the search failed."""
    pairs = zip(cfs.target.tolist(), cfs.valid.tolist(), strict=True)
    return [f"to {names[t]}" + ("" if valid else "\n(failed)") for t, valid in pairs]


def draw_path(cfs: Counterfactuals, item: int, trace: int) -> Figure:
    """Draw the path of one item: query, states of the attack, pre-explanation, and the answer.

    `trace`: iterations between two states.
    """
    assert cfs.path is not None
    states = cfs.path[item]
    names = [f"attack, {trace * (k + 1)}" for k in range(len(states) - 3)]
    return draw_rows({"": states}, ["query", *names, "pre-CE", "ACE"], most=len(states))


def plot_moved(table: pd.DataFrame, n_factors: int) -> Figure:
    """Plot in which share of explanations each factor moved, for the factors that moved most.

    Args:
        table: factor x classifier; columns that begin with "n, " hold the numbers of explanations.
        n_factors: number of factors of the world.
    """
    shares = table[[name for name in table.columns if not name.startswith("n, ")]]
    numbers = {k: f"{k} (n ≤ {table['n, ' + k].max():.0f})" for k in shares if "n, " + k in table}
    top = shares.loc[shares.max(axis=1).sort_values(ascending=False).index[:N_FACTORS]]
    fig, ax = plt.subplots(figsize=(6, 3.6), dpi=100, layout="constrained")
    colours = sns.color_palette("colorblind", shares.shape[1])
    top.rename(columns=numbers).plot.barh(ax=ax, color=colours)
    ax.set(xlabel=f"share of explanations that move it ({len(table)} of {n_factors} are readable)")
    ax.invert_yaxis()
    sns.despine(fig)
    return fig


def draw_seeds(
    query: Tensor, answers: Mapping[str, Sequence[Counterfactuals]], heads: Sequence[str]
) -> Figure:
    """Draw the first query (B, C, H, W) and its answers by several seeds, one row per way.

    Args: answers: way -> one result per seed; heads: a title per seed.
    """
    rows = {
        way: torch.cat([query[:1], *(cfs.counterfactual[:1] for cfs in results)])
        for way, results in answers.items()
    }
    return draw_rows(rows, ["query", *heads])


def draw_threshold(
    f: nn.Module, cfs: Counterfactuals, pre: Tensor, threshold: float, dilation: int
) -> Figure:
    """Draw the masks of a threshold, and the pre-explanations pasted into the queries by them.

    The title says how much of the images the masks cover, and how many decisions still flip.

    Args: f: the explained classifier; pre: pre-explanations (B, 3, H, W) of `cfs`.
    """
    query, target, pre = cfs.query[:MOST], cfs.target[:MOST], pre[:MOST]
    mask = change_mask(query, pre, threshold, dilation).float()
    pasted = query * (1 - mask) + pre * mask
    flipped = (predict(f, pasted).argmax(1) == target).double().mean()
    fig = draw_rows({"mask": mask, "pasted": pasted}, scale=0.9)
    title = f"threshold {threshold:g}: {mask.mean():.1%} of the image, flipped {flipped:.2f}"
    fig.suptitle(title, fontsize=9)
    return fig


def draw_change(cfs: Counterfactuals, gain: float, name: str) -> Figure:
    """Draw the first item, its answer, and the size of its change times `gain`.

    The title has `name`, the score, and the share of pixels that change noticeably.
    """
    size = (cfs.counterfactual - cfs.query)[:1].abs().sum(1, keepdim=True)
    shown = [cfs.query[:1], cfs.counterfactual[:1]]
    shown.append((gain * size).clamp(0, 1).expand(-1, 3, -1, -1))
    fig = draw_rows({"": torch.cat(shown)}, ["query", "answer", f"change x {gain:g}"], 1.6)
    share = (size > NOTICEABLE).double().mean()
    fig.suptitle(f"{name}: p = {cfs.score[0]:.2f}, {share:.0%} of the pixels moved", fontsize=9)
    return fig
