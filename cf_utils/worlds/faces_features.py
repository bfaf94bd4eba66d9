"""The head: its outline and relief in the light, folds, nose, mouth, eyes, glasses."""

from __future__ import annotations

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
    slopes,
    stroke,
    tint,
)
from cf_utils.worlds.faces_frame import SKIN, crop, project

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


def measure_outline(p) -> Tensor:
    """Distance to the outline of the face: an ellipse whose lower half narrows as the jaw says."""
    x = p.x - 0.05 * p.sin
    low = (p.y / p.bottom).clamp(0, 1)
    k = 1 + mix(-0.30, 0.12, p.jaw) * low * low
    b = torch.where(p.y < 0, torch.full_like(p.bottom, p.top), p.bottom)
    u, v = x * k / p.a, p.y / b
    p.u, p.v = u, v
    f, gu, gv = u * u + v * v, u * k / p.a, v / b
    return (f - 1) / (2 * (gu * gu + gv * gv + 1e-4).sqrt())


def draw_head(p, image) -> None:
    """Ears, face, its relief lit from one side, blush, folds and wrinkles, nose."""
    skin = palette(SKIN, p.skin)
    for side in (-1, 1):
        ex = side * (p.a + 0.012) - 0.12 * p.sin
        ear = inside(ellipse(p.x - ex, p.y - 0.06, 0.065, 0.13), p.px)
        paint(image, ear, skin * (0.74 + 0.22 * side * p.lx)[:, None])
        tint(image, 0.5 * ear * bump(p.x - ex, p.y - 0.06, 0.05, 0.10), (0.7, 0.45, 0.4))
    d = measure_outline(p)
    p.face = inside(d, p.px)
    h = compute_relief(p)
    sx, sy = slopes(h, 1.0)
    sx, sy = sx / p.px, sy / p.px
    nx, ny = 0.92 * p.u, 0.88 * p.v
    nz = (1 - nx * nx - ny * ny).clamp(min=0.10).sqrt()
    nx, ny = nx - nz * sx, ny - nz * sy
    norm = (nx * nx + ny * ny + nz * nz).sqrt()
    lit = ((nx * p.lx + ny * p.ly + nz * p.lz) / norm).clamp(0, 1)
    warm = rgb(0.0, 0.05, 0.08)
    colour = skin * (0.46 + 0.60 * lit[:, None] - warm * (1 - lit[:, None]))
    gloss = ((nx * p.lx * 0.6 + ny * p.ly * 0.6 + nz * (0.6 * p.lz + 0.5)) / norm - 0.90).clamp(
        0, 0.2
    )
    colour = colour + 1.3 * gloss[:, None]
    paint(image, p.face, colour)
    draw_blush(*crop(p, image, -0.56, 0.56, -0.06, 0.38))
    draw_folds(*crop(p, image, -0.64, 0.64, -0.62, 0.72))
    draw_nose(*crop(p, image, -0.36, 0.36, 0.12, 0.40))


def compute_relief(p) -> Tensor:
    """Height of the face over its ellipsoid, in head units."""
    nx, ny, _ = project(p, 0.0, 0.235 + 0.04 * (p.nose_length - 0.5), 0.12)
    bx, by, _ = project(p, 0.0, 0.02, 0.03)
    w = 0.045 + 0.02 * p.nose_width
    t = ((p.y - by) / (ny - by)).clamp(0, 1)
    ridge = (p.x - mix(bx, nx, t)) / (0.05 + 0.8 * w * t)
    ends = ramp(p.y, by - 0.10, by + 0.06) * (1 - ramp(p.y, ny - 0.02, ny + 0.05))
    h = 0.060 * (0.35 + 0.65 * t) * (1 - ridge * ridge).clamp(min=0) * ends
    h = h + 0.045 * bump(p.x - nx, p.y - ny + 0.02, 1.6 * w, 0.085)
    for side in (-1, 1):
        x, y, k = project(p, side * (0.168 + 0.02 * (p.eye_spacing - 0.5)), 0.0)
        h = h - 0.045 * bump(p.x - x, p.y - y + 0.01, 0.15 * k, 0.10)
        h = h + 0.030 * bump(p.x - x, p.y - y + 0.14, 0.19 * k, 0.09)
        x, y, k = project(p, side * 0.09, 0.24, 0.06)
        h = h + 0.035 * bump(p.x - nx - side * 1.25 * w, p.y - ny, 0.05, 0.05)
        x, y, k = project(p, side * 0.25, 0.17)
        h = h + (0.035 + 0.05 * p.cheeks) * bump(p.x - x, p.y - y + 0.03 * p.cheeks, 0.17 * k, 0.14)
        h = h - 0.02 * p.wrinkles * bump(p.x - x, p.y - y - 0.16, 0.12 * k, 0.16)
    x, y, k = project(p, 0.0, 0.375)
    h = (
        h
        + 0.03 * bump(p.x - x, p.y - y, 0.22, 0.13)
        - 0.03 * bump(p.x - x, p.y - y - 0.095, 0.13, 0.05)
    )
    return h + 0.04 * bump(p.x - x, p.y - p.bottom + 0.06, 0.15, 0.09)


