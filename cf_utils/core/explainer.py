"""The call that all explainers share. A method derives from `Explainer` and implements `search`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cf_utils.core.checks import (
    Ids,
    check_classifier,
    check_logits,
    check_query,
    describe_rejection,
    select_ids,
)
from cf_utils.core.constraints import Constraints
from cf_utils.core.description import describe
from cf_utils.core.pass_counter import PassCounter, frozen
from cf_utils.core.result import ALREADY, BELOW, NAN, OTHER, Counterfactuals
from cf_utils.core.runtime import device_of, search_bar


@dataclass
class SearchResult:
    """What `Explainer.search` returns, for the items that it was given."""

    counterfactual: Tensor  # (B, ...)
    mask: Tensor | None = None  # (B, ...) bool, the features that were allowed to change
    path: Tensor | None = None  # (B, steps, ...), without the query
    path_len: Tensor | None = None  # (B,) int64, number of states in `path`
    reason: list[str] | None = None  # failure reason per item; "": the call finds the reason
    generator: PassCounter | None = None  # passes of the generator


@dataclass(frozen=True, eq=False, kw_only=True)
class Explainer(ABC):
    """Base class of all methods.

    Use: `explain = Method(settings)`, then `cfs = explain(classifier, x, target)`. A method is a
    frozen dataclass whose fields are its settings and prepared parts. It implements
    `search(f, x, target, ids, tau) -> SearchResult`, a batched computation in which items do not
    influence each other.
    """

    tau: float = 0.5  # wanted probability of the target
    seed: int = 0  # of all noise that the method draws
    bounds: tuple[Any, Any] | None = (0.0, 1.0)  # valid range of x: numbers, or tensors per feature
    constraints: Constraints | None = None  # limits on the change of each feature, for tables

    keeps_constraints: ClassVar[bool] = False  # whether `search` can keep `constraints`
    needs_gradient: ClassVar[bool] = False  # whether `search` differentiates the classifier

    def with_(self, **changes: Any) -> Self:
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def snap(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the point nearest to y that `constraints` allow for x; y itself without them."""
        return y if self.constraints is None else self.constraints.snap(y, x)

    @abstractmethod
    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Search a counterfactual for each item of x, (B, ...).

        The call passes only items that have not reached their target and whose logits are finite.
        `f(y, rows)` returns the classifier's logits for y, where y[j] belongs to item rows[j], and
        counts the passes. The other arguments are those of the call.
        """

    def check(self, x: Tensor, logits: Tensor) -> None:  # noqa: B027 (an optional hook)
        """Raise ValueError if the settings do not fit x or the classifier's logits for it."""

    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the output of the method's own pipeline when nothing is edited, same shape as x.

        Its difference to x is what the generator alone changes. Without a generator it equals x.
        """
        return x.clone()

    def __call__(
        self,
        classifier: nn.Module,
        x: Tensor,
        target: Tensor,
        ids: Ids | None = None,
        tau: float | None = None,
    ) -> Counterfactuals:
        """Explain each item: what must change in x for `classifier` to decide `target`?

        Args:
            classifier: maps x to logits (B, K >= 2); normalisation is inside it.
            x: queries, float (B, ...) inside `bounds`.
            target: wanted class per item, int64 (B,).
            ids: distinct ids, int64 (B,) or B strings; noise depends on them. None: row numbers.
            tau: wanted probability of the target in (0, 1); None: the setting `tau`.

        The search runs on the classifier's device; the result is on the CPU.
        Raises ValueError for bad input, before any search.
        """
        check_classifier(classifier)
        row_ids, ids = ids is None, check_query(x, target, ids, self.bounds, tau)
        if not 0 < self.tau < 1:
            raise ValueError(f"tau: got {self.tau}, expected a probability inside (0, 1)")
        self._check_constraints(x)
        place = device_of(classifier, x.device)
        x, target = x.detach().to(place), target.to(place)
        tau = self.tau if tau is None else tau
        first = PassCounter(classifier, len(x))
        with frozen(classifier):
            logits = self._first_logits(first, x)
            check_logits(logits, x, target)
            self.check(x, logits)
            broken, source = ~logits.isfinite().all(1), logits.argmax(1)
            done = (source == target) & (target_score(logits, target) >= tau) & ~broken
            todo = (~done & ~broken).nonzero().flatten()
            first.flush()
            found, again = self._search_rows(classifier, x, target, ids, tau, todo)
            cf, logits = self._judge(found, again, x, todo, logits)
        score = target_score(logits, target)
        valid = (logits.argmax(1) == target) & score.isfinite()
        reached = valid & (score >= tau)
        reason = _reasons(found, todo, done, broken | ~score.isfinite(), valid, reached)
        return Counterfactuals(
            query=x,
            counterfactual=cf,
            target=target,
            source=source.masked_fill(broken, -1),
            score=score,
            valid=valid,
            reached=reached,
            reason=reason,
            ids=ids,
            settings={**describe(self), "classifier": describe(classifier)},
            seed=self.seed,
            row_ids=row_ids,
            **_sum_counts(first, again, todo),
            **_spread(found, x, todo),
        ).cpu()

    def _first_logits(self, first: PassCounter, x: Tensor) -> Tensor:
        """Return the queries' logits. Raises ValueError if a gradient is needed and missing."""
        if not self.needs_gradient:
            with torch.no_grad():
                return _classify(first, x)
        with torch.enable_grad():
            logits = _classify(first, x.detach().requires_grad_(True))
        if not logits.requires_grad:
            raise ValueError(
                f"classifier: its logits have no gradient with respect to x, which "
                f"{type(self).__name__} needs; use a differentiable classifier, or a method that "
                "only asks for decisions (GrowingSpheres, LORE, ABELE)"
            )
        return logits.detach()

    def _search_rows(
        self, classifier: nn.Module, x: Tensor, target: Tensor, ids: Ids, tau: float, todo: Tensor
    ) -> tuple[SearchResult, PassCounter]:
        """Search the items at positions `todo`; return their results and the pass counter."""
        counter, found = PassCounter(classifier, len(todo)), SearchResult(x[:0])
        if len(todo):
            name = type(self).__name__
            # with gradients even if the caller uses no_grad
            with torch.enable_grad(), search_bar(name, len(todo)) as counter.on_pass:
                found = self.search(counter, x[todo], target[todo], select_ids(ids, todo), tau)
            found.counterfactual = found.counterfactual.detach()
            if self.constraints is not None:
                allowed = self.constraints.allows(found.counterfactual, x[todo])
                if not allowed.all():
                    raise RuntimeError(
                        f"{type(self).__name__} broke a constraint; this is a bug of the method, "
                        "please report it"
                    )
        return found, counter

    @staticmethod
    def _judge(
        found: SearchResult, counter: PassCounter, x: Tensor, todo: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the counterfactuals (B, ...) of all items and their logits (B, K)."""
        cf = x.clone()
        if len(todo):
            finite = found.counterfactual.flatten(1).isfinite().all(1)
            cf[todo[finite]] = found.counterfactual[finite]
            with torch.no_grad():
                final = counter(cf[todo], torch.arange(len(todo)))
            counter.flush()
            logits = logits.index_copy(0, todo, final)
        return cf, logits

    def _check_constraints(self, x: Tensor) -> None:
        if self.constraints is None:
            return
        if not self.keeps_constraints:
            raise ValueError(f"constraints: {type(self).__name__} cannot keep them, expected None")
        if x.ndim != 2 or x.shape[1:] != self.constraints.low.shape:
            raise ValueError(
                f"constraints: got limits on {len(self.constraints.low)} features for x of shape "
                f"{tuple(x.shape)}, expected one limit per feature of x (B, F)"
            )


def target_score(logits: Tensor, target: Tensor) -> Tensor:
    """Return the probability of each item's target, (B,), from logits (B, K) and target (B,)."""
    return logits.softmax(1).gather(1, target[:, None])[:, 0]


def _reasons(
    found: SearchResult, todo: Tensor, done: Tensor, nan: Tensor, valid: Tensor, reached: Tensor
) -> tuple[str, ...]:
    """Return the failure reason per item, "" where the target was reached."""
    of_method = dict(zip(todo.tolist(), found.reason or [], strict=False))
    reasons = []
    for i in range(len(done)):
        if done[i]:
            reasons.append(ALREADY)
        elif nan[i]:
            reasons.append(NAN)
        elif reached[i]:
            reasons.append("")
        else:
            reasons.append(of_method.get(i) or (BELOW if valid[i] else OTHER))
    return tuple(reasons)


def _sum_counts(first: PassCounter, search: PassCounter, todo: Tensor) -> dict[str, Tensor]:
    """Add the search's passes and seconds to those of the first classification, per item."""
    return {
        name: getattr(first, name).index_add(0, todo.cpu(), getattr(search, name))
        for name in ("n_forward", "n_backward", "seconds")
    }


def _spread(found: SearchResult, x: Tensor, todo: Tensor) -> dict[str, Tensor]:
    """Extend mask, path and generator passes from the searched items to all items of the call."""
    out: dict[str, Tensor] = {}
    rows = todo.cpu()
    if found.mask is not None:
        out["mask"] = torch.zeros_like(x, dtype=torch.bool).index_copy(0, todo, found.mask)
    if found.path is not None and found.path_len is not None:
        path = x[:, None].repeat(1, 1 + found.path.shape[1], *[1] * (x.ndim - 1))
        path[todo, 1:] = found.path
        one = torch.ones(len(x), dtype=torch.int64)
        out["path"] = path
        out["path_len"] = one.index_copy(0, rows, 1 + found.path_len.cpu())
    if found.generator is not None:
        found.generator.flush()
        for name in ("n_forward", "n_backward"):
            none = torch.zeros(len(x), dtype=torch.int64)
            out[f"{name}_generator"] = none.index_copy(0, rows, getattr(found.generator, name))
    return out


def _classify(counter: PassCounter, x: Tensor) -> Tensor:
    """Return the logits of x. Raises ValueError that names x if the classifier rejects it."""
    try:
        return counter(x, torch.arange(len(x)))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as e:
        raise ValueError(describe_rejection(x, e)) from e
