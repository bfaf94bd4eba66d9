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

from cf_utils import io
from cf_utils.core.checks import listed

ALREADY, NAN, BELOW, OTHER = "already target", "classifier returned NaN", "score below tau", "decision is not the target"


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """What an explainer found, item by item; failures are kept and flagged, never dropped.

    `valid`: the classifier's decision on `counterfactual` is `target`. `reached`: valid, and its probability is at least
    the tau asked for. `path[:, 0]` is the query, `path[:, :path_len]` the states met, padded with the last one.
    `row_ids`: ids are row numbers of one call, so results of two calls cannot be joined.
    """

    query: Tensor                                   # (B, ...)
    counterfactual: Tensor                          # (B, ...)
    target: Tensor                                  # (B,) int64
    source: Tensor                                  # (B,) int64, the prediction for the query; -1 where it was NaN
    score: Tensor                                   # (B,) probability of the target at the counterfactual
    valid: Tensor                                   # (B,) bool
    reached: Tensor                                 # (B,) bool
    reason: tuple[str, ...]                         # "" where reached
    ids: Tensor | tuple[str, ...]
    settings: dict[str, Any]
    seed: int
    seconds: Tensor                                 # (B,) float64
    n_forward: Tensor                               # (B,) int64, passes of the classifier
    n_backward: Tensor
    mask: Tensor | None = None                      # (B, ...) bool, what was allowed to change
    path: Tensor | None = field(default=None, repr=False)
    path_len: Tensor | None = None
    n_forward_generator: Tensor | None = None
    n_backward_generator: Tensor | None = None
    row_ids: bool = False

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def _per_item(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls) if f.name not in ("settings", "seed", "row_ids")]

    def select(self, rows: Sequence[int] | Tensor) -> Counterfactuals:
        """The items at `rows` (positions, or a bool mask), in that order."""
        rows = torch.as_tensor(rows)
        rows = (rows.nonzero().flatten() if rows.dtype == torch.bool else rows).long()
        new = {}
        for name in self._per_item():
            v = getattr(self, name)
            new[name] = v if v is None else v[rows.to(v.device)] if isinstance(v, Tensor) else tuple(v[i] for i in rows.tolist())
        return dataclasses.replace(self, **new)

    def __add__(self, other: Counterfactuals) -> Counterfactuals:
        """Join two results of one method, sorted by id. Refuses other settings or seeds, and ids that overlap."""
        if not isinstance(other, Counterfactuals):
            return NotImplemented
        if self.row_ids or other.row_ids:
            raise ValueError("ids: results with ids=None carry row numbers, which say nothing outside their call; pass ids")
        if (self.settings, self.seed) != (other.settings, other.seed):
            keys = self.settings.keys() | other.settings.keys()
            differ = sorted(k for k in keys if self.settings.get(k) != other.settings.get(k))
            raise ValueError(f"settings: the two results differ in {differ or ['seed']}")
        if both := set(listed(self.ids)) & set(listed(other.ids)):
            raise ValueError(f"ids: {sorted(both)[:5]} are in both results")
        joined, one, two = {}, self._like(other), other._like(self)
        for name in self._per_item():
            a, b = getattr(one, name), getattr(two, name)
            if (a is None) != (b is None):
                raise ValueError(f"{name}: only one of the two results has it")
            if name == "path" and a is not None:
                steps = max(a.shape[1], b.shape[1])
                a, b = (torch.cat([p, p[:, -1:].expand(-1, steps - p.shape[1], *p.shape[2:])], 1) for p in (a, b))
            joined[name] = a if a is None else torch.cat([a, b]) if isinstance(a, Tensor) else a + b
        whole, ids = dataclasses.replace(self, **joined), listed(joined["ids"])
        return whole.select(sorted(range(len(ids)), key=ids.__getitem__))

    def _like(self, other: Counterfactuals) -> Counterfactuals:
        """Where no item needed a search there is no mask, path or generator's count: give those that `other` has."""
        if any(why != ALREADY and s >= 0 for why, s in zip(self.reason, self.source.tolist(), strict=True)):
            return self
        none = {"mask": torch.zeros_like(self.query, dtype=torch.bool), "path": self.query[:, None],
                "path_len": torch.ones(len(self), dtype=torch.int64),
                **{f"n_{way}_generator": torch.zeros(len(self), dtype=torch.int64) for way in ("forward", "backward")}}
        lacks = {k: v for k, v in none.items() if getattr(self, k) is None and getattr(other, k) is not None}
        return dataclasses.replace(self, **lacks)

    def to_frame(self) -> pd.DataFrame:
        """A row an item: everything that is one number or word."""
        names = [n for n in self._per_item() if n not in ("query", "counterfactual", "mask", "path")]
        columns = {n: listed(v) for n in names if (v := getattr(self, n)) is not None}
        return pd.DataFrame(columns).set_index("ids")

    def save(self, folder: str | Path) -> None:
        """Write `result.json` and the tensors file that it names; a kill at any moment leaves the old pair or the new one."""
        folder = Path(folder)
        tensors = {n: v.cpu() for n in self._per_item() if isinstance(v := getattr(self, n), Tensor)}
        name = f"tensors-{io.sha256(*(p for k in sorted(tensors) for p in (k, tensors[k])))[:16]}.safetensors"
        io.write_tensors(folder / name, tensors)
        plain = {"reason": self.reason, "ids": None if isinstance(self.ids, Tensor) else self.ids, "settings": self.settings,
                 "seed": self.seed, "row_ids": self.row_ids}
        io.write_json(folder / "result.json", {"tensors": name, "sha256": io.sha256(folder / name), **plain})
        for stale in folder.glob("tensors-*.safetensors"):
            if stale.name != name:
                stale.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> Counterfactuals:
        """Read what `save` wrote. FileNotFoundError when nothing is there, ValueError when a file was changed."""
        folder = Path(folder)
        if not (folder / "result.json").exists():
            raise FileNotFoundError(f"{folder / 'result.json'} is missing: no saved result there")
        plain = io.read_json(folder / "result.json")
        file, expected = folder / plain.pop("tensors"), plain.pop("sha256")
        if not file.exists() or io.sha256(file) != expected:
            raise ValueError(f"{file} is missing or not the one that result.json names")
        plain["reason"] = tuple(plain["reason"])
        ids = plain.pop("ids")
        return cls(**io.read_tensors(file), **plain, **({} if ids is None else {"ids": tuple(ids)}))
