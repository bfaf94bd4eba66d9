"""Texture and tissue of the world lung_ct: emphysema, airways and fibrosis of the lung, in HU.

Textures are rank-transformed noise on a periodic tile. Each patient and each slice reads the tile
at a random place, angle and scale.

The functions work on the M pixels of a batch that show lung. The namespace q holds, as (M,), the
factors of each pixel's patient, positions in the tissue, and distances in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.worlds.draw import inside, mix, ramp
from cf_utils.worlds.factors import Factors
from cf_utils.worlds.lung_ct_scan import UNIT, interpolate_corners

SIDE, PITCH = 256, 1.25  # points of the tile in each direction; their distance in mm
CELL = 6  # points between two honeycomb cysts
PASSES = {  # smoothing of each field: passes per step width, in points
    "mesh": ((1, 6),),
    "patch": ((1, 2), (2, 3), (4, 6)),
    "holes": ((1, 2), (2, 3)),
    "region": ((1, 2), (2, 3), (4, 6), (8, 2)),
}
SHARE = 0.6  # of the lung area that is affected at extent 1
VISIBLE = 0.05  # extent below which nothing is drawn


def smooth(field: Tensor, passes: tuple[tuple[int, int], ...]) -> Tensor:
    """Smooth a periodic field (SIDE, SIDE) by binomial filters of several step widths."""
    for width, count in passes:
        for _ in range(count):
            for axis in (0, 1):
                sides = field.roll(width, axis) + field.roll(-width, axis)
                field = (2 * field + sides) / 4
    return field


def rank(field: Tensor) -> Tensor:
    """Replace values by their ranks, scaled to [0, 1]; each value is then equally frequent."""
    order = field.flatten().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return (ranks.double() / (len(order) - 1)).view(field.shape)


def draw_cysts(place: Tensor) -> Tensor:
    """Return the distance (SIDE, SIDE), in points, to the nearest wall between honeycomb cysts.

    place: uniform draws (2, cells, cells) that shift the centres of the cells.
    """
    cells = place.shape[1]
    width = SIDE / cells
    y, x = torch.meshgrid(*(torch.arange(SIDE, dtype=torch.float64),) * 2, indexing="ij")
    row, column = ((t / width).floor().long() for t in (y, x))
    near = torch.full((2, SIDE, SIDE), 1e6, dtype=torch.float64)
    for i in range(-2, 3):
        for j in range(-2, 3):
            a, b = row + i, column + j
            shift = place[:, a % cells, b % cells]
            dy, dx = (a + shift[0]) * width - y, (b + shift[1]) * width - x
            away = (dy * dy + dx * dx).sqrt()
            near = torch.stack([near[0].minimum(away), near[1].minimum(near[0].maximum(away))])
    return (near[1] - near[0]) / 2


@cache
def build_tile() -> dict[str, Tensor]:
    """Return the textures, each (points,) with one more row and column than the tile.

    mesh: ridges of the reticular mesh in [0, 1]. patch: ranks of the patches of fibrosis. walls:
    distance in mm to the walls of honeycomb cysts. holes: ranks of low-attenuation areas.
    """
    noise = {
        name: core.item_noise(0, [name], (SIDE, SIDE), "lung_ct/tile", "uniform")[0].double()
        for name in PASSES
    }
    field = {name: rank(smooth(noise[name], passes)) for name, passes in PASSES.items()}
    cells = SIDE // CELL
    place = core.item_noise(0, ["cysts"], (2, cells, cells), "lung_ct/tile", "uniform")[0]
    away = (field["mesh"] - 0.5).abs() / 0.17
    ridge = (1 - away * away).clamp(min=0)
    tile = {
        "mesh": ridge * ridge,
        "patch": field["patch"],
        "walls": PITCH * draw_cysts(place.double()),
        "holes": rank(0.55 * field["holes"] + 0.45 * field["region"]),
    }
    rows = torch.arange(SIDE + 1) % SIDE
    return {name: value[rows][:, rows].flatten().float() for name, value in tile.items()}


def look_up(q: SimpleNamespace, place: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Interpolate textures at the positions q.x, q.y of the tissue; returns one (M,) per name.

    place: uniform draws (N, L, 4): offset, angle and scale of the tile, for each slice.
    """
    a, b, turn, scale = place.flatten(0, 1).T
    turn, scale = 2 * turn - 1, UNIT / PITCH / mix(0.85, 1.2, scale)
    cos = scale * (1 - turn * turn) / (1 + turn * turn)
    sin = scale * 2 * turn / (1 + turn * turn)
    cos, sin, a, b = (value[q.slice] for value in (cos, sin, SIDE * a, SIDE * b))
    u, v = cos * q.x - sin * q.y + a, sin * q.x + cos * q.y + b
    u, v = (t - SIDE * (t / SIDE).floor() for t in (u, v))
    left, top = u.floor().clamp(max=SIDE - 1), v.floor().clamp(max=SIDE - 1)
    at = (top * (SIDE + 1) + left).long()
    tile = build_tile()
    return [interpolate_corners(tile[k], at, SIDE + 1, u - left, v - top) for k in names]


