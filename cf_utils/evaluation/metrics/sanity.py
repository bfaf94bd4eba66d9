"""Sanity check: explanations must change if the classifier's weights are randomised.

Source: Adebayo et al., Sanity Checks for Saliency Maps (NeurIPS 2018), section 3, the cascading
randomisation: the weights of the top layer become random, then those of the next one as well, and
so on down to the first. A map that stays similar does not depend on what the classifier learned.
A method with a trained generator depends on the classifier through its training only: train it for
the randomised classifier, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor, nn


def layers_from_top(classifier: nn.Module) -> list[str]:
    """Names of the modules that own parameters, the last defined first.

    The order is that of definition, which for the project's classifiers is that of the pass.
    """
    own = [name for name, m in classifier.named_modules() if list(m.parameters(recurse=False))]
    return own[::-1]


def randomise_cascading(
    classifier: nn.Module, seed: int = 0, how: str = "initial"
) -> Iterator[tuple[str, nn.Module]]:
    """Yield a copy of the classifier per layer, with this layer and all above it randomised.

    The classifier and torch's global generator stay unchanged.

    Args:
        how: "initial" draws new initial weights by `reset_parameters`, as published, and resets
            the statistics of batch normalisation. "permuted" shuffles the values within each
            tensor of weights, so that the responses keep about their scale.

    Yields: name of the layer, and the copy, in the mode of the classifier.
    """
    if how not in ("initial", "permuted"):
        raise ValueError(f"how: got {how!r}, expected 'initial' or 'permuted'")
    current = classifier
    for number, name in enumerate(layers_from_top(classifier)):
        current = copy.deepcopy(current)
        layer = current.get_submodule(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            _reset(name, layer) if how == "initial" else _permute(layer)
        yield name, current


def _reset(name: str, layer: nn.Module) -> None:
    reset: Any = getattr(layer, "reset_parameters", None)
    if reset is None:
        raise ValueError(
            f"classifier: layer {name!r}, a {type(layer).__name__}, has no reset_parameters; use "
            "how='permuted'"
        )
    reset()


@torch.no_grad()
def _permute(layer: nn.Module) -> None:
    for p in layer.parameters(recurse=False):
        order = torch.randperm(p.numel())
        p.copy_(p.flatten()[order.to(p.device)].view_as(p))


def map_similarity(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Similarity of two relevance maps of each item. Each (B,) float64; 1 for equal maps.

    * rank_correlation: Spearman's over pixels, in [-1, 1].
    * ssim: structural similarity (Wang et al., 2004) of the maps scaled to [0, 1], in [-1, 1].

    NaN where a map is constant or not finite.

    Args: a, b: (B, H, W), at least 7 x 7 pixels.
    """
    if a.shape != b.shape or a.ndim != 3 or min(a.shape[1:]) < 7:
        raise ValueError(
            f"a, b: got {tuple(a.shape)}, {tuple(b.shape)}, expected two (B, H, W), 7 x 7 or more"
        )
    pairs = zip(a.detach().cpu().double().numpy(), b.detach().cpu().double().numpy(), strict=True)
    rows = [_compare(one, other) for one, other in pairs]
    found = torch.tensor(rows, dtype=torch.float64).view(-1, 2)
    return {"rank_correlation": found[:, 0], "ssim": found[:, 1]}


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    spans = [np.ptp(m) for m in (a, b)]
    if not np.isfinite(spans).all() or min(spans) == 0:
        return float("nan"), float("nan")
    ranks = np.corrcoef(*(rankdata(m) for m in (a, b)))[0, 1]
    scaled = [(m - m.min()) / span for m, span in zip((a, b), spans, strict=True)]
    return float(ranks), float(structural_similarity(*scaled, data_range=1.0))


def sanity_check(
    explain: Callable[[nn.Module], Tensor],
    classifier: nn.Module,
    seed: int = 0,
    how: str = "initial",
) -> pd.DataFrame:
    """Compare the maps of a classifier with those of its cascading randomisation.

    Args: explain: classifier -> maps (B, H, W) of the same images.
    Returns: one row per layer from the top: layer, rank_correlation, ssim (means over the items
        that have a value) and n, their number. The first row, "none", is 1 by definition if
        `explain` is deterministic.
    """
    original, rows = explain(classifier), []
    copies = randomise_cascading(classifier, seed, how)
    for name, model in (("none", classifier), *copies):
        found = map_similarity(original, explain(model))
        row = {key: values.nanmean().item() for key, values in found.items()}
        rows.append({"layer": name, **row, "n": int(found["ssim"].isfinite().sum())})
    return pd.DataFrame(rows)
