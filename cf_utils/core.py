"""The contracts every method shares: the call, the result, the checks, the noise, and what a pass costs.

A method is a frozen dataclass derived from `Explainer`. It implements `search`; the call, the checks on what comes in,
counting, timing and the result are the same for all and stand here once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cf_utils import io

ALREADY, NAN, BELOW, OTHER = "already target", "classifier returned NaN", "score below tau", "decision is not the target"


# ---------------------------------------------------------------- devices, seeds, noise, progress

def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else CPU. Any other name goes to torch.device as it is."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch and numpy's global generators; return a fresh CPU generator with the same seed for explicit use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that we call draw from it)
    return torch.Generator().manual_seed(seed)


def item_noise(seed: int, ids: Tensor | Sequence[str], shape: Sequence[int], stream: str, kind: str = "normal") -> Tensor:
    """Noise (B, *shape) that depends on (seed, id, stream) alone: not on the batch, the shard or the order.

    Drawn in float32 on the CPU from a SHA-256 of the three; the caller casts and moves it. `kind`: normal N(0, 1) or
    uniform U[0, 1).
    """
    rows = []
    for i in ids.tolist() if isinstance(ids, Tensor) else ids:
        digest = hashlib.sha256(f"{seed}|{i}|{stream}".encode()).digest()
        gen = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows.append((torch.randn if kind == "normal" else torch.rand)(tuple(shape), generator=gen))
    return torch.stack(rows)


def headless() -> bool:
    """True where nobody watches: papermill and nbval runs (CF_HEADLESS), or a stderr that is no terminal."""
    return bool(os.environ.get("CF_HEADLESS")) or not ("ipykernel" in sys.modules or sys.stderr.isatty())


def progress(items: Iterable | None = None, **kw) -> tqdm:
    """tqdm.auto, quiet when headless."""
    return tqdm(items, disable=headless(), **kw)


# ---------------------------------------------------------------- blocks of features, neighbouring pixels

def block_index(shape: Sequence[int], block: Sequence[int]) -> tuple[Tensor, int]:
    """Number the blocks of an item of `shape`: (index int64 of that shape, how many). Edge blocks may be smaller.

    `block` gives extents along the trailing dimensions, -1 for all of one; leading dimensions it does not name are spanned
    whole: (4, 4) on (C, H, W) spans the channels, (1, -1) on (words, d) makes each word one, (1,) on (features,) each feature.
    """
    if len(block) > len(shape) or any(b == 0 or b < -1 for b in block):
        raise ValueError(f"block: got {tuple(block)} for items of shape {tuple(shape)}, expected positive extents or -1")
    lead = len(shape) - len(block)
    sizes = [*shape[:lead], *(s if b == -1 else b for s, b in zip(shape[lead:], block, strict=True))]
    index, n = torch.zeros(tuple(shape), dtype=torch.int64), 1
    for d, (s, b) in enumerate(zip(shape, sizes, strict=True)):
        parts = -(-s // b)
        index = index * parts + (torch.arange(s) // b).view(-1, *[1] * (len(shape) - d - 1))
        n *= parts
    return index, n


def block_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Mean of values (B, ...) over each block: (B, n)."""
    flat = index.flatten().to(values.device)
    total = torch.zeros(len(values), n, dtype=values.dtype, device=values.device).index_add_(1, flat, values.flatten(1))
    return total / torch.bincount(flat, minlength=n)


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


class _Squares(torch.autograd.Function):
    """Total variation with exponent 2. Its gradient by hand saves a dozen kernels in every step of a search."""

    @staticmethod
    def forward(ctx, x):
        both = _differences(x)
        ctx.save_for_backward(*both)
        return sum(torch.linalg.vector_norm(d.flatten(1), dim=1).square() for d in both)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, up):
        across, down = (d * (2 * up).view(-1, 1, 1, 1) for d in ctx.saved_tensors)
        g = across.new_zeros(*across.shape[:-1], across.shape[-1] + 1)
        g[..., :, 1:] += across
        g[..., :, :-1] -= across
        g[..., 1:, :] += down
        g[..., :-1, :] -= down
        return g


def total_variation(x: Tensor, beta: float = 2.0) -> Tensor:
    """Sum over pixels of (dx^2 + dy^2)^(beta / 2) per image (B, C, H, W) -> (B,); differences over the edge are 0 (Eq. 8)."""
    across, down = _differences(x)
    if beta == 2:                               # two sums of squares
        return _Squares.apply(x)
    square = torch.nn.functional.pad(across, (0, 1)).square() + torch.nn.functional.pad(down, (0, 0, 0, 1)).square()
    return square.pow(beta / 2).flatten(1).sum(1)


