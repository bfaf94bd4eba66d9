"""Checks of a call's input, made before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Ids = Tensor | Sequence[str]


def check_query(
    x: Tensor, target: Tensor, ids: Ids | None = None, bounds: Any = None, tau: float | None = None
) -> Tensor | tuple[str, ...]:
    """Raise ValueError, naming the argument, unless a call's input is valid; return the ids.

    Args:
        x: float (B, ...), finite, inside `bounds`.
        target: int64 (B,).
        ids: int64 (B,) or B strings, all distinct; None stands for row numbers.
        bounds: (low, high), numbers or tensors per feature; None: no range.
        tau: probability in (0, 1), or None.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a float tensor (B, ...)"
        )
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, ...) with B >= 1")
    if not x.isfinite().all():
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"x: rows {bad[:5]} hold NaN or infinite values, expected finite values")
    if bounds is not None:
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
        if (low >= high).any():
            raise ValueError("bounds: got a low that is not below its high, expected low < high")
        if (x < low - 1e-6).any() or (x > high + 1e-6).any():
            raise ValueError(
                f"x: values from {x.min():.3g} to {x.max():.3g}, expected inside bounds {_brief(bounds)}. "
                "Was it normalised? Normalisation belongs inside the classifier"
            )
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != (len(x),):
        got = (
            f"{target.dtype} {tuple(target.shape)}"
            if isinstance(target, Tensor)
            else type(target).__name__
        )
        raise ValueError(f"target: got {got}, expected int64 ({len(x)},)")
    if tau is not None and not 0 < tau < 1:
        raise ValueError(f"tau: got {tau}, expected a probability inside (0, 1)")
    if ids is None:
        return torch.arange(len(x))
    if isinstance(ids, Tensor) and (ids.dtype != torch.int64 or ids.ndim != 1):
        raise ValueError(
            f"ids: got {ids.dtype} {tuple(ids.shape)}, expected int64 ({len(x)},) or strings"
        )
    ids = ids.cpu() if isinstance(ids, Tensor) else tuple(ids)
    if not isinstance(ids, Tensor) and not all(isinstance(i, str) for i in ids):
        raise ValueError("ids: expected an int64 tensor or strings")
    if len(ids) != len(x) or len(set(listed(ids))) != len(x):
        raise ValueError(
            f"ids: got {len(ids)} ids, {len(set(listed(ids)))} distinct, expected {len(x)} distinct ones"
        )
    return ids


def _brief(bounds: Any) -> str:
    return (
        "[" + ", ".join(f"{float(b):g}" if np.ndim(b) == 0 else "per feature" for b in bounds) + "]"
    )


def listed(ids: Ids) -> list:
    """Return ids, or any values per item, as a list."""
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def select_ids(ids: Ids, rows: Tensor) -> Tensor | tuple[str, ...]:
    """Return the ids at the positions `rows` (int64), or where `rows` (bool) is True."""
    if isinstance(ids, Tensor):
        return ids[rows.to(ids.device)]
    positions = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
    return tuple(ids[i] for i in positions.tolist())


def check_logits(logits: Tensor, x: Tensor, target: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"classifier: gave {tuple(logits.shape)} for {len(x)} rows, expected logits (B, K) with K >= 2 "
            "(cf_utils.models.classifiers.OneOutput wraps a single sigmoid output)"
        )
    if (target < 0).any() or (target >= logits.shape[1]).any():
        raise ValueError(
            f"target: values from {target.min()} to {target.max()}, expected 0 to {logits.shape[1] - 1}"
        )
