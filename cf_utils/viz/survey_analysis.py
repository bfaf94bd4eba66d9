"""Results of a class survey: acceptance per method with its interval, and the paper's statistic."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

JUDGES = "judges"  # the voter's name where models voted instead of people


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval (95 % by default) of a share k / n, inside [0, 1]; NaN if n is 0."""
    if n == 0:
        return math.nan, math.nan
    p, shrink = k / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def select_voters(votes: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return people's votes, or the judges' if no person voted, and a description of the voters."""
    people = votes[votes["voter"] != JUDGES]
    if len(people) or not len(votes):
        n = people["voter"].nunique()
        return people, f"{n} {'person' if n == 1 else 'people'}"
    return votes, "the judges (models, no people)"


def tabulate(
    votes: pd.DataFrame, shown: Mapping[str, int], reached: Mapping[str, float]
) -> pd.DataFrame:
    """Tabulate votes, one row per method.

    Columns: `reached`, share of items; `shown`, pictures; `votes`; `accepted`; `acceptance` with
    Wilson's 95 % interval `low` to `high`; and `share`, the method's share of all accepted votes
    (Fig. 6). Read `acceptance` beside `share`: methods that are all rarely accepted can still have
    equal shares. The interval is too narrow if several people vote on the same few pictures.

    Args: votes from `select_voters`; shown and reached: the columns of these names, per method.
    """
    rows = {}
    for name in reached:
        own = votes.loc[votes["method"] == name, "accepted"]
        n, k = len(own), int(own.sum())
        low, high = wilson(k, n)
        rows[name] = {
            "reached": reached[name],
            "shown": shown[name],
            "votes": n,
            "accepted": k,
            "acceptance": k / n if n else math.nan,
            "low": low,
            "high": high,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    return table.assign(share=table["accepted"] / (table["accepted"].sum() or math.nan))


def draw(table: pd.DataFrame, n_votes: int, voters: str) -> Figure:
    """Draw acceptance with its interval, and the share of Fig. 6, of a table of `tabulate`."""
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), dpi=100, sharey=True, layout="constrained")
    below, above = table["acceptance"] - table["low"], table["high"] - table["acceptance"]
    bars = np.array([below.to_numpy(), above.to_numpy()]).clip(min=0)
    axes[0].bar(table.index, table["acceptance"], yerr=bars, capsize=4, color="#4c72b0")
    axes[0].set(ylim=(0, 1.02), ylabel="share")
    axes[0].set_title("accepted, of this method's votes (95 %)", fontsize=9)
    axes[1].bar(table.index, table["share"], color="#dd8452")
    axes[1].axhline(1 / len(table), ls="--", lw=1, color="#444444")
    axes[1].set_title("Fig. 6: of all accepted votes (dashed: all equal)", fontsize=9)
    for ax in axes:
        ax.tick_params(axis="x", labelrotation=25 if len(table) > 4 else 0)
    fig.suptitle(f"{n_votes} votes of {voters}", fontsize=10)
    return fig
