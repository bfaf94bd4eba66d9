"""FID by group of the classifier's response, and the difference of FID between two methods.

Source: Singla et al., Progressive Exaggeration (ICLR 2020), Tables 1, 5 and 6. Real images and
explanations are split by the actual response f: the label is present in the top tenth of [0, 1] and
absent in the bottom tenth. As in `image`, the name is `fid` only with the published network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.evaluation.metrics.features import Features, check_pair
from cf_utils.evaluation.metrics.image import fid, frechet_distance

# inclusive limits of f; A.4 prints [0, 0.1) for the absent group, Table 1 [0, 0.1]
GROUPS = {"": (0.0, 1.0), "_present": (0.9, 1.0), "_absent": (0.0, 0.1)}
Row = tuple[float, int, str]  # value, n, note


def fid_by_group(
    real: Features, real_response: Tensor, fake: Features, fake_response: Tensor, smallest: int = 20
) -> dict[str, Row]:
    """FID of the explanations of each group against the real images of the same group.

    Args:
        real, fake: features of N real images and of M explanations (all queries and conditions).
        real_response, fake_response: f of each, (N,) and (M,) in [0, 1].
        smallest: a group with fewer real images or explanations has no value; at least 2.

    Returns: per group `fid`, `fid_present`, `fid_absent` (or `fid_embedded`, ...), the value, the
        number of explanations, and a note with the number of real images. NaN where a group is too
        small. Lower is better; compare only values of equal n.
    """
    check_pair(real, fake)
    if smallest < 2:
        raise ValueError(f"smallest: got {smallest}, expected at least 2")
    for name, features, response in (("real", real, real_response), ("fake", fake, fake_response)):
        if response.shape != (len(features),):
            raise ValueError(
                f"{name}_response: got {tuple(response.shape)}, expected ({len(features)},)"
            )
    rows: dict[str, Row] = {}
    for group, (low, high) in GROUPS.items():
        a, b = (
            features.take(((response >= low) & (response <= high)).cpu())
            for features, response in ((real, real_response), (fake, fake_response))
        )
        rows[real.name("fid") + group] = _fid_row(a, b, smallest)
    return rows


def _fid_row(real: Features, fake: Features, smallest: int) -> Row:
    note = f"against {len(real)} real images"
    if min(len(real), len(fake)) < smallest:
        return float("nan"), len(fake), f"{note}: too few, at least {smallest} of both are needed"
    found = fid(real, fake)
    biased = f"; biased: under {2 * real.values.shape[1]} images" if found["biased"] else ""
    return float(found[real.name("fid")]), len(fake), note + biased


def fid_difference(
    real: Features, first: Features, second: Features, n: int, draws: int = 100, seed: int = 0
) -> dict[str, float | int]:
    """FID of the first method minus FID of the second, with a paired 95 % bootstrap interval.

    Queries are drawn with replacement, and both methods use the explanations of the same queries.
    The real images stay fixed. Repeated queries raise both FIDs, so the interval is the estimate
    plus and minus two standard deviations of the bootstrap differences, not their percentiles.

    Args:
        real: features of real images.
        first, second: features of K explanations for each of the same queries, query by query; K
            may differ between the methods.
        n: number of queries.

    Returns: mean (the difference), low, high, and n. Negative favours the first.
    """
    check_pair(real, first)
    check_pair(real, second)
    if n < 2 or len(first) % n or len(second) % n or not len(first) or not len(second):
        raise ValueError(
            f"n: got {n} queries for {len(first)} and {len(second)} explanations, expected 2 or "
            "more, which divide both"
        )
    gen, differences = torch.Generator().manual_seed(seed), []
    values = [f.values.view(n, -1, f.values.shape[1]) for f in (first, second)]
    everyone = torch.arange(n)
    draw = [everyone, *(torch.randint(n, (n,), generator=gen) for _ in range(draws))]
    for rows in draw:
        a, b = (frechet_distance(real.values, v[rows].flatten(0, 1)) for v in values)
        differences.append(a - b)
    estimate, half = differences[0], 2 * torch.tensor(differences[1:]).double().std().item()
    return {"mean": estimate, "low": estimate - half, "high": estimate + half, "n": n}
