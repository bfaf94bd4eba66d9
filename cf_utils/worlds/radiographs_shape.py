"""The patient's shape in a radiograph: where a pixel lies in the scan, and how wide the heart is.

A parallel projection commutes with any deformation of the image plane. A pixel (x, y) is mapped to
the scan in two steps: `to_body` undoes pose, size and build, which bones and soft tissue share.
`to_tissue` then undoes the motion of diaphragm and heart, which soft tissue makes alone.

The heart's size is set by the cardiothoracic ratio: `fit_heart` finds the deformation at which the
heart is as wide, compared with the lungs, as the factor says, whatever the other factors are.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import bump, mix
from cf_utils.worlds.radiographs_ct import ANGLES, Table, build_table, list_grid

RATIO = (0.40, 0.60)  # cardiothoracic ratio at heart_size 0 and 1
HEART, REACH = (0.095, 0.13), (0.65, 0.68)  # centre of the heart; half axes of what moves with it
STRENGTHS = tuple(-0.70 + 0.0625 * k for k in range(18))  # of the heart's deformation
DOME, TALL = 0.30, 0.75  # height of the diaphragm; how far its motion reaches
LEAST = 4.0  # voxels of a projected mask that count as part of it
FINE = 128  # height of the table from which outlines are read


def pose(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Undo shift, size and tilt of the patient in the image."""
    turn, size = 0.07 * (2 * p.tilt - 1), mix(0.84, 1.03, p.zoom)
    x, y = x - 0.16 * (2 * p.shift_x - 1), y - 0.11 * (2 * p.shift_y - 1)
    u, v = (x + turn * y) / size, (y - turn * x) / size
    return u / mix(0.95, 1.05, p.chest_width), v / mix(0.94, 1.06, p.chest_height)


def unpose_x(p: SimpleNamespace, u: Tensor, v: Tensor) -> Tensor:
    """Return x in the image of a point that `pose` maps to (u, v), up to a constant shift."""
    turn, size = 0.07 * (2 * p.tilt - 1), mix(0.84, 1.03, p.zoom)
    u, v = u * mix(0.95, 1.05, p.chest_width), v * mix(0.94, 1.06, p.chest_height)
    return (u - turn * v) * size / (1 + turn * turn)


