"""What a radiograph shows beside the patient's own body: fluid, breasts, devices, marker, film.

Attenuation is in units of 100 mm of water. The namespace p holds each factor as (N, 1, 1) and the
coordinates: x, y in the image, bx, by in the scan's bones, tx, ty in its soft tissue.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cf_utils.worlds.draw import box, bump, ellipse, inside, mix, ramp, segment, stroke
from cf_utils.worlds.factors import Factors

LEAD = (  # course of a pacemaker's lead: below the clavicle, through the vena cava, to the apex
    (0.32, -0.70),
    (0.18, -0.77),
    (0.04, -0.68),
    (-0.08, -0.49),
    (-0.10, -0.20),
    (-0.08, 0.10),
    (0.00, 0.28),
    (0.13, 0.34),
    (0.27, 0.32),
)
ELECTRODES = ((-0.54, -0.49, -1.3), (0.56, -0.41, 1.3), (0.46, 0.61, 1.2))  # x, y, x of the wire
OPAQUE = 1.6  # attenuation of a metal case


def take_rows(p: SimpleNamespace, rows: Tensor) -> SimpleNamespace:
    """Return the namespace of some of the images."""
    n = len(p.x)
    values = vars(p).items()
    return SimpleNamespace(
        **{k: v[rows] if isinstance(v, Tensor) and len(v) == n else v for k, v in values}
    )


def add_fluid(p: SimpleNamespace, total: Tensor, air: Tensor, factors: Factors) -> None:
    """Fill the lower part of one lung, with a meniscus; air: (2, N, H, W), right and left."""
    left = (factors.stream("side of the effusion", (1, 1)) < 0.5).float()
    lateral = ((p.tx - 0.02).abs() - 0.40) / 0.36
    surface = 0.89 - 0.96 * p.effusion - 0.16 * lateral * lateral.abs()
    cover = ramp(p.ty - surface, -0.06, 0.08) * ramp(p.effusion, 0.08, 0.25)
    total += 0.98 * cover * mix(air[0], air[1], left)


def add_haze(p: SimpleNamespace, total: Tensor, air: Tensor, factors: Factors) -> None:
    """Fill soft patches of the lungs in part, as an infiltrate does; air: (N, H, W)."""
    place = factors.stream("haze", (6, 5, 1, 1))
    for k in range(6):
        x0, y0, wide, tall, least = place[:, k].unbind(1)
        amount = ramp(p.haze - least, -0.1, 0.6)
        side = -1 if k % 2 else 1
        x, y = p.tx - side * mix(0.25, 0.62, x0), p.ty - mix(-0.65, 0.45, y0)
        patch = bump(x, y, mix(0.15, 0.5, wide), mix(0.15, 0.5, tall))
        total += 0.55 * amount * patch * air


def add_breasts(p: SimpleNamespace, total: Tensor) -> None:
    """Add the shadows of two breasts, whose lower edges are sharper than the upper ones."""
    for side in (-1, 1):
        x, y = p.bx - 0.41 * side, p.by - 0.30
        below = inside(ellipse(x, y, 0.33, 0.28), 0.11)
        total += 0.34 * ramp(p.breasts, 0.35, 1.0) * below * ramp(y, -0.32, 0.22)


def add_pacemaker(p: SimpleNamespace, total: Tensor, factors: Factors) -> None:
    """Add a pacemaker below the left clavicle, and its lead to the tip of the right ventricle."""
    rows = (p.pacemaker > 0).flatten().nonzero().flatten()
    if not len(rows):
        return
    q, place = take_rows(p, rows), factors.take(rows).stream("pacemaker", (3, 1, 1))
    px, fade = q.px, q.pacemaker
    dx, dy = 0.13 * (place[:, 0] - 0.5), 0.11 * (place[:, 1] - 0.5)
    x, y = q.bx - 0.45 - dx, q.by + 0.51 - dy
    turn = 0.8 * (place[:, 2] - 0.5)
    x, y = x + turn * y, y - turn * x
    case = inside(box(x, y - 0.02, 0.12, 0.115, 0.09), px)
    head = inside(box(x, y + 0.115, 0.076, 0.032, 0.02), px)
    inner = inside(ellipse(x + 0.01, y - 0.045, 0.09, 0.068), px)
    points = [(0.45 + dx, dy - 0.62), *LEAD]
    points = round_corners(round_corners(points))
    away = torch.full_like(q.tx, 9.0)
    for (x0, y0), (x1, y1) in pairwise(points):
        away = torch.minimum(away, segment(q.tx, q.ty, x0, y0, x1, y1)[0])
    lead = stroke(away, 0.010, px)
    tip = stroke(segment(q.tx, q.ty, 0.22, 0.334, *LEAD[-1])[0], 0.018, px)
    wire = torch.maximum(0.55 * lead, 0.9 * tip)
    metal = torch.maximum(OPAQUE * (0.75 * case + 0.25 * case * inner), 0.8 * head)
    total[rows] += fade * torch.maximum(metal, wire)


def round_corners(points: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Replace each inner point of a line by two, at a quarter of the way to its neighbours."""
    out = points[:1]
    for (x0, y0), (x1, y1), (x2, y2) in zip(points, points[1:], points[2:], strict=False):
        out += [(x1 + 0.25 * (x0 - x1), y1 + 0.25 * (y0 - y1))]
        out += [(x1 + 0.25 * (x2 - x1), y1 + 0.25 * (y2 - y1))]
    return [*out, points[-1]]


