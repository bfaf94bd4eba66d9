"""FID, sFID and KID: whether counterfactuals, as a set, look like real images. Lower is better.

Sources: FID is from Heusel et al. (2017), KID from Binkowski et al. (2018), sFID from ACE
(Jeanneret et al., CVPR 2023), section 4.1. Each function returns a dict whose first key is the
metric: `fid` with pytorch-fid's Inception and its published weights, `fid_embedded` with any other
encoder. The sizes of both sets are returned beside it.

ACE compares all queries (real) with the valid counterfactuals (fake). A counterfactual shares most
pixels with its own query, so FID and KID favour small changes. sFID avoids this: it compares one
half's queries with the other half's counterfactuals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.evaluation.metrics.features import Features, check_pair


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of features. >= 0.

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), with S the covariance (n - 1 in
    the denominator). With S_a = A'A and S_b = B'B, the last trace is the sum of the singular values
    of A B'. This avoids the root of a nearly singular matrix.

    Args: a (N, D), b (M, D), finite, N and M >= 2.
    """
    for name, x in (("a", a), ("b", b)):
        finite = bool(x.isfinite().all())
        if x.ndim != 2 or len(x) < 2 or not finite:
            raise ValueError(
                f"{name}: got {tuple(x.shape)}, finite: {finite}, expected 2 or more finite rows"
            )
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
    shared = torch.linalg.svdvals(root_a @ root_b.T).sum()
    means = (mean_a - mean_b).square().sum()
    value = means + root_a.square().sum() + root_b.square().sum() - 2 * shared
    return max(value.item(), 0.0)


def _mean_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and a root (min(N, D), D) of the covariance, in float64."""
    x = x.double()
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return x.mean(0), torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def fid(real: Features, fake: Features) -> dict[str, float | int | bool]:
    """FID: Frechet distance between the features of two sets of images. >= 0, lower is better.

    Returns: fid or fid_embedded, n_real, n_fake, biased. `biased` is True if a set has fewer than
    twice as many images as features. The value then depends strongly on n: compare only values of
    equal n, and read `sfid_floor` beside them.
    """
    check_pair(real, fake)
    return {
        real.name("fid"): frechet_distance(real.values, fake.values),
        "n_real": len(real),
        "n_fake": len(fake),
        "biased": _is_biased(real.values.shape[1], len(real), len(fake)),
    }


def sfid(
    query: Features,
    counterfactual: Features,
    valid: Tensor | None = None,
    splits: int = 10,
    seed: int = 0,
) -> dict[str, float | int | bool]:
    """sFID: Frechet distance from one half's queries to the other half's valid counterfactuals.

    Mean over random halves, in both directions; >= 0, lower is better. The paper says ten splits;
    the official script makes one unseeded split and prints its two directions.

    Args: query, counterfactual: features of the same N items; valid (N,) bool, default all.

    Returns:
        sfid or sfid_embedded; `_sd`, its standard deviation over splits; `_floor`, the value if
        each counterfactual is replaced by its query; n_real and n_fake, mean sizes of a half; and
        biased, as in `fid`.
    """
    check_pair(query, counterfactual)
    n = len(query)
    valid = torch.ones(n, dtype=torch.bool) if valid is None else valid.cpu()
    if len(counterfactual) != n or valid.shape != (n,):
        raise ValueError(
            f"counterfactual, valid: got {len(counterfactual)}, {tuple(valid.shape)}, "
            f"expected {n}, ({n},)"
        )
    values, floors, sizes, gen = [], [], [], torch.Generator().manual_seed(seed)
    for _ in range(splits):
        order = torch.randperm(n, generator=gen)
        halves = order[: n // 2], order[n // 2 :]
        for real, fake in (halves, halves[::-1]):
            fake = fake[valid[fake]]
            if len(fake) < 2 or len(real) < 2:
                raise ValueError(
                    f"valid: got {int(valid.sum())} of {n}, expected at least 2 in each random half"
                )
            values.append(frechet_distance(query.values[real], counterfactual.values[fake]))
            floors.append(frechet_distance(query.values[real], query.values[fake]))
            sizes.append(len(fake))
    by_split = torch.tensor(values, dtype=torch.float64).view(splits, 2).mean(1)
    name, n_fake = query.name("sfid"), sum(sizes) / len(sizes)
    return {
        name: by_split.mean().item(),
        name + "_sd": by_split.std(correction=0).item(),
        name + "_floor": sum(floors) / len(floors),
        "n_real": n // 2,
        "n_fake": n_fake,
        "biased": _is_biased(query.values.shape[1], n // 2, n_fake),
    }


def kid(
    real: Features, fake: Features, subsets: int = 0, size: int = 1000, seed: int = 0
) -> dict[str, float | int]:
    """KID: squared maximum mean discrepancy under the kernel (x.y / D + 1)^3. Lower is better.

    Unbiased: its expectation is 0 if both sets have one source, so it can be slightly negative.
    Unlike FID it does not depend on n; prefer it on small sets.

    Args:
        subsets: 0 uses all pairs once, and estimates the standard error by the jackknife over
            images, taking the two sets as independent. A positive number averages over that many
            random subsets, as first published; the standard error then covers only their choice.
        size: images per subset.

    Returns: kid or kid_embedded, kid_se, n_real, n_fake, subsets.
    """
    check_pair(real, fake)
    a, b = real.values.double(), fake.values.double()
    fewest = min(len(a), len(b))
    if fewest < 3 or (subsets and not 3 <= size <= fewest):
        raise ValueError(
            f"real, fake, size: got {len(a)}, {len(b)}, {size}, "
            f"expected at least 3 images and size up to {fewest}"
        )
    value, error = _kid_of_subsets(a, b, subsets, size, seed) if subsets else _kid_of_all(a, b)
    name = real.name("kid")
    return {
        name: value.item(),
        name + "_se": error.item(),
        "n_real": len(a),
        "n_fake": len(b),
        "subsets": subsets,
    }


def _kid_of_all(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate KID from all pairs, and its standard error by the jackknife."""
    value, without_a, without_b = _mmd(a, b)
    variances = [
        (len(u) - 1) / len(u) * (u - u.mean()).square().sum() for u in (without_a, without_b)
    ]
    return value, torch.stack(variances).sum().sqrt()


