"""Compatibility: whether the classifier's response follows the condition of a progression.

Source: Singla et al., Progressive Exaggeration (ICLR 2020), section 4.1, Figs. 3, 11 and 12. The
paper plots the expected response f(x) + delta against the actual one, f(x_delta); the numbers are
ours. `expected` and `actual` are (B, K): B queries, and K conditions along the path. `actual` may
come from f, from a classifier that is never explained (a judge), or be any quantity that an oracle
reads. Blind spot: adversarial noise satisfies f, so report a judge beside it.
"""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from cf_utils.models.classifiers import predict


def respond(classifier: nn.Module, images: Tensor, batch_size: int = 100) -> Tensor:
    """Probability of class 1 of two, f(x), for images (B, C, H, W) or progressions (B, K, C, H, W).

    Returns: (B,) or (B, K) float64 in [0, 1]. Raises ValueError if the logits are not (N, 2).
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            f"images: got {tuple(images.shape)}, expected (B, C, H, W) or (B, K, C, H, W)"
        )
    logits = predict(classifier, images.flatten(0, -4), batch_size).double()
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(
            f"classifier: returned {tuple(logits.shape)}, expected logits of two classes; wrap one "
            "output of another model in OneOutput"
        )
    return logits.softmax(1)[:, 1].view(images.shape[:-3])


def bin_of(response: Tensor, bins: int = 10) -> Tensor:
    """Bin c_f(x, 0) of each response in [0, 1]: [0, 1 / bins) is 0, and 1 is in the last. int64."""
    return (response * bins).long().clamp(0, bins - 1)


def expected_response(response: Tensor, bins: int = 10) -> Tensor:
    """Expected response f(x) + delta for each bin, with delta = (bin - own bin) / bins.

    Args: response (B,), f(x) in [0, 1]. Returns: (B, bins) in [0, 1]; f(x) in the own bin.
    """
    if response.ndim != 1 or not bool(((response >= 0) & (response <= 1)).all()):
        raise ValueError(
            f"response: got {tuple(response.shape)} from {response.min():.3g} to "
            f"{response.max():.3g}, expected probabilities (B,)"
        )
    steps = torch.arange(bins, device=response.device) - bin_of(response, bins)[:, None]
    return (response[:, None] + steps.to(response) / bins).clamp(0, 1)  # only rounding leaves it


def correlation(expected: Tensor, actual: Tensor, kind: str = "rank") -> float:
    """Correlation of expected and actual response over all B x K pairs. [-1, 1], higher is better.

    Args:
        kind: "rank" (Spearman, average ranks for ties) or "linear" (Pearson).

    Returns: NaN if either side is constant.
    """
    _check_responses(expected, actual)
    return _correlate_rows(expected.reshape(1, -1), actual.reshape(1, -1), kind).item()


def correlation_within(expected: Tensor, actual: Tensor, kind: str = "rank") -> Tensor:
    """Correlation over the K conditions of each query. (B,) in [-1, 1], higher is better.

    Unlike `correlation`, differences between queries do not count. NaN for a query whose expected
    or actual responses are constant or contain NaN.
    """
    _check_responses(expected, actual)
    return _correlate_rows(expected, actual, kind)


def response_error(expected: Tensor, actual: Tensor) -> Tensor:
    """Mean |actual - expected| over the conditions of each query. (B,) in [0, 1], lower is better.

    Its mean over queries is the mean absolute error of all pairs.
    """
    _check_responses(expected, actual)
    return (actual.double() - expected.double()).abs().mean(1)


def response_error_per_bin(expected: Tensor, actual: Tensor) -> Tensor:
    """Mean |actual - expected| over the queries of each condition. (K,) in [0, 1]."""
    _check_responses(expected, actual)
    return (actual.double() - expected.double()).abs().mean(0)


def rises(values: Tensor, tolerance: float = 0.0) -> Tensor:
    """Whether a quantity rises along the path of each query; the mean is the monotone share.

    It rises if (a) no value lies more than `tolerance` below the largest value before it, and (b)
    the last value lies more than `tolerance` above the first. Small setbacks therefore cannot add
    up, and a flat path does not rise. Of a quantity that should fall, pass the negative.

    Args:
        values: (B, K >= 2), in the order of the path.
        tolerance: >= 0, in the units of `values`; differences up to it are ties. For an oracle,
            two standard deviations of what it reads if nothing is edited.

    Returns: (B,) float64, 0 or 1; NaN where a value is NaN.
    """
    if values.ndim != 2 or values.shape[1] < 2 or not tolerance >= 0:
        raise ValueError(
            f"values, tolerance: got {tuple(values.shape)}, {tolerance}, expected (B, K >= 2), >= 0"
        )
    setback = (values.cummax(1).values - values).amax(1)
    rise = values[:, -1] - values[:, 0]
    risen = ((setback <= tolerance) & (rise > tolerance)).double()
    return torch.where(values.isnan().any(1), torch.nan, risen)


def _correlate_rows(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Pearson's or Spearman's correlation of each row of a (B, K) with the same row of b."""
    if kind not in ("rank", "linear"):
        raise ValueError(f"kind: got {kind!r}, expected 'rank' or 'linear'")
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    broken = (a.isnan() | b.isnan()).any(1)
    varies = (a != a[:, :1]).any(1) & (b != b[:, :1]).any(1)  # rounding is no variance
    if kind == "rank":
        a, b = (torch.from_numpy(rankdata(v.numpy(), axis=1)) for v in (a, b))
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    lengths = a.square().sum(1).sqrt() * b.square().sum(1).sqrt()
    found = ((a * b).sum(1) / lengths).clamp(-1, 1)
    return torch.where(varies & ~broken, found, torch.nan)


def _check_responses(expected: Tensor, actual: Tensor) -> None:
    if expected.ndim != 2 or expected.shape != actual.shape or not expected.numel():
        raise ValueError(
            f"expected, actual: got {tuple(expected.shape)}, {tuple(actual.shape)}, "
            "expected two of one shape (B, K)"
        )
