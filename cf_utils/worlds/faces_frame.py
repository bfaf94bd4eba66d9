"""The head's position in the image, the background, the body and the camera.

Head coordinates: eyes at y = 0, chin near y = 0.6, crown near y = -0.6.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import (
    box,
    cut_out,
    ellipse,
    grid,
    inside,
    mix,
    paint,
    palette,
    ramp,
    rgb,
    step,
    tint,
)
from cf_utils.worlds.factors import Factors

SKIN = (
    (0.98, 0.83, 0.75),
    (0.96, 0.78, 0.67),
    (0.90, 0.69, 0.55),
    (0.80, 0.59, 0.44),
    (0.65, 0.45, 0.33),
    (0.50, 0.34, 0.25),
)
WALL = (
    (0.22, 0.34, 0.50),
    (0.34, 0.48, 0.58),
    (0.42, 0.52, 0.42),
    (0.62, 0.58, 0.46),
    (0.74, 0.56, 0.40),
    (0.70, 0.42, 0.32),
)
CLOTH = (
    (0.14, 0.17, 0.28),
    (0.55, 0.17, 0.18),
    (0.86, 0.84, 0.80),
    (0.20, 0.36, 0.30),
    (0.34, 0.46, 0.66),
    (0.25, 0.23, 0.24),
    (0.78, 0.62, 0.30),
)
LAMPS = ((1.0, 0.86, 0.6), (0.75, 0.9, 0.8), (0.8, 0.86, 1.0))


def place_head(p: SimpleNamespace, height: int, width: int) -> None:
    """Set canvas and head coordinates, and the head's size, pose and light."""
    p.X, p.Y, p.PX = grid(height, width)
    p.scale = 1.08 + 0.26 * p.zoom
    p.px = p.PX / p.scale
    t = 0.11 * (2 * p.tilt - 1)
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    X = (p.X - 0.20 * (2 * p.shift_x - 1)) / p.scale
    Y = (p.Y + 0.08 - 0.16 * (2 * p.shift_y - 1)) / p.scale
    p.x, p.y = c * X + s * Y, c * Y - s * X
    p.sin = 0.22 * (2 * p.turn - 1)
    p.cos = (1 - p.sin * p.sin).sqrt()
    p.dip = 0.035 * (2 * p.nod - 1)
    p.a = 0.405 + 0.05 * p.face_width
    p.top, p.bottom = 0.57, 0.565 + 0.06 * p.chin
    p.lx = 0.72 * (2 * p.light - 1)
    p.ly = -0.15 - 0.4 * p.light_height
    p.lz = (1 - p.lx * p.lx - p.ly * p.ly).sqrt()


def crop(
    p: SimpleNamespace, image: Tensor, x0: float, x1: float, y0: float, y1: float
) -> tuple[SimpleNamespace, Tensor]:
    """Crop to the part of the canvas that holds x0 to x1, y0 to y1 of every head in the batch."""
    return cut_out(p, image, (p.x >= x0) & (p.x <= x1) & (p.y >= y0) & (p.y <= y1))


def project(
    p: SimpleNamespace, fx: Tensor | float, fy: Tensor | float, lift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, y of a point of the turned face, and the foreshortening of widths there."""
    q = fx / 0.46
    depth = (1 - q * q).sqrt() if isinstance(q, Tensor) else (1 - q * q) ** 0.5
    x = fx * p.cos + (0.40 * depth + lift) * p.sin
    return x, fy + p.dip * depth, p.cos - 0.87 * p.sin * q / depth


def draw_background(p: SimpleNamespace, factors: Factors) -> Tensor:
    """Draw a wall lit from one side, a darker door on it, and out-of-focus lights."""
    n = len(factors)
    wall = palette(WALL, p.background) * (0.45 + 0.75 * p.background_light[:, None])
    image = wall.expand(n, 3, *torch.broadcast_shapes(p.X.shape, p.Y.shape)[1:]).clone()
    spots = factors.stream("spots", (7, 5))
    edge = 1.6 * spots[:, 0, 0, None, None] - 0.8
    blur = 0.05 + 0.25 * p.depth
    door = inside(box(p.X - edge, p.Y - 0.35, 0.25 + 0.4 * spots[:, 0, 1, None, None], 1.1), blur)
    tint(image, door, palette(((0.55, 0.55, 0.60), (1.35, 1.3, 1.2)), spots[:, 0, 2]))
    for k in range(1, 7):
        x, y, r, strength, hue = (spots[:, k, j, None, None] for j in range(5))
        radius = 0.08 + 0.24 * r
        disc = inside(ellipse(p.X - 2.4 * x + 1.2, p.Y - 1.7 * y + 1.0, radius, radius), blur)
        paint(image, (0.10 + 0.50 * strength * p.depth) * disc, palette(LAMPS, hue))
    tint(image, 0.35 * ramp(p.X * p.lx, -0.5, 0.5) + 0.25 * step(0.5 + 0.5 * p.Y), (0.6, 0.6, 0.62))
    return image


def draw_body(p: SimpleNamespace, image: Tensor) -> None:
    """Draw the neck with the chin's shadow, shoulders, and clothes with a collar."""
    skin = palette(SKIN, p.skin)
    x = p.x - 0.04 * p.sin
    side = (x / 0.3).clamp(-1, 1)
    lit = (0.62 + 0.30 * (side * p.lx + (1.05 - side * side).sqrt() * p.lz))[:, None]
    width = x.abs() - 0.205 - 0.03 * p.jaw - 0.12 * ramp(p.y, 0.66, 0.9)
    neck = inside(torch.maximum(width, 0.2 - p.y), p.px)
    paint(image, neck, skin * lit)
    shadow = inside(ellipse(x + 0.10 * p.lx, p.y - 0.46, 0.30, 0.30), 0.14)
    tint(image, 0.62 * shadow * neck, (0.42, 0.30, 0.27))
    slope = 0.80 + 0.38 * x * x / (x.abs() + 0.22)
    round_neck = 0.78 - 0.9 * (0.2 - x.abs()).clamp(min=0)
    neckline = mix(round_neck, 1.02 - 1.9 * x.abs(), ramp(p.collar, 0.45, 0.55))
    edge = torch.minimum(neckline, slope + 9 * (x.abs() - 0.24).clamp(min=0) + 0.3)
    cloth_d = torch.maximum(slope - p.y, edge - p.y)
    paint(image, inside(0.85 * (slope - 0.01 - p.y), p.px), skin * lit * 0.97)
    shade = (0.6 + 0.5 * (x / 1.2).clamp(-1, 1) * p.lx * 2)[:, None].clamp(0.1, 1.1)
    colour = palette(CLOTH, p.clothes) * (0.55 + 0.5 * shade)
    paint(image, inside(cloth_d * 0.8, p.px), colour)
    tint(image, 0.35 * inside(cloth_d.abs() - 0.004, 0.05), (0.3, 0.3, 0.3))


def photograph(p: SimpleNamespace, image: Tensor) -> Tensor:
    """Apply light fall-off, exposure, white balance and vignette."""
    fall = 1 + 0.22 * p.lx * p.X
    corner = 1 - 0.16 * (p.X * p.X + p.Y * p.Y).clamp(max=2)
    tone = (0.87 + 0.34 * p.exposure) * fall * corner
    white = 1 + rgb(0.10, 0.0, -0.12) * (2 * p.warmth[:, None] - 1)
    return image * tone[:, None] * white
