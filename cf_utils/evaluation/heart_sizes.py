"""The size of the heart along progressions of radiographs, read from masks.

Source: Singla et al. (ICLR 2020), Section 4.2, Figs. 2, 4a and 4b. The paper segments the query,
registers it with each explanation, and warps the mask. A network that segments each image by itself
is the second way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from cf_utils.evaluation.metrics import response
from cf_utils.evaluation.metrics.segmentation import (
    cardiothoracic_ratio,
    heart_size,
    keep_largest,
    threshold,
)
from cf_utils.evaluation.truth.heart_masks import Masks, Segment, register_masks
from cf_utils.worlds import Factors
from cf_utils.worlds.radiographs_shape import RATIO

LEAST = 0.03  # change of the cardiothoracic ratio from which a share of it is computed


@dataclass(frozen=True, eq=False)
class Hearts:
    """Hearts of B queries and of their progressions of K images. Column 0 is the query.

    Sizes are NaN where no mask was found, or where nothing could segment the images.
    """

    masks: Tensor  # (B, 1 + K, H, W) bool
    size: Tensor  # (B, 1 + K) float64, area as a share of the image
    ratio: Tensor  # (B, 1 + K) float64, cardiothoracic ratio

    def change(self, column: Tensor) -> Tensor:
        """Return the ratio at `column` less that of the query, (B,). column: int64 (B,)."""
        return self.ratio.gather(1, column[:, None])[:, 0] - self.ratio[:, 0]


def segment_hearts(segment: Segment | None, query: Tensor, progression: Tensor) -> Hearts:
    """Segment every image by itself.

    Args:
        segment: images (N, 1, H, W) -> masks of heart and lungs; None: sizes are unknown.
        query: (B, 1, H, W); progression: (B, K, 1, H, W).
    """
    images = torch.cat([query[:, None], progression], 1)
    if segment is None:
        return _unknown(images)
    masks = {k: keep_largest(v) for k, v in segment(images.flatten(0, 1)).items()}
    return _measure(masks, len(query))


def register_hearts(segment: Segment | None, query: Tensor, progression: Tensor) -> Hearts:
    """Segment the queries alone; warp their masks to each explanation, as in the paper.

    Arguments as for `segment_hearts`.
    """
    if segment is None:
        return _unknown(torch.cat([query[:, None], progression], 1))
    k = progression.shape[1]
    own = {organ: keep_largest(v) for organ, v in segment(query).items()}
    before = {organ: v.repeat_interleave(k, 0) for organ, v in own.items()}
    moved = register_masks(query.repeat_interleave(k, 0), progression.flatten(0, 1), before)
    every = {
        organ: torch.cat([own[organ][:, None], moved[organ].unflatten(0, (-1, k))], 1).flatten(0, 1)
        for organ in own
    }
    return _measure(every, len(query))


def true_ratio(factors: Factors) -> Tensor:
    """Return the true cardiothoracic ratio of rendered radiographs, (N,), free of pixels."""
    low, high = RATIO
    return low + (high - low) * factors["heart_size"].double()


def ratio_error(segment: Segment, images: Tensor, factors: Factors) -> float:
    """Return the mean absolute error of the ratio that is read from renders (B, 1, H, W)."""
    read = segment_hearts(segment, images, images[:, None]).ratio[:, 0]
    return (read - true_ratio(factors)).abs().nanmean().item()


def change_share(change: Tensor, reference: Tensor, truth: Tensor, least: float = LEAST) -> Tensor:
    """Change of the cardiothoracic ratio over that of a true counterfactual. (B,), 1 is exact.

    Args:
        change: (B,), measured in the explanations.
        reference: (B,), of the true counterfactuals: `truth`, or measured in the same way as
            `change`, so that errors of the measurement cancel.
        truth: (B,), known. NaN where it is smaller than `least`.
    """
    return torch.where(truth.abs() >= least, change / reference, torch.nan)


def heart_table(hearts: Mapping[str, Hearts], expected: Tensor, missing: str = "") -> pd.DataFrame:
    """Does the heart grow with the condition? Fig. 4a as numbers, one row per way to measure.

    Columns: `rank_correlation`, mean within-query rank correlation of the cardiothoracic ratio with
    the condition; `of_size`, the same for the area; `change`, mean difference of the ratio between
    the last and the first bin; `n`, queries with a value; `note`.

    Args:
        hearts: way to measure -> hearts of the first queries, of all or of fewer.
        expected: (B, K), f(x) + delta. missing: note of rows without any value.
    """
    rows = {}
    for name, heart in hearts.items():
        asked = expected[: len(heart.ratio)]
        within = response.correlation_within(asked, heart.ratio[:, 1:])
        n = int((~within.isnan()).sum())
        rows[name] = {
            "rank_correlation": within.nanmean().item(),
            "of_size": response.correlation_within(asked, heart.size[:, 1:]).nanmean().item(),
            "change": (heart.ratio[:, -1] - heart.ratio[:, 1]).nanmean().item(),
            "n": n,
            "note": "" if n else missing,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _measure(masks: Masks, b: int) -> Hearts:
    """Measure masks (B (1 + K), 1, H, W)."""
    heart, lungs = masks["heart"].cpu(), masks["lungs"].cpu()
    return Hearts(
        threshold(heart)[:, 0].unflatten(0, (b, -1)),
        heart_size(heart).view(b, -1),
        cardiothoracic_ratio(heart, lungs).view(b, -1),
    )


def _unknown(images: Tensor) -> Hearts:
    none = torch.full(images.shape[:2], torch.nan, dtype=torch.float64)
    return Hearts(torch.zeros_like(images[:, :, 0], dtype=torch.bool).cpu(), none, none)
