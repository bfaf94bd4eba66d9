"""What searches have in common: the items still being searched, Adam per item, logit margins."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from cf_utils.core.explainer import target_score

__all__ = ["Adam", "SearchState", "log_odds", "logit_margin", "per_item", "target_score"]


@dataclass
class SearchState:
    """Tensors with one entry per item that is still being searched.

    A method derives its own state and adds fields: tensors (B, ...), or objects with a method
    `keep(stay)`. `keep` shortens all of them at once, so no field can be forgotten.
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

    def write(self, out: Tensor, values: Tensor, where: Tensor | None = None) -> None:
        """Write `values` of the items (or of those at positions `where`) into the batch's `out`."""
        rows = self.rows if where is None else self.rows[where.cpu()]
        out[rows.to(out.device)] = values


class Adam:
    """Adam (Kingma & Ba, 2015) with moments and a step count of its own for each item.

    Args:
        like: tensor (B, ...) that will be updated; gives shape, dtype and device.
        lr: step size, or a tensor (n_steps,) with one per step.
        n_steps: most steps that an item takes between two restarts.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8
    rate1, rate2 = 0.1, 0.001  # 1 - beta1 and 1 - beta2, not rounded twice
    tiny = 1e-30  # first value of the second moment: sqrt(0) is slow in MKL

    def __init__(self, like: Tensor, lr: float | Tensor, n_steps: int):
        self.first = torch.zeros_like(like)
        self.second = torch.full_like(like, self.tiny)
        self.count = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        k = torch.arange(n_steps + 1, device=like.device).clamp(min=1).to(like)
        size = torch.as_tensor(lr, dtype=like.dtype, device=like.device).expand(n_steps)
        size = torch.cat([size[:1], size])
        bias1, bias2 = 1 - self.beta1**k, 1 - self.beta2**k
        self._scale, self._least = bias1 / bias2.sqrt() / size, self.eps * bias1 / size
        self._buffer = torch.empty_like(like)  # reused: fresh memory costs page faults

    def step_(self, z: Tensor, gradient: Tensor) -> Tensor:
        """Update z (B, ...) in place against its gradient; returns z."""
        self.count += 1
        self.first.lerp_(gradient, self.rate1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=self.rate2)
        root = torch.sqrt(self.second, out=self._buffer[: len(z)])
        scale, least = (per_item(v[self.count], z) for v in (self._scale, self._least))
        return z.addcdiv_(self.first, root.mul_(scale).add_(least), value=-1)

    def restart(self, rows: Tensor) -> None:
        """Forget the moments and the step count of the items at positions `rows`."""
        self.first[rows], self.second[rows], self.count[rows] = 0, self.tiny, 0

    def keep(self, stay: Tensor) -> None:
        """Keep the items where `stay`, bool (B,), is True."""
        for name in ("first", "second", "count"):
            value = getattr(self, name)
            setattr(self, name, value[stay.to(value.device)])


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """View values (B,) so that they broadcast against `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def logit_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return by how much the target's logit exceeds the best other one, (B,)."""
    t = target[:, None]
    return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).amax(1)


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the target's probability p, (B,), which does not saturate."""
    t = target[:, None]
    return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).logsumexp(1)