def _kid_of_subsets(
    a: Tensor, b: Tensor, subsets: int, size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Average KID over random subsets; return the mean and its standard error."""
    gen = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(subsets):
        some_a, some_b = (x[torch.randperm(len(x), generator=gen)[:size]] for x in (a, b))
        draws.append(_mmd(some_a, some_b)[0])
    values = torch.stack(draws)
    return values.mean(), values.std(correction=0) / subsets**0.5


def _mmd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unbiased estimate, and the estimates without each row of a and of b."""
    n, m = len(a), len(b)
    within_a, within_b = (
        _kernel_sums(x, x) - _kernel(x.square().sum(1), x.shape[1]) for x in (a, b)
    )
    across_a, across_b = _kernel_sums(a, b), _kernel_sums(b, a)
    sum_a, sum_b, sum_ab = within_a.sum(), within_b.sum(), across_a.sum()
    mean_a, mean_b, mean_ab = sum_a / (n * (n - 1)), sum_b / (m * (m - 1)), sum_ab / (n * m)
    own_a = (sum_a - 2 * within_a) / ((n - 1) * (n - 2))
    own_b = (sum_b - 2 * within_b) / ((m - 1) * (m - 2))
    without_a = own_a + mean_b - 2 * (sum_ab - across_a) / ((n - 1) * m)
    without_b = own_b + mean_a - 2 * (sum_ab - across_b) / ((m - 1) * n)
    return mean_a + mean_b - 2 * mean_ab, without_a, without_b


def _kernel_sums(a: Tensor, b: Tensor) -> Tensor:
    """Sum the kernel of each row of a with all rows of b, in blocks that bound the memory."""
    return torch.cat([_kernel(rows @ b.T, a.shape[1]).sum(1) for rows in a.split(1024)])


def _kernel(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3


def _is_biased(width: int, *sizes: float) -> bool:
    return min(sizes) < 2 * width
