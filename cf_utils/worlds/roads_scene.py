"""Camera, sky, road, houses and trees.

Lengths on the ground are metres. The scale `s` is the number of canvas units per metre at a depth:
2 / (depth in metres). The camera is at height `EYE`, so the ground at scale s appears EYE * s below
the horizon. Lanes are 3.2 m wide; the own lane is centred on x = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import (
    bump,
    cut_out,
    ellipse,
    grain,
    grid,
    inside,
    mix,
    paint,
    palette,
    ramp,
    rgb,
    stroke,
    tint,
    wave,
)
from cf_utils.worlds.factors import Factors

EYE = 1.9
# by weather
SKY_TOP = ((0.28, 0.48, 0.78), (0.52, 0.56, 0.60), (0.74, 0.76, 0.78), (0.16, 0.17, 0.33))
SKY_LOW = ((0.80, 0.88, 0.94), (0.66, 0.69, 0.71), (0.80, 0.81, 0.82), (0.93, 0.55, 0.36))
FOG = ((0.76, 0.83, 0.90), (0.62, 0.65, 0.67), (0.79, 0.80, 0.81), (0.52, 0.38, 0.38))
THICK = (0.006, 0.022, 0.085, 0.010)  # scale at which haze halves the contrast
LIGHT = (1.0, 0.74, 0.86, 0.50)
WALLS = (
    (0.62, 0.34, 0.27),
    (0.74, 0.66, 0.54),
    (0.55, 0.57, 0.60),
    (0.80, 0.72, 0.58),
    (0.48, 0.36, 0.30),
    (0.70, 0.50, 0.36),
)


def set_up_camera(factors: Factors, height: int, width: int) -> SimpleNamespace:
    """Set canvas and ground coordinates, and the colours that depend on the weather."""
    p = SimpleNamespace(**{name: factors[name][:, None, None] for name in factors.world.names})
    p.X, p.Y, p.px = grid(height, width)
    sort = factors["weather"].long()
    p.sky_top, p.sky_low, p.fog = (
        torch.tensor(t)[sort][:, :, None, None] for t in (SKY_TOP, SKY_LOW, FOG)
    )
    p.thick, p.ambient = (torch.tensor(t)[sort][:, None, None] for t in (THICK, LIGHT))
    p.wet, p.dusk, p.clear = ((sort == k).float()[:, None, None] for k in (1, 3, 0))
    p.h0 = -0.26 + 0.24 * (p.horizon - 0.5)
    p.vx = 0.7 * (p.heading - 0.5)
    p.camera_x = 0.9 * (p.offset - 0.5)
    p.bend = 1.6 * (p.curve - 0.5)
    p.y = p.Y - p.h0  # below the horizon
    p.s = (p.y / EYE).clamp(min=0.004)  # scale of the ground in each row (N, H, 1)
    p.mid = lane_centre(p, p.s)
    p.gx = (p.X - p.mid) / p.s  # metres to the right on the ground (N, H, W)
    return p


def lane_centre(p: SimpleNamespace, s: Tensor) -> Tensor:
    """Return the canvas x of the own lane's centre at scale s, from offset, heading and bend."""
    far = (1 - s / 0.35).clamp(min=0)
    return p.vx - p.camera_x * s + 0.30 * p.bend * far * far * far


def add_haze(p: SimpleNamespace, colour: Tensor, s: Tensor) -> Tensor:
    """Return a colour as seen through the air at scale s, broadcastable to (N, H, W)."""
    through = s / (s + p.thick)
    return mix(p.fog, colour * p.ambient[:, None], through[:, None])


def draw_sky(p: SimpleNamespace, factors: Factors) -> Tensor:
    """Draw sky, clouds, sun and hills; return the new image (N, 3, H, W)."""
    n = len(factors)
    shape = torch.broadcast_shapes(p.X.shape, p.Y.shape)[1:]
    t = ramp(p.y, -1.0, 0.05)[:, None]
    image = mix(p.sky_top, p.sky_low, t).expand(n, 3, *shape).clone()
    lattice = factors.stream("clouds", (12, 24)).clone()
    x, y = (1.5 * p.X + 40).expand(n, *shape), (5 * p.Y + 20).expand(n, *shape)
    cloud = ramp(0.65 * grain(lattice, x, y) + 0.35 * grain(lattice, 2.7 * x, 2.7 * y), 0.42, 0.8)
    white = mix(p.sky_low, torch.ones(1, 3, 1, 1), 0.55 - 0.5 * p.dusk[:, None])
    paint(image, 0.65 * cloud * (1 - 0.5 * p.wet), white)
    sun = bump(p.X - 3.0 * (p.sun - 0.5), p.y + 0.18, 0.9, 0.55)
    paint(image, (0.5 * p.dusk + 0.25 * p.clear) * sun, rgb(1.0, 0.82, 0.58))
    hills = p.y + 0.05 + 0.07 * wave(0.22 * p.X + p.sun) + 0.03 * wave(0.61 * p.X + 3 * p.horizon)
    paint(image, inside(-hills, p.px) * 0.8, add_haze(p, rgb(0.30, 0.38, 0.32), p.thick * 1.2))
    return image