def add_emphysema(q: SimpleNamespace, hu: Tensor, factors: Factors) -> Tensor:
    """Lower the density of patches of the lung, more of them in the upper slices."""
    place = factors.stream("emphysema texture", (q.levels, 4))
    (holes,) = look_up(q, place, ["holes"])
    share = q.emphysema * mix(0.42, 0.66, q.height)
    hole = ramp(holes - (1 - share), -0.08, 0.14)
    return hu + 0.85 * hole * q.emphysema.sqrt() * q.inner * q.air * (-1000 - hu)


def set_airways(hu: Tensor, lumen: Tensor, calibre: Tensor, px: float) -> Tensor:
    """Draw airways whose lumen is wider or narrower than in the scan, with a wall.

    lumen: distance to the lumen in mm. calibre: factor in [0, 1]. px: size of a pixel in mm.
    """
    wider = mix(-1.6, 3.2, calibre)
    hu = hu + inside(lumen - (wider + 1.8).clamp(min=1.0), px) * (-60 - hu)
    return hu + inside(lumen - wider, px) * (-995 - hu)


def affected_share(extent: Tensor) -> Tensor:
    """Return the share of the lung area that is affected at an extent."""
    return SHARE * (extent - VISIBLE).clamp(min=0) / (1 - VISIBLE)


def grade_disease(q: SimpleNamespace, patch: Tensor, extent: Tensor) -> Tensor:
    """Return how far each point is inside the affected area, (M,); negative outside.

    The affected area holds the share of the lung that extent (N,) says, wherever it is: subpleural
    (depth 0) or deep, in the upper (zone 0) or lower slices, in the right (side 0) or left lung.
    """
    left = (12 * q.x).clamp(-1, 1)
    grade = 1.6 * patch - q.pleura / mix(7, 30, q.depth)
    grade = grade + 1.1 * (2 * q.zone - 1) * (1 - 2 * q.height) + 0.8 * (2 * q.side - 1) * left
    every = q.every & (q.inner >= 0.5)  # a part of the pixels is enough to find the level
    level = torch.zeros_like(extent)
    for i, share in enumerate(affected_share(extent)):
        ordered = grade[every & (q.patient == i)].sort(descending=True)[0]
        if len(ordered) < 2:
            continue
        at = share * (len(ordered) - 1)
        first = int(at)
        level[i] = mix(ordered[first], ordered[first + 1], at - first)
    return grade - level[q.patient]


def add_fibrosis(q: SimpleNamespace, hu: Tensor, factors: Factors) -> Tensor:
    """Add reticulation and ground glass where the disease is, and honeycombs at a high extent."""
    place = factors.stream("fibrosis texture", (q.levels, 4))
    ridge, patch, wall = look_up(q, place, ["mesh", "patch", "walls"])
    grade = grade_disease(q, patch, factors["extent"])
    seen = q.inner * q.air * (q.extent > VISIBLE)
    severity = ramp(grade, 0.0, 0.55) * seen
    added = severity * (mix(110, 190, ramp(grade, 0.2, 1.6)) + 430 * ridge)
    comb = ramp(grade, 0.6, 1.4) * ramp(q.extent, 0.5, 0.9) * ramp(-q.pleura, -17, -7) * seen
    cyst = mix(-260, -930, ramp(wall, 0.4, 2.0))
    return mix(hu + added, cyst, 0.85 * comb)
