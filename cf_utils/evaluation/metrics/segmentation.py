"""Masks of organs: Dice, registration of a mask, and the size of the heart.

Source: Singla et al. (ICLR 2020), Section 4.2. They register a query x with its explanation x_delta
and apply the transformation to the heart's mask of x. The software is not named; we use the
iterative Lucas-Kanade optical flow of scikit-image (Le Besnerais and Champagnat, 2005).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.registration import optical_flow_ilk
from skimage.transform import warp
from torch import Tensor

from cf_utils.core.masks import measure_width

RADIUS = 3 / 64  # of the flow's window, in widths of the image
WARPS = 10  # times that the moving image is warped


def dice(mask: Tensor, truth: Tensor) -> Tensor:
    """Dice coefficient of two masks: 2 |A and B| / (|A| + |B|). (B,) in [0, 1], 1 is best.

    Args: mask, truth: (B, 1, H, W), bool or probabilities, which count as set from 1/2.
    NaN where both masks are empty.
    """
    if mask.shape != truth.shape:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {tuple(truth.shape)}")
    a, b = (threshold(m).flatten(1) for m in (mask, truth))
    return 2 * (a & b).sum(1).double() / (a.sum(1) + b.sum(1))


def threshold(mask: Tensor) -> Tensor:
    """Return a mask of the same shape as bool: what is at least 1/2."""
    return mask if mask.dtype == torch.bool else mask >= 0.5


def register_mask(query: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Register each query with its image, and warp the query's mask accordingly.

    Args:
        query, image: (B, C, H, W) in [0, 1]; the flow is that of the mean over channels.
        mask: (B, M, H, W), bool or in [0, 1], of the query.

    Returns: the mask of `image`, float (B, M, H, W) in [0, 1], interpolated linearly; a pixel is
    set from 1/2. Blind spot: large motions are underestimated.
    Raises ValueError for shapes that do not fit.
    """
    if query.shape != image.shape:
        raise ValueError(f"image: got shape {tuple(image.shape)}, expected {tuple(query.shape)}")
    if mask.ndim != 4 or (len(mask), *mask.shape[2:]) != (len(query), *query.shape[2:]):
        expected = (len(query), "M", *query.shape[2:])
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {expected}")
    grey = [x.detach().cpu().double().mean(1).numpy() for x in (query, image)]
    planes = mask.detach().cpu().double().numpy()
    moved = [_warp(*items) for items in zip(*grey, planes, strict=True)]
    return torch.from_numpy(np.stack(moved)).float().clamp(0, 1).to(query.device)


def _warp(query: np.ndarray, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the masks (M, H, W) of `image`, from those of `query`; both images are (H, W)."""
    radius = max(2, round(RADIUS * query.shape[1]))
    flow = optical_flow_ilk(image, query, radius=radius, num_warp=WARPS, gaussian=True)
    at = np.indices(query.shape) + flow  # query[at] looks like image
    return np.stack([warp(mask, at, order=1, mode="edge") for mask in masks])


def heart_size(heart: Tensor) -> Tensor:
    """Area of the heart as a share of the image, (B,) in [0, 1].

    The paper normalises the size but does not say how. Args: heart: (B, 1, H, W), bool or
    probabilities, which are added up.
    """
    return heart.double().flatten(1).mean(1)


def cardiothoracic_ratio(heart: Tensor, lungs: Tensor) -> Tensor:
    """Width of the heart divided by that of the chest, (B,); above 1/2 is cardiomegaly.

    The chest is as wide as both lungs together. Args: heart, lungs: masks (B, 1, H, W), bool or
    probabilities, as for `measure_width`. NaN where a mask is empty.
    """
    return measure_width(heart) / measure_width(lungs)


def keep_largest(mask: Tensor, share: float = 0.2) -> Tensor:
    """Remove connected parts of a mask that are smaller than `share` of its largest part.

    Args: mask: (B, M, H, W), bool or probabilities, which belong to a part from 1/2.
    Returns: the mask with the removed parts set to 0.
    """
    out = mask.clone()
    for i, planes in enumerate(threshold(mask).cpu().numpy()):
        for k, plane in enumerate(planes):
            parts, n = ndimage.label(plane)
            areas = np.bincount(parts.ravel(), minlength=n + 1)
            small = np.flatnonzero(areas[1:] < share * areas[1:].max(initial=0)) + 1
            out[i, k][torch.from_numpy(np.isin(parts, small)).to(mask.device)] = 0
    return out
