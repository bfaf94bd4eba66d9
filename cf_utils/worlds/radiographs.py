"""Chest radiographs with known factors, composed from the line integrals of a genuine CT scan.

All factors lie in [0, 1]. Ribs, spine, lungs and vessels are those of one patient; persons differ
by a deformation, by habitus and by density. `heart_size` sets the cardiothoracic ratio linearly
between the limits `RATIO`, whatever the other factors are; a ratio above 0.5 is cardiomegaly.

The drawing functions share a namespace p: each factor as (N, 1, 1), and coordinates of each pixel
in the image (x, y), in the scan's bones (bx, by), and in its soft tissue (tx, ty).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import grid, mix
from cf_utils.worlds.factors import Factor, Factors
from cf_utils.worlds.radiographs_ct import ANGLES, BONE, build_table, look_up
from cf_utils.worlds.radiographs_objects import (
    add_breasts,
    add_electrodes,
    add_fluid,
    add_haze,
    add_marker,
    add_pacemaker,
    collimate,
    expose,
)
from cf_utils.worlds.radiographs_shape import LEAST, fit_heart, pose, to_body, to_tissue
from cf_utils.worlds.world import Label, World

HEART_SIZES = ((0, 0), (0.06, 0.24), (0.475, 0.39), (0.525, 0.61), (0.94, 0.76), (1, 1))
FACTORS = (
    # few images near a ratio of 0.5
    Factor("heart_size", "cause", quantiles=HEART_SIZES),
    Factor("effusion", "cause", quantiles=((0, 0), (0.65, 0.08), (0.7, 0.5), (1, 1))),
    Factor("pacemaker", "cause", kind="binary", p=0.4),
    *(
        Factor(name, "identity")
        for name in (
            "chest_width",
            "chest_height",
            "taper",
            "waist",
            "spine_bend",
            "spine_wave",
            "asymmetry",
            "rib_slope",
            "shoulder_tilt",
            "apex",
            "heart_height",
            "habitus",
            "breasts",
            "bone_density",
        )
    ),
    *(
        Factor(name)
        for name in (
            "lung_volume",
            "diaphragm",
            "mediastinum",
            "haze",
            "right_density",
            "left_density",
            "rotation",
            "tilt",
            "shift_x",
            "shift_y",
            "zoom",
        )
    ),
    Factor("electrodes", kind="binary", p=0.3),
    Factor("marker", kind="binary", p=0.8),
    Factor("left_marker", kind="binary", p=0.3),
    *(
        Factor(name)
        for name in (
            "marker_height",
            "collimation",
            "exposure",
            "contrast",
            "gamma",
            "equalise",
            "noise",
        )
    ),
)

LABELS = (
    Label("cardiomegaly", ("normal heart", "cardiomegaly"), "heart_size"),
    Label("effusion", ("no effusion", "effusion"), "effusion", 0.3),
    Label("pacemaker", ("no pacemaker", "pacemaker"), "pacemaker"),
)

VARIANTS = {
    "independent": {},
    "correlated": {  # roughly as in patients
        "effusion": (("heart_size", 0.5),),
        "pacemaker": (("heart_size", 0.3),),
        "electrodes": (("effusion", 0.3),),
        "diaphragm": (("habitus", 0.4),),
        "lung_volume": (("effusion", -0.3),),
    },
    # patients with a large heart wear a pacemaker: a shortcut
    "confounded": {"pacemaker": (("heart_size", 0.995),)},
    "mixed": {"pacemaker": (("heart_size", 0.8),)},
}


def place_patient(factors: Factors, height: int, width: int) -> SimpleNamespace:
    """Return the namespace p of a table: factors, coordinates and the heart's deformation."""
    p = SimpleNamespace(**{name: factors[name][:, None, None] for name in factors.world.names})
    p.angle = (len(ANGLES) - 1) * p.rotation
    p.heart = fit_heart(p)
    x, y, p.px = grid(height, width)
    p.x, p.y = (t.expand(len(factors), height, width) for t in (x, y))
    p.vy = pose(p, p.x, p.y)[1]
    p.bx, p.by = to_body(p, p.x, p.y)
    p.tx, p.ty = to_tissue(p, p.bx, p.by)
    return p


def draw(factors: Factors, height: int, width: int) -> Tensor:
    """Draw radiographs (N, 1, height, width) without camera noise."""
    p, table = place_patient(factors, height, width), build_table(height)
    tissue, *air, blurred = look_up(table, table.soft, p.angle, p.tx, p.ty)
    bone = look_up(table, table.bone, p.angle, p.bx, p.by)[0]
    size = mix(0.88, 1.18, p.habitus)
    total = size * tissue + BONE * mix(0.65, 1.40, p.bone_density) * bone
    dense = mix(0.26, -0.08, p.lung_volume)
    total = total + (dense + mix(-0.08, 0.16, p.right_density)) * air[0]
    total = total + (dense + mix(-0.08, 0.16, p.left_density)) * air[1]
    add_haze(p, total, air[0] + air[1], factors)
    add_fluid(p, total, torch.stack(air), factors)
    add_breasts(p, total)
    add_electrodes(p, total, factors)
    add_pacemaker(p, total, factors)
    image = expose(p, total, size * blurred)
    add_marker(p, image)
    collimate(p, image)
    return image[:, None]


def render_masks(factors: Factors, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Return the true masks of the heart and of both lungs, bool (N, 1, H, W) each.

    A pixel belongs to an organ if the organ is thicker than 3 mm there. Other factors, such as
    fluid or devices, hide nothing of a mask.
    """
    height, width = size or factors.world.size
    p, table = place_patient(factors, height, width), build_table(height)
    planes = {"heart": table.heart, "lungs": table.lungs}
    return {
        k: look_up(table, v, p.angle, p.tx, p.ty).movedim(0, 1) >= LEAST for k, v in planes.items()
    }


def cardiothoracic_ratio(heart: Tensor, lungs: Tensor) -> Tensor:
    """Return the width of the heart divided by that of both lungs, (N,); NaN without a mask.

    heart, lungs: masks (N, 1, H, W), bool. Widths are those of the masks' bounding boxes.
    """
    width = []
    for mask in (heart, lungs):
        columns = mask.flatten(1, 2).any(1)  # (N, W)
        at = torch.arange(columns.shape[1]).expand_as(columns)
        last = torch.where(columns, at, -1).amax(1)
        first = torch.where(columns, at, columns.shape[1]).amin(1)
        width.append(torch.where(columns.any(1), last - first + 1, torch.nan))
    return width[0] / width[1]


WORLD = World(
    "radiographs",
    FACTORS,
    LABELS,
    VARIANTS,
    draw,
    size=(64, 64),
    noise=("noise", 0.004, 0.014),
    channels=1,
)
