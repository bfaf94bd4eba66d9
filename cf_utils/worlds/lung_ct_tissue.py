"""Texture and tissue of the world lung_ct: emphysema, airways and fibrosis of the lung, in HU.

Textures are rank-transformed noise on a periodic tile. Each patient and each slice reads the tile
at a random place, angle and scale. The namespace p holds each factor as (N, 1, 1, 1), coordinates
(N, 1, H, W), and signed distances (N, L, H, W) in mm.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.worlds.draw import inside, mix, ramp
from cf_utils.worlds.factors import Factors

SIDE, PITCH = 256, 1.25  # points of the tile in each direction; their distance in mm
CELL = 7  # points between two honeycomb cysts
UNIT = 128.0  # mm per unit of x and y
PASSES = {  # smoothing of each field: passes per step width, in points
    "mesh": ((1, 5),),
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
def build_tile() -> tuple[Tensor, Tensor]:
    """Return the textures of fibrosis (points, 3) and of emphysema (points, 1).

    fibrosis: ridges of the reticular mesh in [0, 1], rank of the patches, and the distance in mm to
    the walls of honeycomb cysts. emphysema: rank of the low-attenuation areas.
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
    walls = PITCH * draw_cysts(place.double())
    fibrosis = torch.stack([ridge * ridge, field["patch"], walls], -1)
    holes = rank(0.55 * field["holes"] + 0.45 * field["region"])
    return fibrosis.flatten(0, 1).float(), holes.flatten()[:, None].float()


def look_up(tile: Tensor, p: SimpleNamespace, place: Tensor) -> Tensor:
    """Interpolate a tile (points, C) at the positions of the tissue; returns (C, N, L, H, W).

    place: uniform draws (N, L, 4, 1, 1): offset, angle and scale of the tile.
    """
    a, b, turn, scale = place.unbind(2)
    turn, scale = 2 * turn - 1, UNIT / PITCH / mix(0.85, 1.2, scale)
    cos, sin = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    u = scale * (cos * p.x - sin * p.y) + SIDE * (a + 4)  # never negative
    v = scale * (sin * p.x + cos * p.y) + SIDE * (b + 4)
    left, top = u.floor(), v.floor()
    u, v, left, top = (u - left)[..., None], (v - top)[..., None], left.long(), top.long()
    columns = left % SIDE, (left + 1) % SIDE
    rows = (top % SIDE) * SIDE, ((top + 1) % SIDE) * SIDE

    def at(i: int, j: int) -> Tensor:
        return tile.index_select(0, (rows[i] + columns[j]).flatten()).view(*left.shape, -1)

    above, below = mix(at(0, 0), at(0, 1), u), mix(at(1, 0), at(1, 1), u)
    return mix(above, below, v).movedim(-1, 0)


def add_emphysema(p: SimpleNamespace, hu: Tensor, factors: Factors) -> Tensor:
    """Lower the density of patches of the lung, more of them in the upper slices."""
    place = factors.stream("emphysema texture", (hu.shape[1], 4, 1, 1))
    holes = look_up(build_tile()[1], p, place)[0]
    share = p.emphysema * mix(0.70, 0.45, p.height)
    hole = ramp(holes - (1 - share), 0.0, 0.12)
    return hu + 0.9 * hole * p.inner * p.air * (-990 - hu)


def set_airways(p: SimpleNamespace, hu: Tensor) -> Tensor:
    """Draw airways whose lumen is wider or narrower than in the scan, with a wall."""
    px = UNIT * p.px
    lumen = mix(-1.6, 3.2, p.airway)
    outer = inside(p.lumen - (lumen + 1.8).clamp(min=1.0), px)
    hu = hu + outer * (-60 - hu)
    return hu + inside(p.lumen - lumen, px) * (-995 - hu)


def affected_share(extent: Tensor) -> Tensor:
    """Return the share of the lung area that is affected at an extent."""
    return SHARE * (extent - VISIBLE).clamp(min=0) / (1 - VISIBLE)


def grade_disease(p: SimpleNamespace, patch: Tensor) -> Tensor:
    """Return how far each point is inside the affected area, (N, L, H, W); negative outside.

    The affected area holds the share of the lung that p.extent says, wherever it is: subpleural
    (depth 0) or deep, in the upper (zone 0) or lower slices, in the right (side 0) or left lung.
    """
    left = (12 * p.x).clamp(-1, 1)
    grade = 1.6 * patch - p.pleura / mix(7, 30, p.depth)
    grade = grade + 1.4 * (2 * p.zone - 1) * (1 - 2 * p.height) + 1.1 * (2 * p.side - 1) * left
    inner = p.inner[..., ::2, ::2] >= 0.5
    ordered = torch.where(inner, grade[..., ::2, ::2], -1e4).flatten(1).sort(1, True)[0]
    share = affected_share(p.extent.flatten())
    at = share * (inner.flatten(1).sum(1) - 1).clamp(min=0)
    first = at.floor().long()[:, None]
    low, high = ordered.gather(1, first), ordered.gather(1, first + 1)
    level = low + (high - low) * (at[:, None] - first)
    return grade - level[:, :, None, None]


def add_fibrosis(p: SimpleNamespace, hu: Tensor, factors: Factors) -> Tensor:
    """Add reticulation and ground glass where the disease is, and honeycombs at a high extent."""
    place = factors.stream("fibrosis texture", (hu.shape[1], 4, 1, 1))
    ridge, patch, wall = look_up(build_tile()[0], p, place)
    grade = grade_disease(p, patch)
    seen = p.inner * p.air * (p.extent > VISIBLE)
    severity = ramp(grade, 0.0, 0.55) * seen
    added = severity * (mix(110, 190, ramp(grade, 0.2, 1.6)) + 430 * ridge)
    comb = ramp(grade, 0.7, 1.5) * ramp(p.extent, 0.5, 0.85) * ramp(-p.pleura, -26, -12) * seen
    cyst = mix(-120, -930, ramp(wall, 0.7, 2.2))
    return mix(hu + added, cyst, 0.9 * comb)
