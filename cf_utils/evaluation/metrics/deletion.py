"""Deletion curve: how fast the decision breaks if the most relevant pixels become noise.

Source: Samek et al. (2016), section III, as adapted by Singla et al. (2020), section 4.3, Fig. 4c:
a growing share of the pixels, in descending order of relevance, is replaced by uniform noise.
Blind spot: noise takes the image off the data's distribution, and a map that scatters its pixels
disturbs a network more than one that covers a region. Show a random map beside every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import Ids, check_query, item_noise
from cf_utils.models.classifiers import predict

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """Response of a classifier to growing deletion, averaged over repeats of the noise."""

    fractions: Tensor  # (F,) float64, share of the pixels replaced, ascending from 0
    probability: Tensor  # (B, F) float64, of the target
    accuracy: Tensor  # (B, F) float64, share of repeats decided as the target

    def __len__(self) -> int:
        return len(self.probability)

    def area(self, of: str = "accuracy") -> Tensor:
        """Mean height of the curve over the fractions (trapezoids). (B,), lower is better."""
        if of not in ("accuracy", "probability"):
            raise ValueError(f"of: got {of!r}, expected 'accuracy' or 'probability'")
        width = self.fractions[-1] - self.fractions[0]
        return torch.trapezoid(getattr(self, of), self.fractions, dim=1) / width


def deletion_curve(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    relevance: Tensor,
    ids: Ids,
    fractions: Sequence[float] = FRACTIONS,
    repeats: int = 3,
    seed: int = 0,
    batch_size: int = 100,
) -> DeletionCurve:
    """Replace the most relevant pixels by U[0, 1) in all channels, and classify.

    Within a repeat, a larger fraction keeps the noise of the smaller one. The noise depends on
    (seed, id) alone and is the same for every map. Ties in a map are broken at random.

    Args:
        x: images (B, C, H, W) in [0, 1].
        target: (B,) int64, the class to watch: the true one, or the decision on the image.
        relevance: (B, H, W), finite; the largest values are deleted first.
        ids: B ids.
        fractions: ascending, from 0, at most 1.

    Costs repeats x len(fractions) forward passes per item.
    """
    ids = _check_call(x, target, relevance, ids, fractions, repeats)
    target, relevance = target.cpu(), relevance.cpu()
    pixels = x.shape[2] * x.shape[3]
    probability = torch.zeros(len(x), len(fractions), dtype=torch.float64)
    accuracy = torch.zeros_like(probability)
    for repeat in range(repeats):
        noise = item_noise(seed, ids, x.shape[1:], f"deletion {repeat}", "uniform").to(x)
        rank = rank_pixels(relevance, ids, seed, repeat)
        for i, fraction in enumerate(fractions):
            deleted = (rank < round(fraction * pixels))[:, None].to(x.device)
            logits = predict(classifier, torch.where(deleted, noise, x), batch_size).cpu().double()
            probability[:, i] += logits.softmax(1).gather(1, target[:, None])[:, 0]
            accuracy[:, i] += (logits.argmax(1) == target).double()
    grid = torch.tensor(fractions, dtype=torch.float64)
    return DeletionCurve(grid, probability / repeats, accuracy / repeats)


def compare_maps(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    maps: Mapping[str, Tensor | str],
    ids: Ids,
    **settings: Any,
) -> dict[str, DeletionCurve | str]:
    """Deletion curve of each map (B, H, W), with equal noise; see `deletion_curve`.

    A string stands for a map that could not be computed, and is returned as it is.
    """
    return {
        name: found
        if isinstance(found, str)
        else deletion_curve(classifier, x, target, found, ids, **settings)
        for name, found in maps.items()
    }


def rank_pixels(relevance: Tensor, ids: Ids, seed: int = 0, repeat: int = 0) -> Tensor:
    """Rank of each pixel by descending relevance, from 0; ties in random order. (B, H, W) int64."""
    flat = relevance.flatten(1)
    noise = item_noise(seed, ids, flat.shape[1:], f"deletion ties {repeat}", "uniform")
    shuffled = noise.argsort(1)
    order = flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(flat.shape[1]).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, shuffled.gather(1, order), positions)
    return rank.view(relevance.shape)


def _check_call(
    x: Tensor, target: Tensor, relevance: Tensor, ids: Ids, fractions: Sequence[float], repeats: int
) -> Ids:
    ids = check_query(x, target, ids, (0.0, 1.0))
    shape = (len(x), *x.shape[2:])
    if x.ndim != 4 or relevance.shape != shape or not bool(relevance.isfinite().all()):
        raise ValueError(
            f"relevance: got {tuple(relevance.shape)} for images {tuple(x.shape)}, expected finite "
            f"{shape}"
        )
    steps = list(fractions)
    ascending = steps == sorted(set(steps))
    if len(steps) < 2 or steps[0] != 0 or steps[-1] > 1 or not ascending:
        raise ValueError(f"fractions: got {steps}, expected 0 and more, ascending, at most 1")
    if repeats < 1:
        raise ValueError(f"repeats: got {repeats}, expected at least 1")
    return ids
