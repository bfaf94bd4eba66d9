"""State and record of a gradual construction, and the result for a lower tau."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import BELOW, Counterfactuals, SearchResult
from cf_utils.explainers.shared.ranking import Blocks
from cf_utils.explainers.shared.search import FoldedAdam, SearchState
from cf_utils.models.classifiers import predict


@dataclass(eq=False)
class State(SearchState):
    """The items still being searched, in the symbols of Algorithm 1."""

    query: Tensor  # x (B, ...)
    target: Tensor  # t (B,)
    prototype: Tensor  # mean logits of the target, (B, K)
    fixed: Tensor  # (B, n_blocks) bool, blocks that may not change
    budget: Tensor  # (B,), the most blocks that may be unmasked

    z: Tensor = field(init=False)  # x' (B, ...)
    point: Tensor = field(init=False)  # x' as classified: the allowed point nearest to z
    mask: Tensor = field(init=False)  # M (B, ...), 1 where unmasked
    n_unmasked: Tensor = field(init=False)  # (B,), blocks
    ended: Tensor = field(init=False)  # (B,) bool, whether the composition step has ended

    def __post_init__(self) -> None:
        self.z, self.point, self.mask = self.query.clone(), self.query, torch.zeros_like(self.query)
        self.n_unmasked = torch.zeros_like(self.target)
        self.ended = torch.ones_like(self.target, dtype=torch.bool)


@dataclass(eq=False)
class AdamState(State):
    """A state whose composition step is optimised with Adam."""

    composite: Tensor  # C (B, ...), the values that a block starts from
    order: Tensor  # (B, n_blocks), blocks in the order of unmasking
    adam: FoldedAdam  # its step count is that of the composition step
    blocks: Blocks
    bounds: tuple[Any, Any]  # numbers, or tensors like x

    gradient: Tensor = field(init=False)  # of the loss at `point`, (B, ...); memory is reused
    lowest: Tensor = field(init=False)  # (B,), lowest loss of the composition step
    since: Tensor = field(init=False)  # (B,), Adam steps since then

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gradient = torch.empty_like(self.query)
        self.lowest = self.query.new_full((len(self),), torch.inf)
        self.since = torch.zeros_like(self.target)


@dataclass(eq=False)
class Record:
    """Results of all items of the batch, including those that have left the search."""

    counterfactual: Tensor  # (B, ...)
    mask: Tensor  # (B, ...) bool
    path: Tensor  # (B, budget, ...), the state after each composition step
    n_unmasked: Tensor  # (B,), blocks
    reason: list[str]  # failure reason per item, "" if none

    @classmethod
    def empty(cls, x: Tensor, budget: int) -> Record:
        """Return the record of queries x (B, ...) before the first step."""
        path = x[:, None].repeat(1, budget, *[1] * (x.ndim - 1))
        n_unmasked = torch.zeros(len(x), dtype=torch.int64)
        mask = torch.zeros_like(x, dtype=torch.bool)
        return cls(x.clone(), mask, path, n_unmasked, [""] * len(x))

    def finish(self, state: State, leave: Tensor, reason: list[str]) -> None:
        """Record the items that leave, bool (B,), and their failure reasons; drop them."""
        state.write(self.n_unmasked, state.n_unmasked[leave].cpu(), leave)
        state.write(self.mask, state.mask[leave] > 0, leave)
        for i, why in zip(state.rows[leave.cpu()].tolist(), reason, strict=True):
            self.reason[i] = why
        state.keep(~leave)

    def to_result(self) -> SearchResult:
        """Return the result; each path is padded with its last state."""
        length = self.n_unmasked.clamp(min=1)
        last = torch.minimum(torch.arange(int(length.max()))[None], length[:, None] - 1)
        path = self.path[torch.arange(len(length))[:, None], last]
        return SearchResult(self.counterfactual, self.mask, path, length, self.reason)


def bounds_like(bounds: tuple[Any, Any] | None, x: Tensor) -> tuple[Any, Any]:
    """Return bounds for `clamp`: numbers, which are faster, or tensors like x if per feature."""
    if bounds is None or not any(isinstance(b, Tensor) for b in bounds):
        return bounds or (None, None)
    low, high = (torch.as_tensor(b).to(x) for b in bounds)
    return low, high


def truncate_at_tau(cfs: Counterfactuals, classifier: nn.Module, tau: float) -> Counterfactuals:
    """Return the result of the same search for a lower tau: the first state that reaches it.

    This is exact because a composition step does not depend on tau. Passes and seconds remain those
    of the longer search, and `mask` is None.

    Args:
        cfs: result of gradual construction, with its path.
        classifier: the one that was explained.
        tau: wanted probability, at most that of the search.

    Raises ValueError for a search with compose="embedding", whose path holds vectors, not words.
    """
    if cfs.settings.get("compose") == "embedding":
        raise ValueError(
            "cfs: got a search with compose='embedding', whose path holds vectors, not words; "
            "search again with this tau"
        )
    if cfs.path is None or cfs.path_len is None:
        raise ValueError("cfs: got a result without a path, expected one of gradual construction")
    n_items, n_states = cfs.path.shape[:2]
    logits = predict(classifier, cfs.path.flatten(0, 1)).view(n_items, n_states, -1)
    target = cfs.target[:, None]
    score = logits.softmax(2).gather(2, target[..., None].expand(-1, n_states, 1))[..., 0]
    on_path = (torch.arange(n_states)[None] < cfs.path_len[:, None]).to(score.device)
    hit = (score >= tau) & (logits.argmax(2) == target) & on_path
    reached = hit.any(1)
    at = torch.where(reached, hit.float().argmax(1), cfs.path_len.to(hit.device) - 1)
    rows = torch.arange(n_items)
    reason = tuple(
        "" if ok else (why or BELOW) for ok, why in zip(reached.tolist(), cfs.reason, strict=True)
    )
    return dataclasses.replace(
        cfs,
        counterfactual=cfs.path[rows, at],
        score=score[rows, at],
        valid=logits[rows, at].argmax(1) == cfs.target,
        reached=reached,
        reason=reason,
        path_len=at.cpu() + 1,
        mask=None,
        settings=cfs.settings | {"tau": tau, "prefix_of_tau": cfs.settings["tau"]},
    )
