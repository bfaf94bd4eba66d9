"""How well a generator reconstructs its input: PSNR, SSIM, and the classifier's view.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), sections 2.4 and 3.4. Images are patients
or slices (B, C, H, W) in [0, 1]; every channel is one slice, and a patient's value is the mean over
its slices. Blind spot: much of a CT is air around the body, so report the body as well.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from cf_utils.evaluation.metrics.alignment import divergence

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


def psnr(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(1 / MSE) in dB, mean over slices. (B,).

    Higher is closer. It is infinite if a slice is reproduced exactly.

    Args: x, y (B, C, H, W) in [0, 1]; mask: bool, pixels that count, None for all.
    Slices without such a pixel are left out; NaN if there is none in the whole item.
    """
    weight = _check(x, y, mask)
    error = ((x.double() - y.double()).square() * weight).sum((2, 3)) / weight.sum((2, 3))
    return (-10 * error.log10()).nanmean(1)


def ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, mean over slices. (B,) in [-1, 1], 1 is identical.

    Source: Wang et al. (2004), by scikit-image with the paper's Gaussian window. Without a mask,
    pixels within half a window of the border are left out; with it, its pixels count.

    Args and NaN: as for `psnr`.
    """
    weight = _check(x, y, mask).numpy()
    values = np.full(x.shape[:2], np.nan)
    planes = (x.detach().cpu().double().numpy(), y.detach().cpu().double().numpy())
    for i, c in np.ndindex(*values.shape):
        mean, whole = structural_similarity(planes[0][i, c], planes[1][i, c], full=True, **WANG)
        if mask is None:
            values[i, c] = mean
        elif weight[i, c].any():
            values[i, c] = whole[weight[i, c] > 0].mean()
    return torch.from_numpy(values).nanmean(1)


def measure_reconstruction(
    x: Tensor, y: Tensor, logits_x: Tensor, logits_y: Tensor, body: Tensor | None = None
) -> dict[str, float | int]:
    """Average the quality of reconstructions y of x over items.

    Args:
        x, y: (N, C, H, W) in [0, 1].
        logits_x, logits_y: the classifier's, (N, K).
        body: bool (N, C, H, W), pixels inside the body; None leaves their rows out.

    Returns: n, psnr, ssim, same_decision (share), kl (of the scores on x from those on y, in nats),
        and with `body` also psnr_body and ssim_body.
    """
    found = {
        "n": len(x),
        "psnr": psnr(x, y).nanmean().item(),
        "ssim": ssim(x, y).nanmean().item(),
        "same_decision": (logits_x.argmax(1) == logits_y.argmax(1)).double().mean().item(),
        "kl": divergence(logits_x, logits_y).mean().item(),
    }
    if body is not None:
        found["psnr_body"] = psnr(x, y, body).nanmean().item()
        found["ssim_body"] = ssim(x, y, body).nanmean().item()
    return found


def _check(x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weight of each pixel, float64 on the CPU. Raises ValueError on bad shapes."""
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(f"y: got shape {tuple(y.shape)}, expected {tuple(x.shape)} (B, C, H, W)")
    if mask is None:
        return torch.ones(x.shape, dtype=torch.float64)
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(
            f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(x.shape)}"
        )
    return mask.cpu().double()