def draw_ground(p: SimpleNamespace, image: Tensor, factors: Factors) -> None:
    """Draw verge, pavements with kerbs, asphalt, lane markings and the zebra crossing."""
    below = inside(-p.y, p.px)
    paint(image, below, add_haze(p, rgb(0.36, 0.42, 0.24), p.s))
    pix = p.px / p.s  # metres per pixel, across (N, H, 1)

    def band(left, right):
        return inside((p.gx - (left + right) / 2).abs() - (right - left) / 2, pix)

    pavement = add_haze(p, rgb(0.60, 0.58, 0.55), p.s)
    paint(image, below * band(-8.2, 8.2), pavement)
    paint(image, below * band(-5.1, 5.1), pavement * 0.72)
    depth = 2 / p.s
    lattice = factors.stream("asphalt", (16, 16))
    rough = grain(lattice, 2.0 * p.gx.clamp(-40, 40) + 100, (3.0 * depth).expand_as(p.gx)) - 0.5
    rough = rough * (1 - 3 * pix).clamp(0, 1) * 0.16
    rough = rough + 0.10 * bump(p.gx.abs() - 0.85, p.gx * 0, 0.5, 1)
    grey = (0.24 + 0.16 * p.asphalt) * (1 + rough - 0.28 * p.wet)
    road = add_haze(p, grey[:, None] * rgb(0.98, 1.0, 1.04), p.s)
    paint(image, below * band(-4.8, 4.8), road)
    sheen = p.wet * below * band(-4.8, 4.8) * (0.10 + 0.30 * ramp(-p.y, -0.7, 0.0))
    paint(image, sheen, p.sky_low * 0.9)
    # metres of depth per pixel, times 8 for the edge
    blur = (8 * p.px / (p.y.clamp(min=0.02) / depth)).clamp(max=1e3)
    period = depth / 6
    gap = 0.25 - (period - period.floor() - 0.5).abs()
    dash = inside(gap, (blur / 48).clamp(min=0.02, max=1.0))
    for x, kind in ((-1.6, 1.0), (1.6, dash), (-4.55, 1.0), (4.55, 1.0)):
        line = stroke(p.gx - x, torch.full_like(pix, 0.075), pix)
        colour = rgb(0.92, 0.78, 0.35) if x == -1.6 else rgb(0.88, 0.88, 0.86)
        paint(image, 0.9 * below * line * kind, add_haze(p, colour, p.s))
    p.walk_s = 0.20 + 0.06 * p.walker_distance
    on = torch.maximum(p.zebra, (p.scene == 2).float())
    sharp = (1 - pix).clamp(0, 1)
    stripes = mix(0.5, inside((p.gx - p.gx.floor() - 0.5).abs() - 0.25, pix.clamp(max=0.5)), sharp)
    zebra = inside((p.y / EYE - p.walk_s).abs() - 0.16 * p.walk_s, p.px / EYE) * band(-4.5, 4.5)
    paint(image, 0.85 * on * zebra * stripes, add_haze(p, rgb(0.90, 0.90, 0.88), p.s))


def draw_sides(p: SimpleNamespace, image: Tensor, factors: Factors) -> None:
    """Draw rows of houses with windows along both sides, then trees, far to near."""
    p.leaves = factors.stream("leaves", (16, 16))
    for side in (-1, 1):
        draw_houses(p, image, factors.stream(f"houses{side}", (4, 24)), side)
        for k in range(4):
            draw_tree(p, image, factors, side, k)


def draw_houses(p: SimpleNamespace, image: Tensor, lattice: Tensor, side: int) -> None:
    """Draw the houses of a side (-1 left, 1 right); lattice: random numbers (N, 4, 24)."""
    # scale of the house fronts in each column (N, 1, W)
    s = (side * (p.X - p.vx) / 10.5).clamp(min=0.012)
    along = 2 / s / 11 + 5 * p.houses  # houses are 11 m wide
    reach = (side * (p.X - p.vx)).clamp(min=0.05)
    look = vary_houses(p, lattice, along, reach)
    height = (4.0 + 9.0 * p.house_height) * (0.6 + 0.7 * look(0))
    tall = height * look(1, lambda v: ramp(v + 0.5 * p.houses, 0.25, 0.35))
    roof = (EYE - tall) * s  # in canvas units below the horizon (N, 1, W)
    steep = torch.zeros_like(roof)
    steep[:, :, 1:-1] = (roof[:, :, 2:] - roof[:, :, :-2]) / (2 * p.px)
    up = -p.y / s + EYE  # metres above the ground on the house front (N, H, W)
    top = (roof - p.y) / (1 + steep * steep).sqrt()
    wall = inside(torch.maximum(top, p.y - EYE * s), p.px) * ramp(reach, 0.12, 0.16)
    hue = (p.house_color + 0.8 * look(2)) / 1.8
    colour = colour_walls(hue) * (0.62 + 0.3 * ramp(side * (p.sun - 0.5), -0.4, 0.4))[:, None]
    paint(image, wall, add_haze(p, colour, s))
    metre = p.px / s
    u, fine = 4 * along, 4 * p.px * along / reach
    column = inside((u - u.floor() - 0.5).abs() - 0.28, fine.clamp(min=0.05, max=0.5))
    level = up / 3.0
    storey = inside((level - level.floor() - 0.55).abs() - 0.24, (metre / 3).clamp(max=0.5))
    sharp = (1.2 - 1.1 * metre).clamp(0, 1)
    panes = wall * column * storey * sharp * (1.2 - fine).clamp(0, 1) * inside(up - tall + 0.7, 0.5)
    room = grain(lattice, u.floor().expand_as(up) % 960, level.floor().clamp(0, 9))
    lit = (ramp(room, 0.55, 0.6) * p.dusk)[:, None]
    glass = mix(rgb(0.20, 0.24, 0.30), rgb(0.98, 0.82, 0.50) * 1.3, lit)
    paint(image, 0.8 * panes, add_haze(p, glass, s))


