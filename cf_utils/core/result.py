"""Counterfactuals: the one result type of every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import files
from cf_utils.core.checks import listed

ALREADY, NAN, BELOW, OTHER = (
    "already target",
    "classifier returned NaN",
    "score below tau",
    "decision is not the target",
)


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """What an explainer found, item by item; failures are kept and flagged, never dropped.

    `valid`: the classifier's decision on `counterfactual` is `target`. `reached`: valid, and its probability is at least
    the tau asked for. `path[:, 0]` is the query, `path[:, :path_len]` the states met, padded with the last one.
    `row_ids`: ids are row numbers of one call, so results of two calls cannot be joined.
    """

    query: Tensor  # (B, ...)
    counterfactual: Tensor  # (B, ...)
    target: Tensor  # (B,) int64
    source: Tensor  # (B,) int64, the prediction for the query; -1 where it was NaN
    score: Tensor  # (B,) probability of the target at the counterfactual
    valid: Tensor  # (B,) bool
    reached: Tensor  # (B,) bool
    reason: tuple[str, ...]  # "" where reached
    ids: Tensor | tuple[str, ...]
    settings: dict[str, Any]
    seed: int
    seconds: Tensor  # (B,) float64
    n_forward: Tensor  # (B,) int64, passes of the classifier
    n_backward: Tensor
    mask: Tensor | None = None  # (B, ...) bool, what was allowed to change
    path: Tensor | None = field(default=None, repr=False)
    path_len: Tensor | None = None
    n_forward_generator: Tensor | None = None
    n_backward_generator: Tensor | None = None
    row_ids: bool = False

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def _per_item(cls) -> list[str]:
        return [
            f.name for f in dataclasses.fields(cls) if f.name not in ("settings", "seed", "row_ids")
        ]

    def cpu(self) -> Counterfactuals:
        """The same with all tensors on the CPU, where results lie: read from files or just found, they can be joined."""
        found = {name: getattr(self, name) for name in self._per_item()}
        return dataclasses.replace(
            self, **{name: v.cpu() for name, v in found.items() if isinstance(v, Tensor)}
        )

    def select(self, rows: Sequence[int] | Tensor) -> Counterfactuals:
        """The items at `rows` (positions, or a bool mask), in that order."""
        rows = torch.as_tensor(rows)
        rows = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).long()
        new = {}
        for name in self._per_item():
            v = getattr(self, name)
            new[name] = (
                v
                if v is None
                else v[rows.to(v.device)]
                if isinstance(v, Tensor)
                else tuple(v[i] for i in rows.tolist())
            )
        return dataclasses.replace(self, **new)

    def __add__(self, other: Counterfactuals) -> Counterfactuals:
        """`join` of two."""
        return (
            Counterfactuals.join([self, other])
            if isinstance(other, Counterfactuals)
            else NotImplemented
        )

    @classmethod
    def join(cls, parts: Sequence[Counterfactuals]) -> Counterfactuals:
        """Results of one method as one, sorted by id. Refuses other settings or seeds, and ids that overlap."""
        first = parts[0]
        if len(parts) == 1:
            return first
        if any(part.row_ids for part in parts):
            raise ValueError(
                "ids: results with ids=None carry row numbers, which say nothing outside their call; pass ids"
            )
        for part in parts[1:]:
            if (first.settings, first.seed) != (part.settings, part.seed):
                keys = first.settings.keys() | part.settings.keys()
                differ = sorted(k for k in keys if first.settings.get(k) != part.settings.get(k))
                raise ValueError(f"settings: the two results differ in {differ or ['seed']}")
        ids = [i for part in parts for i in listed(part.ids)]
        if len(ids) > len(set(ids)):
            raise ValueError(
                f"ids: {sorted({i for i in ids if ids.count(i) > 1})[:5]} are in both results"
            )
        searched = next((part for part in parts if not part._untouched()), first)
        parts, joined = [part._like(searched) for part in parts], {}
        for name in cls._per_item():
            values = [getattr(part, name) for part in parts]
            if len({v is None for v in values}) > 1:
                raise ValueError(f"{name}: only one of the two results has it")
            if name == "path" and values[0] is not None:
                steps = max(p.shape[1] for p in values)
                values = [
                    torch.cat([p, p[:, -1:].expand(-1, steps - p.shape[1], *p.shape[2:])], 1)
                    for p in values
                ]
            joined[name] = (
                None
                if values[0] is None
                else torch.cat(values)
                if isinstance(values[0], Tensor)
                else tuple(v for value in values for v in value)
            )
        return dataclasses.replace(first, **joined).select(
            sorted(range(len(ids)), key=ids.__getitem__)
        )

    def _untouched(self) -> bool:
        """No item needed a search."""
        return all(
            why == ALREADY or s < 0
            for why, s in zip(self.reason, self.source.tolist(), strict=True)
        )

    def _like(self, other: Counterfactuals) -> Counterfactuals:
        """Where no item needed a search there is no mask, path or generator's count: give those that `other` has."""
        if not self._untouched():
            return self
        none = {
            "mask": torch.zeros_like(self.query, dtype=torch.bool),
            "path": self.query[:, None],
            "path_len": torch.ones(len(self), dtype=torch.int64),
            **{
                f"n_{way}_generator": torch.zeros(len(self), dtype=torch.int64)
                for way in ("forward", "backward")
            },
        }
        lacks = {
            k: v
            for k, v in none.items()
            if getattr(self, k) is None and getattr(other, k) is not None
        }
        return dataclasses.replace(self, **lacks)

    def to_frame(self) -> pd.DataFrame:
        """A row an item: everything that is one number or word."""
        names = [
            n for n in self._per_item() if n not in ("query", "counterfactual", "mask", "path")
        ]
        columns = {n: listed(v) for n in names if (v := getattr(self, n)) is not None}
        return pd.DataFrame(columns).set_index("ids")

    def save(self, folder: str | Path) -> None:
        """Write `result.json` and the tensors file that it names; a kill at any moment leaves the old pair or the new one."""
        folder = Path(folder)
        tensors = {
            n: v.cpu() for n in self._per_item() if isinstance(v := getattr(self, n), Tensor)
        }
        name = f"tensors-{files.sha256(*(p for k in sorted(tensors) for p in (k, tensors[k])))[:16]}.safetensors"
        files.write_tensors(folder / name, tensors)
        plain = {
            "reason": self.reason,
            "ids": None if isinstance(self.ids, Tensor) else self.ids,
            "settings": self.settings,
            "seed": self.seed,
            "row_ids": self.row_ids,
        }
        files.write_json(
            folder / "result.json",
            {"tensors": name, "sha256": files.sha256(folder / name), **plain},
        )
        for stale in folder.glob("tensors-*.safetensors"):
            if stale.name != name:
                stale.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> Counterfactuals:
        """Read what `save` wrote. FileNotFoundError when nothing is there, ValueError when a file was changed."""
        folder = Path(folder)
        if not (folder / "result.json").exists():
            raise FileNotFoundError(f"{folder / 'result.json'} is missing: no saved result there")
        plain = files.read_json(folder / "result.json")
        file, expected = folder / plain.pop("tensors"), plain.pop("sha256")
        if not file.exists() or files.sha256(file) != expected:
            raise ValueError(f"{file} is missing or not the one that result.json names")
        plain["reason"] = tuple(plain["reason"])
        ids = plain.pop("ids")
        return cls(
            **files.read_tensors(file), **plain, **({} if ids is None else {"ids": tuple(ids)})
        )
