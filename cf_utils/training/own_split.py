"""Train models on a folder of one's own images: which images train, and which are held out."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from cf_utils import core
from cf_utils.datasets import own_images

LEAST = 32  # images
SHARE = 0.1  # of the images that are held out, within the two bounds
FEWEST_HELD_OUT, MOST_HELD_OUT = 8, 256


def split_images(
    images: str | Path, size: int | None, channels: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Load a folder of images in random order; return those to train on and those held out.

    Both are float32 (N, C, H, W) in [0, 1]. A tenth is held out for the card.

    Args:
        images, size, channels: as in `own_images.load`.

    Raises ValueError for fewer than `LEAST` images.
    """
    data = own_images.load(images, size, channels)
    if len(data) < LEAST:
        raise ValueError(f"--images: got {len(data)} images, expected at least {LEAST}")
    order = core.draw_rows(len(data), len(data), seed)
    n_test = min(max(round(SHARE * len(data)), FEWEST_HELD_OUT), MOST_HELD_OUT)
    train, held_out = (data.take(rows).in_memory().x for rows in (order[n_test:], order[:n_test]))
    return train, held_out
