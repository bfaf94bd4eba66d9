"""How many attributes changed, and did they change together as they do in the data? MNAC and CD, by an attribute oracle.

Sources: MNAC, Rodriguez et al., DiVE (ICCV 2021); CD (CorrMetric), Jeanneret et al., DiME (ACCV 2022). Both on binary readings of
an oracle that was trained apart from the explained classifier, over the valid counterfactuals. Where the data's attributes are
independent by construction CD only measures the oracle's noise: report it on correlated data alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.models.classifiers import predict


def readings(oracle: nn.Module, x: Tensor, batch_size: int = 50) -> Tensor:
    """Which attributes an oracle (x -> logits (B, A)) sees: logit > 0, that is probability > 0.5. (B, A) bool."""
    logits = predict(oracle, x, batch_size)
    if logits.ndim != 2 or not logits.isfinite().all():
        raise ValueError(
            f"oracle: gave {tuple(logits.shape)}, finite: {bool(logits.isfinite().all())}, expected finite (B, A)"
        )
    return logits > 0


def attributes_changed(before: Tensor, after: Tensor) -> Tensor:
    """How many of A binary attributes differ, (B, A) bool each. (B,) int64, 0 to A; its mean is MNAC.

    The attribute asked for counts too, so 1 is the least for a flip that the oracle sees. Blind spot: 0 for a flip that it
    does not see. ACE's CelebA-HQ values come from images normalised twice and are on no common scale with others.
    """
    _check(before, after)
    return (before != after).sum(1)


def correlations(labels: Tensor, attribute: int) -> Tensor:
    """Correlation of one binary attribute with each, over training labels (N, A). (A,) float64, 0 where one is constant."""
    if labels.ndim != 2 or not 0 <= attribute < labels.shape[1]:
        raise ValueError(
            f"labels, attribute: got {tuple(labels.shape)}, {attribute}, expected (N, A) and one of its columns"
        )
    return _with_one(labels.double(), attribute)


def correlation_difference(
    before: Tensor, after: Tensor, training: Tensor, attribute: int
) -> float:
    """CD: sum over attributes of |correlation in training - correlation of the changes|. [0, 2 A], lower is better.

    before, after (B, A) bool; training (A,) from `correlations`; attribute: the one asked for. A change is -1, 0 or 1. As in the
    official code the attribute itself is part of the sum and an undefined correlation counts as 0. So where all changes of the
    attribute are equal (targets all one way and all seen) every term is |training|, the worst for having no spread: ask for both
    directions in one set.
    """
    _check(before, after)
    if training.shape != before.shape[1:]:
        raise ValueError(f"training: got {tuple(training.shape)}, expected ({before.shape[1]},)")
    if len(before) < 2:
        raise ValueError(
            f"before: {len(before)} items, expected at least 2: one has no correlation"
        )
    change = after.double() - before.double()
    return (training.cpu() - _with_one(change, attribute).cpu()).abs().sum().item()


def _with_one(values: Tensor, column: int) -> Tensor:
    centred = values - values.mean(0)
    varies = (values != values[:1]).any(0)  # a rounded mean must not give a constant a spread
    centred = torch.where(varies, centred, 0)
    length = centred.square().sum(0).sqrt()
    product = centred[:, column] @ centred
    return torch.where(varies & varies[column], product / (length * length[column]), 0).clamp(-1, 1)


def _check(before: Tensor, after: Tensor) -> None:
    if (
        before.shape != after.shape
        or before.ndim != 2
        or before.dtype != torch.bool
        or after.dtype != torch.bool
    ):
        raise ValueError(
            f"before, after: got {before.dtype} {tuple(before.shape)}, {after.dtype} {tuple(after.shape)}, "
            "expected two bool (B, A)"
        )
