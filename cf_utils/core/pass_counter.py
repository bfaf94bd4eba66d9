"""The black box, frozen, and what its use costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode; restore the training mode of every submodule afterwards."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, training in modes:
            m.training = training


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode without parameter gradients; restore both afterwards.

    A backward pass then computes the gradient of the input alone.
    """
    needs = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    with eval_mode(*modules):
        try:
            for module in modules:
                module.requires_grad_(False)
            yield
        finally:
            for p, requires_grad in needs:
                p.requires_grad_(requires_grad)


class PassCounter:
    """A frozen module whose passes are counted, and whose time is shared, by item.

    `f(x, rows)`: outputs for x, where x[j] belongs to item rows[j] (an item may come several times).
    `f.grad(y, z, up)`: up times dy / dz (`up` left out: of a scalar), counted as a backward pass of the rows that went forward
    last.
    """

    def __init__(self, module: nn.Module, n: int):
        self.module = module
        self.n_forward, self.n_backward = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        self.seconds = torch.zeros(n, dtype=torch.float64)
        self._rows, self._pending, self._since = torch.arange(n), [0, 0], time.perf_counter()

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        if rows is not self._rows:  # the same rows object again costs two additions, not an index
            self.flush()
            self._rows = rows
        self._pending[0] += 1
        return self.module(x)

    def grad(self, y: Tensor, z: Tensor, up: Tensor | None = None) -> Tensor:
        self._pending[1] += 1
        return torch.autograd.grad(y, z, up)[0]

    def went_back(self, times: int) -> None:
        """Book backward passes that somebody else's `grad` made: a generator's, where the gradient starts at a classifier."""
        self._pending[1] += times

    def flush(self) -> None:
        """Book what is pending; called by itself when the rows change, and at the end of a search."""
        now, rows = time.perf_counter(), self._rows.cpu()
        if len(rows):
            share = torch.bincount(rows, minlength=len(self.n_forward))
            self.n_forward += self._pending[0] * share
            self.n_backward += self._pending[1] * share
            self.seconds += (now - self._since) * share / share.sum()
        self._pending, self._since = [0, 0], now
