"""What all data sets share: splits of (x, y, id), a status, and errors with a next step."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cf_utils.core.checks import Ids, select_ids

SPLITS = ("train", "validation", "test")
Rows = Tensor | Sequence[int]  # positions, or a bool mask


@dataclass(frozen=True, eq=False)
class Status:
    """State of a data set on this machine.

    state: `present` (official files that can be read), `embedded` (the default that ships with the
        packages), `damaged` (files that cannot be read), or `missing`.
    advice: one line: what was found, or what is wrong and what to do.
    """

    name: str
    state: str
    advice: str


@dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """A split in memory.

    An integer gives one item (x, y, id); a slice, list or tensor of rows gives a batch.
    """

    x: Tensor  # (N, ...) float32
    y: Tensor  # (N,) int64
    ids: Ids  # int64 (N,) or strings, the same in every split and session
    class_names: tuple[str, ...]
    source: str  # "embedded" or "official"

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int | slice | Rows) -> tuple[Tensor, Tensor, Any]:
        ids = self.ids[index] if isinstance(index, int | slice) else _select(self.ids, index)
        return self.x[index], self.y[index], ids

    def take(self, rows: Rows) -> InMemory:
        """Return the split of these rows, in that order."""
        rows = torch.as_tensor(rows)
        return replace(self, x=self.x[rows], y=self.y[rows], ids=_select(self.ids, rows))


@dataclass(frozen=True, eq=False)
class OnDisk(Dataset):
    """A split whose images stay on disk; each is read when it is used.

    An integer gives one item (x, y, id); a slice, list or tensor gives a batch.
    `take(rows).in_memory()` reads those rows once.
    """

    folder: Path
    names: tuple[str, ...]  # N files, relative to folder
    read: Callable[[Path], Tensor]  # -> x of one image, (C, H, W) float32 in [0, 1]
    y: Tensor  # (N,) or (N, labels) int64
    ids: Ids  # int64 (N,) or strings, the same in every split and session
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()  # files that were left out because they cannot be read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | slice | Rows) -> tuple[Tensor, Tensor, Any]:
        if isinstance(index, int):
            return self.read(self.folder / self.names[index]), self.y[index], self.ids[index]
        part = self.take(range(len(self))[index] if isinstance(index, slice) else index)
        x = torch.stack([self.read(part.folder / name) for name in part.names])
        return x, part.y, part.ids

    def take(self, rows: Rows) -> OnDisk:
        """Return the split of these rows, in that order, still on disk."""
        rows = torch.as_tensor(rows)
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows.long()
        names = tuple(self.names[i] for i in rows.tolist())
        return replace(self, names=names, y=self.y[rows], ids=_select(self.ids, rows))

    def in_memory(self) -> InMemory:
        """Read all images of the split."""
        return InMemory(*self[:], self.class_names, self.source)


def _select(ids: Ids, rows: Rows) -> Ids:
    return select_ids(ids, torch.as_tensor(rows))


def describe_problem(name: str, path: Path | None, problem: str) -> str:
    """Return an error text for data set `name`: what is wrong, where we looked, what to do."""
    place = "" if path is None else f" (looked at {path})"
    return f"{name}: {problem}{place}. How to get the data: data/README.md, entry '{name}'"


def find_package_file(name: str, package: str, *parts: str) -> Path:
    """Return the path of a file inside an installed package, which is not imported.

    Raises FileNotFoundError, with the command to run, if the package or its file is missing.
    """
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    install = "install it with `pip install -e '.[embedded]'`"
    if spec is None or not spec.submodule_search_locations:
        problem = f"the package {package} with the embedded data is missing; {install}"
        raise FileNotFoundError(describe_problem(name, Path(module), problem))
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.is_file():
        problem = f"the package {package} is there but not its data; {install}"
        raise FileNotFoundError(describe_problem(name, path, problem))
    return path


def report_status(name: str, look: Callable[[], str], state: str = "present") -> Status:
    """Return the status of a data set.

    Args:
        name: name of the data set.
        look: function that opens the files and returns the text of `advice`. FileNotFoundError
            means missing; ValueError or any other error of reading means damaged.
        state: the state if `look` returns without an error.
    """
    try:
        return Status(name, state, look())
    except FileNotFoundError as e:
        return Status(name, "missing", str(e))
    except (OSError, ValueError, EOFError, zlib.error) as e:
        return Status(name, "damaged", str(e))
