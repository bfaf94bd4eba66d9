"""Figures and tables of advice to applicants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from torch import nn

from cf_utils.core import Counterfactuals
from cf_utils.datasets.tabular import Table
from cf_utils.evaluation import advice
from cf_utils.evaluation.metrics import decision
from cf_utils.models import classifiers
from cf_utils.viz import plots

Results = Mapping[str, Counterfactuals]  # by the name that is shown
COLOURS = ("#1f77b4", "#e67e22")  # of two people


def compare_advice(results: Results, i: int, classifier: nn.Module, table: Table) -> pd.DataFrame:
    """Return the changed features of row i in units, one column per method after "applicant".

    The last two rows are the probability of approval and the number of changed features.
    """
    first = next(iter(results.values()))
    columns = {"applicant": first.query[i]} | {k: c.counterfactual[i] for k, c in results.items()}
    x = torch.stack(list(columns.values()))
    moved = (x - x[0]).abs() >= decision.MIN_CHANGE
    units = table.to_units(x).T.set_axis(columns, axis=1)[moved.any(0).tolist()]
    units.loc["p(approved)"] = classifiers.predict(classifier, x).softmax(1)[:, 1].tolist()
    units.loc["features changed"] = moved.sum(1).tolist()
    return units


def style_advice(units: pd.DataFrame, table: Table) -> Styler:
    """Show `compare_advice`: changed values bold, and red and underlined if they do not occur."""

    def css(line: pd.Series) -> list[str]:
        if line.name not in table.features:
            return [""] * len(line)
        k = table.features.index(str(line.name))
        moved = (line - line.iloc[0]).abs() >= decision.MIN_CHANGE * table.span[k].item()
        fits = line.between(table.low[k].item() - 1e-6, table.high[k].item() + 1e-6)
        bad = f"; color: {plots.FAILED}; text-decoration: underline"
        return [
            f"font-weight: bold{'' if fit else bad}" if m else ""
            for m, fit in zip(moved, fits, strict=True)
        ]

    return units.style.apply(css, axis=1).format("{:,.4g}")


def plot_features(share: pd.DataFrame, rates: pd.DataFrame, title: str) -> Figure:
    """Draw which features change: directions of one method, and the rates of all methods.

    Args:
        share: of `advice.count_directions`.
        rates: of `advice.change_rates`.
        title: name of the method of `share`.
    """
    top = share.sum(axis=1).sort_values(ascending=False).index[:12].tolist()
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4.4), layout="constrained", width_ratios=(1, 1.35)
    )
    ways = share.columns.get_level_values(0).unique()
    for k, (way, colour, hatch) in enumerate(
        zip(ways, ("#1e8449", plots.FAILED), ("", "//"), strict=True)
    ):
        at = [i + 0.2 - 0.4 * (1 - k) for i in range(len(top))]
        style = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        left.barh(at, share[(way, "rises")][top], 0.38, label=way, **style)
        left.barh(at, -share[(way, "falls")][top], 0.38, **style)
    left.axvline(0, color="k", linewidth=0.8)
    left.set(yticks=range(len(top)), yticklabels=top, xlim=(-1, 1), title=title)
    left.set(xlabel="share of rows: falls  |  rises", xticks=(-1, -0.5, 0, 0.5, 1))
    left.invert_yaxis()
    left.legend(fontsize=9, loc="lower right")
    sns.heatmap(
        rates.loc[top], cmap="Greens", vmin=0, vmax=1, annot=True, fmt=".2f", ax=right, cbar=False
    )
    right.set(title="share of rows that change a feature, every method", yticks=[])
    names = [name.replace(", ", ",\n").replace(" Sph", "\nSph") for name in rates]
    right.set_xticklabels(names, fontsize=9, rotation=0)
    return fig


def plot_pairs(results: Results, pairs: Mapping[str, tuple[int, int]], table: Table) -> Figure:
    """Draw two neighbours and their advice, one row per pair and one column per method.

    Args:
        results: methods to show.
        pairs: label -> positions of two neighbours.
    """
    size = (2.5 * len(results), 2.4 * len(pairs))
    fig, axes = plt.subplots(
        len(pairs), len(results), figsize=size, sharex=True, sharey="row", layout="constrained"
    )
    for line, (name, pair) in zip(axes, pairs.items(), strict=True):
        moves = [(c.counterfactual - c.query)[list(pair)].abs().amax(0) for c in results.values()]
        shown = torch.stack(moves).amax(0).argsort(descending=True)[:6].tolist()
        for ax, (method, cfs) in zip(line, results.items(), strict=True):
            _draw_pair(ax, cfs, pair, shown)
            ratio = advice.ratio_of_pair(cfs, *pair)
            ax.set_title(f"{method}: {ratio:.2f}", fontsize=9)
        line[0].set(yticks=range(len(shown)), ylim=(len(shown) - 0.5, -0.5))
        line[0].set_ylabel(f"worst pair of\n{name}", fontsize=9)
        line[0].set_yticklabels([table.features[k] for k in shown], fontsize=9)
    note = "scaled value (grey: occurs in the training rows); open: record, filled: advice"
    fig.supxlabel(note, fontsize=9)
    return fig


def _draw_pair(
    ax: Axes, cfs: Counterfactuals, pair: tuple[int, int], features: Sequence[int]
) -> None:
    for person, (i, colour, mark) in enumerate(zip(pair, COLOURS, "os", strict=True)):
        y = [row - 0.15 + 0.3 * person for row in range(len(features))]
        before, after = (x[i][list(features)] for x in (cfs.query, cfs.counterfactual))
        ax.hlines(y, before, after, color=colour, linewidth=2)
        ax.plot(before, y, mark, mfc="white", color=colour, markersize=5)
        ax.plot(after, y, mark, color=colour, markersize=4)
    ax.axvspan(0, 1, color="#eeeeee", zorder=0)
