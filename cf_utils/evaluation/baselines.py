"""Anchor rows: what every table of explanations of renders carries beside the methods, made by the same call.

`NoChange` does nothing. `PGD` flips a brittle classifier by noise nobody sees, without a prior: where it scores over 0.1 in
semantic validity, that metric is void. `TrueChange` is the renderer's own answer: the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, Explainer, PassCounter, SearchResult
from cf_utils.core.checks import listed
from cf_utils.evaluation.truth import displacement, true_counterfactuals
from cf_utils.worlds.base import Factors


@dataclass(frozen=True, eq=False, kw_only=True)
class NoChange(Explainer):
    """The query itself."""

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        return SearchResult(x.clone())


@dataclass(frozen=True, eq=False, kw_only=True)
class PGD(Explainer):
    """Projected gradient descent (Madry et al., 2018) inside an L-infinity ball of `eps` around the query: `steps` signed steps
    of 2.5 eps / steps from the query itself, so nothing is drawn."""

    eps: float = 2 / 255
    steps: int = 20

    def check(self, x: Tensor, logits: Tensor) -> None:
        if not self.eps > 0 or self.steps < 1:
            raise ValueError(
                f"eps, steps: got {self.eps}, {self.steps}, expected eps > 0 and steps >= 1"
            )

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        low, high = (torch.as_tensor(b).to(x) for b in self.bounds or (-torch.inf, torch.inf))
        rows, delta = torch.arange(len(x)), torch.zeros_like(x)
        for _ in range(self.steps):
            delta.requires_grad_(True)
            loss = nn.functional.cross_entropy(
                f(torch.clamp(x + delta, low, high), rows), target, reduction="sum"
            )
            step = 2.5 * self.eps / self.steps * f.grad(loss, delta).sign()
            delta = (delta.detach() - step).clamp(-self.eps, self.eps)
        return SearchResult(torch.clamp(x + delta, low, high))


class Renderer(nn.Module):
    """The rows behind a data set's images, as a prepared part of a method (it is described by its hash)."""

    def __init__(self, factors: Factors):
        super().__init__()
        self.factors = factors
        self.register_buffer("values", factors.values)
        self.register_buffer("ids", factors.ids)
        self.place = {one: k for k, one in enumerate(factors.ids.tolist())}

    def rows(self, ids) -> Tensor:
        """Positions of images by their id; ValueError names those that are not there."""
        if lost := [one for one in listed(ids) if one not in self.place]:
            raise ValueError(
                f"ids: {lost[:5]} are in no row of factors; pass the data set's own ids"
            )
        return torch.tensor([self.place[one] for one in listed(ids)])


@dataclass(frozen=True, eq=False, kw_only=True)
class TrueChange(Explainer):
    """The member of the true set that changes the query least, among those with the score where there are any. The passes that
    the renderer's search takes are not counted.

    `scores` (N,), aligned with the renderer's rows: a score an item, for a comparison at an explanation's own; None: tau for all.
    """

    renderer: Renderer = field(repr=False)
    names: Sequence[str]  # factors to try: `truth.used` of the classifier's card
    scores: Tensor | None = field(default=None, repr=False)
    tau: float = 0.9

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        at = self.renderer.rows(ids)
        wanted = (
            torch.full((len(x),), tau, dtype=torch.float64)
            if self.scores is None
            else self.scores[at].double()
        )
        members = true_counterfactuals.search(
            x, target, wanted, self.renderer.factors.take(at), f.module, self.names
        )
        cost = (
            true_counterfactuals.euclid(members.image, x[members.item]).cpu()
            + 1e6 * ~members.reached
        )
        best = (cost == members.least(cost)[members.item]).nonzero().flatten()
        out = x.clone()
        out[members.item[best]] = members.image[best]
        some = set(members.item.tolist())
        return SearchResult(
            out,
            reason=["" if i in some else "no factor alone flips this image" for i in range(len(x))],
        )


def anchors(
    classifier: nn.Module,
    data,
    target: Tensor,
    uses: Mapping,
    scores: Tensor | None = None,
    eps: float = 2 / 255,
    tau: float = 0.9,
) -> dict[str, Counterfactuals]:
    """The three rows for a `datasets.rendered.Rendered`: keys "no change", "PGD", "true". `scores`: an explanation's own."""
    rows = {
        "no change": NoChange(),
        "PGD": PGD(eps=eps),
        "true": TrueChange(
            renderer=Renderer(data.factors),
            names=displacement.used(uses, 0.05),
            scores=scores,
            tau=tau,
        ),
    }
    return {name: explain(classifier, data.x, target, data.ids) for name, explain in rows.items()}
