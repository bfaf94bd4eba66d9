"""Tools for iterative searches: the items still being searched, Adam per item, logit margins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cf_utils.core.explainer import target_score

__all__ = [
    "Adam",
    "FoldedAdam",
    "SearchState",
    "is_reached",
    "log_odds",
    "logit_margin",
    "per_item",
    "target_score",
]


@dataclass(eq=False)
class SearchState:
    """Items that are still being searched.

    A method derives its own state and adds fields. `keep` shortens every tensor (B, ...) and every
    object with a method `keep(stay)`, so no field can be forgotten. Fields of other types are
    shared by all items and stay as they are.
    """

    rows: Tensor  # int64 (B,) on the CPU: each item's position in the batch

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, stay: Tensor) -> None:
        """Keep the items where `stay`, bool (B,), is True."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value[stay.to(value.device)])
            elif hasattr(value, "keep"):
                value.keep(stay)

    def write(self, out: Tensor, values: Tensor, at: Tensor | None = None) -> None:
        """Write one value per item, or per item at `at`, into its row of the batch's `out`.

        Args:
            out: tensor of the whole batch.
            values: (B, ...), or one entry per item at `at`.
            at: which of the items, as positions (int64) or as a mask (bool); None: all of them.
        """
        rows = self.rows if at is None else self.rows[at.cpu()]
        out[rows.to(out.device)] = values


class Adam:
    """Adam (Kingma & Ba, 2015), Algorithm 1, with moments and a step count for each item.

    Args:
        like: tensor (B, ...) of the shape, dtype and device of what will be updated.
        lr: step size, or one per step since the last restart, (n_steps,).
        n_steps: the most steps that an item takes between two restarts.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8
    rate1, rate2 = 0.1, 0.001  # 1 - beta, free of rounding
    start = 0.0  # first value of the second moment

    def __init__(self, like: Tensor, lr: float | Sequence[float] | Tensor, n_steps: int):
        lr = lr.tolist() if isinstance(lr, Tensor) else lr
        self.first = torch.zeros_like(like)
        self.second = torch.full_like(like, self.start)
        self.count = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        self._fill_tables(like, [lr] * n_steps if isinstance(lr, (int, float)) else list(lr))

    def step_(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Update z (B, ...) in place against its gradient; return z."""
        self._update_moments(gradient)
        size, bias2 = (per_item(table[self.count], z) for table in self._tables)
        root = (self.second / bias2).sqrt_().add_(self.eps)
        return z.addcdiv_(self.first * size, root, value=-1)

    def restart(self, at: Tensor, delay: int = 0) -> None:
        """Forget moments and step count of the items at positions `at`.

        Their first step comes after `delay` calls of `step_`, in which their gradient must be 0.
        """
        self.first[at], self.second[at], self.count[at] = 0, self.start, -delay

    def keep(self, stay: Tensor) -> None:
        """Keep the items where `stay`, bool (B,), is True."""
        self.first, self.second, self.count = (
            value[stay.to(value.device)] for value in (self.first, self.second, self.count)
        )

    def _fill_tables(self, like: Tensor, lr: Sequence[float]) -> None:
        """Tabulate what depends on the step count alone; entry 0 is for delayed items."""
        sizes = [rate / (1 - self.beta1**k) for k, rate in enumerate(lr, 1)]
        biases = [1 - self.beta2**k for k in range(1, len(sizes) + 1)]
        self._tables = [
            torch.tensor([table[0], *table], dtype=torch.float64).to(like)
            for table in (sizes, biases)
        ]

    def _update_moments(self, gradient: Tensor) -> None:
        self.count += 1
        self.first.lerp_(gradient, self.rate1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=self.rate2)


class FoldedAdam(Adam):
    """Adam with both bias corrections folded into two factors: the same update in less time.

    It differs from `Adam` by rounding. `step_` allocates nothing and overwrites the gradient.
    """

    start = 1e-30  # avoids sqrt(0), which is slow in MKL

    def step_(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Update z (B, ...) in place against its gradient, which is overwritten; return z."""
        self._update_moments(gradient)
        scale, least = (per_item(table[self.count], z) for table in self._tables)
        root = torch.sqrt(self.second, out=gradient)
        return z.addcdiv_(self.first, root.mul_(scale).add_(least), value=-1)

    def _fill_tables(self, like: Tensor, lr: Sequence[float]) -> None:
        k = torch.arange(len(lr) + 1, device=like.device).clamp(min=1).to(like)
        size = torch.tensor([lr[0], *lr], dtype=torch.float64).to(like)
        bias1, bias2 = 1 - self.beta1**k, 1 - self.beta2**k
        self._tables = [bias1 / bias2.sqrt() / size, self.eps * bias1 / size]


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """View values (B,) so that they broadcast against `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def logit_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return the target's logit minus the largest other one, (B,)."""
    t = target[:, None]
    return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).amax(1)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the target's probability p, (B,); it does not saturate."""
    t = target[:, None]
    return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).logsumexp(1)


def is_reached(logits: Tensor, target: Tensor, tau: float) -> Tensor:
    """Return which items are decided as the target with probability tau or more, bool (B,)."""
    return (logits.argmax(1) == target) & (target_score(logits, target) >= tau)
