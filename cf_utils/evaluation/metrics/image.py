"""Do the counterfactuals look like real images, as a set? FID, sFID, KID, on `features.Features`.

Sources: Heusel et al. (2017), FID; Binkowski et al. (2018), KID; Jeanneret et al., ACE (CVPR 2023), section 4.1, sFID. Each
returns a dict whose first key is the metric: `fid` through pytorch-fid's Inception with its published weights, `fid_embedded`
through any other encoder; the n of both sets beside it. Lower is better everywhere.

ACE's sets: real = all queries, fake = the valid counterfactuals. A counterfactual shares most pixels with its query, so FID and
KID between a set and its own counterfactuals flatter whoever changes little; sFID compares with the counterfactuals of others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.evaluation.metrics.features import Features, check_pair


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians with the mean and covariance (n - 1) of rows a (N, D) and b (M, D). >= 0.

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2). With S_a = A'A and S_b = B'B the last trace is the sum of the
    singular values of A B', so no root of a nearly singular product is taken and no small imaginary part dropped.
    """
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or len(x) < 2 or not x.isfinite().all():
            raise ValueError(
                f"{name}: got {tuple(x.shape)}, finite: {bool(x.isfinite().all())}, expected 2 or more finite rows"
            )
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    value = (
        (mean_a - mean_b).square().sum()
        + root_a.square().sum()
        + root_b.square().sum()
        - 2 * shared
    )
    return max(value.item(), 0.0)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a root (min(N, D), D) of the covariance in float64."""
    x = x.double()
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return x.mean(0), torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def fid(real: Features, fake: Features) -> dict[str, float | int | bool]:
    """Frechet distance of two sets of images. Keys fid or fid_embedded, n_real, n_fake, biased.

    `biased`: one of the sets has under twice as many images as features, so that much of the value is the sets' smallness; then
    compare only values of equal n, with a real-against-real floor beside them (`sfid` has one).
    """
    check_pair(real, fake)
    return {
        real.name("fid"): frechet_distance(real.values, fake.values),
        "n_real": len(real),
        "n_fake": len(fake),
        "biased": _small(real.values.shape[1], len(real), len(fake)),
    }


def sfid(
    query: Features,
    counterfactual: Features,
    valid: Tensor | None = None,
    splits: int = 10,
    seed: int = 0,
) -> dict[str, float | int | bool]:
    """Frechet distance of one half's queries to the other half's valid counterfactuals: mean of random halves, both ways.

    Keys sfid or sfid_embedded, sfid_sd (over splits), sfid_floor: the same with each counterfactual replaced by its query, which
    is what no change at all would score; n_real and n_fake of a half (means), biased. `valid` (N,) bool, default all.
    The paper says ten splits; the official script makes one, unseeded, and prints its two directions.
    """
    check_pair(query, counterfactual)
    n = len(query)
    valid = torch.ones(n, dtype=torch.bool) if valid is None else valid.cpu()
    if len(counterfactual) != n or valid.shape != (n,):
        raise ValueError(
            f"counterfactual, valid: got {len(counterfactual)}, {tuple(valid.shape)}, expected {n}, ({n},)"
        )
    values, floors, fakes, gen = [], [], [], torch.Generator().manual_seed(seed)
    for _ in range(splits):
        order = torch.randperm(n, generator=gen)
        halves = order[: n // 2], order[n // 2 :]
        for seen, other in (halves, halves[::-1]):
            other = other[valid[other]]
            if len(other) < 2 or len(seen) < 2:
                raise ValueError(
                    f"valid: got {int(valid.sum())} of {n}, expected at least 2 in each random half"
                )
            values.append(frechet_distance(query.values[seen], counterfactual.values[other]))
            floors.append(frechet_distance(query.values[seen], query.values[other]))
            fakes.append(len(other))
    by_split = torch.tensor(values, dtype=torch.float64).view(splits, 2).mean(1)
    name, n_fake = query.name("sfid"), sum(fakes) / len(fakes)
    return {
        name: by_split.mean().item(),
        name + "_sd": by_split.std(correction=0).item(),
        name + "_floor": sum(floors) / len(floors),
        "n_real": n // 2,
        "n_fake": n_fake,
        "biased": _small(query.values.shape[1], n // 2, n_fake),
    }


def kid(
    real: Features, fake: Features, subsets: int = 0, size: int = 1000, seed: int = 0
) -> dict[str, float | int]:
    """Squared maximum mean discrepancy under (x.y / D + 1)^3, unbiased: 0 in expectation where both sets have one source.

    Keys kid or kid_embedded, kid_se, n_real, n_fake, subsets. By default from all pairs at once, the error by leaving out each
    image once (jackknife; it takes the two sets for independent). `subsets` > 0: the mean over so many random subsets of `size`
    images, as first published; then the error is that of this mean under re-drawing, and says nothing about other images.
    Can be slightly negative. Unlike FID it needs no large n, so it is the one to read on small sets.
    """
    check_pair(real, fake)
    a, b = real.values.double(), fake.values.double()
    least = min(len(a), len(b))
    if least < 3 or (subsets and not 3 <= size <= least):
        raise ValueError(
            f"real, fake, size: got {len(a)}, {len(b)}, {size}, expected at least 3 images and size up to {least}"
        )
    if subsets:
        gen = torch.Generator().manual_seed(seed)
        draws = [
            _mmd(*(x[torch.randperm(len(x), generator=gen)[:size]] for x in (a, b)))[0]
            for _ in range(subsets)
        ]
        value, error = (
            torch.stack(draws).mean(),
            torch.stack(draws).std(correction=0) / subsets**0.5,
        )
    else:
        value, left_a, left_b = _mmd(a, b)
        error = sum(
            (len(u) - 1) / len(u) * (u - u.mean()).square().sum() for u in (left_a, left_b)
        ).sqrt()
    name = real.name("kid")
    return {
        name: value.item(),
        name + "_se": error.item(),
        "n_real": len(a),
        "n_fake": len(b),
        "subsets": subsets,
    }


def _mmd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unbiased estimate, and what it becomes without each row of a, and without each of b."""
    n, m = len(a), len(b)
    within_a, within_b = (_sums(x, x) - _kernel(x.square().sum(1), x.shape[1]) for x in (a, b))
    across_a, across_b = _sums(a, b), _sums(b, a)
    sum_a, sum_b, sum_ab = within_a.sum(), within_b.sum(), across_a.sum()
    mean_a, mean_b, mean_ab = sum_a / (n * (n - 1)), sum_b / (m * (m - 1)), sum_ab / (n * m)
    left_a = (
        (sum_a - 2 * within_a) / ((n - 1) * (n - 2))
        + mean_b
        - 2 * (sum_ab - across_a) / ((n - 1) * m)
    )
    left_b = (
        (sum_b - 2 * within_b) / ((m - 1) * (m - 2))
        + mean_a
        - 2 * (sum_ab - across_b) / ((m - 1) * n)
    )
    return mean_a + mean_b - 2 * mean_ab, left_a, left_b


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """For each row of a the sum of kernels with all rows of b, in blocks of rows: never the whole matrix."""
    return torch.cat([_kernel(rows @ b.T, a.shape[1]).sum(1) for rows in a.split(1024)])


def _kernel(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3


def _small(width: int, *n: float) -> bool:
    return min(n) < 2 * width
