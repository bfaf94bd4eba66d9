"""Metrics on texts against counting by hand, scikit-learn's naive Bayes and VADER's own reader."""

import importlib.util
import math
import random
import statistics
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from cf_utils.evaluation.metrics import decision, words

NAN = float("nan")
LEXICON = {"good": 1.5, "superb": 3.0, "bad": -2.0, "dull": -0.1, "film": 0.0}
CHANGES = [
    [("bad", "good"), ("the", "superb"), ("a", "dull")],  # two of three for class 1
    [("good", "good"), ("bad", "zxq")],  # one change, not found
    [("superb", "bad")],
    [],
    [("bad", "film"), ("bad", "superb")],
]  # film says nothing
TARGET = torch.tensor([1, 1, 0, 0, 0])


def same(a, b):
    torch.testing.assert_close(
        a, torch.tensor(b, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=0
    )


def test_a_word_that_falls_back_to_itself_is_no_change():
    assert words.words_changed(CHANGES).tolist() == [3, 1, 1, 0, 2]
    moved = torch.zeros(1, 4, 3)
    moved[0, 1, 2], moved[0, 3] = -0.5, 0.2
    assert decision.blocks_changed(torch.zeros(1, 4, 3), moved, block=(1, -1)).tolist() == [
        2
    ]  # before snapping


def test_mean_sd_and_median_as_the_statistics_module():
    v = [1.0, 2.0, 2.0, 57.0]
    assert words.mean_sd(torch.tensor([*v, NAN])) == pytest.approx(
        {
            "mean": statistics.mean(v),
            "sd": statistics.stdev(v),
            "median": statistics.median(v),
            "n": 4,
        }
    )
    assert words.mean_sd(torch.tensor([3]))["n"] == 1 and math.isnan(
        words.mean_sd(torch.tensor([3]))["sd"]
    )
    assert all(math.isnan(words.mean_sd(torch.tensor([NAN]))[k]) for k in ("mean", "sd", "median"))


def test_target_words_by_hand():
    got = words.target_word_share(CHANGES, TARGET, LEXICON)
    same(got.share, [2 / 3, NAN, 1.0, NAN, 0.0])
    assert got.found.tolist() == [3, 0, 1, 0, 1]
    assert got.new.tolist() == words.words_changed(CHANGES).tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(*[st.sampled_from([*LEXICON, "zxq"])] * 2), max_size=6), max_size=6
    ),
    st.randoms(use_true_random=False),
)
def test_sides_orders_and_signs(changes, shuffler):
    target = torch.arange(len(changes)) % 2
    got = words.target_word_share(changes, target, LEXICON)
    other = words.target_word_share(changes, 1 - target, LEXICON)
    turned = words.target_word_share(changes, 1 - target, {w: -v for w, v in LEXICON.items()})
    some = got.found > 0
    torch.testing.assert_close(
        got.share[some] + other.share[some], torch.ones(int(some.sum())).double()
    )
    torch.testing.assert_close(turned.share, got.share, equal_nan=True)
    assert (got.found <= got.new).all() and torch.equal(got.share.isnan(), ~some)
    order = shuffler.sample(range(len(changes)), len(changes))
    mixed = words.target_word_share(
        [shuffler.sample(changes[i], len(changes[i])) for i in order], target[order], LEXICON
    )
    torch.testing.assert_close(mixed.share, got.share[order], equal_nan=True)


def test_two_methods_are_compared_where_both_found_words():
    a = words.target_word_share(CHANGES, TARGET, LEXICON).share
    b = words.target_word_share(
        [[("x", "bad")], [("x", "good")], [("x", "good")], [], [("x", "dull")]], TARGET, LEXICON
    ).share
    got = decision.paired_difference(a, b)
    assert got["n"] == 3  # items 0, 2 and 4
    assert got["mean"] == pytest.approx((2 / 3 - 0 + 1 - 0 + 0 - 1) / 3)
    assert got["low"] < got["mean"] < got["high"]


