"""Projected FISTA with a search over the weight c: unfinished items, and the results of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cf_utils.core import NAN
from cf_utils.explainers.shared.search import SearchState, per_item


@dataclass(eq=False)
class FistaItems(SearchState):
    """Items still being searched. Points (B, ...) are in the space of x, that is, the query plus d.

    All other tensors are (B,).
    """

    query: Tensor
    target: Tensor
    low: Tensor  # (B, ...), valid range
    high: Tensor  # (B, ...)
    point: Tensor  # x + d
    y: Tensor  # the momentum point
    allowed: Tensor  # the point nearest to `point` that the constraints allow
    best: Tensor  # nearest success of all tries, or the query
    distance: Tensor  # its elastic-net distance, infinite without a success
    succeeded: Tensor  # bool, a success in this try
    c: Tensor
    c_low: Tensor  # largest c without success
    c_high: Tensor  # smallest c with success

    def restart(self) -> None:
        """Begin a try at d = 0."""
        self.point = self.y = self.query
        self.succeeded = torch.zeros_like(self.succeeded)

    def project(self, z: Tensor) -> Tensor:
        """Return z inside the valid range."""
        return torch.maximum(torch.minimum(z, self.high), self.low)

    def keep_best(self, success: Tensor, distance: Tensor) -> None:
        """Keep `allowed` where it is a success and nearer than all before."""
        nearer = success & (distance < self.distance)
        self.succeeded = self.succeeded | success
        self.best = torch.where(per_item(nearer, self.best), self.allowed, self.best)
        self.distance = torch.where(nearer, distance, self.distance)

    def update_c(self) -> None:
        """Halve the interval of c; before the first success, multiply c by 10 instead."""
        c_high = torch.where(self.succeeded, torch.minimum(self.c_high, self.c), self.c_high)
        self.c_low = torch.where(self.succeeded, self.c_low, torch.maximum(self.c_low, self.c))
        self.c_high = c_high
        self.c = torch.where(c_high.isfinite(), (self.c_low + c_high) / 2, 10 * self.c)


class FistaResults:
    """Results of all items of the batch."""

    def __init__(self, x: Tensor, tries: int):
        """Begin with the queries x (B, ...)."""
        self.result, self.reason = x.clone(), [""] * len(x)
        self.path = x[:, None].repeat(1, tries, *[1] * (x.ndim - 1))
        self.n_tries = torch.full((len(x),), tries)

    def write_broken(self, state: FistaItems, broken: Tensor, n: int) -> None:
        """Write the items that become NaN in try n, with their best state so far."""
        self._write(state, broken, state.query, NAN)
        state.write(self.path[:, n:], state.best[broken][:, None], broken)
        state.write(self.n_tries, torch.full((int(broken.sum()),), n + 1), broken)

    def write_finished(self, state: FistaItems, reason: str) -> None:
        """Write the items that completed all tries."""
        self._write(state, torch.ones_like(state.succeeded), state.allowed, reason)
        rows = state.rows.to(self.path.device)
        self.path[rows, -1] = self.result[rows]

    def _write(self, state: FistaItems, at: Tensor, otherwise: Tensor, reason: str) -> None:
        """Write the best states of items `at`; without success, `otherwise` and the reason."""
        success = state.distance.isfinite()
        values = torch.where(per_item(success, state.best), state.best, otherwise)
        state.write(self.result, values[at], at)
        for i, ok in zip(state.rows[at.cpu()].tolist(), success[at].tolist(), strict=True):
            self.reason[i] = "" if ok else reason
