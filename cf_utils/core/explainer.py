"""The protocol: one call for every method. A method is a frozen dataclass derived from `Explainer` that implements `search`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.checks import check_logits, check_query
from cf_utils.core.constraints import Constraints
from cf_utils.core.pass_counter import PassCounter, frozen
from cf_utils.core.result import ALREADY, BELOW, NAN, OTHER, Counterfactuals
from cf_utils.core.runtime import device_of

_RESULTS: WeakKeyDictionary[Counterfactuals, dict] = (
    WeakKeyDictionary()
)  # described once, not once a batch: they can be large


@dataclass
class SearchResult:
    """What a method's `search` hands back; rows are those that it was given."""

    counterfactual: Tensor
    mask: Tensor | None = None
    path: Tensor | None = None  # (B, steps, ...), without the query
    path_len: Tensor | None = None  # states in `path`, without the query
    reason: list[str] | None = None  # a method's own word on a failure, "" to leave it to the call
    generator: PassCounter | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Explainer(ABC):
    """Base of every method: `explain = Method(settings); cfs = explain(classifier, x, target)`.

    Derived classes are frozen dataclasses whose fields are settings and prepared parts, and implement
    `search(f, x, target, ids, tau) -> SearchResult`, a batched computation in which rows do not influence each other.
    """

    tau: float = 0.5  # wanted probability of the target
    seed: int = 0  # of all noise
    bounds: tuple[Any, Any] | None = (
        0.0,
        1.0,
    )  # the data's valid range: scalars, or tensors per feature
    constraints: Constraints | None = None  # what a row of a table may do; kept exactly

    keeps_constraints: ClassVar[bool] = False  # does the method's search know of them?

    def snap(self, y: Tensor, x: Tensor) -> Tensor:
        """y, moved to the nearest point that the constraints allow for x; y itself where there are none."""
        return y if self.constraints is None else self.constraints.snap(y, x)

    @abstractmethod
    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        """The method itself, on the rows that are neither done nor broken. A class without one cannot be made."""

    def check(self, x: Tensor, logits: Tensor) -> None:  # noqa: B027  (a hook: not every method has something of its own)
        """A method's own checks on its parts against the input and the classifier, before any search."""

    def __call__(
        self, classifier: nn.Module, x: Tensor, target: Tensor, ids=None, score: float | None = None
    ) -> Counterfactuals:
        """Explain each row: what must change in x for `classifier` to decide `target`, with probability `score` or tau.

        classifier maps x to logits (B, K >= 2), normalisation inside it. The search runs on its device, the result is on the CPU,
        wherever x was. Raises ValueError on bad input before any search.
        """
        row_ids, ids = ids is None, check_query(x, target, ids, self.bounds, score)
        if not 0 < self.tau < 1:
            raise ValueError(f"tau: got {self.tau}, expected a probability inside (0, 1)")
        self._check_constraints(x)
        place = device_of(classifier, x.device)
        tau, x, target = (
            self.tau if score is None else score,
            x.detach().to(place),
            target.to(place),
        )
        first = PassCounter(classifier, len(x))
        with frozen(classifier):
            with torch.no_grad():
                logits = _asked(first, x)
            check_logits(logits, x, target)
            self.check(x, logits)
            broken, source = ~logits.isfinite().all(1), logits.argmax(1)
            p = logits.softmax(1).gather(1, target[:, None])[:, 0]
            done = (source == target) & (p >= tau) & ~broken
            todo = (~done & ~broken).nonzero().flatten()
            first.flush()
            search = PassCounter(classifier, len(todo))
            found = SearchResult(x[:0])
            if len(todo):
                own = (
                    ids[todo.cpu()]
                    if isinstance(ids, Tensor)
                    else tuple(ids[i] for i in todo.tolist())
                )
                with torch.enable_grad():  # a caller's no_grad is about its own graph
                    found = self.search(search, x[todo], target[todo], own, tau)
                found.counterfactual = found.counterfactual.detach()
                if (
                    self.constraints is not None
                    and not self.constraints.kept(found.counterfactual, x[todo]).all()
                ):
                    raise RuntimeError(
                        f"{type(self).__name__} broke a constraint: a fault of the method, please report it"
                    )
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
        reason = [
            ALREADY
            if done[i]
            else NAN
            if broken[i] or not p[i].isfinite()
            else ""
            if reached[i]
            else own.get(i) or (BELOW if valid[i] else OTHER)
            for i in range(len(x))
        ]
        at = todo.cpu()
        counts = {
            k: getattr(first, k).index_add(0, at, getattr(search, k))
            for k in ("n_forward", "n_backward", "seconds")
        }
        return Counterfactuals(
            query=x,
            counterfactual=cf,
            target=target,
            source=source.masked_fill(broken, -1),
            score=p,
            valid=valid,
            reached=reached,
            reason=tuple(reason),
            ids=ids,
            settings={**describe(self), "classifier": describe(classifier)},
            seed=self.seed,
            row_ids=row_ids,
            **counts,
            **self._spread(found, x, todo),
        ).cpu()

    def _check_constraints(self, x: Tensor) -> None:
        if self.constraints is None:
            return
        if not self.keeps_constraints:
            raise ValueError(f"constraints: {type(self).__name__} cannot keep them, expected None")
        if x.ndim != 2 or x.shape[1:] != self.constraints.low.shape:
            raise ValueError(
                f"constraints: for {len(self.constraints.low)} features, got x of shape {tuple(x.shape)}"
            )

    @staticmethod
    def _spread(found: SearchResult, x: Tensor, todo: Tensor) -> dict[str, Tensor]:
        """Give mask, path and generator passes of the searched rows to all rows (none, the query alone, zero)."""
        out: dict[str, Tensor] = {}
        if found.mask is not None:
            out["mask"] = torch.zeros_like(x, dtype=torch.bool).index_copy(0, todo, found.mask)
        if found.path is not None:
            path = x[:, None].repeat(1, 1 + found.path.shape[1], *[1] * (x.ndim - 1))
            path[todo, 1:] = found.path
            out["path"] = path
            out["path_len"] = torch.ones(len(x), dtype=torch.int64).index_copy(
                0, todo.cpu(), 1 + found.path_len.cpu()
            )
        if found.generator is not None:
            found.generator.flush()
            for k in ("n_forward", "n_backward"):
                zero = torch.zeros(len(x), dtype=torch.int64)
                out[f"{k}_generator"] = zero.index_copy(0, todo.cpu(), getattr(found.generator, k))
        return out


