"""Whether counterfactuals of a generator move the score as wanted, and whether one can see it.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), section 2.4: the criteria "manipulation"
and "observable". All is measured against the reconstruction, the second state of the path, since
the generator alone changes the query as well. Values are NaN where no search took place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.models.classifiers import predict

LEAST_AREA = 9  # pixels
LEAST_CHANGE = 2.0  # standard deviations of the noise


class Manipulation(NamedTuple):
    """The classifier's score of the target along each path; NaN where nothing was searched."""

    scores: Tensor  # (B, K) float64, from the reconstruction to the counterfactual
    moved: Tensor  # (B,) 1 if the last score is above the first, else 0
    monotone: Tensor  # (B,) 1 if no step lowers the score, else 0
    reached: Tensor  # (B,) 1 if the wanted probability was reached, else 0

    def summary(self) -> dict[str, float | int]:
        """Return n, the shares moved, monotone and reached, and the mean final score."""
        means = {k: getattr(self, k).nanmean().item() for k in ("moved", "monotone", "reached")}
        n = int((~self.moved.isnan()).sum())
        return {"n": n, **means, "final_score": self.scores[:, -1].nanmean().item()}


def measure_manipulation(
    classifier: nn.Module, cfs: Counterfactuals, tolerance: float = 1e-3
) -> Manipulation:
    """Classify every state of the paths after the query.

    A step lowers the score if it falls by more than `tolerance`. States in equal steps of the score
    rise by construction: measure `monotone` on a path in equal steps of alpha.

    Raises ValueError for a result without path.
    """
    if cfs.path is None or cfs.path_len is None:
        raise ValueError("cfs: got a result without path, expected the states of a search")
    states = cfs.path[:, 1:]
    n, k = states.shape[:2]
    logits = predict(classifier, states.flatten(0, 1)).double()
    target = cfs.target.repeat_interleave(k)
    scores = logits.softmax(1).gather(1, target[:, None]).view(n, k)
    scores = scores.masked_fill((cfs.path_len < 2)[:, None], torch.nan)
    searched = ~scores.isnan().any(1)

    def where_searched(values: Tensor) -> Tensor:
        return torch.where(searched, values.double(), torch.nan)

    return Manipulation(
        scores,
        where_searched(scores[:, -1] > scores[:, 0]),
        where_searched((scores.diff(dim=1) >= -tolerance).all(1)),
        where_searched(cfs.reached),
    )


def largest_change(
    difference: Tensor, noise_sd: Tensor | float, least: float = LEAST_CHANGE
) -> Tensor:
    """Pixels of the largest connected region with |difference| >= least * noise_sd. (B,) int64.

    Pixels are connected to their eight neighbours within a slice. Higher is easier to see.

    Args: difference (B, C, H, W); noise_sd: of the image's noise, a number or (B,), in its units.
    Raises ValueError if noise_sd is not positive.
    """
    sd = torch.as_tensor(noise_sd, dtype=torch.float64).expand(len(difference))
    if not (sd > 0).all():
        raise ValueError(f"noise_sd: got {sd.min().item()}, expected above 0")
    changed = difference.detach().cpu().double().abs() >= least * sd.cpu()[:, None, None, None]
    areas = [
        max((_largest_part(plane) for plane in planes), default=0) for planes in changed.numpy()
    ]
    return torch.tensor(areas)


def is_observable(difference: Tensor, noise_sd: Tensor | float) -> Tensor:
    """Whether a change of at least 9 connected pixels exceeds twice the noise. (B,) bool."""
    return largest_change(difference, noise_sd) >= LEAST_AREA


def _largest_part(plane: np.ndarray) -> int:
    """Return the number of pixels of the largest connected part of a bool plane (H, W)."""
    parts, n = ndimage.label(plane, structure=np.ones((3, 3)))
    return int(np.bincount(parts.ravel())[1:].max()) if n else 0