def add_electrodes(p: SimpleNamespace, total: Tensor, factors: Factors) -> None:
    """Add three adhesive electrodes with their wires."""
    rows = (p.electrodes > 0).flatten().nonzero().flatten()
    if not len(rows):
        return
    q = take_rows(p, rows)
    place = factors.take(rows).stream("electrodes", (3, 3, 1, 1)) - 0.5
    for k, (x0, y0, x1) in enumerate(ELECTRODES):
        x0, y0 = x0 + 0.16 * place[:, k, 0], y0 + 0.20 * place[:, k, 1]
        away = ellipse(q.bx - x0, q.by - y0, 0.062, 0.062)
        snap = ellipse(q.bx - x0, q.by - y0, 0.024, 0.024)
        y1 = y0 + 0.5 + 0.4 * place[:, k, 2]
        wire = stroke(segment(q.bx, q.by, x0, y0, x1, y1)[0], 0.007, q.px)
        metal = torch.maximum(0.9 * inside(snap, q.px), 0.16 * inside(away, q.px))
        total[rows] += q.electrodes * torch.maximum(metal, 0.35 * wire)


def expose(p: SimpleNamespace, total: Tensor, blurred: Tensor) -> Tensor:
    """Return grey levels (N, H, W): attenuation less most of its blurred copy, then a curve."""
    value = total - mix(0.35, 0.62, p.equalise) * blurred
    low, high = mix(-0.28, 0.10, p.exposure), mix(2.20, 1.55, p.contrast)
    value = ((value - low) / (high - low)).clamp(0, 1.2)
    bend = mix(0.05, 0.75, p.gamma)
    return 0.92 * (value + bend * value * (1 - value)).clamp(max=1.04)


def add_marker(p: SimpleNamespace, image: Tensor) -> None:
    """Write the side marker in lead letters: R at the patient's right, or L at the left."""
    height = -0.78 + 0.5 * p.marker_height
    for letter, side in (("R", -1), ("L", 1)):
        x, y = p.x - 0.86 * side, p.y - height
        shape = torch.maximum((x + 0.035).abs() - 0.011, y.abs() - 0.06)
        if letter == "R":
            bowl = box(x - 0.002, y + 0.028, 0.036, 0.030, 0.02).abs() - 0.011
            leg = segment(x, y, -0.005, 0.0, 0.036, 0.055)[0] - 0.012
            shape = torch.minimum(shape, torch.minimum(bowl, leg))
        else:
            foot = torch.maximum((x - 0.0).abs() - 0.04, (y - 0.05).abs() - 0.011)
            shape = torch.minimum(shape, foot)
        share = p.marker * (p.left_marker if letter == "L" else 1 - p.left_marker)
        image += share * inside(shape, p.px) * (0.97 - image)


def collimate(p: SimpleNamespace, image: Tensor) -> None:
    """Darken what lies outside the beam: a border, wider at the sides, and all above the scan."""
    edge = torch.maximum(p.x.abs() - mix(1.06, 0.90, p.collimation), -0.92 - p.vy)
    image *= 1 - 0.94 * inside(-edge, 1.5 * p.px)
