"""Masks of heart and lungs against the renderer's true masks.

Pairs of radiographs that differ only in the size of the heart show how far a registered mask and
the mask of a network can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils import worlds
from cf_utils.evaluation.metrics.segmentation import cardiothoracic_ratio, dice, register_mask
from cf_utils.worlds import radiographs

Masks = dict[str, Tensor]  # organ -> (N, 1, H, W)
Segment = Callable[[Tensor], Masks]


class HeartPairs(NamedTuple):
    """Radiographs, the same with a heart of another size, and the true masks of both."""

    query: Tensor  # (N, 1, H, W)
    image: Tensor  # (N, 1, H, W), only the heart's size moved
    before: Masks
    after: Masks


def render_pairs(n: int, seed: int = 0, size: tuple[int, int] | None = None) -> HeartPairs:
    """Render n test radiographs, and each again with a heart that is as large as it was small."""
    factors = worlds.get("radiographs").sample(n, "test", seed=seed)
    moved = factors.move("heart_size", 1 - factors["heart_size"])
    query, image = (factors.world.render(table, size) for table in (factors, moved))
    before, after = (radiographs.render_masks(table, size) for table in (factors, moved))
    return HeartPairs(query, image, before, after)


def register_masks(query: Tensor, image: Tensor, before: Masks) -> Masks:
    """Register each query with its image, and warp all of its masks."""
    moved = register_mask(query, image, torch.cat([m.float() for m in before.values()], 1))
    return {organ: moved[:, k : k + 1] for k, organ in enumerate(before)}


def compare_masks(segment: Segment, pairs: HeartPairs) -> dict[str, dict[str, float]]:
    """Compare the masks of the moved images with the true ones, by method.

    Methods: `none`, the query's true mask as it is; `registration` of the query's true mask;
    `unet`, the masks of `segment`; `registered_unet`, registration of the query's masks by
    `segment`, as in the paper.

    Returns per method: `dice_heart` and `dice_lungs`, means; `ratio_error`, mean absolute error of
    the cardiothoracic ratio; `ratio_share`, median of its change as a share of the true change,
    over pairs that change by at least a twentieth.
    """
    own = segment(pairs.query)
    found = {
        "none": (pairs.before, pairs.before),
        "registration": (pairs.before, register_masks(pairs.query, pairs.image, pairs.before)),
        "unet": (own, segment(pairs.image)),
        "registered_unet": (own, register_masks(pairs.query, pairs.image, own)),
    }
    truth, change = _ratio(pairs.after), _ratio(pairs.after) - _ratio(pairs.before)
    large = change.abs() >= 0.05
    table = {}
    for method, (before, after) in found.items():
        ratio = _ratio(after)
        share = ((ratio - _ratio(before)) / change)[large]
        table[method] = {
            "dice_heart": dice(after["heart"], pairs.after["heart"]).mean().item(),
            "dice_lungs": dice(after["lungs"], pairs.after["lungs"]).mean().item(),
            "ratio_error": (ratio - truth).abs().nanmean().item(),
            "ratio_share": share.nanmedian().item(),
        }
    return table


def _ratio(masks: Masks) -> Tensor:
    return cardiothoracic_ratio(masks["heart"], masks["lungs"])
