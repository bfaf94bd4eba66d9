"""What every data set of this project is: (x, y, id) triples, a status line, and errors with a next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    x: Tensor                       # (N, ...) float32
    y: Tensor                       # (N,) int64
    ids: Tensor                     # (N,) int64, stable across splits and sessions
    class_names: tuple[str, ...]
    source: str                     # "embedded" or "official"

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[i], self.y[i], self.ids[i]

    def take(self, rows: Tensor | Sequence[int]) -> InMemory:
        rows = torch.as_tensor(rows)
        return InMemory(self.x[rows], self.y[rows], self.ids[rows], self.class_names, self.source)


def missing(name: str, path: Path, wrong: str) -> str:
    """The text of a FileNotFoundError or ValueError: where we looked, the first thing wrong, what to do."""
    return f"{name}: {wrong} (looked at {path}). How to get the data: data/README.md, entry '{name}'"
