"""Cross-validation: train on k folds and keep the model that does best on its own fold.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), section 3.2: five folds, of which the
model with the highest sum of sensitivity and specificity is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from cf_utils.core.checks import check_count
from cf_utils.evaluation.metrics.alignment import confusion
from cf_utils.training.progress import report


class Fold(NamedTuple):
    """Rows of the training and of the validation of one fold, int64."""

    train: Tensor
    validation: Tensor


Fit = Callable[[nn.Module, Tensor, Path | None], dict[str, Any]]  # model, rows, folder -> log


def split_folds(y: Tensor, k: int = 5, seed: int = 0) -> list[Fold]:
    """Split items into k folds with equal shares of each class; every item is validated once.

    y: labels int64 (N,). Raises ValueError for an item without a label (a negative value), and
    unless both classes are in every fold.
    """
    check_count("k", k, least=2)
    if y.ndim != 1 or y.dtype != torch.int64:
        raise ValueError(f"y: got {y.dtype} {tuple(y.shape)}, expected labels int64 (N,)")
    if len(missing := (y < 0).nonzero().flatten()):
        raise ValueError(
            f"y: rows {missing[:5].tolist()} have no label, expected 0 or 1 for every patient; "
            "leave these patients out"
        )
    counts = {c: int((y == c).sum()) for c in (0, 1)}
    if few := {c: n for c, n in counts.items() if n < k}:
        raise ValueError(
            f"y: got {counts[0]} and {counts[1]} patients of class 0 and 1, expected at least {k} "
            f"of each: a fold would hold one class (too few of class {min(few)})"
        )
    parts = StratifiedKFold(k, shuffle=True, random_state=seed).split(np.zeros(len(y)), y.numpy())
    return [Fold(torch.from_numpy(a).long(), torch.from_numpy(b).long()) for a, b in parts]


def class_weights(y: Tensor) -> Tensor:
    """Return one weight per class, (2,), N / (2 N_c): both classes weigh the same in a mean loss.

    y: labels int64 (N,). Raises ValueError if a class is missing.
    """
    counts = torch.bincount(y, minlength=2)
    if len(counts) != 2 or (counts == 0).any():
        raise ValueError(f"y: got {counts.tolist()} items per class, expected both of two classes")
    return len(y) / (2 * counts.float())


def balanced_loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the cross-entropy of a batch, weighted per class, a scalar.

    The sum is divided by the number of items, not by the sum of their weights.
    """
    losses = F.cross_entropy(logits, y, reduction="none")
    return (weights.to(losses)[y] * losses).mean()


def train_folds(
    build: Callable[[], nn.Module],
    fit: Fit,
    predict: Callable[[nn.Module, Tensor], Tensor],
    y: Tensor,
    k: int,
    seed: int,
    folder: Path | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one model per fold; return the best one and the log.

    Args:
        build: returns a new model; its weights are drawn from torch's global generator.
        fit: trains a model on the given rows and returns its log; the folder is that of the fold.
        predict: (model, rows) -> logits (N, 2).
        y: labels int64 (N,), of which `split_folds` makes the folds.

    Returns: the model with the highest sensitivity + specificity on its validation fold (the first
    of several), and {"seconds", "chosen", "folds"}, with both rates per fold.
    """
    models, rows, seconds = [], [], 0.0
    for i, fold in enumerate(split_folds(y, k, seed)):
        report(f"fold {i + 1} of {k}")
        torch.manual_seed(1000 * seed + i)
        model = build()
        log = fit(model, fold.train, folder / f"fold{i}" if folder else None)
        seconds += log["seconds"]
        decision = predict(model, fold.validation).argmax(1)
        found = confusion(decision, y[fold.validation])
        rows.append({name: found[name] for name in ("sensitivity", "specificity")})
        models.append(model)
    sums = [row["sensitivity"] + row["specificity"] for row in rows]
    best = sums.index(max(sums))
    return models[best], {"seconds": seconds, "chosen": best, "folds": rows}
