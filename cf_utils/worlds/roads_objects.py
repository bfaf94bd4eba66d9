"""Cars, traffic light and pedestrian: billboards in metres, at the scale of their depth."""

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
    tint,
)
from cf_utils.worlds.roads_scene import add_haze, place_billboard

PAINT = (
    (0.12, 0.13, 0.15),
    (0.52, 0.54, 0.57),
    (0.86, 0.86, 0.86),
    (0.52, 0.10, 0.10),
    (0.14, 0.24, 0.46),
    (0.20, 0.34, 0.26),
    (0.64, 0.58, 0.46),
)
RED, AMBER, GREEN = (1.0, 0.14, 0.10), (1.0, 0.70, 0.10), (0.15, 0.95, 0.45)
COAT = (
    (0.95, 0.20, 0.15),
    (0.98, 0.62, 0.10),
    (0.96, 0.90, 0.20),
    (0.40, 0.85, 0.30),
    (0.25, 0.70, 0.98),
    (0.98, 0.96, 0.92),
)


def draw_car(
    p: SimpleNamespace, image: Tensor, there: Tensor, colour: Tensor, brakes: Tensor | None
) -> None:
    """Draw a car on the billboard p, with visibility `there`.

    brakes: brightness of the brake lights of a car seen from behind; None for a car seen from the
        front, with headlights.
    """
    draw_car_body(p, image, there, colour)
    for side in (-1, 1):
        draw_car_lamp(p, image, side, there, brakes)
    if brakes is not None:
        third = box(p.u, p.up - 1.42, 0.20, 0.035, 0.02)
        paint(image, there * brakes * inside(third, p.metre), rgb(1.0, 0.16, 0.10))


def draw_car_body(p: SimpleNamespace, image: Tensor, there: Tensor, colour: Tensor) -> None:
    """Draw shadow, tyres, body, window, bumper and number plate."""
    u, up, m, s = p.u, p.up, p.metre, p.at
    shadow = there * bump(u, up - 0.05, 1.35, 0.50)
    tint(image, (0.85 * shadow).clamp(max=0.8), (0.22, 0.22, 0.24))
    for side in (-1, 1):
        tyre = inside(box(u - side * 0.68, up - 0.28, 0.15, 0.28, 0.05), m)
        paint(image, there * tyre, add_haze(p, rgb(0.05, 0.05, 0.05), s))
    cabin = box(u / (1.10 - 0.26 * ramp(up, 0.85, 1.5)), up - 1.10, 0.74, 0.38, 0.16)
    body = box(u, up - 0.66, 0.90, 0.36, 0.14)
    lit = 0.70 + 0.38 * ramp(up, 0.35, 1.4) + 0.10 * sun_side(u, p)
    whole = torch.minimum(cabin, body)
    paint(image, there * inside(whole, m), add_haze(p, colour * lit[:, None], s))
    seam = there * inside((up - 0.90).abs() - 0.02, m + 0.03) * inside(body, m) * 0.4
    tint(image, seam, (0.35, 0.35, 0.38))
    window = box(u / (1.04 - 0.26 * ramp(up, 0.85, 1.5)), up - 1.16, 0.62, 0.24, 0.08)
    reflection = (0.25 + 0.45 * ramp(up, 0.95, 1.4))[:, None]
    glass = mix(rgb(0.10, 0.12, 0.15), p.sky_low / 1.6, reflection)
    paint(image, there * inside(window, m), add_haze(p, glass, s))
    bumper = box(u, up - 0.38, 0.88, 0.08, 0.05)
    paint(image, there * inside(bumper, m), add_haze(p, rgb(0.10, 0.10, 0.11), s))
    plate = box(u, up - 0.55, 0.24, 0.06, 0.02)
    paint(image, there * inside(plate, m), add_haze(p, rgb(0.85, 0.85, 0.80), s))


def draw_car_lamp(
    p: SimpleNamespace, image: Tensor, side: int, there: Tensor, brakes: Tensor | None
) -> None:
    """Draw one lamp (side: -1 left, 1 right) with its halo and its reflection on a wet road."""
    u, up = p.u, p.up
    lamp = box(u - side * 0.70, up - 0.76, 0.17, 0.11, 0.05)
    if brakes is None:
        shine, dim = rgb(1.0, 0.97, 0.86), rgb(0.80, 0.80, 0.76)
        on = 0.45 + 0.55 * torch.maximum(p.dusk, p.wet)
    else:
        shine, dim, on = rgb(1.0, 0.13, 0.08), rgb(0.66, 0.09, 0.07), brakes
    seen = p.at / (p.at + 0.4 * p.thick)
    colour = mix(dim * p.ambient[:, None], shine, on[:, None])
    paint(image, there * inside(lamp, p.metre) * seen, colour)
    halo = bump(u - side * 0.70, up - 0.76, 0.62, 0.50)
    glow = (0.38 if brakes is None else 0.20) + 0.25 * p.dusk
    paint(image, there * on * halo * glow, shine)
    paint(image, there * on * bump(u - side * 0.70, up + 0.45, 0.40, 1.0) * 0.30 * p.wet, shine)


def sun_side(u: Tensor, p: SimpleNamespace) -> Tensor:
    """Return where u lies relative to the sun, from -1 (away) to 1 (towards it)."""
    return (u * (2 * p.sun - 1)).clamp(-1, 1)


