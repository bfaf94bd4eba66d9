"""Metrics on texts against counts by hand, scikit-learn's naive Bayes and VADER's own reader."""

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
    [("bad", "good"), ("the", "superb"), ("a", "dull")],  # two of three speak for class 1
    [("good", "good"), ("bad", "zxq")],  # one change, not in the lexicon
    [("superb", "bad")],
    [],
    [("bad", "film"), ("bad", "superb")],  # "film" is neutral
]
TARGET = torch.tensor([1, 1, 0, 0, 0])


def assert_values(found, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=0)


def test_word_that_snaps_back_to_itself_is_no_change():
    assert words.words_changed(CHANGES).tolist() == [3, 1, 1, 0, 2]
    moved = torch.zeros(1, 4, 3)
    moved[0, 1, 2], moved[0, 3] = -0.5, 0.2
    before_snapping = decision.blocks_changed(torch.zeros(1, 4, 3), moved, block=(1, -1))
    assert before_snapping.tolist() == [2]


def test_summary_equals_the_statistics_module():
    v = [1.0, 2.0, 2.0, 57.0]
    expected = {
        "mean": statistics.mean(v),
        "sd": statistics.stdev(v),
        "median": statistics.median(v),
        "n": 4,
    }
    assert words.mean_sd(torch.tensor([*v, NAN])) == pytest.approx(expected)
    one_item, no_item = words.mean_sd(torch.tensor([3])), words.mean_sd(torch.tensor([NAN]))
    assert one_item["n"] == 1 and math.isnan(one_item["sd"])
    assert all(math.isnan(no_item[k]) for k in ("mean", "sd", "median"))


def test_target_word_share_equals_counts_by_hand():
    found = words.target_word_share(CHANGES, TARGET, LEXICON)
    assert_values(found.share, [2 / 3, NAN, 1.0, NAN, 0.0])
    assert found.found.tolist() == [3, 0, 1, 0, 1]
    assert found.new.tolist() == words.words_changed(CHANGES).tolist()


WORD_PAIRS = st.tuples(*[st.sampled_from([*LEXICON, "zxq"])] * 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(WORD_PAIRS, max_size=6), max_size=6), st.randoms(use_true_random=False))
def test_target_word_share_under_other_targets_orders_and_signs(changes, shuffler):
    target = torch.arange(len(changes)) % 2
    found = words.target_word_share(changes, target, LEXICON)
    other = words.target_word_share(changes, 1 - target, LEXICON)
    negated = {w: -v for w, v in LEXICON.items()}
    both_turned = words.target_word_share(changes, 1 - target, negated)
    some = found.found > 0
    ones = torch.ones(int(some.sum())).double()
    torch.testing.assert_close(found.share[some] + other.share[some], ones)
    torch.testing.assert_close(both_turned.share, found.share, equal_nan=True)
    assert (found.found <= found.new).all() and torch.equal(found.share.isnan(), ~some)
    order = shuffler.sample(range(len(changes)), len(changes))
    shuffled = [shuffler.sample(changes[i], len(changes[i])) for i in order]
    again = words.target_word_share(shuffled, target[order], LEXICON)
    torch.testing.assert_close(again.share, found.share[order], equal_nan=True)


def test_methods_are_compared_on_items_where_both_have_rated_words():
    a = words.target_word_share(CHANGES, TARGET, LEXICON).share
    others = [[("x", "bad")], [("x", "good")], [("x", "good")], [], [("x", "dull")]]
    b = words.target_word_share(others, TARGET, LEXICON).share
    found = decision.paired_difference(a, b)
    assert found["n"] == 3  # items 0, 2 and 4
    assert found["mean"] == pytest.approx((2 / 3 - 0 + 1 - 0 + 0 - 1) / 3)
    assert found["low"] < found["mean"] < found["high"]


def test_valid_after_snapping_requires_the_decision_and_tau():
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0], [NAN, 1.0]])
    ones = torch.ones(4, dtype=torch.int64)
    assert words.valid_after_snapping(logits, ones).tolist() == [True, True, False, False]
    assert words.valid_after_snapping(logits, ones, tau=0.9).tolist() == [True, False, False, False]
    three = torch.tensor([[1.0, 1.2, 1.1]])  # decided with a probability of 0.37
    assert words.valid_after_snapping(three, ones[:1]).item()
    assert not words.valid_after_snapping(three, ones[:1], 0.5).item()


def make_reviews(n=60, seed=0):
    """Texts of two classes that differ in size, length and word frequencies."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]
    texts, labels = [], []
    for i in range(n):
        labels.append(int(i % 3 == 0))
        weights = [(1 + (j % 5 == labels[-1])) / (1 + j) for j in range(40)]
        texts.append(draw.choices(vocabulary, weights, k=draw.randint(5, 40)))
    return texts, labels


@pytest.mark.parametrize("min_count", [1, 20])
def test_log_odds_equal_naive_bayes_of_scikit_learn(min_count):
    texts, labels = make_reviews()
    vectorizer = CountVectorizer(analyzer=lambda t: t)
    bayes = MultinomialNB().fit(vectorizer.fit_transform(texts), labels)
    names = vectorizer.get_feature_names_out()
    odds = bayes.feature_log_prob_[1] - bayes.feature_log_prob_[0]
    counts = Counter(w for t in texts for w in t)
    expected = {w: v for w, v in zip(names, odds, strict=True) if counts[w] >= min_count}
    found = words.log_odds(texts, labels, min_count)
    assert found == pytest.approx(expected, abs=1e-12)
    assert {1: len(counts), 20: 13}[min_count] == len(found)


def test_log_odds_ignore_the_order_and_change_sign_with_the_labels():
    texts, labels = make_reviews()
    found = words.log_odds(texts, torch.tensor(labels), 5)
    backwards = words.log_odds(texts[::-1], labels[::-1], 5)
    assert backwards == found and list(backwards) == list(found)
    turned = words.log_odds(texts, [1 - i for i in labels], 5)
    assert {w: -v for w, v in turned.items()} == pytest.approx(found)


def test_log_odds_of_many_words_take_seconds():
    draw = random.Random(0)
    pool = [f"w{int(draw.paretovariate(0.6))}" for _ in range(20_000)]
    starts = [draw.randrange(19_000) for _ in range(2_500)]
    texts = [pool[i : i + 230] for i in starts]  # a tenth of the training reviews
    start = time.process_time()
    words.log_odds(texts, [i % 2 for i in range(2_500)])
    assert time.process_time() - start < 3  # measured 0.07 s


def test_vader_lexicon_equals_that_of_its_own_reader(monkeypatch):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = words.load_vader()
    assert dict(lexicon) == SentimentIntensityAnalyzer().lexicon
    assert len(lexicon) > 7000 and "truly" in lexicon
    assert lexicon["great"] > 2 and lexicon["dreadful"] < -1
    with pytest.raises(TypeError):
        lexicon["great"] = -1  # cached and shared, therefore read-only
    words.load_vader.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install vaderSentiment"):
        words.load_vader()


@pytest.mark.parametrize(
    ("call", "message"),
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
def test_invalid_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
