"""Spread of each feature, by which distances on tables are divided."""

from __future__ import annotations

import torch
from torch import Tensor


def median_absolute_deviation(x: Tensor) -> Tensor:
    """Return the median absolute deviation per feature, (N, ...) -> (...), in the units of x, > 0.

    Source: Wachter et al. (2017), Eq. 3: median |x_k - median(x_k)|. It is 0 for a feature with
    the same value in more than half of the rows, which the paper does not treat. Such a feature
    gets its mean absolute deviation from the median instead, and 1 if it never varies.
    """
    away = (x - x.median(0).values).abs()
    mad, mean = away.median(0).values, away.mean(0)
    return torch.where(mad > 0, mad, torch.where(mean > 0, mean, torch.ones_like(mean)))