def draw_blush(p, image) -> None:
    for side in (-1, 1):
        x, y, k = project(p, side * 0.26, 0.17)
        spot = bump(p.x - x, p.y - y + 0.04 * p.cheeks, 0.18 * k, 0.13) * p.face
        tint(image, (0.25 + 0.25 * p.cheeks + 0.45 * p.makeup) * spot, (1.0, 0.76, 0.74))


def draw_folds(p, image) -> None:
    """Folds from nose to mouth (smile, age), from mouth to chin, lines on the forehead, crow's feet, bags under the eyes.

    Beside each wrinkle lies the ridge that its skin is pushed into, as much lighter: so a wrinkled face is not a darker one."""
    dark, light, w = (0.50, 0.34, 0.30), (1.36, 1.40, 1.42), p.wrinkles
    seen = p.freckles * p.face * bump(p.x - 0.4 * p.sin, p.y - 0.05, 0.62, 0.62)
    tint(image, 0.60 * seen * ramp(p.specks, 0.16, 0.34), dark)
    tint(image, 0.45 * seen * ramp(-p.specks, 0.16, 0.34), light)
    for side in (-1, 1):
        x0, y0, _ = project(p, side * 0.085, 0.225, 0.03)
        x1, y1, _ = project(p, side * (0.175 + 0.035 * p.smile), 0.40)
        bow = p.x - side * 0.04 * bump(p.y - 0.31, p.y * 0, 0.12, 1.0)
        d, t = segment(bow, p.y, x0, y0, x1, y1)
        tint(
            image,
            (0.55 * p.cheeks + 0.5 * w).clamp(max=0.9) * inside(d - 0.012, 0.045) * (1 - 0.5 * t),
            dark,
        )
        d, t = segment(bow - side * 0.045, p.y, x0, y0, x1, y1)
        tint(image, 0.35 * w * inside(d - 0.010, 0.045), light)
        for shift, amount, colour in ((0.0, 0.50, dark), (0.042, 0.35, light)):
            d, t = segment(
                p.x - side * shift,
                p.y,
                side * 0.03 + x1 - side * 0.04,
                y1 + 0.035,
                x1 - side * 0.02,
                y1 + 0.15,
            )
            tint(image, amount * w * inside(d - 0.008, 0.036) * (1 - 0.6 * t), colour)
        ex, ey, k = project(p, side * (0.168 + 0.02 * (p.eye_spacing - 0.5)), 0.0)
        bag = p.y - ey - 0.085 + 1.6 * (p.x - ex) * (p.x - ex)
        under = bump(p.x - ex, p.y - ey - 0.08, 0.14 * k, 0.12)
        tint(image, 0.65 * w * inside(bag.abs() - 0.010, 0.035) * under, dark)
        tint(image, 0.50 * w * inside((bag + 0.036).abs() - 0.010, 0.030) * under, light)
        for j in (-1, 0, 1):
            x, y, _ = project(p, side * 0.295, 0.0)
            ends = (x, y + 0.02 * j, x + side * 0.085 * k, y + 0.065 * j - 0.01)
            d, t = segment(p.x, p.y, *ends)
            tint(image, 0.65 * w * stroke(d, 0.012, p.px) * (1 - t), dark)
            d, t = segment(p.x, p.y - 0.030, *ends)
            tint(image, 0.40 * w * stroke(d, 0.010, p.px) * (1 - t), light)
    for j in range(3):
        x, y, _ = project(p, 0.0, -0.225 - 0.065 * j)
        line = p.y - y - 0.25 * (p.x - x) * (p.x - x) + 0.012 * j * (p.x - x)
        wide = bump(p.x - x, p.y - y, 0.30 - 0.03 * j, 0.2)
        tint(image, 0.65 * w * stroke(line, 0.011, p.px) * wide, dark)
        tint(image, 0.45 * w * stroke(line - 0.032, 0.011, p.px) * wide, light)


