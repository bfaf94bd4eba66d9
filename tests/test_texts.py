"""Reviews and word vectors: layouts, errors for damaged files, and positions of words."""

from __future__ import annotations

import gzip
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cf_utils.datasets import glove, imdb
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.texts import predict_texts
from cf_utils.viz.markup import mark_edits

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
WORDS = ["the", "film", "is", "good", "bad", "n't", "do", "'s", "it", "pad", "great"]


@pytest.fixture
def table(tmp_path):
    """glove.6B.50d.txt with eleven words."""
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 50)).round(4)
    file = tmp_path / "glove.6B.50d.txt"
    file.write_text(
        "".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(WORDS, vectors, strict=True))
    )
    return file, vectors


def read(file, tmp_path, dim=50):
    return glove.read(file, dim, cache=tmp_path / "cache")


def test_the_official_text_file(table, tmp_path):
    file, vectors = table
    g = read(file, tmp_path)
    assert list(g.words) == WORDS and g.source == "official" and g.dim == 50
    np.testing.assert_allclose(g.vectors.numpy(), vectors, rtol=1e-6)
    packed = tmp_path / "glove.6B.50d.txt.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert torch.equal(read(packed, tmp_path).vectors, g.vectors)


def test_a_file_is_parsed_once_and_again_after_a_change(table, tmp_path, monkeypatch):
    file, _ = table
    first = read(file, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(glove, "_read_lines", lambda *a: pytest.fail("parsed again"))
        assert torch.equal(read(file, tmp_path).vectors, first.vectors)
    file.write_text(file.read_text() + "new " + " ".join(["1.0"] * 50) + "\n")
    assert read(file, tmp_path).words[-1] == "new"
    for end in ("npy", "words"):
        assert len(list((tmp_path / "cache").glob(f"*.{end}"))) == 2


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("good 1 2 3", "line 12: 3 numbers, expected 50"),
        ("good " + "x " * 49 + "x", "line 12: could not convert"),
        ("good " + "nan " * 49 + "nan", "line 12: a number is not finite"),
        ("the " + "1 " * 49 + "1", "line 12: the word 'the' is in line 1 already"),
    ],
)
def test_a_broken_line_is_named(table, tmp_path, line, match):
    file, _ = table
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=match):
        read(file, tmp_path)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def write_big(tmp_path, end: str):
    """Write 3,000 words, so that the last line is far from the first."""
    vectors = np.random.default_rng(1).normal(size=(3000, 50)).round(4)
    text = "".join(f"w{i} {' '.join(map(str, v))}\n" for i, v in enumerate(vectors)).encode()
    file = tmp_path / f"glove.6B.50d.txt{end}"
    file.write_bytes(gzip.compress(text) if end else text)
    return file


@pytest.mark.parametrize("end", ["", ".gz"])
def test_status_looks_at_both_ends_of_a_file(tmp_path, end):
    file = write_big(tmp_path, end)
    found = glove.status(str(tmp_path))
    assert (found.state, found.advice) == ("present", "dimensions [50]")
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-150], b"", b"<html>404</html>"):
        file.write_bytes(content)
        found = glove.status(str(tmp_path))
        assert found.state == "damaged" and str(file) in found.advice, content[:20]