# ---------------------------------------------------------------- checks

def check_query(x: Tensor, target: Tensor, ids=None, bounds=None, score: float | None = None) -> Tensor | tuple[str, ...]:
    """Refuse bad input by name before any work; return the ids (row numbers where None came).

    Args: x float (B, ...), finite, inside `bounds` (low, high: scalars or tensors per feature; None = no range);
    target int64 (B,); ids int64 (B,) or B distinct strings; score in (0, 1) or None.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a float tensor (B, ...)")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, ...) with B >= 1")
    if not x.isfinite().all():
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"x: rows {bad[:5]} hold NaN or infinite values, expected finite values")
    if bounds is not None:
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
        if (low >= high).any():
            raise ValueError("bounds: low must be under high")
        if (x < low - 1e-6).any() or (x > high + 1e-6).any():
            raise ValueError(f"x: values from {x.min():.3g} to {x.max():.3g}, expected inside bounds {_brief(bounds)}. "
                             "Was it normalised? Normalisation belongs inside the classifier")
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != (len(x),):
        got = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(f"target: got {got}, expected int64 ({len(x)},)")
    if score is not None and not 0 < score < 1:
        raise ValueError(f"score: got {score}, expected a probability inside (0, 1)")
    if ids is None:
        return torch.arange(len(x))
    if isinstance(ids, Tensor) and (ids.dtype != torch.int64 or ids.ndim != 1):
        raise ValueError(f"ids: got {ids.dtype} {tuple(ids.shape)}, expected int64 ({len(x)},) or strings")
    ids = ids.cpu() if isinstance(ids, Tensor) else tuple(ids)
    if not isinstance(ids, Tensor) and not all(isinstance(i, str) for i in ids):
        raise ValueError("ids: expected an int64 tensor or strings")
    if len(ids) != len(x) or len(set(_listed(ids))) != len(x):
        raise ValueError(f"ids: got {len(ids)} ids, {len(set(_listed(ids)))} distinct, expected {len(x)} distinct ones")
    return ids


def _brief(bounds) -> str:
    return "[" + ", ".join(f"{float(b):g}" if np.ndim(b) == 0 else "per feature" for b in bounds) + "]"


def _listed(ids) -> list:
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def _check_logits(logits: Tensor, x: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(f"classifier: gave {tuple(logits.shape)} for {len(x)} rows, expected logits (B, K) with K >= 2 "
                         "(cf_utils.classifiers.OneOutput wraps a single sigmoid output)")
    if (target < 0).any() or (target >= logits.shape[1]).any():
        raise ValueError(f"target: values from {target.min()} to {target.max()}, expected 0 to {logits.shape[1] - 1}")


# ---------------------------------------------------------------- the black box and what its use costs

@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients (a backward pass to the input is then all that is paid); back afterwards."""
    was = [(m, m.training) for mod in modules for m in mod.modules()]
    grads = [(p, p.requires_grad) for mod in modules for p in mod.parameters()]
    try:
        for m in modules:
            m.eval().requires_grad_(False)
        yield
    finally:
        for m, training in was:
            m.training = training
        for p, needs in grads:
            p.requires_grad_(needs)


class BlackBox:
    """A frozen module whose passes are counted, and whose time is shared, by item.

    `f(x, rows)`: outputs for x, where x[j] belongs to item rows[j] (an item may come several times).
    `f.grad(total, z)`: d total / d z, counted as a backward pass of the rows that went forward last.
    """

    def __init__(self, module: nn.Module, n: int):
        self.module = module
        self.n_forward, self.n_backward = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        self.seconds = torch.zeros(n, dtype=torch.float64)
        self._rows, self._pending, self._since = torch.arange(n), [0, 0], time.perf_counter()

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        if rows is not self._rows:          # the same rows object again costs two additions, not an index
            self.flush()
            self._rows = rows
        self._pending[0] += 1
        return self.module(x)

    def grad(self, total: Tensor, z: Tensor) -> Tensor:
        self._pending[1] += 1
        return torch.autograd.grad(total, z)[0]

    def flush(self) -> None:
        """Book what is pending; called by itself when the rows change, and at the end of a search."""
        now, rows = time.perf_counter(), self._rows.cpu()
        if len(rows):
            share = torch.bincount(rows, minlength=len(self.n_forward))
            self.n_forward += self._pending[0] * share
            self.n_backward += self._pending[1] * share
            self.seconds += (now - self._since) * share / share.sum()
        self._pending, self._since = [0, 0], now


