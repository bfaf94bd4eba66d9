"""Keep an edit inside a mask and restore the query elsewhere: ACE's refinement, for any edit.

Source: Jeanneret et al. (CVPR 2023), section 3.2 and Eq. 4, after RePaint (Lugmayr et al., 2022):

    z'_t = z_t m + q(x, t) (1 - m);   z_{t-1} = mu_t(z'_t) + Sigma_t(z'_t) eps          Eq. 4

Here m is the mask, 1 where the edit is kept, and q(x, t) is the query noised to level t.

Decisions:
* There is one pass through the levels. RePaint's jumps back in time are left out, as in the paper.
* Each level draws fresh noise for the query.
* At the end the query itself is pasted outside the mask, so the result equals it there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cf_utils.models.generators.diffusion import Chain, Noise, to_image, to_model


def edit_size(query: Tensor, edited: Tensor, dilation: int = 1) -> Tensor:
    """Return |edited - query| summed over channels and dilated, (B, 1, H, W).

    Args:
        query, edited: images (B, C, H, W).
        dilation: side of the square that each change is spread over, odd, in pixels.
    """
    if dilation < 1 or dilation % 2 == 0:
        raise ValueError(f"dilation: got {dilation}, expected an odd number of pixels")
    return F.max_pool2d((edited - query).abs().sum(1, keepdim=True), dilation, 1, dilation // 2)


def change_mask(query: Tensor, edited: Tensor, threshold: float, dilation: int) -> Tensor:
    """Return where an edit is at least `threshold` times its largest size, bool (B, 1, H, W).

    The mask of an image without any change is empty.

    Args:
        query, edited: images (B, C, H, W).
        threshold: share of the largest change, in (0, 1].
        dilation: as in `edit_size`.
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"threshold: got {threshold}, expected a share of the largest change, in (0, 1]"
        )
    size = edit_size(query, edited, dilation)
    largest = size.amax((2, 3), keepdim=True)
    return (size >= threshold * largest) & (largest > 0)


def inpaint(
    chain: Chain,
    query: Tensor,
    edited: Tensor,
    mask: Tensor,
    steps: int,
    noise: Noise,
    query_noise: Noise,
) -> Tensor:
    """Noise `edited` to level steps - 1 and denoise it, restoring the query outside `mask`.

    Args:
        query, edited: images (B, C, H, W) in [0, 1].
        mask: bool (B, 1, H, W), where the edit is kept.
        steps: passes of the chain.
        noise: noise(steps) noises `edited`; noise(k) is added by the step from level k.
        query_noise: query_noise(k) noises the query to level k.

    Returns images (B, C, H, W) in [0, 1], equal to the query outside the mask.
    """
    z0, schedule = to_model(query), chain.schedule
    z = schedule.add_noise(to_model(edited), steps - 1, noise(steps))
    for k in range(steps - 1, -1, -1):
        z = torch.where(mask, z, schedule.add_noise(z0, k, query_noise(k)))  # Eq. 4's collage
        z = chain.step(z, k, noise(k) if k > 0 else None)
    return torch.where(mask, to_image(z).clamp(0, 1), query)
