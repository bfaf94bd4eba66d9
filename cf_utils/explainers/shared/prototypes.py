"""Class prototypes: the mean logits of the inputs that are classified as a class."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from cf_utils.models.classifiers import predict


def mean_logits(classifier: nn.Module, x: Tensor, n: int = 100, seed: int = 0) -> Tensor:
    """Return prototypes (K, K): row c is the mean logits of n inputs that are classified as c.

    Args:
        classifier: maps x to logits (N, K).
        x: training inputs (N, ...).
        n: inputs per class, drawn without replacement; the paper's N is 100.
        seed: of the draw.

    Raises ValueError if fewer than n inputs are classified as any one of the classes.
    """
    return average_by_class(predict(classifier, x), n, seed)


def average_by_class(logits: Tensor, n: int = 100, seed: int = 0) -> Tensor:
    """Return the prototypes of `mean_logits` from the logits (N, K) of all training inputs."""
    decided, gen = logits.argmax(1).cpu(), torch.Generator().manual_seed(seed)
    rows = []
    for c in range(logits.shape[1]):
        members = (decided == c).nonzero().flatten()
        if len(members) < n:
            raise ValueError(
                f"x: {len(members)} inputs are classified as {c}, expected at least n = {n}; "
                "pass more inputs or a smaller n"
            )
        drawn = members[torch.randperm(len(members), generator=gen)[:n]]
        rows.append(logits[drawn].mean(0))
    return torch.stack(rows)


def warn_of_weak_prototypes(scores: Tensor, target: Tensor, tau: float, stacklevel: int) -> None:
    """Warn if a prototype scores below tau, because a search may end there.

    Args:
        scores: probability of each item's target at its prototype, (B,).
        target: wanted class per item, (B,).
        tau: wanted probability.
        stacklevel: as in `warnings.warn`, seen from the caller.
    """
    pairs = zip(target.tolist(), scores.tolist(), strict=True)
    weak = sorted({(t, round(score, 3)) for t, score in pairs if score < tau})
    if weak:
        warnings.warn(
            f"prototypes: got mean logits with (class, score) {weak}, below tau = {tau}; "
            "the loss pulls towards them, so the search may end below tau. Use a lower tau, or "
            "train the classifier longer",
            stacklevel=stacklevel + 1,
        )
