"""Localisation against a voxelwise truth: where a map says the evidence is, and where it is.

Maps and truths are (B, S, H, W): B patients of S slices, which are judged together. Maps are
amounts: take the absolute value of a signed map. All metrics return one value per item, NaN where
the truth is empty; report the mean with n. `within`, bool (B, S, H, W), restricts everything to
some voxels, such as the body, outside of which every method is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from skimage.filters import sobel
from sklearn.metrics import average_precision_score
from torch import Tensor

from cf_utils.core import Ids, item_noise


def auprc(maps: Tensor, truth: Tensor, within: Tensor | None = None) -> Tensor:
    """Area under the precision-recall curve of the map's voxels (average precision). (B,).

    In [0, 1], higher is better; the share of true voxels is the chance level.
    """
    return _per_item(maps, truth, within, lambda m, t: float(average_precision_score(t, m)))


def pointing_hit(maps: Tensor, truth: Tensor, within: Tensor | None = None) -> Tensor:
    """Pointing game (Zhang et al., 2018): whether the map's largest value lies in the truth. (B,).

    Of several largest values, the share that lies in the truth.
    """
    return _per_item(maps, truth, within, lambda m, t: float(t[m == m.max()].mean()))


def mass_at_equal_area(maps: Tensor, truth: Tensor, within: Tensor | None = None) -> Tensor:
    """Share of the map's mass inside the truth, of its largest voxels of the truth's area. (B,).

    In [0, 1], higher is better. A map that is spread over many voxels gains nothing from the rest.
    Voxels that tie at the limit count in parts. 0 for a map that is 0 there.
    """
    return _per_item(maps, truth, within, _mass_at_equal_area)


METRICS: dict[str, Callable[..., Tensor]] = {
    "auprc": auprc,
    "pointing": pointing_hit,
    "mass": mass_at_equal_area,
}


def compare_maps(
    maps: Mapping[str, Tensor | str], truth: Tensor, within: Tensor | None = None
) -> dict[str, dict[str, Tensor]]:
    """Return per map and metric of `METRICS` the values (B,); maps that are strings are left out.

    Compare two maps by `decision.paired_difference` of their values.
    """
    return {
        name: {metric: function(values, truth, within) for metric, function in METRICS.items()}
        for name, values in maps.items()
        if isinstance(values, Tensor)
    }


def reference_maps(x: Tensor, ids: Ids, masks: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return maps that know nothing of the classifier, each like x: baselines for every method.

    `random`: uniform noise per (seed, id). `edges`: the Sobel gradient magnitude of each slice.
    `atlas`: where the disease is on average, the same map for every patient.

    Args: x (B, S, H, W) in [0, 1]; masks: bool (N, S, H, W), true masks of training patients.
    """
    if masks.ndim != 4 or masks.shape[1:] != x.shape[1:] or not len(masks):
        raise ValueError(
            f"masks: got shape {tuple(masks.shape)}, expected (N, *{tuple(x.shape[1:])}) with N > 0"
        )
    edges = np.stack([[sobel(plane) for plane in item] for item in x.detach().cpu().numpy()])
    return {
        "random": item_noise(seed, ids, x.shape[1:], "random map", "uniform").to(x),
        "edges": torch.from_numpy(edges).to(x),
        "atlas": masks.double().mean(0).to(x).expand_as(x),
    }


def _per_item(
    maps: Tensor,
    truth: Tensor,
    within: Tensor | None,
    metric: Callable[[np.ndarray, np.ndarray], float],
) -> Tensor:
    """Apply a metric to the flat map and truth of each item; NaN where the truth is empty."""
    if maps.shape != truth.shape or truth.dtype != torch.bool:
        raise ValueError(
            f"truth: got {truth.dtype} {tuple(truth.shape)}, expected bool {tuple(maps.shape)}"
        )
    if within is not None and (within.shape != truth.shape or within.dtype != torch.bool):
        raise ValueError(
            f"within: got {within.dtype} {tuple(within.shape)}, expected bool {tuple(truth.shape)}"
        )
    if not maps.isfinite().all() or (maps < 0).any():
        raise ValueError("maps: got negative or infinite values, expected finite amounts >= 0")
    values, inside = maps.detach().cpu().double().flatten(1), truth.cpu().flatten(1)
    kept = torch.ones_like(inside) if within is None else within.cpu().flatten(1)
    out = []
    for m, t, w in zip(values, inside, kept, strict=True):
        true = t[w].numpy()
        out.append(metric(m[w].numpy(), true) if true.any() else float("nan"))
    return torch.tensor(out, dtype=torch.float64)


def _mass_at_equal_area(values: np.ndarray, truth: np.ndarray) -> float:
    k = int(truth.sum())
    limit = np.partition(values, -k)[-k]
    above, tied = values > limit, values == limit
    weight = above + tied * (k - above.sum()) / tied.sum()
    mass = values * weight
    return float(mass[truth].sum() / mass.sum()) if mass.sum() > 0 else 0.0
