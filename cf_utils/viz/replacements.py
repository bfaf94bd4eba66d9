"""Counterfactual texts of word vectors, told in words, and a strip of relevance per word."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.datasets.glove import Glove
from cf_utils.explainers.gradual_words import list_replacements
from cf_utils.viz import markup

Replacement = tuple[int, str, str]  # position, old word, new word


def list_words(cfs: Counterfactuals, vectors: Glove) -> list[list[Replacement]]:
    """Return the replaced words per item; `vectors` is the vocabulary of both old and new words."""
    items = list_replacements(cfs, vectors.vectors)
    return [[(at, vectors.words[old], vectors.words[new]) for at, old, new in i] for i in items]


def list_word_pairs(cfs: Counterfactuals, vectors: Glove) -> list[list[tuple[str, str]]]:
    """Return (old word, new word) of each replacement, per item: input of `metrics.words`."""
    return [[(old, new) for _, old, new in item] for item in list_words(cfs, vectors)]


def mark(cfs: Counterfactuals, i: int, text: str, vectors: Glove, around: int | None = None) -> str:
    """Return the text of item i with its replaced words marked, see `markup.mark_edits`."""
    (item,) = list_words(cfs.select([i]), vectors)
    spans = [(start, end) for _, start, end in vectors.tokens(text)]
    return markup.mark_edits(text, spans, {at: new for at, _, new in item}, around)


def relevance_strip(
    texts: Sequence[str], relevance: Tensor, titles: Sequence[str], vectors: Glove
) -> Figure:
    """Draw one row of coloured words per text: red supports the decision, blue opposes it.

    `relevance` (B, L) has one value per word; all rows share one symmetric scale. Positions beyond
    the last word are written "pad".
    """
    n, scale = max(len(vectors.tokens(text)) for text in texts), relevance.abs().max().item()
    size = (9.5, 0.8 * len(texts))
    fig, axes = plt.subplots(len(texts), 1, figsize=size, layout="constrained", squeeze=False)
    for ax, text, values, title in zip(axes[:, 0], texts, relevance, titles, strict=True):
        words = [text[start:end] for _, start, end in vectors.tokens(text)]
        words += ["pad"] * (min(n, len(values)) - len(words))
        row = values[: len(words)]
        ax.imshow(row[None], cmap="RdBu_r", vmin=-scale, vmax=scale, aspect="auto")
        ax.set(xticks=[], yticks=[], xlim=(-0.5, n - 0.5), title=title)
        for k, (word, value) in enumerate(zip(words, row.tolist(), strict=True)):
            colour = "white" if abs(value) > 0.6 * scale else "black"
            ax.text(k, 0, word, ha="center", va="center", fontsize=9, color=colour)
    return fig
