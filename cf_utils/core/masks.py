"""Extent of the masks of organs or objects."""

from __future__ import annotations

import torch
from torch import Tensor


def measure_width(mask: Tensor) -> Tensor:
    """Return the width in pixels from the leftmost to the rightmost part of each mask, (B,) float.

    A column belongs to the mask if one of its pixels is at least 1/2. The edges lie where the
    largest value of a column crosses 1/2, linearly interpolated between the centres of two columns
    and 0 outside the image. The width of a bool mask is therefore its number of columns.

    Args: mask: (B, 1, H, W), bool or probabilities in [0, 1]. Returns NaN for an empty mask.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected (B, 1, H, W)")
    height = mask.double().amax((1, 2))  # (B, W): largest value of each column
    padded = torch.nn.functional.pad(height, (1, 1))
    width = _find_last(padded) + _find_last(padded.flip(1)) - padded.shape[1] + 1
    return torch.where((height >= 0.5).any(1), width, torch.nan)


def _find_last(height: Tensor) -> Tensor:
    """Return where each row (B, W), which ends with 0, last falls below 1/2; W - 1 where never."""
    columns = torch.arange(height.shape[1], device=height.device)
    last = torch.where(height >= 0.5, columns, -1).amax(1).clamp(0, height.shape[1] - 2)
    now, after = (height.gather(1, (last + k)[:, None])[:, 0] for k in (0, 1))
    return last + (now - 0.5) / (now - after).clamp(min=1e-12)