def test_valid_after_snapping():
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0], [NAN, 1.0]])
    ones = torch.ones(4, dtype=torch.int64)
    assert words.valid_after_snapping(logits, ones).tolist() == [True, True, False, False]
    assert words.valid_after_snapping(logits, ones, tau=0.9).tolist() == [True, False, False, False]
    three = torch.tensor([[1.0, 1.2, 1.1]])  # decided with 0.37: valid unless tau is asked
    assert (
        words.valid_after_snapping(three, ones[:1]).item()
        and not words.valid_after_snapping(three, ones[:1], 0.5).item()
    )


def reviews(n=60, seed=0):
    """Classes of different sizes and lengths, words of different frequency."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]
    texts, labels = [], []
    for i in range(n):
        labels.append(int(i % 3 == 0))
        weights = [(1 + (j % 5 == labels[-1])) / (1 + j) for j in range(40)]
        texts.append(draw.choices(vocabulary, weights, k=draw.randint(5, 40)))
    return texts, labels


@pytest.mark.parametrize("min_count", [1, 20])
def test_log_odds_as_scikit_learns_naive_bayes(min_count):
    texts, labels = reviews()
    vectorizer = CountVectorizer(analyzer=lambda t: t)
    bayes = MultinomialNB().fit(vectorizer.fit_transform(texts), labels)
    names, odds = (
        vectorizer.get_feature_names_out(),
        bayes.feature_log_prob_[1] - bayes.feature_log_prob_[0],
    )
    seen = Counter(w for t in texts for w in t)
    expected = {w: v for w, v in zip(names, odds, strict=True) if seen[w] >= min_count}
    got = words.log_odds(texts, labels, min_count)
    assert got == pytest.approx(expected, abs=1e-12)
    assert {1: len(seen), 20: 13}[min_count] == len(got)


def test_log_odds_in_another_order_and_with_the_labels_turned():
    texts, labels = reviews()
    got = words.log_odds(texts, torch.tensor(labels), 5)
    assert words.log_odds(texts[::-1], labels[::-1], 5) == got
    assert list(got) == list(words.log_odds(texts[::-1], labels[::-1], 5))
    turned = words.log_odds(texts, [1 - i for i in labels], 5)
    assert {w: -v for w, v in turned.items()} == pytest.approx(got)


def test_log_odds_of_many_words_in_seconds():
    draw = random.Random(0)
    pool = [f"w{int(draw.paretovariate(0.6))}" for _ in range(20_000)]
    texts = [
        pool[i : i + 230] for i in (draw.randrange(19_000) for _ in range(2_500))
    ]  # a tenth of the training reviews
    start = time.process_time()
    words.log_odds(texts, [i % 2 for i in range(2_500)])
    assert time.process_time() - start < 3  # measured 0.07 s


def test_vader_as_its_own_reader_has_it(monkeypatch):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = words.load_vader()
    assert dict(lexicon) == SentimentIntensityAnalyzer().lexicon
    assert (
        len(lexicon) > 7000
        and lexicon["great"] > 2
        and lexicon["dreadful"] < -1
        and "truly" in lexicon
    )
    with pytest.raises(TypeError):
        lexicon["great"] = -1  # it is shared: nobody may change it
    words.load_vader.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install vaderSentiment"):
        words.load_vader()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: words.target_word_share(CHANGES, TARGET[:2], LEXICON),
            r"target: got \(2,\) .* expected \(5,\)",
        ),
        (lambda: words.target_word_share(CHANGES, TARGET + 1, LEXICON), r"values \[1, 2\]"),
        (lambda: words.valid_after_snapping(torch.zeros(3, 2), TARGET), r"got \(3, 2\) and \(5,\)"),
        (lambda: words.log_odds([["a"], ["b"]], [1]), "labels: got 1 for 2 texts"),
        (lambda: words.log_odds([["a"], ["b"]], [1, 1]), r"labels: got \[1\], expected both"),
        (lambda: words.log_odds(["a b", "c"], [1, 0]), "texts: got a plain string"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