def _asked(first: PassCounter, x: Tensor) -> Tensor:
    """The first question to the classifier; what it says of an x that it does not take becomes a ValueError that names x."""
    try:
        return first(x, torch.arange(len(x)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as e:
        raise ValueError(
            f"x: got {x.dtype} of shape {tuple(x.shape)}, which this classifier does not take: "
            f"{str(e).strip().splitlines()[0]}"
        ) from e


def describe(thing: Any) -> Any:
    """Plain JSON of a setting: dataclasses field by field, tensors and modules by name and SHA-256."""
    if isinstance(thing, Tensor):
        return {"tensor": list(thing.shape), "sha256": files.sha256(thing)[:16]}
    if isinstance(thing, nn.Module):
        return {"module": type(thing).__name__, "sha256": files.module_sha256(thing)[:16]}
    if isinstance(thing, Counterfactuals):
        if thing not in _RESULTS:
            _RESULTS[thing] = _fields(thing)
        return _RESULTS[thing]
    if dataclasses.is_dataclass(thing):
        return _fields(thing)
    if isinstance(thing, (tuple, list)):
        return [describe(t) for t in thing]
    if isinstance(thing, dict):
        return {str(k): describe(v) for k, v in thing.items()}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    raise TypeError(f"{type(thing).__name__} cannot be a setting: it has no plain JSON form")


def _fields(thing: Any) -> dict:
    return {"method": type(thing).__name__} | {
        f.name: describe(getattr(thing, f.name)) for f in dataclasses.fields(thing)
    }
