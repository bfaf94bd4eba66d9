"""Is it still the same person, or the same scene? FVA and FS on faces, S3 on anything.

Sources: FVA, Singla et al. (2020) with VGGFace2 (Cao et al., 2018); FS and S3, Jeanneret et al., ACE (CVPR 2023), section 4.1.
All are cosine similarities of an encoder's outputs for a query and its counterfactual, in [-1, 1], higher is closer. Verified
means a similarity above the threshold; STEEX's released code takes scipy's cosine distance for it, which is upside down.
ACE's sets: FVA and FS on the valid counterfactuals, S3 on all of those queries that the classifier gets right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.evaluation.metrics.features import Features, check_pair, extract


def similarity(a: Features, b: Features) -> Tensor:
    """Cosine of each row of a with the same row of b. (N,) float64 in [-1, 1]."""
    check_pair(a, b)
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} images, expected {len(a)}, as many as a")
    return F.cosine_similarity(a.values.double(), b.values.double(), dim=1)


def random_similarity(a: Features, seed: int = 0) -> Tensor:
    """Cosine of each image with another one, every image once on each side: the floor. (N,) float64; needs N >= 2."""
    if len(a) < 2:
        raise ValueError(
            f"a: got {len(a)} images, expected at least 2 for a pair of different ones"
        )
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    return similarity(a.take(order), a.take(order.roll(1)))


def fva_fs(
    encoder: nn.Module,
    query: Tensor,
    counterfactual: Tensor,
    threshold: float | None = None,
    seed: int = 0,
) -> dict[str, float | int]:
    """FVA: share of pairs verified as one person; FS: mean similarity. Images (N, 3, H, W) in [0, 1].

    Keys fva, fs, fva_random, fs_random (each query with another one) and n; `fva_embedded` and so on through any encoder but
    `encoders.FaceNet`. `threshold` defaults to the encoder's own or its card's, 0.5 for FaceNet. FVA is a share of 1.
    Blind spot: 1 for no change at all, so never without the flip rate.
    """
    if threshold is None:
        card = getattr(encoder, "card", {}).get("quality", {})
        threshold = getattr(encoder, "threshold", card.get("threshold"))
    if threshold is None or not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold: got {threshold} for {type(encoder).__name__}, expected a cosine in [-1, 1]"
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
    """Mean similarity under SimSiam, for scenes without faces. Keys s3, s3_random, n; `s3_embedded` through any other encoder."""
    a = extract(encoder, query)
    name = a.name("s3")
    return {
        name: similarity(a, extract(encoder, counterfactual)).mean().item(),
        f"{name}_random": random_similarity(a, seed).mean().item(),
        "n": len(a),
    }
