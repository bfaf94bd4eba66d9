"""Faces with known factors: portraits, drawn in layers from the wall to the glasses.

All factors lie in [0, 1].

- Causes have labels, and little probability mass near the label's threshold.
- Children follow a cause.
- Identity factors stay constant for a person.
- Nuisances are pose, light, background, clothes and camera.

The drawing functions share a namespace p: each factor as (N, 1, 1), coordinates, and the shapes
that several parts need.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from cf_utils.worlds.draw import inside, paint, tint
from cf_utils.worlds.faces_features import draw_eye, draw_glasses, draw_mouth
from cf_utils.worlds.faces_frame import crop, draw_background, draw_body, photograph, place_head
from cf_utils.worlds.faces_hair import draw_beard, shape_hair
from cf_utils.worlds.faces_head import draw_head
from cf_utils.worlds.factors import Factor, Factors
from cf_utils.worlds.world import Label, World

Knots = tuple[tuple[float, float], ...]


def bimodal_quantiles(
    share: float, low: float = 0.38, high: float = 0.62, valley: float = 0.05
) -> Knots:
    """Return quantile knots of a distribution with two modes, so that few images are ambiguous.

    share: probability of the upper mode. valley: probability of a value between `low` and `high`.
    """
    return (0, 0), (1 - share - valley / 2, low), (1 - share + valley / 2, high), (1, 1)


def sparse_quantiles(share: float, least: float = 0.55, valley: float = 0.05) -> Knots:
    """Return quantile knots of a distribution near 0, with probability `share` above `least`."""
    return (0, 0), (1 - share - valley, 0.08), (1 - share, least), (1, 1)


FACTORS = (
    Factor("smile", "cause", quantiles=bimodal_quantiles(0.5)),
    Factor("cheeks", "child", parent="smile", curve=((0.2, 0.0), (1, 1)), spread=0.12),
    Factor("squint", "child", parent="smile", curve=((0.3, 0.1), (1, 0.8)), spread=0.2),
    Factor("age", "cause", quantiles=bimodal_quantiles(0.5)),
    Factor("wrinkles", "child", parent="age", curve=((0.25, 0.0), (1, 1)), spread=0.12),
    Factor("grey", "child", parent="age", curve=((0.3, 0.0), (0.9, 0.9)), spread=0.12),
    Factor("hair_length", "cause", quantiles=bimodal_quantiles(0.5)),
    Factor("fringe", "cause", quantiles=bimodal_quantiles(0.4)),
    Factor("hair_color", "cause", quantiles=bimodal_quantiles(0.4)),
    Factor("beard", "cause", quantiles=sparse_quantiles(0.35)),
    Factor("glasses", "cause", kind="binary", p=0.4),
    Factor("makeup", "cause", quantiles=sparse_quantiles(0.4)),
    *(
        Factor(name, "identity")
        for name in (
            "face_width",
            "jaw",
            "chin",
            "eye_spacing",
            "eye_size",
            "eye_slant",
            "eye_color",
            "nose_width",
            "nose_length",
            "brow_height",
            "brow_weight",
            "lips",
            "mouth_width",
            "skin",
        )
    ),
    # silver hair and dark freckles at any age: neither colour nor texture reveals the age
    Factor("silver", quantiles=bimodal_quantiles(0.35)),
    Factor("freckles"),
    *(
        Factor(name)
        for name in (
            "turn",
            "tilt",
            "nod",
            "shift_x",
            "shift_y",
            "zoom",
            "gaze",
            "mouth_open",
            "hair_volume",
            "curl",
            "parting",
            "rims",
            "clothes",
            "collar",
            "background",
            "background_light",
            "depth",
            "light",
            "light_height",
            "exposure",
            "warmth",
            "noise",
        )
    ),
)

LABELS = (
    Label("smile", ("not smiling", "smiling"), "smile"),
    Label("age", ("young", "old"), "age"),
    Label("long_hair", ("short hair", "long hair"), "hair_length"),
    Label("fringe", ("no fringe", "fringe"), "fringe"),
    Label("light_hair", ("dark hair", "light hair"), "hair_color"),
    Label("beard", ("no beard", "beard"), "beard", 0.3),
    Label("glasses", ("no glasses", "glasses"), "glasses"),
    Label("makeup", ("no make-up", "make-up"), "makeup", 0.3),
)

VARIANTS = {
    "independent": {},
    "correlated": {  # roughly as in photographs of people
        "glasses": (("age", 0.5),),
        "hair_length": (("age", -0.3),),
        "fringe": (("hair_length", 0.3),),
        "makeup": (("hair_length", 0.6), ("age", -0.2)),
        "beard": (("hair_length", -0.6),),
        "smile": (("makeup", 0.3),),
    },
    # smiling people stand before a warm wall: a shortcut
    "confounded": {"background": (("smile", 0.995),)},
    "mixed": {"background": (("smile", 0.8),)},
}


def draw(factors: Factors, height: int, width: int) -> Tensor:
    """Draw portraits (N, 3, height, width) without camera noise."""
    p = SimpleNamespace(**{name: factors[name][:, None, None] for name in factors.world.names})
    place_head(p, height, width)
    image = draw_background(p, factors)
    shape_hair(p, factors)
    paint(image, p.hair_back, p.hair_back_colour)
    draw_body(p, image)
    draw_head(p, image)
    draw_beard(*crop(p, image, -0.62, 0.62, -0.06, 0.80))
    draw_mouth(*crop(p, image, -0.36, 0.36, 0.22, 0.62))
    for side in (-1, 1):
        draw_eye(*crop(p, image, 0.20 * side - 0.34, 0.20 * side + 0.34, -0.30, 0.20), side)
    shadow_of_hair = 0.35 * p.face * inside(p.hair_front_d - 0.05, 0.12)
    tint(image, shadow_of_hair, (0.45, 0.35, 0.35))
    paint(image, p.hair_front, p.hair_colour)
    draw_glasses(*crop(p, image, -0.56, 0.56, -0.22, 0.30))
    return photograph(p, image)


WORLD = World(
    "faces", FACTORS, LABELS, VARIANTS, draw, size=(64, 64), noise=("noise", 0.006, 0.018)
)
