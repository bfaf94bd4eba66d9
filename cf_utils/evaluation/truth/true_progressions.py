"""True progressions: the renderer moves one factor until the classifier gives each wanted output.

They state how far a factor has to change for a given output, so that the change in an explanation
can be compared with it, bin by bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cf_utils.evaluation.metrics import response
from cf_utils.worlds import Factors


@dataclass(frozen=True, eq=False)
class TrueProgression:
    """B queries, each rendered K times with one factor moved."""

    value: Tensor  # (B, K), of the factor
    factors: Factors  # (B K), K rows per query
    images: Tensor  # (B, K, C, H, W)


def find_values(
    factors: Factors, classifier: nn.Module, wanted: Tensor, name: str, grid: int = 17
) -> Tensor:
    """Find the value of a factor at which the classifier gives a wanted output.

    The classifier is evaluated on a grid of values and at the query's own. Between two of them, its
    logit is taken as linear. Of several solutions the one nearest to the query's own value is
    returned. If the classifier gives the output nowhere, the value with the nearest output is.

    Args:
        factors: (B) rows of the queries.
        classifier: images -> logits (B, 2); its output is the probability of class 1.
        wanted: (B, K), in [0, 1].
        name: a continuous or binary factor.
        grid: number of equidistant values.

    Returns: (B, K) float64 in [0, 1].
    """
    if wanted.ndim != 2 or len(wanted) != len(factors):
        raise ValueError(f"wanted: got {tuple(wanted.shape)}, expected ({len(factors)}, K)")
    own = factors[name].double()[:, None]
    regular = torch.linspace(0, 1, grid).double().expand(len(own), -1)
    at = torch.cat([regular, own], 1).sort(1).values  # (B, G)
    outputs = [
        response.respond(classifier, factors.world.render(factors.move(name, column)))
        for column in at.float().unbind(1)
    ]
    logit = _logit(torch.stack(outputs, 1))[:, :, None]  # (B, G, 1)
    goal = _logit(wanted)[:, None]  # (B, 1, K)
    share = (goal - logit[:, :-1]) / (logit[:, 1:] - logit[:, :-1])  # (B, G - 1, K)
    value = at[:, :-1, None] + share * at.diff(dim=1)[:, :, None]
    crosses = (share >= 0) & (share <= 1)  # False for 0 / 0
    nearest = torch.where(crosses, (value - own[:, :, None]).abs(), torch.inf).argmin(1, True)
    found = value.gather(1, nearest)[:, 0]
    tie = 1e-9 * (at - own).abs()[:, :, None]
    closest = at.gather(1, ((logit - goal).abs() + tie).argmin(1))
    return torch.where(crosses.any(1), found, closest)


def render_progression(
    factors: Factors, classifier: nn.Module, wanted: Tensor, name: str, grid: int = 17
) -> TrueProgression:
    """Render the queries with the factor moved to where the classifier gives each wanted output.

    Arguments as for `find_values`.
    """
    value = find_values(factors, classifier, wanted, name, grid)
    b, k = value.shape
    rows = torch.arange(b).repeat_interleave(k)
    moved = factors.take(rows).move(name, value.flatten().clamp(0, 1).float())
    parts = [moved.world.render(moved.take(at)) for at in torch.arange(b * k).split(500)]
    return TrueProgression(value, moved, torch.cat(parts).unflatten(0, (b, k)))


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p.detach().cpu().double(), eps=1e-7)
