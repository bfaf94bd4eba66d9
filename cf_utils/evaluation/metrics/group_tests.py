"""Tests whether two groups of a measured quantity differ, or are equivalent, as for heart size.

Source: Singla et al., Progressive Exaggeration (ICLR 2020), section 4.2, Fig. 4b: a paired t-test
between queries and their explanations, and a two-sample t-test between explanations and real images
of the class that they imitate. The paper takes a large p of the latter as a sign of equality, which
it is not. The equivalence test (two one-sided tests, Schuirmann 1987) states a margin instead.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

Result = dict[str, float | int]


def paired_test(a: Tensor, b: Tensor) -> Result:
    """Dependent t-test for paired samples: is the mean of b - a zero?

    Pairs with NaN are left out.

    Args: a, b: (N,) measurements of the same items, N >= 2 pairs.
    Returns: difference (mean of b - a), low and high (its 95 % interval), statistic, p (two-sided)
        and n. The statistic is infinite, or NaN, if all differences are equal.
    """
    a_values, b_values = _pairs(a, b)
    return _summarise(stats.ttest_rel(b_values, a_values), b_values.mean() - a_values.mean())


def two_sample_test(a: Tensor, b: Tensor) -> Result:
    """Independent two-sample t-test with equal variances: do a and b have one mean?

    NaN are left out.

    Args: a (N,), b (M,), N and M >= 2.
    Returns: difference (mean of b - mean of a), low, high, statistic, p, and n = N + M.
    """
    a_values, b_values = _finite("a", a), _finite("b", b)
    found = _summarise(stats.ttest_ind(b_values, a_values), b_values.mean() - a_values.mean())
    return found | {"n": len(a_values) + len(b_values)}


def equivalence_test(a: Tensor, b: Tensor, margin: float, paired: bool = False) -> Result:
    """Two one-sided t-tests: is the difference of the means inside (-margin, margin)?

    A p under 0.05 rejects that the means differ by the margin or more. A large p shows nothing.

    Args:
        a, b: as in `two_sample_test`, or in `paired_test` with `paired`.
        margin: > 0, in the units of a and b, chosen before looking at the data.

    Returns: difference (mean of b - mean of a), margin, p (the larger of both), and n.
    """
    from statsmodels.stats import weightstats  # imported here: it takes a second

    if not margin > 0:
        raise ValueError(f"margin: got {margin}, expected over 0")
    a_values, b_values = _pairs(a, b) if paired else (_finite("a", a), _finite("b", b))
    test = weightstats.ttost_paired if paired else weightstats.ttost_ind
    p = float(test(b_values, a_values, -margin, margin)[0])
    n = len(a_values) if paired else len(a_values) + len(b_values)
    difference = float(b_values.mean() - a_values.mean())
    return {"difference": difference, "margin": margin, "p": p, "n": n}


def _summarise(found, difference: float) -> Result:
    interval = found.confidence_interval()
    return {
        "difference": float(difference),
        "low": float(interval.low),
        "high": float(interval.high),
        "statistic": float(found.statistic),
        "p": float(found.pvalue),
        "n": int(found.df) + 1,
    }


def _pairs(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a, b: got {tuple(a.shape)}, {tuple(b.shape)}, expected two (N,)")
    known = ~(a.isnan() | b.isnan())
    return _finite("a", a[known]), _finite("b", b[known])


def _finite(name: str, values: Tensor) -> np.ndarray:
    values = values[~values.isnan()]
    if values.ndim != 1 or len(values) < 2 or not bool(values.isfinite().all()):
        raise ValueError(
            f"{name}: got {len(values)} values without NaN, expected (N,), 2 or more, finite"
        )
    return values.detach().cpu().to(torch.float64).numpy()
