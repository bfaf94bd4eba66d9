"""Keep a change, undo the rest: the refinement that ACE puts after its attack, shared with every method that edits an image.

Source: Jeanneret et al. (CVPR 2023), section 3.2 and Eq. 4, after RePaint (Lugmayr et al., CVPR 2022):

    z'_t = z_t m + q(x, t) (1 - m);   z_{t-1} = mu_t(z'_t) + Sigma_t(z'_t) eps          Eq. 4

Decisions: one pass, no resampling (the paper alters the steps; RePaint's jumps back and forth are not in it); the collage takes
fresh noise for the query at each level; the query itself is pasted outside the mask at the end, so the result equals it there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cf_utils.models.generators.diffusion import Chain, Noise, to_image, to_model


def edit_size(query: Tensor, edited: Tensor, dilation: int = 1) -> Tensor:
    """What a mask is cut from: |edited - query| summed over channels, dilated. query, edited (B, C, H, W); `dilation`: odd side
    of the square in pixels. Returns (B, 1, H, W), not negative."""
    if dilation < 1 or dilation % 2 == 0:
        raise ValueError(f"dilation: got {dilation}, expected an odd number of pixels")
    return F.max_pool2d((edited - query).abs().sum(1, keepdim=True), dilation, 1, dilation // 2)


def change_mask(query: Tensor, edited: Tensor, threshold: float, dilation: int) -> Tensor:
    """Where an edit counts: its size (`edit_size`) at or above `threshold` x its maximum. Returns bool (B, 1, H, W). An image
    that was not edited has no largest change, and nothing of it is marked."""
    if not 0 < threshold <= 1:
        raise ValueError(
            f"threshold: got {threshold}, expected a share of the largest change, in (0, 1]"
        )
    size = edit_size(query, edited, dilation)
    most = size.amax((2, 3), keepdim=True)
    return (size >= threshold * most) & (most > 0)


def inpaint(
    chain: Chain,
    query: Tensor,
    edited: Tensor,
    mask: Tensor,
    steps: int,
    noise: Noise,
    other: Noise,
) -> Tensor:
    """`edited` noised to level steps - 1 and denoised, with the query pasted outside `mask` at each level and at the end.

    Images (B, C, H, W) in [0, 1], mask bool (B, 1, H, W). noise(steps) starts the chain and noise(k) is added by the step from
    level k; other(k) is the query's own noise at level k. Returns (B, C, H, W) in [0, 1], equal to the query outside the mask.
    """
    z0, z = to_model(query), chain.schedule.noised(to_model(edited), steps - 1, noise(steps))
    for k in range(steps - 1, -1, -1):
        z = torch.where(mask, z, chain.schedule.noised(z0, k, other(k)))
        z = chain.step(z, k, noise(k) if k > 0 else None)
    return torch.where(mask, to_image(z).clamp(0, 1), query)