def vary_houses(
    p: SimpleNamespace, lattice: Tensor, along: Tensor, reach: Tensor
) -> Callable[..., Tensor]:
    """Return look(row, change): random numbers (N, 1, W) that are constant for each house.

    along: position in units of houses. reach: distance from the vanishing point. Neighbouring
    houses blend over two pixels, and far houses that are only a few pixels wide look alike.
    row: row of the lattice. change: function that is applied to its numbers.
    """
    cell = along.floor()
    wide = ramp(reach / (along * p.px), 2.0, 5.0)
    edge = (1 - 2 * p.px * along / reach).clamp(min=0.0) - 1e-3
    t = ramp(along - cell, edge, 1.0)

    def look(row: int, change: Callable[[Tensor], Tensor] = lambda v: v) -> Tensor:
        a, b = (
            change(lattice[:, row].gather(1, (c.long() % 24).flatten(1)).view(c.shape))
            for c in (cell, cell + 1)
        )
        return mix(change(torch.full_like(t, 0.55)), mix(a, b, t), wide)

    return look


def colour_walls(hue: Tensor) -> Tensor:
    """Return the colours (N, 3, 1, W) of walls for hues (N, 1, W)."""
    flat = palette(WALLS, hue)[:, :, 0, 0]
    return flat.view(len(hue), -1, 3).permute(0, 2, 1)[:, :, None]


def place_billboard(
    p: SimpleNamespace, image: Tensor, x: Tensor | float, s: Tensor, reach: float, tall: float
) -> tuple[SimpleNamespace, Tensor]:
    """Place an object at x metres and scale s; crop to where it can be.

    Sets u and up: metres to the right of the object's foot and above it. reach, tall: largest |u|
    and up of the object.
    Returns the parameters and a view of the image.
    """
    q = SimpleNamespace(**vars(p))
    q.u, q.up = torch.broadcast_tensors((p.X - lane_centre(p, s)) / s - x, EYE - p.y / s)
    q.at, q.metre = s, p.px / s
    high = (q.up >= -1.6 - q.metre) & (q.up <= tall + q.metre)
    return cut_out(q, image, (q.u.abs() <= reach + q.metre) & high)


def draw_tree(p: SimpleNamespace, image: Tensor, factors: Factors, side: int, k: int) -> None:
    """Draw the k-th tree of a side (-1 left, 1 right)."""
    draws = factors.stream(f"tree{side}{k}", (6,))[:, :, None, None]
    s = 0.05 + 0.035 * k * (1 + 0.5 * draws[:, 0]) + 0.02 * draws[:, 1]
    there = ramp(p.trees - 0.8 * draws[:, 2], -0.02, 0.02)
    p, image = place_billboard(p, image, side * 6.9, s, 3.4, 9.0)
    leaf = grain(factors.stream(f"leaves{side}{k}", (12, 12)), 1.1 * p.u + 24, 1.1 * p.up + 6) - 0.5
    fine = grain(p.leaves, 3.1 * p.u + 24, 3.1 * p.up + 8) - 0.5
    lean = 0.05 * p.up * (draws[:, 3] - 0.5)
    trunk = torch.maximum((p.u - lean).abs() - 0.15, (p.up - 1.6).abs() - 1.6)
    trunk = inside(trunk, p.metre)
    crown = ellipse(p.u, p.up - 4.6 - draws[:, 4], 1.6 + 0.6 * draws[:, 5], 2.0)
    crown = crown - 1.1 * leaf - 0.5 * fine
    tint(image, 0.5 * there * bump(p.u, p.up, 1.9, 0.45), (0.4, 0.4, 0.4))
    paint(image, there * trunk, add_haze(p, rgb(0.25, 0.18, 0.13), s))
    green = mix(rgb(0.15, 0.25, 0.09), rgb(0.42, 0.42, 0.15), draws[:, 4, None])
    shade = 0.78 + 0.40 * ramp(p.up - 4.6, -1.6, 2.0) + 0.55 * leaf
    shade = shade + 0.45 * fine * (1.5 - 2 * p.metre).clamp(0, 1)
    paint(image, there * inside(crown, p.metre + 0.15), add_haze(p, green * shade[:, None], s))
