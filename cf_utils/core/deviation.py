"""The spread of a feature, by which distances on tables are measured."""

from __future__ import annotations

import torch
from torch import Tensor


def median_absolute_deviation(x: Tensor) -> Tensor:
    """Wachter et al., Eq. 3, of each feature, (N, ...) -> (...): median |x_k - median(x_k)|, in x's units, > 0.

    Where more than half of the rows agree it is 0 and the distance undefined (the paper does not say what then): the mean
    absolute deviation from the median stands in, and 1 for a feature that never varies.
    """
    away = (x - x.median(0).values).abs()
    mad, mean = away.median(0).values, away.mean(0)
    return torch.where(mad > 0, mad, torch.where(mean > 0, mean, torch.ones_like(mean)))
