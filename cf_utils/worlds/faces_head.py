"""The head: outline, relief in the light, blush, folds, wrinkles and nose."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import (
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


def measure_outline(p: SimpleNamespace) -> Tensor:
    """Return the signed distance to the outline: an ellipse whose lower half the jaw narrows.

    Sets p.u and p.v, the position relative to the half axes.
    """
    x = p.x - 0.05 * p.sin
    low = (p.y / p.bottom).clamp(0, 1)
    k = 1 + mix(-0.30, 0.12, p.jaw) * low * low
    b = torch.where(p.y < 0, torch.full_like(p.bottom, p.top), p.bottom)
    u, v = x * k / p.a, p.y / b
    p.u, p.v = u, v
    f, gu, gv = u * u + v * v, u * k / p.a, v / b
    return (f - 1) / (2 * (gu * gu + gv * gv + 1e-4).sqrt())


def draw_head(p: SimpleNamespace, image: Tensor) -> None:
    """Draw ears, the face with its relief lit from one side, blush, folds, wrinkles and nose."""
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


def compute_relief(p: SimpleNamespace) -> Tensor:
    """Return the height of the face above its ellipsoid, in head units."""
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
    h = h + 0.03 * bump(p.x - x, p.y - y, 0.22, 0.13)
    h = h - 0.03 * bump(p.x - x, p.y - y - 0.095, 0.13, 0.05)
    return h + 0.04 * bump(p.x - x, p.y - p.bottom + 0.06, 0.15, 0.09)


def draw_blush(p: SimpleNamespace, image: Tensor) -> None:
    """Tint the cheeks."""
    for side in (-1, 1):
        x, y, k = project(p, side * 0.26, 0.17)
        spot = bump(p.x - x, p.y - y + 0.04 * p.cheeks, 0.18 * k, 0.13) * p.face
        tint(image, (0.25 + 0.25 * p.cheeks + 0.45 * p.makeup) * spot, (1.0, 0.76, 0.74))


def draw_folds(p: SimpleNamespace, image: Tensor) -> None:
    """Draw folds around the mouth, lines on the forehead, crow's feet and bags under the eyes.

    A lighter ridge lies beside each wrinkle, so that a wrinkled face is not darker on average.
    """
    dark, light, w = (0.50, 0.34, 0.30), (1.36, 1.40, 1.42), p.wrinkles
    seen = p.freckles * p.face * bump(p.x - 0.4 * p.sin, p.y - 0.05, 0.62, 0.62)
    tint(image, 0.60 * seen * ramp(p.specks, 0.16, 0.34), dark)
    tint(image, 0.45 * seen * ramp(-p.specks, 0.16, 0.34), light)
    for side in (-1, 1):
        x0, y0, _ = project(p, side * 0.085, 0.225, 0.03)
        x1, y1, _ = project(p, side * (0.175 + 0.035 * p.smile), 0.40)
        bow = p.x - side * 0.04 * bump(p.y - 0.31, p.y * 0, 0.12, 1.0)
        d, t = segment(bow, p.y, x0, y0, x1, y1)
        strength = (0.55 * p.cheeks + 0.5 * w).clamp(max=0.9)
        tint(image, strength * inside(d - 0.012, 0.045) * (1 - 0.5 * t), dark)
        d, t = segment(bow - side * 0.045, p.y, x0, y0, x1, y1)
        tint(image, 0.35 * w * inside(d - 0.010, 0.045), light)
        for shift, amount, colour in ((0.0, 0.50, dark), (0.042, 0.35, light)):
            start = side * 0.03 + x1 - side * 0.04, y1 + 0.035
            end = x1 - side * 0.02, y1 + 0.15
            d, t = segment(p.x - side * shift, p.y, *start, *end)
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


def draw_nose(p: SimpleNamespace, image: Tensor) -> None:
    """Draw the shadow under the nose and the nostrils."""
    w = 0.045 + 0.02 * p.nose_width
    x, y, _ = project(p, 0.0, 0.245 + 0.04 * (p.nose_length - 0.5), 0.10)
    under = bump(p.x - x + 0.03 * p.lx, p.y - y - 0.03, 2.1 * w, 0.045)
    tint(image, 0.45 * under, (0.60, 0.42, 0.38))
    for side in (-1, 1):
        hole = ellipse(p.x - x - side * 0.75 * w, p.y - y - 0.012, 0.42 * w, 0.014)
        tint(image, 0.62 * inside(hole, 0.03), (0.30, 0.16, 0.14))