# ---------------------------------------------------------------- the result

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
        if both := set(_listed(self.ids)) & set(_listed(other.ids)):
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
        whole, ids = dataclasses.replace(self, **joined), _listed(joined["ids"])
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
        columns = {n: _listed(v) for n in names if (v := getattr(self, n)) is not None}
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


@dataclass
class Found:
    """What a method's `search` hands back; rows are those that it was given."""

    counterfactual: Tensor
    mask: Tensor | None = None
    path: Tensor | None = None                      # (B, steps, ...), without the query
    path_len: Tensor | None = None                  # states in `path`, without the query
    reason: list[str] | None = None                 # a method's own word on a failure, "" to leave it to the call
    generator: BlackBox | None = None


# ---------------------------------------------------------------- the protocol

@dataclass(frozen=True, eq=False, kw_only=True)
class Explainer:
    """Base of every method: `explain = Method(settings); cfs = explain(classifier, x, target)`.

    Derived classes are frozen dataclasses whose fields are settings and prepared parts, and implement
    `search(f, x, target, ids, tau) -> Found`, a batched computation in which rows do not influence each other.
    """

    tau: float = 0.5                                # wanted probability of the target
    seed: int = 0                                   # of all noise
    bounds: tuple[Any, Any] | None = (0.0, 1.0)     # the data's valid range: scalars, or tensors per feature

    def search(self, f: BlackBox, x: Tensor, target: Tensor, ids, tau: float) -> Found:
        """The method itself, on the rows that are neither done nor broken. Each derived class has its own; the base has none."""
        raise NotImplementedError(f"{type(self).__name__} has no search")

    def check(self, x: Tensor, logits: Tensor) -> None:
        """A method's own checks on its parts against the input and the classifier, before any search."""

    def __call__(self, classifier: nn.Module, x: Tensor, target: Tensor, ids=None, score: float | None = None) -> Counterfactuals:
        """Explain each row: what must change in x for `classifier` to decide `target`, with probability `score` or tau.

        classifier maps x to logits (B, K >= 2), normalisation inside it. Raises ValueError on bad input before any search.
        """
        row_ids, ids = ids is None, check_query(x, target, ids, self.bounds, score)
        if not 0 < self.tau < 1:
            raise ValueError(f"tau: got {self.tau}, expected a probability inside (0, 1)")
        tau, x, target = self.tau if score is None else score, x.detach(), target.to(x.device)
        first = BlackBox(classifier, len(x))
        with frozen(classifier):
            with torch.no_grad():
                logits = first(x, torch.arange(len(x)))
            _check_logits(logits, x, target)
            self.check(x, logits)
            broken, source = ~logits.isfinite().all(1), logits.argmax(1)
            p = logits.softmax(1).gather(1, target[:, None])[:, 0]
            done = (source == target) & (p >= tau) & ~broken
            todo = (~done & ~broken).nonzero().flatten()
            first.flush()
            search = BlackBox(classifier, len(todo))
            found = Found(x[:0])
            if len(todo):
                own = ids[todo.cpu()] if isinstance(ids, Tensor) else tuple(ids[i] for i in todo.tolist())
                with torch.enable_grad():           # a caller's no_grad is about its own graph
                    found = self.search(search, x[todo], target[todo], own, tau)
                found.counterfactual = found.counterfactual.detach()
            cf = x.clone()
            if len(todo):
                fine = found.counterfactual.flatten(1).isfinite().all(1)
                cf[todo[fine]] = found.counterfactual[fine]
                with torch.no_grad():
                    final = search(cf[todo], torch.arange(len(todo)))
                search.flush()
                logits = logits.index_copy(0, todo, final)
        p = logits.softmax(1).gather(1, target[:, None])[:, 0]
        valid = (logits.argmax(1) == target) & p.isfinite()
        reached = valid & (p >= tau)
        own = dict(zip(todo.tolist(), found.reason or [], strict=False))
        reason = [ALREADY if done[i] else NAN if broken[i] or not p[i].isfinite() else "" if reached[i]
                  else own.get(i) or (BELOW if valid[i] else OTHER) for i in range(len(x))]
        at = todo.cpu()
        counts = {k: getattr(first, k).index_add(0, at, getattr(search, k)) for k in ("n_forward", "n_backward", "seconds")}
        return Counterfactuals(
            query=x, counterfactual=cf, target=target, source=source.masked_fill(broken, -1), score=p, valid=valid,
            reached=reached, reason=tuple(reason), ids=ids, settings={**describe(self), "classifier": describe(classifier)},
            seed=self.seed, row_ids=row_ids, **counts, **self._spread(found, x, todo))

    @staticmethod
    def _spread(found: Found, x: Tensor, todo: Tensor) -> dict[str, Tensor]:
        """Give mask, path and generator passes of the searched rows to all rows (none, the query alone, zero)."""
        out: dict[str, Tensor] = {}
        if found.mask is not None:
            out["mask"] = torch.zeros_like(x, dtype=torch.bool).index_copy(0, todo, found.mask)
        if found.path is not None:
            path = x[:, None].repeat(1, 1 + found.path.shape[1], *[1] * (x.ndim - 1))
            path[todo, 1:] = found.path
            out["path"] = path
            out["path_len"] = torch.ones(len(x), dtype=torch.int64).index_copy(0, todo.cpu(), 1 + found.path_len.cpu())
        if found.generator is not None:
            found.generator.flush()
            for k in ("n_forward", "n_backward"):
                zero = torch.zeros(len(x), dtype=torch.int64)
                out[f"{k}_generator"] = zero.index_copy(0, todo.cpu(), getattr(found.generator, k))
        return out