def draw_nose(p, image) -> None:
    w = 0.045 + 0.02 * p.nose_width
    x, y, _ = project(p, 0.0, 0.245 + 0.04 * (p.nose_length - 0.5), 0.10)
    under = bump(p.x - x + 0.03 * p.lx, p.y - y - 0.03, 2.1 * w, 0.045)
    tint(image, 0.45 * under, (0.60, 0.42, 0.38))
    for side in (-1, 1):
        hole = ellipse(p.x - x - side * 0.75 * w, p.y - y - 0.012, 0.42 * w, 0.014)
        tint(image, 0.62 * inside(hole, 0.03), (0.30, 0.16, 0.14))


def draw_mouth(p, image) -> None:
    """Lips whose corners rise and which part with a smile (or with speech), teeth, tongue."""
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
    d = torch.maximum(
        high - 0.040 * full * arc * cupid - v, v - low - 0.058 * full * (arc * (0.5 + 0.5 * arc))
    )
    skin = palette(SKIN, p.skin)
    lips = mix(skin * rgb(0.84, 0.58, 0.56), rgb(0.74, 0.10, 0.18), 0.8 * p.makeup[:, None])
    light = (
        0.72
        + 0.25 * ramp(v - low, -0.05, 0.02)
        + 0.12 * bump(u, (v - low - 0.025) / 0.02, 0.6, 1.0)
    )
    ends = inside((u.abs() - 1) * half, p.px)
    paint(image, inside(d, p.px) * ends, lips * light[:, None])
    hole = torch.maximum(high - v, v - low)
    inner = inside(hole, p.px) * ends * ramp(gap, 0.0, 0.02)
    paint(image, inner, rgb(0.41, 0.15, 0.155) * (0.45 + 0.75 * ramp(v - low, -0.05, 0.0))[:, None])
    teeth = torch.maximum(hole + 0.004, v - high - 0.033 * arc - 0.004)
    white = rgb(0.97, 0.95, 0.90) * (0.62 + 0.38 * arc)[:, None]
    paint(image, inside(teeth, p.px) * ends * ramp(gap, 0.015, 0.04), white)
    tint(
        image,
        (1 - ramp(gap, 0.0, 0.03)) * stroke(v - middle, 0.009, p.px) * ends,
        (0.35, 0.16, 0.15),
    )
    for side in (-1, 1):
        spot = bump(p.x - x - side * 1.03 * half, v - 0.55 * corner, 0.035, 0.035)
        tint(image, (0.35 + 0.4 * p.smile) * spot, (0.5, 0.3, 0.28))


def draw_eye(p, image, side: int) -> None:
    """Socket, white, iris with pupil and glint, lids with a crease, lashes, shadow and liner; the brow above."""
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
    brow_x, brow_y, k = project(
        p, side * (spread + 0.012), -0.135 - 0.03 * p.brow_height - 0.012 * p.smile, 0.02
    )
    b, h = side * (p.x - brow_x) / (0.125 * k), p.y - brow_y  # b = -1 at the nose, 1 outside
    bend = -0.030 * (1 - (b - 0.25) * (b - 0.25)) + 0.015
    thick = (0.014 + 0.014 * p.brow_weight) * (1 - 0.55 * ramp(b, -0.2, 1.0))
    cover = inside((h - bend).abs() - thick, 0.6 * p.px + 0.014) * inside((b.abs() - 1) * 0.1, 0.04)
    paint(image, (0.70 + 0.25 * p.brow_weight) * cover, 0.58 * p.brow_base)


def draw_glasses(p, image) -> None:
    """Rims, bridge and temples, a tint of the lenses, their glare and their shadow on the cheek."""
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
    paint(
        image,
        0.95 * p.glasses * stroke(bridge, 0.014, p.px) * inside((p.x - x).abs() - 0.045, p.px),
        rim,
    )
