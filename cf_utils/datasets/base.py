"""What every data set of this project is: (x, y, id) triples, a status line, and errors with a next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True, eq=False)
class Status:
    """`state`: present (official data found), embedded (only the default that ships) or missing; `advice`: one line."""

    name: str
    state: str
    advice: str


@dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """A split held as tensors; indexing with a list or a slice gives a batch."""

    x: Tensor  # (N, ...) float32
    y: Tensor  # (N,) int64
    ids: Tensor | tuple[str, ...]  # int64 (N,) or strings, stable across splits and sessions
    class_names: tuple[str, ...]
    source: str  # "embedded" or "official"

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.x[i],
            self.y[i],
            self.ids[i] if isinstance(i, (int, slice)) else _at(self.ids, i),
        )

    def take(self, rows: Tensor | Sequence[int]) -> InMemory:
        rows = torch.as_tensor(rows)
        return replace(self, x=self.x[rows], y=self.y[rows], ids=_at(self.ids, rows))


@dataclass(frozen=True, eq=False)
class OnDisk(Dataset):
    """A split whose images stay on disk: each is read when it is asked for. An index gives one (x, y, id), a slice, a list or a
    tensor of rows a batch, as with `InMemory`; `take(rows).in_memory()` reads those rows for good."""

    folder: Path
    names: tuple[str, ...]  # N files, relative to folder
    read: Callable[
        [Path], Tensor
    ]  # -> x of one image, (3, H, W) float32 in [0, 1]; an error names the file
    y: Tensor  # (N,) or (N, labels) int64
    ids: Tensor | tuple[str, ...]  # int64 (N,) or strings, stable across splits and sessions
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()  # files that were listed, could not be read and were left out

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i):
        if isinstance(i, int):
            return self.read(self.folder / self.names[i]), self.y[i], self.ids[i]
        part = self.take(range(len(self))[i] if isinstance(i, slice) else i)
        return torch.stack([self.read(part.folder / name) for name in part.names]), part.y, part.ids

    def take(self, rows: Tensor | Sequence[int]) -> OnDisk:
        """The split of these rows (positions), still on disk."""
        rows = torch.as_tensor(rows, dtype=torch.int64).tolist()
        return replace(
            self, names=tuple(self.names[i] for i in rows), y=self.y[rows], ids=_at(self.ids, rows)
        )

    def in_memory(self) -> InMemory:
        return InMemory(*self[:], self.class_names, self.source)


def _at(ids: Tensor | tuple[str, ...], rows) -> Tensor | tuple[str, ...]:
    return (
        ids[rows]
        if isinstance(ids, Tensor)
        else tuple(ids[i] for i in torch.as_tensor(rows).tolist())
    )


def missing(name: str, path: Path, wrong: str) -> str:
    """The text of a FileNotFoundError or ValueError: where we looked, the first thing wrong, what to do."""
    return (
        f"{name}: {wrong} (looked at {path}). How to get the data: data/README.md, entry '{name}'"
    )
