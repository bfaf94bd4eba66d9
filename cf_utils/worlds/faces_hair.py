"""Hair behind the head, hair in front of it, beard."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import bump, ellipse, grain, inside, mix, paint, palette, ramp, rgb, wave
from cf_utils.worlds.faces_frame import project
from cf_utils.worlds.faces_head import measure_outline
from cf_utils.worlds.factors import Factors

HAIR = (
    (0.07, 0.06, 0.06),
    (0.16, 0.10, 0.07),
    (0.30, 0.19, 0.12),
    (0.46, 0.26, 0.14),
    (0.72, 0.53, 0.28),
    (0.90, 0.78, 0.52),
)


def shape_hair(p: SimpleNamespace, factors: Factors) -> None:
    """Set coverage and colour of the hair behind the head and in front of it.

    Strands leave the parting and fall along lines of equal `across`. Locks are always drawn;
    single strands only where a pixel can resolve them.
    """
    length, volume = p.hair_length, 0.025 + 0.055 * p.hair_volume + 0.03 * p.hair_length
    lattice = factors.stream("strands", (16, 64))
    x, side = p.x - 0.10 * p.sin, 2 * p.parting - 1
    fall = (p.y + 0.66 + volume).clamp(min=0.01).sqrt()
    curl = 0.05 * p.curl * wave(2.6 * p.y + 3 * side + x)
    across = (x - 0.28 * side + curl * ramp(p.y, -0.5, 0.2)) / fall
    locks = grain(lattice, 9 * across + 40, 1.1 * fall + 3) - 0.5
    fine = grain(lattice, 34 * across + 20, 2.0 * fall + 8) - 0.5
    strands = 0.75 * locks + 0.8 * (1.4 - 40 * p.px).clamp(0.15, 1) * fine
    outer = ellipse(x, p.y + 0.06, p.a + volume, 0.555 + volume) - 0.012 * strands
    width = p.a + volume - 0.03 * ramp(p.y, 0.1, 0.35) + 0.10 * ramp(p.y, 0.15, 0.9) * length
    width = width + 0.25 * curl + 0.02 * strands
    end = mix(-0.12, 1.30, length) - 0.30 * x * x * ramp(length, 0.2, 0.6)
    end = end + 0.16 * strands * ramp(length, 0.0, 0.5)
    drape = torch.maximum(torch.maximum(x.abs() - width, p.y - end), -p.y - 0.06)
    back = torch.maximum(outer, p.y - end.clamp(min=0.12))
    p.hair_back = inside(torch.minimum(back, drape), p.px)
    opening = open_face(p, x, side, strands)
    tips = mix(0.0, 1.3, ramp(length, 0.1, 1.0)) + 0.10 * strands
    p.hair_front_d = torch.maximum(torch.maximum(torch.minimum(outer, drape), -opening), p.y - tips)
    p.hair_front = inside(p.hair_front_d, p.px + 0.012)
    colour_hair(p, x, strands, bump(across, p.y + 0.62, 0.06, 0.20))
    p.stubble = grain(lattice, 62 * p.x + 30, 30 * p.y + 20) - 0.5
    p.specks = grain(lattice, 20 * p.x + 11, 20 * p.y + 5) - 0.5


def open_face(p: SimpleNamespace, x: Tensor, side: Tensor, strands: Tensor) -> Tensor:
    """Return the signed distance to the opening in the hair that shows the face."""
    half = p.a - 0.05
    half = half + 0.07 * (1 - ramp(p.hair_length, 0.25, 0.5)) * ramp(p.y, -0.25, -0.02)
    half = half + 0.03 * ramp(p.y, 0.2, 0.6)
    u = (x - 0.22 * p.sin) / half
    v = (p.y.clamp(max=0) + 0.10 * side * x) / (0.45 + 0.06 * p.wrinkles)
    opening = ((u * u + v * v + 1e-4).sqrt() - 1) * 0.40 - 0.035 * strands
    swept = x - 0.30 * side
    lowest = mix(-0.62, -0.15, p.fringe) + 0.30 * p.fringe * swept * swept
    lowest = lowest + 0.10 * strands * p.fringe
    return torch.maximum(opening, lowest - p.y)


def colour_hair(p: SimpleNamespace, x: Tensor, strands: Tensor, parted: Tensor) -> None:
    """Set the colours of hair and brows: base colour, grey temples, light and gloss."""
    silver = rgb(0.76, 0.75, 0.75)
    whole = mix(palette(HAIR, p.hair_color), silver, (0.85 * ramp(p.silver, 0.45, 0.75))[:, None])
    temples = ramp(x.abs(), 0.20, 0.38) * bump(p.y + 0.06, p.y * 0, 0.30, 1)
    temples = temples * (0.75 + 0.5 * strands)
    p.hair_base = mix(whole, silver, 0.20 * (p.grey * temples)[:, None].clamp(0, 1))
    p.brow_base = mix(whole, silver, 0.12 * p.grey[:, None])
    nx = (x / 0.58).clamp(-0.95, 0.95)
    ny = ((p.y.clamp(max=0.1) + 0.1) / 0.75).clamp(-0.95, 0.3)
    nz = (1.10 - nx * nx - ny * ny).clamp(min=0.05).sqrt()
    lit = (nx * p.lx + ny * p.ly + nz * p.lz).clamp(0, 1)
    shine = bump(p.x - 0.34 * p.lx, p.y + 0.42 + 0.25 * x * x, 0.40, 0.15) * (0.7 + 0.9 * strands)
    shade = (0.48 + 0.58 * lit) * (1 + 0.62 * strands) * (1 - 0.25 * ramp(p.y, 0.1, 0.9))
    shade = shade * (1 - 0.35 * parted)
    p.hair_colour = p.hair_base * shade[:, None] + 0.20 * shine[:, None] * (0.25 + p.hair_base)
    p.hair_back_colour = p.hair_colour * (0.55 - 0.12 * ramp(-x.abs(), -0.4, -0.1))[:, None]


def draw_beard(p: SimpleNamespace, image: Tensor) -> None:
    """Draw stubble or a beard over jaw, chin and upper lip, in the hair's colour."""
    x, _, _ = project(p, 0.0, 0.0)
    ax = (p.x - x * 0.6).abs()
    line = 0.345 - 0.9 * (ax - 0.13).clamp(min=0)
    region = torch.maximum(measure_outline(p) - 0.05 * p.beard, line - p.y)
    lip_x, lip_y, _ = project(p, 0.0, 0.305)
    region = torch.minimum(region, ellipse(p.x - lip_x, p.y - lip_y, 0.17, 0.045))
    grown = inside(region + 0.035 * p.stubble + 0.015, 0.09)
    cover = (p.beard * (0.95 + 0.5 * p.stubble) * grown).clamp(max=0.94)
    hairs = (0.6 - 14 * p.px).clamp(0.12, 0.45) * p.stubble  # weaker where pixels are large
    lit = 0.62 + 0.25 * (p.u * p.lx).clamp(-1, 1) + hairs - 0.15 * ramp(p.y, 0.45, 0.62)
    paint(image, cover, p.brow_base * lit[:, None])
