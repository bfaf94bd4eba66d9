"""Self-consistency: latent space closeness, verification over a path, and l1 errors.

Source: Singla et al., Progressive Exaggeration (ICLR 2020), Eqs. 5, 6 and 10, Tables 2 and 5. An
explanation should keep the query's identity. Blind spot: all are best if nothing changes, so report
the response beside them. An autoencoder's own code favours its own blurry images, so report
closeness in one encoder that all methods share beside the method's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cf_utils.core import device_of, eval_mode
from cf_utils.evaluation.metrics.features import Features
from cf_utils.evaluation.metrics.identity import similarity
from cf_utils.models.generators.latent import LatentModel


def is_closest(query: Tensor, explanations: Tensor, chunk: int = 256) -> Tensor:
    """Whether x_delta is nearer to its query than to the explanation of any other query. Eq. 10.

    ||E(x) - E(x_delta)|| < min over m of ||E(x_delta) - E(m)||, where m is the explanation of each
    other query at the same delta. Its mean is latent space closeness. The paper prints per cent.
    The authors' notebook reduces codes by PCA and searches neighbours approximately; this is exact.

    Args:
        query, explanations: codes E(x), E(x_delta), (B, D) finite, B >= 2, of one delta.
        chunk: rows whose distances to all others are computed at once; bounds the memory.

    Returns: (B,) bool; a tie counts as False.
    """
    finite = bool(query.isfinite().all() and explanations.isfinite().all())
    if query.ndim != 2 or query.shape != explanations.shape or len(query) < 2 or not finite:
        raise ValueError(
            f"query, explanations: got {tuple(query.shape)}, {tuple(explanations.shape)}, finite: "
            f"{finite}, expected two finite (B, D) with B >= 2"
        )
    centre = explanations.double().mean(0)  # centred, so that cdist does not cancel digits
    x, m = query.double() - centre, explanations.double() - centre
    own = torch.linalg.vector_norm(x - m, dim=1)
    nearest = []
    for start in range(0, len(m), chunk):
        distance = torch.cdist(m[start : start + chunk], m)
        rows = torch.arange(len(distance), device=m.device)
        distance[rows, start + rows] = torch.inf
        nearest.append(distance.amin(1))
    return own < torch.cat(nearest)


def latent_space_closeness(
    encoder: nn.Module, query: Tensor, progression: Tensor, batch_size: int = 50
) -> Tensor:
    """Latent space closeness, Eq. 10, for each query and delta. Higher is better.

    The paper compares 1,000 queries for each delta. The share falls as B grows, so compare values
    of equal B.

    Args:
        encoder: the method's own (a `LatentModel`) or any network on images; outputs are flattened.
        query: images (B, C, H, W), B >= 2.
        progression: explanations (B, K, C, H, W); column k is one delta.

    Returns: (B, K) bool; the mean over a column is the share for that delta.
    """
    check_progression(query, progression)
    codes = encode(encoder, query, batch_size)
    return torch.stack(
        [
            is_closest(codes, encode(encoder, images, batch_size))
            for images in progression.unbind(1)
        ],
        dim=1,
    )


@torch.no_grad()
def encode(encoder: nn.Module, images: Tensor, batch_size: int = 50) -> Tensor:
    """Codes (N, D) of images on the CPU, in eval mode: `encode` of a LatentModel, else the output.

    Images of one channel are given to an encoder other than a LatentModel as three equal channels.
    """
    inner = isinstance(encoder, LatentModel)
    images = images if inner else as_rgb(images)
    device = device_of(encoder, images.device)
    with eval_mode(encoder):
        parts = [
            (encoder.encode(b.to(device)) if inner else encoder(b.to(device))).flatten(1).cpu()
            for b in images.split(batch_size)
        ]
    return torch.cat(parts)


def as_rgb(images: Tensor) -> Tensor:
    """Repeat the channel of images (..., 1, H, W), as encoders of photographs need three."""
    repeated = (*images.shape[:-3], 3, *images.shape[-2:])
    return images.expand(repeated) if images.shape[-3] == 1 else images


def path_similarity(query: Features, explanations: Features) -> Tensor:
    """Cosine similarity of each query's features with those of its K explanations.

    FVA is the share above the encoder's threshold, as in `identity.fva_fs`.

    Args: query: of B images; explanations: of B x K images, query by query.
    Returns: (B, K) float64 in [-1, 1], higher is closer.
    """
    if not len(query) or len(explanations) % len(query):
        raise ValueError(
            f"explanations: got {len(explanations)} images for {len(query)} queries, expected a "
            "multiple"
        )
    k = len(explanations) // len(query)
    rows = torch.arange(len(query)).repeat_interleave(k)
    return similarity(query.take(rows), explanations).view(-1, k)


def l1_error(query: Tensor, image: Tensor) -> Tensor:
    """Mean |image - query| over all elements: the l1 norm, divided by their number.

    With image = I(x, 0) it is the identity error (Eq. 5), with image = I(I(x, delta), -delta) the
    reversal error (Eq. 6). Lower is better.

    Args: query, image (B, C, H, W). Returns: (B,) float64, in the units of the images.
    """
    if query.shape != image.shape:
        raise ValueError(f"image: got {tuple(image.shape)}, expected {tuple(query.shape)}")
    return (image - query).abs().flatten(1).double().mean(1)


def self_consistency(
    explain: Callable[[Tensor, Tensor], Tensor], query: Tensor, own: Tensor, bins: int = 10
) -> dict[str, Tensor]:
    """Identity and reversal error of a method that takes the wanted bin as its condition.

    Args:
        explain: I(images, bin per image) -> images, for example G(E(x), c).
        query: (B, C, H, W); own: (B,) int64, each query's bin c_f(x, 0).

    Returns: identity (B,) and reversal (B, bins), as in `l1_error`.
    """
    if own.shape != (len(query),) or own.dtype != torch.int64:
        raise ValueError(f"own: got {own.dtype} {tuple(own.shape)}, expected int64 ({len(query)},)")
    with torch.no_grad():
        reversal = [
            l1_error(query, explain(explain(query, torch.full_like(own, k)), own))
            for k in range(bins)
        ]
        return {
            "identity": l1_error(query, explain(query, own)),
            "reversal": torch.stack(reversal, 1),
        }


def check_progression(query: Tensor, progression: Tensor) -> None:
    """Raise ValueError unless `progression` (B, K, C, H, W) belongs to `query` (B, C, H, W)."""
    fits = query.ndim == 4 and progression.ndim == 5 and progression.shape[1] > 0
    if not fits or (len(progression), *progression.shape[2:]) != tuple(query.shape):
        raise ValueError(
            f"progression: got {tuple(progression.shape)} for queries {tuple(query.shape)}, "
            "expected (B, K, C, H, W) for (B, C, H, W)"
        )
