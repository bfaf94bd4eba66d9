"""FVA and FS (same person) on faces, S3 (same scene) on any image.

Sources: FVA is from Singla et al. (2020) with VGGFace2 (Cao et al., 2018). FS and S3 are from ACE
(Jeanneret et al., CVPR 2023), section 4.1. All are cosine similarities of an encoder's outputs for
a query and its counterfactual, in [-1, 1]; higher is closer. A pair is verified if its similarity
exceeds a threshold. (STEEX's released code compares scipy's cosine distance instead.)
ACE reports FVA and FS on the valid counterfactuals, and S3 on all counterfactuals of the queries
that the classifier gets right.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.evaluation.metrics.features import Features, check_pair, extract


def similarity(a: Features, b: Features) -> Tensor:
    """Cosine similarity of each image of `a` with the same row of `b`. (N,) float64 in [-1, 1]."""
    check_pair(a, b)
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} images, expected {len(a)}, as many as a")
    return F.cosine_similarity(a.values.double(), b.values.double(), dim=1)


def random_similarity(a: Features, seed: int = 0) -> Tensor:
    """Cosine similarity of random pairs of different images, the floor of `similarity`.

    Every image appears once on each side. (N,) float64 in [-1, 1]; needs N >= 2.
    """
    if len(a) < 2:
        raise ValueError(f"a: got {len(a)} images, expected at least 2 to pair different images")
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    return similarity(a.take(order), a.take(order.roll(1)))


def fva_fs(
    encoder: nn.Module,
    query: Tensor,
    counterfactual: Tensor,
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, float | int]:
    """FVA, the share of pairs verified as one person, and FS, their mean similarity.

    FVA is in [0, 1] (the papers print per cent), FS in [-1, 1]; higher is closer. Blind spot: both
    are 1 if nothing changes, so report the flip rate beside them.

    Args:
        query, counterfactual: images (N, 3, H, W) in [0, 1], N >= 2.
        threshold: similarity above which a pair is verified, default `encoder.threshold`.

    Returns: fva, fs, and fva_random, fs_random over random pairs of queries, and n. With an encoder
    other than `encoders.FaceNet` the names end in `_embedded` (before `_random`).
    """
    own: Any = getattr(encoder, "threshold", None)
    threshold = own if threshold is None else threshold
    if threshold is None or not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold: got {threshold} for {type(encoder).__name__}, expected a cosine in "
            "[-1, 1]; pass the one of the encoder's model card"
        )
    a = extract(encoder, query)
    same, other = similarity(a, extract(encoder, counterfactual)), random_similarity(a, seed)
    fva, fs = a.name("fva"), a.name("fs")
    return {
        fva: (same > threshold).double().mean().item(),
        fs: same.mean().item(),
        f"{fva}_random": (other > threshold).double().mean().item(),
        f"{fs}_random": other.mean().item(),
        "n": len(a),
    }


def s3(
    encoder: nn.Module, query: Tensor, counterfactual: Tensor, seed: int = 0
) -> dict[str, float | int]:
    """S3, the mean similarity of query and counterfactual under SimSiam. [-1, 1], higher is closer.

    Args: query, counterfactual: images (N, 3, H, W) in [0, 1], N >= 2.
    Returns: s3, s3_random over random pairs of queries, and n; `s3_embedded` and so on with an
    encoder other than `encoders.SimSiam`.
    """
    a = extract(encoder, query)
    name = a.name("s3")
    return {
        name: similarity(a, extract(encoder, counterfactual)).mean().item(),
        f"{name}_random": random_similarity(a, seed).mean().item(),
        "n": len(a),
    }