def describe(thing: Any) -> Any:
    """Plain JSON of a setting: dataclasses field by field, tensors and modules by name and SHA-256."""
    if isinstance(thing, Tensor):
        return {"tensor": list(thing.shape), "sha256": io.sha256(thing)[:16]}
    if isinstance(thing, nn.Module):
        return {"module": type(thing).__name__, "sha256": io.module_sha256(thing)[:16]}
    if dataclasses.is_dataclass(thing):
        return {"method": type(thing).__name__} | {f.name: describe(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
    if isinstance(thing, (tuple, list)):
        return [describe(t) for t in thing]
    if isinstance(thing, dict):
        return {str(k): describe(v) for k, v in thing.items()}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    raise TypeError(f"{type(thing).__name__} cannot be a setting: it has no plain JSON form")


# ---------------------------------------------------------------- many items: whole batches, shards, resume

def explain_in_batches(explain: Explainer, classifier: nn.Module, x: Tensor, target: Tensor, ids, *, score: float | None = None,
                       batch_size: int = 64, folder: str | Path | None = None, shard: tuple[int, int] = (1, 1),
                       desc: str | None = None, before_save: Callable[[], None] | None = None) -> Counterfactuals | None:
    """Explain in whole batches fixed by row, so that any number of shards gives the same numbers, bit for bit.

    With `folder`, each batch is saved under a name that hashes all that it depends on; batches that are there are read, not
    computed again; `before_save` is asked before each is written and may raise. `shard=(k, n)` computes batches k-1,
    k-1+n, ... and returns None when others are left to do.
    """
    if ids is None and shard != (1, 1):
        raise ValueError("ids: None means row numbers, which mean nothing in a shard; pass ids")
    k, n = shard
    if not 1 <= k <= n:
        raise ValueError(f"shard: got {k}/{n}, expected 1 <= k <= n")
    ids = check_query(x, target, ids, explain.bounds, score)
    setting = json.dumps([describe(explain), describe(classifier), score], sort_keys=True)
    starts = list(range(0, len(x), batch_size))
    parts = []
    for at in progress(starts[k - 1::n], desc=desc or type(explain).__name__, leave=False):
        rows = slice(at, at + batch_size)
        where = None
        if folder is not None:
            key = io.sha256(setting, x[rows], target[rows], *map(str, _listed(ids[rows])))
            where = Path(folder) / f"{at:06d}-{key[:16]}"
            if (where / "result.json").exists():
                parts.append(Counterfactuals.load(where))
                continue
        part = explain(classifier, x[rows], target[rows], ids[rows], score)
        if where is not None:
            if before_save is not None:
                before_save()
            part.save(where)
        parts.append(part)
    if n > 1:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    order = {i: j for j, i in enumerate(_listed(whole.ids))}
    return whole.select([order[i] for i in _listed(ids)])          # the caller's order, not the ids'


def show_source(thing: Any):
    """The source that runs, as highlighted Python in a notebook: what a reader sees is what is called."""
    from IPython.display import Code
    return Code(inspect.getsource(thing), language="python")
