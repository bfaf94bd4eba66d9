"""IMDB film reviews: the official tree, Kaggle's CSV, or 10,000 genuine reviews from mlba's wheel.

Source: Maas et al., ACL 2011. Label 0 is negative, 1 positive.

Official layout: <root>/aclImdb/{train,test}/{pos,neg}/<id>_<rating>.txt. Test is the official
test half. Validation is about a tenth of the training half, drawn by a hash of the text; train is
the rest.

Kaggle's layout: <root>/IMDB Dataset.csv with columns review and sentiment and 50,000 rows. It does
not say which half a review belongs to, so a hash of the text decides. The split is fixed but is not
the paper's; `source` is "kaggle".

Embedded: reviews of the official training half (`imdb_embedded_rows.json`) are train. Of the others
every fifth is validation, the rest test. So a model trained on the official training half has seen
no embedded validation or test review.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import (
    SPLITS,
    Rows,
    Status,
    describe_problem,
    find_package_file,
    report_status,
)

NAMES = ("negative", "positive")
KAGGLE = "IMDB Dataset.csv"
# Embedded reviews that are in the official training half.
ROWS = Path(__file__).with_name("imdb_embedded_rows.json")

Raw = tuple[tuple[str, ...], Tensor, Tensor]  # texts, labels and ids


@dataclass(frozen=True, eq=False)
class Reviews(Dataset):
    """A split of (text, label, id); texts as they were written, `<br />` included."""

    texts: tuple[str, ...] = field(repr=False)
    y: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64
    source: str  # "embedded", "official" or "kaggle"
    class_names: tuple[str, ...] = NAMES

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        return self.texts[index], self.y[index], self.ids[index]

    def take(self, rows: Rows) -> Reviews:
        """Return the reviews at these positions, in that order."""
        rows = torch.as_tensor(rows)
        texts = tuple(self.texts[i] for i in rows.tolist())
        return Reviews(texts, self.y[rows], self.ids[rows], self.source)


def load(root: str = "", split: str = "test") -> Reviews:
    """Load one split of the reviews.

    Args:
        root: folder of the official tree or of Kaggle's CSV; `""` means the embedded reviews.
        split: train, validation or test.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("split", split, SPLITS)
    if not root:
        return _load_embedded(split)
    if (tree := _find_tree(Path(root))) is not None:
        data = Reviews(*_read_half(tree, "test" if split == "test" else "train"), "official")
    elif (file := Path(root) / KAGGLE).exists():
        data = Reviews(*_read_kaggle(file, split == "test"), "kaggle")
    else:
        raise FileNotFoundError(_describe_lack(root))
    if split == "test":
        return data
    in_validation = torch.tensor([int(files.sha256(t)[:8], 16) % 10 == 0 for t in data.texts])
    rows = in_validation if split == "validation" else ~in_validation
    return data.take(rows.nonzero().flatten())


def status(root: str = "") -> Status:
    """Report what `load(root)` would find: file names, and the first and last review of a class."""
    if not root:
        return report_status("imdb", _look_at_embedded, "embedded")
    return report_status("imdb", lambda: _look_at_official(Path(root)))


def _look_at_embedded() -> str:
    _check_table(pd.read_csv(_find_embedded(), nrows=10), _find_embedded())
    return "10,000 reviews from mlba's wheel; official data: data/README.md, entry 'imdb'"


def _look_at_official(root: Path) -> str:
    if (tree := _find_tree(root)) is not None:
        n = {half: _look_at_half(tree, half) for half in ("train", "test")}
        return f"{n['train']:,} training and {n['test']:,} test reviews (official: 25,000 each)"
    if (file := root / KAGGLE).exists():
        head = _check_table(pd.read_csv(file, nrows=10), file)
        end = _read_tail(file).rstrip().rstrip('"')
        if head.columns[-1] == "sentiment" and not end.endswith(NAMES):
            raise ValueError(describe_problem("imdb", file, "the last row is cut off"))
        return f"Kaggle's {file}"
    raise FileNotFoundError(_describe_lack(root))


def _look_at_half(tree: Path, half: str) -> int:
    """Count the reviews of train or test; read the first and the last of each class."""
    n = 0
    for kind in ("neg", "pos"):
        paths = _list_reviews(tree / half / kind)
        n += len(paths)
        for path in (paths[0], paths[-1]):
            _read_review(path)
    return n


def _read_tail(file: Path, size: int = 200) -> str:
    with open(file, "rb") as f:
        f.seek(max(file.stat().st_size - size, 0), os.SEEK_SET)
        return f.read().decode("utf-8", errors="ignore")


def _describe_lack(root: str | Path) -> str:
    return describe_problem("imdb", Path(root), f"neither aclImdb/ nor '{KAGGLE}'")


