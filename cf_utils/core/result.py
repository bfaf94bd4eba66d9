"""Counterfactuals: the result type of all methods."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import torch
from torch import Tensor

from cf_utils.core import files
from cf_utils.core.checks import Ids, to_list

# Failure reasons; a method may add its own.
ALREADY = "already target"
NAN = "classifier returned NaN"
BELOW = "score below tau"
OTHER = "decision is not the target"

REPAIR = "delete the folder and compute it again"


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """What an explainer found for each item; failures are kept and flagged, never dropped.

    valid: the classifier's decision on the counterfactual is the target.
    reached: valid, and the score is at least the wanted probability tau.
    path: states of the search; the first is the query. Item i has `path_len[i]` states, and its
        last one is repeated up to the common length.
    row_ids: the ids are row numbers of one call, so results of two calls cannot be joined.
    """

    query: Tensor  # (B, ...)
    counterfactual: Tensor  # (B, ...)
    target: Tensor  # (B,) int64
    source: Tensor  # (B,) int64, the classifier's decision on the query; -1 if its logits were NaN
    score: Tensor  # (B,) probability of the target at the counterfactual
    valid: Tensor  # (B,) bool
    reached: Tensor  # (B,) bool
    reason: tuple[str, ...]  # failure reason per item, "" where reached
    ids: Ids  # int64 (B,), or B strings
    settings: dict[str, Any]  # of the method and the classifier, plain JSON
    seed: int
    seconds: Tensor  # (B,) float64
    n_forward: Tensor  # (B,) int64, passes of the classifier
    n_backward: Tensor  # (B,) int64
    mask: Tensor | None = None  # (B, ...) bool, the features that were allowed to change
    path: Tensor | None = field(default=None, repr=False)  # (B, steps, ...)
    path_len: Tensor | None = None  # (B,) int64
    n_forward_generator: Tensor | None = None  # (B,) int64, passes of the generator
    n_backward_generator: Tensor | None = None  # (B,) int64
    row_ids: bool = False

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def _item_fields(cls) -> list[str]:
        """Return the names of the fields that hold one value per item."""
        whole = ("settings", "seed", "row_ids")
        return [f.name for f in dataclasses.fields(cls) if f.name not in whole]

    def _tensors(self) -> dict[str, Any]:
        """Return the fields that hold a tensor, by name, on the CPU."""
        values = {name: getattr(self, name) for name in self._item_fields()}
        return {name: v.cpu() for name, v in values.items() if isinstance(v, Tensor)}

    def cpu(self) -> Counterfactuals:
        """Return a copy with all tensors on the CPU."""
        return dataclasses.replace(self, **self._tensors())

    def select(self, rows: Sequence[int] | Tensor) -> Counterfactuals:
        """Return the items at `rows` (positions, or a bool mask), in that order."""
        rows = torch.as_tensor(rows)
        rows = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).long()
        positions = rows.tolist()
        selected: dict[str, Any] = {}
        for name in self._item_fields():
            value = getattr(self, name)
            if isinstance(value, Tensor):
                selected[name] = value[rows.to(value.device)]
            elif value is not None:
                selected[name] = tuple(value[i] for i in positions)
        return dataclasses.replace(self, **selected)

    def __add__(self, other: Counterfactuals) -> Counterfactuals:
        """Join two results; see `join`."""
        if not isinstance(other, Counterfactuals):
            return NotImplemented
        return Counterfactuals.join([self, other])

    @classmethod
    def join(cls, parts: Sequence[Counterfactuals]) -> Counterfactuals:
        """Join results of one method on different items; return all items sorted by id.

        Raises ValueError if settings or seeds differ, if an id occurs twice, or if ids are row
        numbers.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        _check_joinable(parts)
        searched = next((part for part in parts if not part._had_no_search()), first)
        parts = [part._add_fields_of(searched) for part in parts]
        joined: dict[str, Any] = {
            name: _concatenate(name, [getattr(part, name) for part in parts])
            for name in cls._item_fields()
        }
        ids = [i for part in parts for i in to_list(part.ids)]
        in_order = sorted(range(len(ids)), key=ids.__getitem__)
        return dataclasses.replace(first, **joined).select(in_order)

    def _had_no_search(self) -> bool:
        """Return whether every item was at its target already, or had NaN logits."""
        return all(
            why == ALREADY or s < 0
            for why, s in zip(self.reason, self.source.tolist(), strict=True)
        )

    def _add_fields_of(self, other: Counterfactuals) -> Counterfactuals:
        """Return a copy with an empty mask, path and so on where `other` has them.

        A result with searched items is returned as it is.
        """
        if not self._had_no_search():
            return self
        zero = torch.zeros(len(self), dtype=torch.int64)
        empty = {
            "mask": torch.zeros_like(self.query, dtype=torch.bool),
            "path": self.query[:, None],
            "path_len": torch.ones(len(self), dtype=torch.int64),
            "n_forward_generator": zero,
            "n_backward_generator": zero.clone(),
        }
        lacking: dict[str, Any] = {
            name: value
            for name, value in empty.items()
            if getattr(self, name) is None and getattr(other, name) is not None
        }
        return dataclasses.replace(self, **lacking)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row per item, indexed by id, without images, masks and paths."""
        large = ("query", "counterfactual", "mask", "path")
        values = {n: getattr(self, n) for n in self._item_fields() if n not in large}
        columns = {n: to_list(v) for n, v in values.items() if v is not None}
        return pd.DataFrame(columns).set_index("ids")

    def save(self, folder: str | Path) -> None:
        """Write `result.json` and the tensors file that it names.

        A kill at any moment leaves the old pair or the new one.
        """
        folder, tensors = Path(folder), self._tensors()
        content = [part for k in sorted(tensors) for part in (k, tensors[k])]
        name = f"tensors-{files.sha256(*content)[:16]}.safetensors"
        files.write_tensors(folder / name, tensors)
        plain = {
            "tensors": name,
            "sha256": files.sha256(folder / name),
            "reason": self.reason,
            "ids": None if isinstance(self.ids, Tensor) else self.ids,
            "settings": self.settings,
            "seed": self.seed,
            "row_ids": self.row_ids,
        }
        files.write_json(folder / "result.json", plain)
        for stale in folder.glob("tensors-*.safetensors"):
            if stale.name != name:
                stale.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> Counterfactuals:
        """Read what `save` wrote.

        Raises FileNotFoundError if there is no result, and ValueError if a file is damaged.
        """
        path = Path(folder) / "result.json"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: no saved result there")
        plain = _read_plain(path)
        file, expected = path.with_name(plain.pop("tensors")), plain.pop("sha256")
        if not file.exists():
            raise ValueError(f"{file} is missing, but {path.name} names it; {REPAIR}")
        if files.sha256(file) != expected:
            raise ValueError(
                f"{file} is damaged: it is not the one that result.json names; {REPAIR}"
            )
        try:
            tensors: dict[str, Any] = files.read_tensors(file)
            return cls(**tensors, **plain)
        except (safetensors.SafetensorError, TypeError) as e:
            raise ValueError(f"{file} and {path.name} hold no whole result: {e}; {REPAIR}") from e


def _read_plain(path: Path) -> dict[str, Any]:
    """Return the content of `result.json`: plain fields, and name and hash of the tensors file."""
    try:
        plain = files.read_json(path)
        plain["reason"] = tuple(plain["reason"])
        if (ids := plain.pop("ids")) is not None:
            plain["ids"] = tuple(ids)
        if not isinstance(plain["tensors"], str):
            raise TypeError("'tensors' is no file name")
        plain["sha256"]
    except KeyError as e:
        raise ValueError(f"{path} is damaged: it has no entry {e}; {REPAIR}") from e
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as e:
        size = path.stat().st_size
        raise ValueError(
            f"{path} is damaged: {size} bytes that are no saved result ({e}); {REPAIR}"
        ) from e
    return plain


def _check_joinable(parts: Sequence[Counterfactuals]) -> None:
    first = parts[0]
    if any(part.row_ids for part in parts):
        raise ValueError(
            "ids: results with ids=None have row numbers, which mean nothing outside their call; "
            "pass ids to the explainer"
        )
    for part in parts[1:]:
        if (first.settings, first.seed) != (part.settings, part.seed):
            keys = first.settings.keys() | part.settings.keys()
            differ = sorted(k for k in keys if first.settings.get(k) != part.settings.get(k))
            raise ValueError(f"settings: the two results differ in {differ or ['seed']}")
    ids = [i for part in parts for i in to_list(part.ids)]
    if len(ids) > len(set(ids)):
        twice = sorted({i for i in ids if ids.count(i) > 1})[:5]
        raise ValueError(f"ids: {twice} are in both results; join results on different items")


def _concatenate(name: str, values: list[Any]) -> Tensor | tuple | None:
    """Concatenate one field of several results; shorter paths repeat their last state."""
    if len({v is None for v in values}) > 1:
        raise ValueError(f"{name}: only one of the two results has it, expected both or none")
    if values[0] is None:
        return None
    if not isinstance(values[0], Tensor):
        return tuple(v for value in values for v in value)
    if name == "path":
        steps = max(p.shape[1] for p in values)
        values = [
            torch.cat([p, p[:, -1:].expand(-1, steps - p.shape[1], *p.shape[2:])], 1)
            for p in values
        ]
    return torch.cat(values)