def build_offset(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the displacement (dx, dy) that undoes the build of the patient at (x, y)."""
    x, y = x.clamp(-1.3, 1.3), y.clamp(-1.3, 1.3)
    xx, yy = x * x, y * y
    dx = 0.09 * (2 * p.taper - 1) * x * y
    dx = dx + 0.08 * (2 * p.waist - 1) * x * (yy - 0.4)
    dx = dx + 0.06 * (2 * p.spine_bend - 1) * (yy - 0.4)
    dx = dx + 0.10 * (2 * p.spine_wave - 1) * y * (1 - 0.6 * yy) * (1 - 0.4 * xx)
    dx = dx + 0.06 * (2 * p.asymmetry - 1) * (xx - 0.4)
    dy = 0.12 * (2 * p.rib_slope - 1) * (xx - 0.4)
    dy = dy + 0.08 * (2 * p.shoulder_tilt - 1) * x * (1 - 0.7 * y)
    dy = dy + 0.10 * (2 * p.apex - 1) * (1 - yy) * (0.6 - 0.5 * xx)
    return dx, dy


def to_body(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Map pixels to the scan's bones."""
    x, y = pose(p, x, y)
    dx, dy = build_offset(p, x, y)
    return x + dx, y + dy


def move_organs(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offset (dx, dy) that undoes the motion of soft tissue against the bones.

    The diaphragm moves up and down, the mediastinum moves to a side, and the heart is tall or flat.
    """
    lift = 0.17 * (2 * p.diaphragm - 1) + 0.10 * (1 - 2 * p.lung_volume)
    dy = lift * bump(torch.zeros_like(y), y - DOME, 1.0, TALL)
    u, v = x - HEART[0], y - HEART[1]
    dy = dy + 0.25 * (2 * p.heart_height - 1) * v * bump(u, v, 0.75, 0.70)
    return 0.16 * (2 * p.mediastinum - 1) * bump(u, v, 0.74, 1.3), dy


def to_tissue(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Map positions in the scan's bones to those in its soft tissue.

    p.heart: strength (N, 1, 1) of the heart's deformation, see `fit_heart`.
    """
    dx, dy = move_organs(p, x, y)
    x, y = x + dx, y + dy
    return spread_heart(x, y, p.heart)


def spread_heart(x: Tensor, y: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    """Undo the heart's deformation, radial about its centre; a negative strength enlarges it."""
    dx, dy = x - HEART[0], y - HEART[1]
    u, v = dx / REACH[0], dy / REACH[1]
    square = u * u + v * v
    rest = (1 - square * square).clamp(min=0)
    factor = strength * rest * rest
    return x + dx * factor, y + dy * factor


def find_edges(table: Table, plane: Tensor) -> Tensor:
    """Return the outline of a projected mask: (angles, points, 2) with x and y.

    A point is the leftmost or the rightmost place of a row. Rows in which the mask is empty at some
    angle are left out.
    """
    value = plane.view(len(ANGLES), table.rows, table.columns)
    x, y = list_grid(table)
    value = torch.cat([value, value.flip(2)])  # the right edge is the left one of the mirror image
    inside = value >= LEAST
    first = inside.long().argmax(2).clamp(min=1)
    low, high = (value.gather(2, (first - k)[..., None])[..., 0] for k in (1, 0))
    place = (first - 1) + (LEAST - low) / (high - low).clamp(min=1e-6)
    edge = x[0] + place * table.pitch
    left, right = edge[: len(ANGLES)], -edge[len(ANGLES) :]
    rows = inside.any(2).all(0).nonzero().flatten()[::3]
    points = torch.stack([left[:, rows], right[:, rows]], 2)
    return torch.stack([points, y[rows][None, :, None].expand_as(points)], -1).flatten(1, 2)


@cache
def outline() -> tuple[Tensor, Tensor]:
    """Return the outlines of the deformed heart and of the lungs, by angle.

    heart: (strengths, angles, points, 2) with x and y. lungs: (angles, points, 2).
    """
    table = build_table(FINE)
    heart, lungs = (find_edges(table, plane).double() for plane in (table.heart, table.lungs))
    strength = torch.tensor(STRENGTHS, dtype=torch.float64)[:, None, None]
    x, y = (heart[None, ..., k].repeat(len(STRENGTHS), 1, 1) for k in (0, 1))
    u, v = x, y
    for _ in range(200):  # inverts `spread_heart`
        found = spread_heart(u, v, strength)
        u, v = u - 0.5 * (found[0] - x), v - 0.5 * (found[1] - y)
    return torch.stack([u, v], -1).float(), lungs.float()


def project_x(p: SimpleNamespace, x: Tensor, y: Tensor) -> Tensor:
    """Return x in the image of points (N, K, P) of soft tissue around the heart's motion."""
    u, v = x, y
    for _ in range(6):
        dx, dy = move_organs(p, u, v)
        u, v = x - dx, y - dy
    s, t = u, v
    for _ in range(5):
        dx, dy = build_offset(p, s, t)
        s, t = u - dx, v - dy
    return unpose_x(p, s, t)


def fit_heart(p: SimpleNamespace) -> Tensor:
    """Find the strength (N, 1, 1) at which the cardiothoracic ratio is as p.heart_size says."""
    heart, lungs = outline()
    turn = p.angle.clamp(0, len(ANGLES) - 1.001)
    first = turn.floor().long().flatten()
    share = (turn - turn.floor())[:, :, :, None]
    heart, lungs = heart.transpose(0, 1), lungs[:, None]
    heart, lungs = (t[first] + (t[first + 1] - t[first]) * share for t in (heart, lungs))
    width = []
    for points in (heart, lungs):  # (N, strengths or 1, points, 2)
        x = project_x(p, points[..., 0], points[..., 1])
        width.append(x.amax(2) - x.amin(2))
    ratio = width[0] / width[1]  # (N, strengths), falls with the strength
    wanted = mix(*RATIO, p.heart_size)[:, :, 0]
    found = torch.full_like(wanted, STRENGTHS[0])
    for k in range(len(STRENGTHS) - 1):
        high, low = ratio[:, k, None], ratio[:, k + 1, None]
        t = ((high - wanted) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        found = torch.where(wanted <= high, mix(STRENGTHS[k], STRENGTHS[k + 1], t), found)
    return found[:, :, None]