def _find_tree(root: Path) -> Path | None:
    for folder in (root / "aclImdb", root):
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            return folder
    return None


def _list_reviews(folder: Path) -> list[Path]:
    """Return the reviews of a class by id. Raises FileNotFoundError if there is none."""
    paths = sorted(folder.glob("*.txt"), key=_parse_number)
    if not paths:
        raise FileNotFoundError(describe_problem("imdb", folder, "no review in this folder"))
    return paths


def _read_review(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as e:
        raise ValueError(describe_problem("imdb", file, f"the review is no UTF-8: {e}")) from e
    if not text:
        raise ValueError(describe_problem("imdb", file, "the review is empty"))
    return text


def _read_half(tree: Path, half: str) -> Raw:
    """Read all reviews of train or test: negative ones first, each class by number.

    The id of number 12 is 12 if negative and 1,000,012 if positive; test adds 10,000,000.
    """
    texts, y, ids = [], [], []
    for label, kind in enumerate(("neg", "pos")):
        for file in _list_reviews(tree / half / kind):
            texts.append(_read_review(file))
            y.append(label)
            ids.append(_parse_number(file) + 1_000_000 * label + 10_000_000 * (half == "test"))
    return tuple(texts), torch.tensor(y), torch.tensor(ids)


def _parse_number(file: Path) -> int:
    number = file.stem.split("_")[0]
    if not number.isdigit():
        problem = "expected a name like 123_8.txt (number, rating)"
        raise ValueError(describe_problem("imdb", file, problem))
    return int(number)


def _check_table(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Return the table; raise ValueError that names the first wrong row."""
    if not {"review", "sentiment"} <= set(table.columns):
        problem = f"columns {list(table.columns)}, expected review and sentiment"
        raise ValueError(describe_problem("imdb", file, problem))
    wrong = ~table["sentiment"].isin(NAMES).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        found = table["sentiment"].iloc[row]
        problem = f"row {row}: sentiment {found!r}, expected 'negative' or 'positive'"
        raise ValueError(describe_problem("imdb", file, problem))
    empty = (table["review"].isna() | (table["review"].astype(str).str.strip() == "")).to_numpy()
    if empty.any():
        problem = f"row {int(empty.argmax())}: the review is empty"
        raise ValueError(describe_problem("imdb", file, problem))
    return table


def _read_kaggle(file: Path, test: bool) -> Raw:
    """Read the reviews of one half; a hash of the text decides which half."""
    table = _check_table(pd.read_csv(file), file).drop_duplicates("review")
    in_test = table["review"].map(lambda t: int(files.sha256(t)[8:16], 16) % 2 == 1)
    return _to_tensors(table[in_test if test else ~in_test])


def _to_tensors(table: pd.DataFrame) -> Raw:
    y = torch.tensor((table["sentiment"] == "positive").to_numpy()).long()
    return tuple(table["review"]), y, torch.tensor(table.index.to_numpy())


def _find_embedded() -> Path:
    return find_package_file("imdb", "mlba", "csvFiles", "IMDB-Dataset-10K.csv.gz")


@lru_cache(maxsize=1)
def _read_embedded() -> pd.DataFrame:
    path = _find_embedded()
    return _check_table(pd.read_csv(path), path).drop_duplicates("review")


def _load_embedded(split: str) -> Reviews:
    table = _read_embedded()
    in_training_half = table.index.isin(json.loads(ROWS.read_text()))
    if split == "train":
        table = table[in_training_half]
    else:
        table = table[~in_training_half]
        in_validation = np.arange(len(table)) % 5 == 4
        table = table[in_validation if split == "validation" else ~in_validation]
    return Reviews(*_to_tensors(table), "embedded")


def find_embedded_rows(root: str) -> list[int]:
    """Find the rows of mlba's table that must not be evaluated on, using the official tree `root`.

    They are the reviews of the official training half and those found in neither half. Texts are
    compared by their ASCII letters and digits, because mlba's table has lost accents.
    `write_embedded_rows` stores the result.
    """
    test = {_hash_letters(t) for t in load(root, "test").texts}
    train = {_hash_letters(t) for s in ("train", "validation") for t in load(root, s).texts}
    hashes = _read_embedded()["review"].map(_hash_letters)
    return [int(i) for i, h in hashes.items() if h in train or h not in test]


def write_embedded_rows(root: str) -> None:
    """Make imdb_embedded_rows.json again from the official tree in `root`."""
    files.write_text(ROWS, json.dumps(find_embedded_rows(root), separators=(",", ":")) + "\n")


def _hash_letters(text: str) -> str:
    plain = text.lower().replace("<br />", " ")
    return files.sha256("".join(c for c in plain if c.isascii() and c.isalnum()))