def test_status_reads_an_official_gzip_file_only_at_its_ends(tmp_path, monkeypatch):
    file = write_big(tmp_path, ".gz")
    monkeypatch.setitem(glove.OFFICIAL_BYTES, 50, len(gzip.decompress(file.read_bytes())))
    whole = file.read_bytes()
    hole = whole[: len(whole) // 2] + bytes(9) + whole[len(whole) // 2 + 9 :]
    file.write_bytes(hole)  # what a quick look cannot see: `load` finds it
    assert glove.status(str(tmp_path)).state == "present"
    file.write_bytes(whole[:-1000])
    assert glove.status(str(tmp_path)).state == "damaged"


def test_a_file_of_another_dimension_or_none(table, tmp_path):
    file, _ = table
    with pytest.raises(ValueError, match="line 1: 50 numbers, expected 100"):
        read(file, tmp_path, 100)
    with pytest.raises(FileNotFoundError, match=r"glove\.6B\.300d\.txt"):
        glove.load(str(tmp_path), 300)
    with pytest.raises(ValueError, match="only 50 dimensions ship"):
        glove.load("", 100)
    with pytest.raises(ValueError, match="dim: got 60"):
        glove.load("", 60)
    empty = tmp_path / "glove.6B.200d.txt"
    empty.write_text("")
    with pytest.raises(ValueError, match="no line in it"):
        read(empty, tmp_path, 200)


@pytest.mark.parametrize("dim", [100, 300])
def test_genuine_samples(dim, tmp_path):
    file = REAL / "glove_samples" / f"glove.6B.{dim}d.sample.txt.gz"
    if not file.exists():
        pytest.skip("no sample of the official vectors")
    g = read(file, tmp_path, dim)
    assert g.vectors.shape == (100, dim) and "the" in g.words


def test_embedded_vectors_are_glove():
    g = glove.load()
    assert len(g.words) == 400_000 and g.dim == 50 and g.words[0] == "the"
    first_line = [0.418, 0.24968, -0.41242]  # of Stanford's file
    np.testing.assert_allclose(g.vectors[0, :3].numpy(), first_line, atol=1e-5)
    glove._read_embedded.cache_clear()
    began = time.perf_counter()
    glove.load()
    assert time.perf_counter() - began < 10  # measured 0.4 s


def test_tokens_know_their_position():
    g = glove.load()
    text = "It's GREAT,<br />isn't it?  Zzyzxq-x!"
    found = [(g.words[r], text[a:b]) for r, a, b in g.tokens(text)]
    lengthened = "good<br />film \u0130"  # two letters in lower case
    assert [g.words[r] for r, _, _ in g.tokens(lengthened)] == ["good", "film"]
    assert found == [
        ("it", "It"),
        ("'s", "'s"),
        ("great", "GREAT"),
        ("is", "is"),
        ("n't", "n't"),
        ("it", "it"),
        ("x", "x"),
    ]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_tokens_of_any_text_lie_inside_it_in_order(text):
    g = glove.load()
    at = 0
    for row, start, end in g.tokens(text):
        assert at <= start < end <= len(text)
        assert g.words[row] == text[start:end].lower() or not text[start:end].isascii()
        at = end


def test_encoding_truncates_fills_and_pads():
    g = glove.load()
    rows = glove.encode(g, ["the film is good", "the " * 30], most=10)
    assert rows.shape == (2, 10 + glove.TAIL)
    assert [g.words[i] for i in rows[0, :5]] == ["the", "film", "is", "good", "pad"]
    assert (rows[0, 5:] == -1).all()
    x = glove.embed(g, rows)
    assert torch.equal(x[0, 1], g.vectors[g.index["film"]])
    assert (x[0, 5:] == 0).all() and (x[1, 10:] == 0).all()
    with pytest.raises(ValueError, match="most: got -5, expected a whole number >= 1"):
        glove.encode(g, ["the film is good"], most=-5)
    with pytest.raises(ValueError, match="have no word 'pad'"):
        glove.encode(g.take([g.index["good"]]), ["good"])
    for text, match in (
        ("", r"texts\[1\]: the review is empty"),
        ("Zzyzxq qqxqqz!", r"texts\[1\]: no word of it"),
    ):
        with pytest.raises(ValueError, match=match):
            glove.encode(g, ["fine", text])


def test_padding_does_not_change_a_prediction():
    g = glove.load()
    torch.manual_seed(0)
    net = classifiers.TextCNN(50).eval()
    texts = [
        "A good film.",
        "The worst of all films that I have seen in my whole life, and I have seen many of them.",
        "Fine.",
    ]
    alone = torch.cat([predict_texts(net, g, [t]) for t in texts])
    torch.testing.assert_close(predict_texts(net, g, texts), alone, atol=1e-5, rtol=0)


def test_edited_marks_what_changed():
    g, text = glove.load(), "It is one of the best<br />films."
    spans = [(a, b) for _, a, b in g.tokens(text)]
    assert mark_edits(text, spans, {5: "worst"}) == "It is one of the [best → worst] films."
    assert mark_edits("Fine", [(0, 4)], {0: "bad", 2: "good"}) == "[Fine → bad] [pad → good]"
    assert mark_edits(text, spans, {}) == "It is one of the best films."
    assert mark_edits("a " * 50 + "b", [(100, 101)], {0: "c"}, around=4) == "…a a [b →…"


# ---------------------------------------------------------------- reviews


@pytest.fixture
def tree(tmp_path):
    """The official tree with 30 training and 2 test reviews per class."""
    for half, n in (("train", 30), ("test", 2)):
        for kind, rating in (("neg", 2), ("pos", 9)):
            folder = tmp_path / "aclImdb" / half / kind
            folder.mkdir(parents=True)
            for i in range(n):
                (folder / f"{i}_{rating}.txt").write_text(
                    f"{half} {kind} review number {i}, é", encoding="utf-8"
                )
    return tmp_path


def test_the_official_tree(tree):
    test = imdb.load(str(tree), "test")
    assert test.source == "official" and test.y.tolist() == [0, 0, 1, 1]
    assert test.texts[0] == "test neg review number 0, é"
    train, val = imdb.load(str(tree), "train"), imdb.load(str(tree), "validation")
    assert len(train) + len(val) == 60 and 1 <= len(val) <= 15
    assert not set(train.ids.tolist()) & set(val.ids.tolist())
    text, y, i = train[0]
    assert text.startswith("train") and int(y) in (0, 1) and int(i) == train.ids[0]
    found = imdb.status(str(tree))
    assert found.state == "present" and found.advice.startswith("60 training and 4 test reviews")
    assert len(train.take([2, 0])) == 2 and train.take([2, 0]).texts[1] == train.texts[0]


def test_a_damaged_tree_is_named(tree, tmp_path):
    folder = tree / "aclImdb" / "test"
    (folder / "neg" / "1_2.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"the review is empty .*1_2\.txt"):
        imdb.load(str(tree), "test")
    assert imdb.status(str(tree)).state == "damaged"
    (folder / "neg" / "1_2.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"the review is no UTF-8.*1_2\.txt"):
        imdb.load(str(tree), "test")
    (folder / "neg" / "1_2.txt").rename(folder / "neg" / "x.txt")
    with pytest.raises(ValueError, match="expected a name like"):
        imdb.load(str(tree), "test")
    assert imdb.status(str(tree)).state == "damaged"
    for file in (folder / "pos").glob("*"):
        file.unlink()
    (folder / "neg" / "x.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no review in this folder"):
        imdb.load(str(tree), "test")
    assert imdb.status(str(tree)).state == "missing"
    with pytest.raises(FileNotFoundError, match="neither aclImdb/ nor"):
        imdb.load(str(tmp_path / "nothing"), "test")
    with pytest.raises(ValueError, match="split: got 'dev'"):
        imdb.load("", "dev")
    assert imdb.status(str(tmp_path / "nothing")).state == "missing"


def test_kaggles_csv(tmp_path):
    frame = pd.DataFrame(
        {
            "review": [f"review {i % 45}" for i in range(50)],
            "sentiment": ["positive", "negative"] * 25,
        }
    )
    frame.to_csv(tmp_path / "IMDB Dataset.csv", index=False)
    parts = {s: imdb.load(str(tmp_path), s) for s in imdb.SPLITS}
    texts = [t for p in parts.values() for t in p.texts]
    assert len(texts) == len(set(texts)) == 45 and {p.source for p in parts.values()} == {"kaggle"}
    for p in parts.values():
        assert p.y.tolist() == [int(i % 2 == 0) for i in p.ids.tolist()]
    assert imdb.status(str(tmp_path)).state == "present"
    file = tmp_path / "IMDB Dataset.csv"
    file.write_text(file.read_text()[:-20])
    found = imdb.status(str(tmp_path))
    assert found.state == "damaged" and "the last row is cut off" in found.advice
    for change, match in (
        ({"sentiment": "fine"}, "row 3: sentiment 'fine'"),
        ({"review": " "}, "row 3: the review is empty"),
    ):
        broken = frame.copy()
        broken.loc[3, list(change)] = list(change.values())
        broken.to_csv(tmp_path / "IMDB Dataset.csv", index=False)
        with pytest.raises(ValueError, match=match):
            imdb.load(str(tmp_path), "test")
        assert imdb.status(str(tmp_path)).state == "damaged"
    frame.rename(columns={"review": "text"}).to_csv(tmp_path / "IMDB Dataset.csv", index=False)
    with pytest.raises(ValueError, match="expected review and sentiment"):
        imdb.load(str(tmp_path), "test")


def test_the_official_halves_split_the_embedded_reviews():
    parts = {s: imdb.load("", s) for s in imdb.SPLITS}
    assert {s: len(p) for s, p in parts.items()} == {"train": 5021, "validation": 992, "test": 3970}
    assert set(parts["train"].ids.tolist()) == set(json.loads(imdb.ROWS.read_text()))
    texts = [t for p in parts.values() for t in p.texts]
    assert len(set(texts)) == len(texts)


def test_no_embedded_test_review_is_an_official_training_review():
    """Compare with the genuine archive by the first 60 letters, another rule than the list's."""
    archive = REAL / "imdb" / "aclImdb_labelled.tar.gz"
    if not archive.exists():
        pytest.skip("no genuine archive")

    def start(text):
        return "".join(c for c in text.lower().replace("<br />", "") if "a" <= c <= "z")[:60]

    evaluated = {start(t) for s in ("validation", "test") for t in imdb.load("", s).texts}
    both = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and "/train/" in member.name:
                both += start(tar.extractfile(member).read().decode("utf-8")) in evaluated
    assert both <= 12  # measured 8: other reviews that begin alike


def test_the_shipped_classifier_is_what_its_card_says():
    (f, card), g, test = (
        checkpoints.load("imdb_cnn"),
        glove.load(),
        imdb.load("", "test").take(range(400)),
    )
    right = (predict_texts(f, g, test.texts).argmax(1) == test.y).double().mean().item()
    assert card.quality["test_n"] == 25_000 and card.quality["test_accuracy"] >= 0.845
    assert abs(right - card.quality["embedded_accuracy"]) <= 0.06  # 400 reviews: 3 standard errors
    assert min(card.quality["mean_logits_score"]) > 0.9  # the search can reach the paper's tau
