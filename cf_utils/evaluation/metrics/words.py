"""Metrics of counterfactual texts: how many words changed, and whether they fit the target.

Source: Jung et al., Gradual Construction (2022), section 4.2, for the number of changed words; the
share of target words is ours. An item's `changes` are (old, new) pairs of words after snapping
embeddings to words, as the tokeniser writes them. A pair of equal words is no change. Before
snapping, `decision.blocks_changed(query, counterfactual, block=(1, -1))` counts changed embeddings.
Each function returns one value per item; apply `decision.mask_failed` where the search failed.
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

from cf_utils.evaluation.metrics import decision

Changes = Sequence[tuple[str, str]]  # of one item: (old word, new word)


class TargetWords(NamedTuple):
    """Result of `target_word_share`, one value per item (B,)."""

    share: Tensor  # share of the rated new words that fit the target, float64; NaN if none is rated
    found: Tensor  # number of new words that the lexicon rates, int64
    new: Tensor  # number of new words, int64


def words_changed(changes: Sequence[Changes]) -> Tensor:
    """Number of words that differ after snapping. (B,) int64, lower is sparser.

    The number falls by snapping if an embedding snaps back to its own word. Blind spot: one absurd
    word counts 1.
    """
    counts = [sum(old != new for old, new in item) for item in changes]
    return torch.tensor(counts, dtype=torch.int64)


def mean_sd(values: Tensor) -> dict[str, float | int]:
    """Summarise values (B,) over items, leaving NaN out.

    The paper prints mean ± sd (n - 1 in the denominator). A single long text can dominate both, so
    report the median too. Returns: mean, sd, median (interpolated for even n) and n.
    """
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
    """Whether the text of real words is classified as the target. (B,) bool; its mean is validity.

    Higher is better. Blind spot: a flip by one unrelated real word, such as "truly", is valid.

    Args:
        logits: (B, K), the classifier's for the snapped text; NaN counts as not valid.
        target: (B,) int64.
        tau: require this probability of the target as well.
    """
    if logits.ndim != 2 or target.shape != (len(logits),):
        raise ValueError(
            f"logits, target: got {tuple(logits.shape)} and {tuple(target.shape)}, "
            "expected (B, K) and (B,)"
        )
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    return (logits.argmax(1) == target) & (p >= (tau or 0))


def log_odds(
    texts: Iterable[Sequence[str]], labels: Iterable[int] | Tensor, min_count: int = 20
) -> dict[str, float]:
    """Log odds of each word under naive Bayes: log p(word | class 1) - log p(word | class 0).

    A positive value speaks for class 1. Probabilities are shares of all words of a class, with
    add-one smoothing over all distinct words and no prior. Use texts that were not explained.
    Blind spots: words are rated without context, and a name shared by the training texts of one
    class is rated like any other word. Compare with `load_vader`.

    Args:
        texts: sequences of words.
        labels: 0 or 1 per text, both present.
        min_count: rarer words are left out.
    """
    texts, labels = list(texts), [int(i) for i in labels]
    if len(texts) != len(labels):
        raise ValueError(f"labels: got {len(labels)} for {len(texts)} texts, expected one per text")
    if set(labels) != {0, 1}:
        raise ValueError(f"labels: got {sorted(set(labels))[:5]}, expected both 0 and 1")
    if any(isinstance(t, str) for t in texts):
        raise ValueError("texts: got a plain string, expected each text as a sequence of words")
    of_0, of_1 = (
        Counter(chain.from_iterable(t for t, i in zip(texts, labels, strict=True) if i == c))
        for c in (0, 1)
    )
    vocabulary = of_0.keys() | of_1.keys()
    size = math.log(of_0.total() + len(vocabulary)) - math.log(of_1.total() + len(vocabulary))
    return {
        w: math.log(of_1[w] + 1) - math.log(of_0[w] + 1) + size
        for w in sorted(vocabulary)
        if of_0[w] + of_1[w] >= min_count
    }


@functools.cache
def load_vader() -> Mapping[str, float]:
    """Load the VADER lexicon: word -> mean rating by ten people, -4 to 4, positive above 0.

    Source: Hutto & Gilbert (2014), file of the package vaderSentiment; of duplicate entries the
    last one counts, as in the package. Words are lower-case. Blind spot: it was made for short
    posts and lacks most words of a review. Raises FileNotFoundError without the package.
    """
    spec = importlib.util.find_spec("vaderSentiment")
    path = Path(spec.origin).parent / "vader_lexicon.txt" if spec and spec.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"{path or 'vaderSentiment'}: VADER's lexicon is missing; pip install vaderSentiment"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in lines if line.strip())
    return MappingProxyType({row[0]: float(row[1]) for row in rows})


def target_word_share(
    changes: Sequence[Changes], target: Tensor, lexicon: Mapping[str, float]
) -> TargetWords:
    """Share of the new words that a lexicon rates towards the target. [0, 1], higher is better.

    Ours. 0.5 is chance only if the lexicon is balanced. Report the sum of `found` beside the mean,
    and compare methods by `decision.paired_difference`. Blind spots: words are rated without
    context, and the old word is ignored, so "fine" for "superb" speaks for class 1.

    Args:
        changes: (old, new) words per item.
        target: (B,) of 0 and 1.
        lexicon: word -> rating, > 0 for class 1 (`log_odds`, `load_vader`). A missing word or one
            rated 0 counts as not found.
    """
    if target.shape != (len(changes),) or not ((target == 0) | (target == 1)).all():
        raise ValueError(
            f"target: got {tuple(target.shape)} with values {target.unique().tolist()[:5]}, "
            f"expected ({len(changes)},) of 0 and 1"
        )
    new_words = [[word for old, word in item if word != old] for item in changes]
    positive = [[lexicon[w] > 0 for w in words if lexicon.get(w, 0) != 0] for words in new_words]
    fitting = [row.count(bool(t)) for row, t in zip(positive, target.tolist(), strict=True)]
    found, new = (
        torch.tensor([len(row) for row in rows], dtype=torch.int64)
        for rows in (positive, new_words)
    )
    return TargetWords(torch.tensor(fitting, dtype=torch.float64) / found, found, new)


def compare_target_words(
    a: Sequence[Changes],
    b: Sequence[Changes],
    target: Tensor,
    lexicon: Mapping[str, float],
    valid: Tensor,
) -> dict[str, float | int]:
    """Compare the `target_word_share` of two methods over the valid items that both have words for.

    Args:
        a, b: changes per item by either method.
        target, lexicon: as in `target_word_share`.
        valid: bool (B,), items to count.

    Returns: a, b (mean shares), n, found_a, found_b (rated words), and mean, low and high of the
    paired difference a - b.
    """
    of_a, of_b = (target_word_share(changes, target, lexicon) for changes in (a, b))
    ok = valid & of_a.share.isfinite() & of_b.share.isfinite()
    difference = decision.paired_difference(of_a.share[ok], of_b.share[ok])
    return {
        "a": of_a.share[ok].mean().item(),
        "b": of_b.share[ok].mean().item(),
        "n": int(ok.sum()),
        "found_a": int(of_a.found[ok].sum()),
        "found_b": int(of_b.found[ok].sum()),
        **{key: value for key, value in difference.items() if key != "n"},
    }
