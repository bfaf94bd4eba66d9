"""Baselines that every table of explanations shows beside the methods; they are explainers, too.

* `NoChange` returns the query.
* `PGD` flips a brittle classifier by imperceptible noise. If its semantic validity exceeds 0.1,
  that metric is void.
* `TrueChange` is the renderer's own counterfactual, the reference for worlds with known factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, Explainer, Ids, PassCounter, SearchResult
from cf_utils.core.checks import to_list
from cf_utils.datasets.rendered import Rendered
from cf_utils.evaluation.truth import displacement, true_counterfactuals
from cf_utils.worlds import Factors


@dataclass(frozen=True, eq=False, kw_only=True)
class NoChange(Explainer):
    """The query itself, unchanged."""

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        return SearchResult(x.clone())


@dataclass(frozen=True, eq=False, kw_only=True)
class PGD(Explainer):
    """Projected gradient descent in an L-infinity ball around the query.

    Source: Madry et al. (2018). Deviation: starts at the query instead of a random point, with
    signed steps of 2.5 eps / steps, so the result is deterministic.
    """

    needs_gradient: ClassVar[bool] = True

    eps: float = 2 / 255  # radius of the ball, in x's units
    steps: int = 20  # updates

    def check(self, x: Tensor, logits: Tensor) -> None:
        if not self.eps > 0 or self.steps < 1:
            raise ValueError(
                f"eps, steps: got {self.eps}, {self.steps}, expected eps > 0 and steps >= 1"
            )

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        low, high = (torch.as_tensor(b).to(x) for b in self.bounds or (-torch.inf, torch.inf))
        rows, delta = torch.arange(len(x)), torch.zeros_like(x)
        for _ in range(self.steps):
            delta.requires_grad_(True)
            logits = f(torch.clamp(x + delta, low, high), rows)
            loss = nn.functional.cross_entropy(logits, target, reduction="sum")
            step = 2.5 * self.eps / self.steps * f.grad(loss, delta).sign()
            delta = (delta.detach() - step).clamp(-self.eps, self.eps)
        return SearchResult(torch.clamp(x + delta, low, high))


class Renderer(nn.Module):
    """Finds the factors behind a data set's images by id; a prepared part of `TrueChange`."""

    values: Tensor
    ids: Tensor

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors
        self.register_buffer("values", factors.values)  # buffers enter the explainer's hash
        self.register_buffer("ids", factors.ids)
        self.position = {i: row for row, i in enumerate(factors.ids.tolist())}

    def rows(self, ids: Ids) -> Tensor:
        """Return the positions (B,) of ids; raise ValueError naming those that are unknown."""
        wanted = to_list(ids)
        if unknown := [i for i in wanted if i not in self.position]:
            raise ValueError(
                f"ids: got {unknown[:5]}, which no row of factors has; pass the data set's own ids"
            )
        return torch.tensor([self.position[i] for i in wanted])


@dataclass(frozen=True, eq=False, kw_only=True)
class TrueChange(Explainer):
    """The true counterfactual nearest to the query, preferring those with the wanted score.

    The passes of the renderer's search are not counted.
    """

    renderer: Renderer = field(repr=False)
    names: Sequence[str]  # factors to try: `displacement.used_factors` of the classifier's card
    # Wanted probability per row of the renderer, (N,): a method's own scores; None: tau.
    scores: Tensor | None = field(default=None, repr=False)
    tau: float = 0.9

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        at = self.renderer.rows(ids)
        wanted = torch.full((len(x),), tau, dtype=torch.float64)
        if self.scores is not None:
            wanted = self.scores[at].double()
        factors = self.renderer.factors.take(at)
        members = true_counterfactuals.search(x, target, wanted, factors, f.module, self.names)
        distance = true_counterfactuals.euclidean_distance(members.image, x[members.item]).cpu()
        cost = distance + 1e6 * ~members.reached
        best = (cost == members.minimum(cost)[members.item]).nonzero().flatten()
        out = x.clone()
        out[members.item[best]] = members.image[best]
        found = set(members.item.tolist())
        reason = "no factor alone flips this image"
        return SearchResult(out, reason=["" if i in found else reason for i in range(len(x))])


def baseline_rows(
    classifier: nn.Module,
    data: Rendered,
    target: Tensor,
    uses: displacement.Uses,
    scores: Tensor | None = None,
    eps: float = 2 / 255,
    tau: float = 0.9,
) -> dict[str, Counterfactuals]:
    """Explain rendered images by the baselines; keys "no change", "PGD" and "true".

    Args:
        target: (B,) int64.
        uses: `quality.uses` of the classifier's model card.
        scores: (B,), probabilities that the true change must reach, such as the scores of the
            explanation under test; None: tau.
        eps: radius of PGD.
    """
    names = displacement.used_factors(uses, 0.05)
    renderer = Renderer(data.factors)
    explainers = {
        "no change": NoChange(),
        "PGD": PGD(eps=eps),
        "true": TrueChange(renderer=renderer, names=names, scores=scores, tau=tau),
    }
    return {
        name: explain(classifier, data.x, target, data.ids) for name, explain in explainers.items()
    }
