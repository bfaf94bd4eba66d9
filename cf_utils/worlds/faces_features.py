"""Mouth, eyes, brows and glasses."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import (
    box,
    bump,
    ellipse,
    inside,
    mix,
    paint,
    palette,
    ramp,
    rgb,
    segment,
    stroke,
    tint,
)
from cf_utils.worlds.faces_frame import SKIN, project

IRIS = (
    (0.20, 0.11, 0.06),
    (0.36, 0.21, 0.10),
    (0.42, 0.38, 0.18),
    (0.30, 0.45, 0.30),
    (0.28, 0.47, 0.62),
    (0.45, 0.55, 0.60),
)
RIMS = (
    (0.05, 0.05, 0.06),
    (0.10, 0.07, 0.06),
    (0.34, 0.19, 0.10),
    (0.46, 0.40, 0.34),
    (0.45, 0.12, 0.14),
)


def draw_mouth(p: SimpleNamespace, image: Tensor) -> None:
    """Draw lips, teeth and tongue. A smile lifts the corners and opens the mouth."""
    x, y, k = project(p, 0.0, 0.385)
    half = (0.125 + 0.02 * p.mouth_width + 0.055 * p.smile) * k
    u, v = (p.x - x) / half, p.y - y
    arc = (1 - u * u).clamp(min=0)
    corner = 0.014 - 0.075 * p.smile
    middle = corner * (u * u).clamp(max=1.3) - 0.45 * corner
    gap = 0.045 * ramp(p.smile, 0.3, 1.0) + 0.065 * ramp(p.mouth_open, 0.35, 1.0)
    full = 0.75 + 0.5 * p.lips - 0.25 * p.smile - 0.25 * p.wrinkles
    high, low = middle - 0.30 * gap * arc, middle + 0.70 * gap * arc
    cupid = 1 - 0.22 * bump(u, u * 0, 0.35, 1)
    upper_edge = high - 0.040 * full * arc * cupid - v
    d = torch.maximum(upper_edge, v - low - 0.058 * full * (arc * (0.5 + 0.5 * arc)))
    skin = palette(SKIN, p.skin)
    lips = mix(skin * rgb(0.84, 0.58, 0.56), rgb(0.74, 0.10, 0.18), 0.8 * p.makeup[:, None])
    light = 0.72 + 0.25 * ramp(v - low, -0.05, 0.02)
    light = light + 0.12 * bump(u, (v - low - 0.025) / 0.02, 0.6, 1.0)
    ends = inside((u.abs() - 1) * half, p.px)
    paint(image, inside(d, p.px) * ends, lips * light[:, None])
    hole = torch.maximum(high - v, v - low)
    inner = inside(hole, p.px) * ends * ramp(gap, 0.0, 0.02)
    paint(image, inner, rgb(0.41, 0.15, 0.155) * (0.45 + 0.75 * ramp(v - low, -0.05, 0.0))[:, None])
    teeth = torch.maximum(hole + 0.004, v - high - 0.033 * arc - 0.004)
    white = rgb(0.97, 0.95, 0.90) * (0.62 + 0.38 * arc)[:, None]
    paint(image, inside(teeth, p.px) * ends * ramp(gap, 0.015, 0.04), white)
    seam = (1 - ramp(gap, 0.0, 0.03)) * stroke(v - middle, 0.009, p.px) * ends
    tint(image, seam, (0.35, 0.16, 0.15))
    for side in (-1, 1):
        spot = bump(p.x - x - side * 1.03 * half, v - 0.55 * corner, 0.035, 0.035)
        tint(image, (0.35 + 0.4 * p.smile) * spot, (0.5, 0.3, 0.28))


def draw_eye(p: SimpleNamespace, image: Tensor, side: int) -> None:
    """Draw one eye with lids, lashes, make-up and the brow above it; side: -1 left, 1 right."""
    spread = 0.168 + 0.02 * (p.eye_spacing - 0.5)
    x, y, k = project(p, side * spread, 0.0)
    w = 0.094 + 0.014 * p.eye_size
    u, v = ((p.x - x) / (w * k)).clamp(-1.6, 1.6), (p.y - y) / w
    v = v + side * u * 0.22 * (p.eye_slant - 0.4)
    arc = 1 - u * u
    skew = arc * (1 - 0.14 * side * u)
    up = (0.56 + 0.06 * p.eye_size - 0.16 * p.squint - 0.16 * p.wrinkles) * skew
    low = (0.34 - 0.24 * p.squint) * arc * (1 + 0.15 * side * u)
    px = p.px / w
    eyeball = torch.maximum(-v - up, v - low)
    tint(image, 0.40 * bump(u, v + 0.25, 1.5, 1.1), (0.62, 0.46, 0.42))
    lid = inside(torch.maximum(-v - up - 0.42 * arc.clamp(min=0), v), 0.3) * 0.8 * p.makeup
    tint(image, lid, (0.42, 0.34, 0.52))
    white = inside(eyeball * 0.8, px)
    paint(image, white, rgb(0.90, 0.87, 0.85) * (0.66 + 0.34 * ramp(v + up, 0.0, 0.5))[:, None])
    gx = u * k - 0.30 * (2 * p.gaze - 1) - 0.2 * p.sin
    iris = ellipse(gx, v + 0.10, 0.45, 0.45)
    iris_colour = palette(IRIS, p.eye_color) * (0.65 + 0.6 * ramp(v, -0.35, 0.25))[:, None]
    paint(image, white * inside(iris, px), iris_colour)
    tint(image, white * inside(iris.abs() - 0.03, 0.16), (0.35, 0.35, 0.35))
    paint(image, white * inside(ellipse(gx, v + 0.10, 0.20, 0.20), px), rgb(0.03, 0.03, 0.03))
    glint = ellipse(gx - 0.18 * (2 * p.light - 1), v + 0.26, 0.11, 0.11)
    paint(image, 0.9 * white * inside(glint, px), rgb(1.0, 1.0, 1.0))
    thick = 0.055 + 0.07 * p.makeup
    lash = stroke(v + up - thick * 0.4, thick, px) * inside(u.abs() - 1.02 - 0.10 * p.makeup, 0.15)
    paint(image, 0.88 * lash, rgb(0.10, 0.06, 0.06))
    below = stroke(v - low, 0.03 + 0.03 * p.makeup, px) * inside(u.abs() - 0.95, 0.2)
    tint(image, (0.45 + 0.4 * p.makeup) * below, (0.45, 0.28, 0.26))
    crease = stroke(v + up + 0.20 * arc.clamp(min=0) + 0.05, 0.04, px) * inside(u.abs() - 0.95, 0.3)
    tint(image, 0.50 * crease, (0.5, 0.35, 0.32))
    height = -0.135 - 0.03 * p.brow_height - 0.012 * p.smile
    brow_x, brow_y, k = project(p, side * (spread + 0.012), height, 0.02)
    b, h = side * (p.x - brow_x) / (0.125 * k), p.y - brow_y  # b = -1 at the nose, 1 outside
    bend = -0.030 * (1 - (b - 0.25) * (b - 0.25)) + 0.015
    thick = (0.014 + 0.014 * p.brow_weight) * (1 - 0.55 * ramp(b, -0.2, 1.0))
    cover = inside((h - bend).abs() - thick, 0.6 * p.px + 0.014) * inside((b.abs() - 1) * 0.1, 0.04)
    paint(image, (0.70 + 0.25 * p.brow_weight) * cover, 0.58 * p.brow_base)


def draw_glasses(p: SimpleNamespace, image: Tensor) -> None:
    """Draw rims, bridge and temples, tinted lenses with glare, and their shadow on the cheek."""
    rim = palette(RIMS, p.rims)
    rounded = 0.04 + 0.08 * ramp(p.rims * 7 - (p.rims * 7).floor(), 0.3, 0.7)
    for side in (-1, 1):
        x, y, k = project(p, side * 0.182, 0.02, 0.06)
        d = box((p.x - x) / k, p.y - y, 0.145, 0.118, rounded)
        tint(image, p.glasses * 0.30 * bump(p.x - x, p.y - y - 0.14, 0.16, 0.05), (0.5, 0.4, 0.4))
        lens = inside(d, p.px) * p.glasses
        tint(image, 0.35 * lens, (0.80, 0.86, 0.88))
        streak = (p.x - x) + 0.6 * (p.y - y) - 0.10 * (2 * p.light - 1)
        paint(image, 0.42 * lens * inside(streak.abs() - 0.022, 0.03), rgb(1.0, 1.0, 1.0))
        ring = p.glasses * stroke(d, 0.017, p.px)
        paint(image, 0.95 * ring, rim)
        x1, y1, _ = project(p, side * 0.325, 0.0, 0.06)
        d, _ = segment(p.x, p.y, x1, y1, side * p.a - 0.03 * p.sin, y1 + 0.01)
        paint(image, 0.95 * p.glasses * stroke(d, 0.013, p.px), rim * 0.8)
    x, y, _ = project(p, 0.0, -0.005, 0.08)
    bridge = p.y - y - 3.0 * (p.x - x) * (p.x - x)
    ends = inside((p.x - x).abs() - 0.045, p.px)
    paint(image, 0.95 * p.glasses * stroke(bridge, 0.014, p.px) * ends, rim)
