"""Metrics of counterfactuals on texts: how many words, do they stand as real words, and do they mean what the target says?

Source: Jung et al., Gradual Construction (2022), section 4.2 (number of changed words); the share of target words is ours.
An item's `changes` are its (old, new) pairs of words after snapping, as the tokeniser writes them; a pair of equal words is no
change. Before snapping there are embeddings only: `decision.blocks_changed(query, counterfactual, block=(1, -1))` counts those.
One value an item; lay `decision.of_valid` over it where the search failed.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

Changes = Sequence[tuple[str, str]]  # of one item: (old word, new word)


class TargetWords(NamedTuple):
    """Of each item (B,): share of its found new words that lie on the target's side, how many were found, how many are new."""

    share: Tensor  # float64 in [0, 1]; NaN where none was found
    found: Tensor  # int64
    new: Tensor  # int64


def words_changed(changes: Sequence[Changes]) -> Tensor:
    """How many words of each item are others after snapping. (B,) int64, lower is sparser.

    Less than before snapping where an embedding falls back to its own word. Blind spot: one absurd word counts 1.
    """
    return torch.tensor(
        [sum(old != new for old, new in item) for item in changes], dtype=torch.int64
    )


def mean_sd(values: Tensor) -> dict[str, float | int]:
    """Mean and standard deviation over items (n - 1 in the denominator), NaN left out: keys mean, sd, median, n. The paper
    prints mean ± sd; a single long review can make the sd, so the median stands beside it (of an even n: between the two)."""
    v = values.double()
    v = v[~v.isnan()]
    nan = float("nan")
    return {
        "mean": v.mean().item() if len(v) else nan,
        "sd": v.std().item() if len(v) > 1 else nan,
        "median": v.quantile(0.5).item() if len(v) else nan,
        "n": len(v),
    }


def valid_after_snapping(logits: Tensor, target: Tensor, tau: float | None = None) -> Tensor:
    """Does the text of real words decide the target (with probability `tau` or more, where given)? (B,) bool; its mean is the
    share that counts.

    `logits` (B, K) are the classifier's for the snapped text; NaN counts as no. Higher is better. Blind spot: "truly" is a
    real word, and valid.
    """
    if logits.ndim != 2 or target.shape != (len(logits),):
        raise ValueError(
            f"logits, target: got {tuple(logits.shape)} and {tuple(target.shape)}, expected (B, K) and (B,)"
        )
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return (logits.argmax(1) == target) & (p >= (tau or 0))


def log_odds(
    texts: Iterable[Sequence[str]], labels: Iterable[int], min_count: int = 20
) -> dict[str, float]:
    """Word -> log p(word | class 1) - log p(word | class 0) of naive Bayes with add-one smoothing; > 0 speaks for class 1.

    `texts`: each a sequence of words, `labels` 0 or 1 for each. Probabilities are shares of all words of a class (no prior);
    words seen fewer than `min_count` times are left out, but smoothing counts every distinct word. 6.1 M words take 1.3 s.
    Use texts that were not explained. Blind spots: a word alone, so "not good" speaks for class 1; and whatever a training set's
    bad films share speaks for class 0, a director's name above all ("boll"). On the official training reviews its sign agrees
    with VADER's for 0.64 of the 2,059 words that both know: look at both.
    """
    texts, labels = list(texts), [int(i) for i in labels]
    if len(texts) != len(labels):
        raise ValueError(f"labels: got {len(labels)} for {len(texts)} texts, expected one a text")
    if set(labels) != {0, 1}:
        raise ValueError(f"labels: got {sorted(set(labels))[:5]}, expected both 0 and 1")
    if any(isinstance(t, str) for t in texts):
        raise ValueError("texts: got a plain string, expected each text as a sequence of words")
    zero, one = (
        Counter(chain.from_iterable(t for t, i in zip(texts, labels, strict=True) if i == c))
        for c in (0, 1)
    )
    vocabulary = zero.keys() | one.keys()
    size = math.log(zero.total() + len(vocabulary)) - math.log(one.total() + len(vocabulary))
    return {
        w: math.log(one[w] + 1) - math.log(zero[w] + 1) + size
        for w in sorted(vocabulary)
        if zero[w] + one[w] >= min_count
    }


@functools.cache
def vader() -> Mapping[str, float]:
    """Word -> mean rating by ten people, -4 to 4, > 0 is positive: some 7,500 entries of VADER (Hutto & Gilbert 2014).
    Words are lower-case, emoticons are not.

    Read from the package's file without importing it. An entry that comes twice has its last value, as in the package. Blind
    spot: made for short posts; most words of a review are not in it. FileNotFoundError where the package is not installed.
    """
    spec = importlib.util.find_spec("vaderSentiment")
    path = (
        Path(spec.origin).parent / "vader_lexicon.txt" if spec is not None and spec.origin else None
    )
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"{path or 'vaderSentiment'}: VADER's lexicon is missing; pip install vaderSentiment"
        )
    rows = (
        line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    return MappingProxyType({row[0]: float(row[1]) for row in rows})


def target_word_share(
    changes: Sequence[Changes], target: Tensor, lexicon: Mapping[str, float]
) -> TargetWords:
    """Do the new words mean what the target says, by somebody else than the explained classifier?

    `lexicon`: word -> number, > 0 for class 1, < 0 for class 0 (`log_odds`, `vader`); a word that is not in it, or has 0, is
    not found and says nothing. `target` (B,) of 0 and 1. [0, 1], higher is better; 0.5 is what a coin gives only where the
    lexicon is balanced. Print the sum of `found` beside the mean, and of two methods compare the shares by
    `decision.paired_difference`, which keeps the items where both found words. Blind spots: a word alone, out of its
    sentence; and the old word is not asked, so "fine" for "superb" speaks for class 1.
    """
    if target.shape != (len(changes),) or not ((target == 0) | (target == 1)).all():
        raise ValueError(
            f"target: got {tuple(target.shape)} holding {target.unique().tolist()[:5]}, "
            f"expected ({len(changes)},) of 0 and 1"
        )
    new = [[word for old, word in item if word != old] for item in changes]
    sides = [[lexicon[w] > 0 for w in words if lexicon.get(w, 0) != 0] for words in new]
    right = [row.count(bool(t)) for row, t in zip(sides, target.tolist(), strict=True)]
    found, asked = (
        torch.tensor([len(row) for row in rows], dtype=torch.int64) for rows in (sides, new)
    )
    return TargetWords(torch.tensor(right, dtype=torch.float64) / found, found, asked)