def draw_lead_car(p: SimpleNamespace, image: Tensor, far: bool) -> None:
    """Draw the lead car: near in its own scene; elsewhere (`far`) far ahead and not braking."""
    own = (p.scene == 0).float()
    if far:
        s, there, brakes = 0.045 + 0.055 * (1 - p.lead_distance), (1 - own) * p.lead, 0 * p.brakes
    else:
        s, there, brakes = 0.16 + 0.15 * (1 - p.lead_distance), own, ramp(p.brakes, 0.35, 0.65)
    q, view = place_billboard(p, image, 0.35 * (2 * p.heading - 1), s, 1.5, 1.7)
    draw_car(q, view, there, palette(PAINT, p.lead_color), brakes)


def draw_right_car(p: SimpleNamespace, image: Tensor) -> None:
    """Draw the car in the right lane."""
    s = 0.09 + 0.20 * (1 - p.right_distance)
    q, view = place_billboard(p, image, 3.2, s, 1.5, 1.7)
    draw_car(q, view, p.right_car, palette(PAINT, p.right_color), p.right_braking)


def draw_oncoming_car(p: SimpleNamespace, image: Tensor) -> None:
    """Draw the oncoming car."""
    s = 0.05 + 0.17 * (1 - p.oncoming_distance) * (1 - p.oncoming_distance)
    q, view = place_billboard(p, image, -3.2, s, 1.5, 1.7)
    draw_car(q, view, p.oncoming, palette(PAINT, (p.lead_color + p.right_color) / 2), None)


def draw_traffic_light(p: SimpleNamespace, image: Tensor) -> None:
    """Draw a mast with two lights: one over the right lane, one on the mast for the side street.

    The second shows the other colour, so the amounts of red and green in the image carry no
    information.
    """
    own = (p.scene == 1).float()
    there, red = torch.maximum(own, p.light), ramp(p.red, 0.35, 0.65)
    s = 0.125 + 0.06 * (1 - p.light_distance)
    p, image = place_billboard(p, image, 5.4, s, 4.5, 6.2)
    u, up, m = p.u, p.up, p.metre
    mast, _ = segment(u, up, 0.0, 0.0, 0.0, 5.3)
    arm, _ = segment(u, up, 0.0, 5.3, -3.0, 5.45)
    pole = inside(torch.minimum(mast, arm) - 0.07, m)
    paint(image, there * pole, add_haze(p, rgb(0.30, 0.31, 0.33), s))
    for x, y, stop in ((-3.0, 4.75, red), (0.0, 3.1, 1 - red)):
        case = box(u - x, up - y, 0.36, 0.92, 0.10)
        paint(image, there * inside(case, m), add_haze(p, rgb(0.07, 0.07, 0.08), s))
        for dy, on, colour in ((0.56, stop, RED), (0.0, 0 * red, AMBER), (-0.56, 1 - stop, GREEN)):
            colour = rgb(*colour)
            lamp = ellipse(u - x, up - y - dy, 0.23, 0.23)
            paint(image, there * inside(lamp, m), mix(colour * 0.16, colour, on[:, None]))
            paint(image, there * on * 0.45 * bump(u - x, up - y - dy, 0.85, 0.85), colour)


def draw_pedestrian(p: SimpleNamespace, image: Tensor) -> None:
    """Draw a pedestrian on the crossing in front of the car, or on the pavement."""
    own = (p.scene == 2).float()
    there, way = torch.maximum(own, p.walker), torch.where(p.walker_side < 0.5, -1.0, 1.0)
    c = p.crossing
    out, on = (1 - 2 * c).clamp(min=0).sqrt(), (2 - 2 * c).clamp(0, 1)
    pavement = 5.0 + 1.8 * out - (1 - own) * 1.0 * p.walker_at
    x = way * torch.where(c < 0.5, pavement, 0.3 + 4.7 * on * on.sqrt())  # reaches the kerb at 0.5
    s = p.walk_s
    p, image = place_billboard(p, image, x, s, 1.1, 2.1)
    k = 0.88 + 0.16 * p.walker_size
    u, up, m = p.u / k, p.up / k, p.metre / k
    gait = 0.10 + 0.24 * p.stride
    tint(image, there * 0.6 * bump(u, up, 0.6, 0.22), (0.35, 0.35, 0.38))
    trousers = add_haze(p, mix(rgb(0.12, 0.14, 0.22), rgb(0.34, 0.30, 0.26), p.stride[:, None]), s)
    for side in (-1, 1):
        leg, _ = segment(u, up, 0.0, 0.85, side * gait, 0.06)
        paint(image, there * inside(leg - 0.11, m), trousers * (0.95 + 0.12 * side))
    coat = palette(COAT, p.clothes)
    for side in (-1, 1):
        hand, _ = segment(u, up, side * 0.17, 1.36, side * (0.20 + 0.6 * gait), 0.86)
        paint(image, there * inside(hand - 0.09, m), add_haze(p, coat * 0.82, s))
    torso = box(u, up - 1.12, 0.27, 0.36, 0.10)
    shade = (0.85 + 0.25 * ramp(up, 0.8, 1.4))[:, None]
    paint(image, there * inside(torso, m), add_haze(p, coat * shade, s))
    face = ellipse(u, up - 1.62, 0.15, 0.17)
    paint(image, there * inside(face, m), add_haze(p, rgb(0.80, 0.60, 0.48), s))
    hair = torch.maximum(ellipse(u, up - 1.66, 0.165, 0.17), 1.63 - up)
    paint(image, there * inside(hair, m), add_haze(p, rgb(0.14, 0.10, 0.08), s))
