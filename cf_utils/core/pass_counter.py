"""Freeze modules, and count passes and seconds per item."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def eval_mode(*modules: nn.Module) -> Generator[None, None, None]:
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
def frozen(*modules: nn.Module) -> Generator[None, None, None]:
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
    """A module whose forward passes, backward passes and seconds are counted per item.

    The totals `n_forward`, `n_backward` (int64) and `seconds` (float64) have shape (n,). They are
    complete only after `flush`. The items of a call share its seconds equally.
    """

    def __init__(self, module: nn.Module, n: int):
        """Count the passes of `module` for n items, from now on."""
        self.module = module
        self.n_forward, self.n_backward = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        self.seconds = torch.zeros(n, dtype=torch.float64)
        self.on_pass: Callable[[Tensor], None] | None = None  # called with the rows of each pass
        self._rows, self._pending, self._since = torch.arange(n), [0, 0], time.perf_counter()

    def __call__(self, x: Tensor | tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Return module(x), where x[j] belongs to item rows[j]. An item may occur several times."""
        if rows is not self._rows:  # only tally while the caller passes the same object
            self.flush()
            self._rows = rows
        self._pending[0] += 1
        if self.on_pass is not None:
            self.on_pass(rows)
        return self.module(x)

    def grad(self, y: Tensor, z: Tensor, upstream: Tensor | None = None) -> Tensor:
        """Return the gradient of sum(upstream * y) in z; without `upstream`, y must be a scalar.

        Counts one backward pass for the rows of the last call.
        """
        self._pending[1] += 1
        return torch.autograd.grad(y, z, upstream)[0]

    def count_backward(self, times: int) -> None:
        """Count backward passes of this module that ran in the `grad` of another counter."""
        self._pending[1] += times

    def flush(self) -> None:
        """Add the pending passes and seconds to the totals; call it before reading them."""
        now, rows = time.perf_counter(), self._rows.cpu()
        if len(rows):
            share = torch.bincount(rows, minlength=len(self.n_forward))
            self.n_forward += self._pending[0] * share
            self.n_backward += self._pending[1] * share
            self.seconds += (now - self._since) * share / share.sum()
        self._pending, self._since = [0, 0], now
