"""MNAC and CD: how many attributes changed, and whether they changed together as in the data.

Sources: MNAC is from DiVE (Rodriguez et al., ICCV 2021). CD is CorrMetric of DiME (Jeanneret et
al., ACCV 2022). Both compare the binary attributes that an oracle predicts for a query and for its
counterfactual. The oracle is trained apart from the explained classifier. Both are reported on the
valid counterfactuals. Where attributes are independent in the data, CD only measures the oracle's
noise: report it on correlated data alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.models.classifiers import predict


def read_attributes(oracle: nn.Module, x: Tensor, batch_size: int = 50) -> Tensor:
    """Predict binary attributes.

    Args:
        oracle: maps x to logits (B, A); an attribute is present where its logit is positive.
        x: whatever the oracle accepts, (B, ...).

    Returns: (B, A) bool. Raises ValueError if the logits are not finite and two-dimensional.
    """
    logits = predict(oracle, x, batch_size)
    finite = bool(logits.isfinite().all())
    if logits.ndim != 2 or not finite:
        raise ValueError(
            f"oracle: returned {tuple(logits.shape)}, finite: {finite}, expected finite (B, A)"
        )
    return logits > 0


def attributes_changed(before: Tensor, after: Tensor) -> Tensor:
    """Number of attributes that differ between two sets of binary attributes; its mean is MNAC.

    Source: Rodriguez et al. (2021). 0 to A per item. The attribute that was to flip counts too, so
    1 is the minimum for a flip that the oracle sees; lower is more specific. Blind spot: a flip
    that the oracle does not see counts 0. The official values of ACE on CelebA-HQ come from images
    that were normalised twice, and are on another scale.

    Args: before, after (B, A) bool. Returns: (B,) int64.
    """
    _check_attributes(before, after)
    return (before != after).sum(1)


def correlations(labels: Tensor, attribute: int) -> Tensor:
    """Correlation of one attribute with every attribute over training labels.

    Args: labels (N, A) binary; attribute: a column. Returns: (A,) float64, 0 for constant columns.
    """
    if labels.ndim != 2 or not 0 <= attribute < labels.shape[1]:
        raise ValueError(
            f"labels, attribute: got {tuple(labels.shape)}, {attribute}, "
            "expected (N, A) and one of its columns"
        )
    return _correlate_with_column(labels.double(), attribute)


def correlation_difference(
    before: Tensor, after: Tensor, training: Tensor, attribute: int
) -> float:
    """CD: sum over attributes of |correlation in training data - correlation of the changes|.

    Source: Jeanneret et al. (2022). Range [0, 2 A], lower is better. A change is -1, 0 or 1 per
    attribute. As in the official code, the attribute itself is part of the sum and an undefined
    correlation counts as 0. If all changes of the attribute are equal, every correlation is
    undefined: explain both directions in one set.

    Args:
        before, after: (B, A) bool, B >= 2.
        training: (A,), from `correlations`.
        attribute: column of the attribute that was to flip.
    """
    _check_attributes(before, after)
    if training.shape != before.shape[1:]:
        raise ValueError(f"training: got {tuple(training.shape)}, expected ({before.shape[1]},)")
    if len(before) < 2:
        raise ValueError(
            f"before: got {len(before)} items, expected at least 2; "
            "a correlation is undefined for fewer"
        )
    change = after.double() - before.double()
    of_changes = _correlate_with_column(change, attribute)
    return (training.cpu() - of_changes.cpu()).abs().sum().item()


def _correlate_with_column(values: Tensor, column: int) -> Tensor:
    """Correlate one column of `values` (N, A) with each column, 0 where either is constant."""
    centred = values - values.mean(0)
    varies = (values != values[:1]).any(0)  # rounding of the mean must not look like variance
    centred = torch.where(varies, centred, 0)
    length = centred.square().sum(0).sqrt()
    product = centred[:, column] @ centred
    return torch.where(varies & varies[column], product / (length * length[column]), 0).clamp(-1, 1)


def _check_attributes(before: Tensor, after: Tensor) -> None:
    boolean = before.dtype == after.dtype == torch.bool
    if before.shape != after.shape or before.ndim != 2 or not boolean:
        raise ValueError(
            f"before, after: got {before.dtype} {tuple(before.shape)}, "
            f"{after.dtype} {tuple(after.shape)}, expected two bool (B, A)"
        )
