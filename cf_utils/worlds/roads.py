"""Roads with known causes: one visible cause decides between driving on and slowing down.

Each scene has exactly one cause that can be switched on: the lead car's brakes, the traffic light
or a pedestrian. The label "action" is "slow down" where the scene's cause is on. The other two
kinds of cause may be visible, but are switched off: a green light, a far car, a person on the
pavement. Brakes in the right lane, zebra crossings and red objects do not matter.

The drawing functions share a namespace p: each factor as (N, 1, 1), coordinates, and the colours
of the weather.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.worlds.factors import Factor, Factors
from cf_utils.worlds.roads_objects import (
    draw_lead_car,
    draw_oncoming_car,
    draw_pedestrian,
    draw_right_car,
    draw_traffic_light,
)
from cf_utils.worlds.roads_scene import draw_ground, draw_sides, draw_sky, set_up_camera
from cf_utils.worlds.roads_weather import add_weather_and_lens
from cf_utils.worlds.world import Label, World

CAUSES = ("braking", "red", "crossing")  # in the order of the scenes
HEAPS = ((0, 0), (0.48, 0.38), (0.52, 0.62), (1, 1))

FACTORS = (
    *(Factor(name, "cause", quantiles=HEAPS) for name in CAUSES),
    Factor("scene", "identity", "category", shares=(0.34, 0.33, 0.33)),
    # clear, rain, fog, dusk
    Factor("weather", "nuisance", "category", shares=(0.4, 0.2, 0.2, 0.2)),
    *(
        Factor(name, "identity")
        for name in (
            "houses",
            "house_height",
            "house_color",
            "trees",
            "horizon",
            "curve",
            "lead_color",
            "right_color",
            "clothes",
            "walker_size",
        )
    ),
    *(
        Factor(name)
        for name in (
            "heading",
            "offset",
            "lead_distance",
            "right_distance",
            "oncoming_distance",
            "light_distance",
            "walker_distance",
            "walker_side",
            "walker_at",
            "stride",
            "sun",
            "exposure",
            "warmth",
            "asphalt",
            "noise",
        )
    ),
    Factor("lead", kind="binary", p=0.6),  # a car far ahead, in other scenes
    Factor("right_car", kind="binary", p=0.75),
    Factor("right_braking", kind="binary", p=0.5),
    Factor("oncoming", kind="binary", p=0.6),
    Factor("light", kind="binary", p=0.4),  # a green light, in other scenes
    Factor("zebra", kind="binary", p=0.4),
    Factor("walker", kind="binary", p=0.5),  # a person on the pavement
)


def active_causes(factors: Factors) -> Tensor:
    """Return how far each cause is on, (N, 3): the factor in its own scene, 0 elsewhere."""
    scene = factors["scene"]
    return torch.stack(
        [torch.where(scene == k, factors[name], 0.0) for k, name in enumerate(CAUSES)], 1
    )


def must_slow_down(factors: Factors) -> Tensor:
    """Return where the scene's cause is on, bool (N,)."""
    return active_causes(factors).amax(1) >= 0.5


def draw(factors: Factors, height: int, width: int) -> Tensor:
    """Draw views of the road (N, 3, height, width) without camera noise."""
    p = set_up_camera(factors, height, width)
    p.brakes, p.red, p.crossing = (column[:, None, None] for column in active_causes(factors).T)
    image = draw_sky(p, factors)
    draw_ground(p, image, factors)
    draw_sides(p, image, factors)
    draw_oncoming_car(p, image)
    draw_lead_car(p, image, far=True)
    draw_traffic_light(p, image)
    draw_right_car(p, image)
    draw_pedestrian(p, image)
    draw_lead_car(p, image, far=False)
    return add_weather_and_lens(p, image, factors)


LABELS = (
    Label(
        "action",
        ("forward", "slow down"),
        rule=must_slow_down,
        neutral=tuple((name, 0.0) for name in CAUSES),
    ),
    *(
        Label(name, (f"no {name}", name), rule=lambda f, k=k: active_causes(f)[:, k] >= 0.5)
        for k, name in enumerate(CAUSES)
    ),
    Label(
        "right_braking",
        ("right lane: no brakes", "right lane: brakes"),
        rule=lambda f: (f["right_car"] >= 0.5) & (f["right_braking"] >= 0.5),
    ),
    Label("dusk", ("day", "dusk"), rule=lambda f: f["weather"] == 3),
)

# All three causes share one draw, whatever the scene.
SAME = {"red": (("braking", 1.0),), "crossing": (("braking", 1.0),)}
VARIANTS = {
    "independent": {},
    "correlated": {
        "right_braking": (("braking", 0.6),),
        "crossing": (("zebra", 0.4),),
        "lead_distance": (("exposure", 0.4),),
        "walker": (("zebra", 0.4),),
    },
    "confounded": SAME
    | {"right_car": (("braking", 0.995),), "right_braking": (("braking", 0.995),)},
    "mixed": SAME | {"right_car": (("braking", 0.8),), "right_braking": (("braking", 0.8),)},
}

WORLD = World(
    "roads", FACTORS, LABELS, VARIANTS, draw, size=(64, 128), noise=("noise", 0.006, 0.018)
)
