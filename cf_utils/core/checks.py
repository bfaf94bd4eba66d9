"""Checks of a call's input, made before any work, and the ids of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Ids = Tensor | Sequence[str]  # one id per item: int64 (B,), or B strings


def check_query(
    x: Tensor, target: Tensor, ids: Ids | None = None, bounds: Any = None, tau: float | None = None
) -> Ids:
    """Raise ValueError, naming the argument, unless a call's input is valid; return the ids.

    Args:
        x: float (B, ...), finite, inside `bounds`.
        target: int64 (B,).
        ids: int64 (B,) or B strings, all distinct; None stands for row numbers.
        bounds: (low, high), numbers or tensors per feature; None: no range.
        tau: probability in (0, 1), or None.
    """
    _check_x(x, bounds)
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.shape != (len(x),):
        got = (
            f"{target.dtype} {tuple(target.shape)}"
            if isinstance(target, Tensor)
            else type(target).__name__
        )
        hint = _batch_hint(x, isinstance(target, Tensor) and target.numel() == 1)
        raise ValueError(f"target: got {got}, expected int64 ({len(x)},){hint}")
    if tau is not None and not 0 < tau < 1:
        raise ValueError(f"tau: got {tau}, expected a probability inside (0, 1)")
    return torch.arange(len(x)) if ids is None else _check_ids(ids, len(x))


def _check_x(x: Tensor, bounds: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a float tensor (B, ...)"
        )
    if x.ndim < 2 or len(x) == 0:
        one = "; for a single item pass x[None]" if x.numel() else ""
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, ...) with B >= 1{one}")
    if not x.isfinite().all():
        bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        raise ValueError(f"x: rows {bad[:5]} hold NaN or infinite values, expected finite values")
    if bounds is None:
        return
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
    if (low >= high).any():
        raise ValueError("bounds: got a low that is not below its high, expected low < high")
    if (x < low - 1e-6).any() or (x > high + 1e-6).any():
        brief = ", ".join(f"{float(b):g}" if np.ndim(b) == 0 else "per feature" for b in bounds)
        raise ValueError(
            f"x: values from {x.min():.3g} to {x.max():.3g}, expected inside bounds [{brief}]. "
            "Was it normalised? Normalisation belongs inside the classifier"
        )


def _check_ids(ids: Ids, n: int) -> Ids:
    if isinstance(ids, Tensor) and (ids.dtype != torch.int64 or ids.ndim != 1):
        raise ValueError(
            f"ids: got {ids.dtype} {tuple(ids.shape)}, expected int64 ({n},) or strings"
        )
    ids = ids.cpu() if isinstance(ids, Tensor) else tuple(ids)
    if not isinstance(ids, Tensor) and not all(isinstance(i, str) for i in ids):
        raise ValueError("ids: expected an int64 tensor or strings")
    if len(ids) != n or len(set(to_list(ids))) != n:
        raise ValueError(
            f"ids: got {len(ids)} ids, {len(set(to_list(ids)))} distinct, "
            f"expected {n} distinct ones"
        )
    return ids


def check_count(name: str, n: int, least: int = 1) -> None:
    """Raise ValueError, naming the argument, unless n is a whole number of at least `least`."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < least:
        raise ValueError(f"{name}: got {n!r}, expected a whole number >= {least}")


def to_list(values: Tensor | Sequence[Any]) -> list[Any]:
    """Return ids, or any values per item, as a list."""
    return values.tolist() if isinstance(values, Tensor) else list(values)


def select_ids(ids: Ids, rows: Tensor) -> Ids:
    """Return the ids at the positions `rows` (int64), or where `rows` (bool) is True."""
    if isinstance(ids, Tensor):
        return ids[rows.to(ids.device)]
    positions = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
    return tuple(ids[i] for i in positions.tolist())


def _batch_hint(x: Tensor, single: bool = False) -> str:
    """Return what to do if x looks like one item without its batch dimension, else ''."""
    image = x.ndim == 3 and x.shape[0] in (1, 3) and min(x.shape[1:]) >= 8
    if image or (single and len(x) > 1):
        return f"; is x one item of shape {tuple(x.shape)}? Then pass x[None], a batch of one"
    return ""


def describe_rejection(x: Tensor, error: Exception) -> str:
    """Return a text that says that a classifier does not accept x (B, ...), and why."""
    problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"x: got {x.dtype} of shape {tuple(x.shape)}, which this classifier does not accept: "
        f"{problem}{_batch_hint(x)}"
    )


def check_classifier(classifier: object) -> None:
    """Raise ValueError unless the classifier is a torch module."""
    if not hasattr(classifier, "parameters"):
        fitted = hasattr(classifier, "predict")
        do = "wrap it with cf_utils.models.own." + ("wrap_estimator" if fitted else "OwnModel")
        raise ValueError(
            f"classifier: got a {type(classifier).__name__}, expected an nn.Module that maps x to "
            f"logits (B, K); {do}"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Return whether rows (B, K) are in [0, 1] with sum 1, and not all of them are one-hot."""
    inside = (outputs >= 0) & (outputs <= 1)
    between = (outputs > 1e-6) & (outputs < 1 - 1e-6)
    sums_to_one = (outputs.sum(1) - 1).abs() < 1e-4
    return bool(inside.all() and sums_to_one.all() and between.any())


def check_logits(logits: Tensor, x: Tensor, target: Tensor) -> None:
    """Raise ValueError unless logits for x (B, ...) are (B, K >= 2) and targets are below K.

    Probabilities are refused, too: a softmax of a softmax never exceeds e / (e + K - 1).
    """
    if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise ValueError(
            f"classifier: gave {tuple(logits.shape)} for {len(x)} rows, expected logits (B, K) "
            "with K >= 2; cf_utils.models.classifiers.OneOutput wraps a single sigmoid output"
            + _batch_hint(x)
        )
    if are_probabilities(logits):
        raise ValueError(
            "classifier: its outputs are in [0, 1] and sum to 1, as after a softmax, expected "
            "logits; leave out the last softmax, or wrap it with "
            "cf_utils.models.own.OwnModel(classifier, output='probabilities')"
        )
    if (target < 0).any() or (target >= logits.shape[1]).any():
        raise ValueError(
            f"target: values from {target.min()} to {target.max()}, "
            f"expected 0 to {logits.shape[1] - 1}"
        )
