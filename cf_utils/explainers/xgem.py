"""xGEM: search the latent space of a generative model for the nearest image of another class.

Source: Joshi, Koyejo, Kim & Ghosh, "xGEMs: Generating Examplars to Explain Black-Box Models", 2018,
in the form of Joshi, Koyejo, Vijitbenjaronk, Kim & Ghosh, "Towards Realistic Individual Recourse",
2019, which Singla et al. 2020 compare with:

    min_z  CE(f(D(z)), t) + lambda ||x - D(z)||,  from z = E(x)

The search ends when the target is decided with probability tau (`stop`). Eq. 1 of Kirilenko et al.,
"Generative Models for Counterfactual Explanations", is the same loss with any cost c(x, D(z)) and a
lambda of its own, minimised to the end: `stop=False`.

Decisions:
* lambda is per item, and the norm is a sum over pixels: l1, l2, or squared (l2 squared).
* Adam updates z.
* z alone is optimised. A result may therefore lie far from the prior of the generative model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from cf_utils.core import NAN, Explainer, Ids, PassCounter, SearchResult, check_count, frozen
from cf_utils.explainers.shared import line
from cf_utils.explainers.shared.latent import (
    LatentPasses,
    OptimisedCodes,
    cast_to_model,
    check_output,
    optimise_code,
    reconstruct,
    walk,
)
from cf_utils.explainers.shared.line import Progression
from cf_utils.models.generators.latent import LatentModel

DISTANCES = ("l1", "l2", "squared")


def measure_distance(x: Tensor, y: Tensor, kind: str) -> Tensor:
    """Return ||x - y|| per item, (B,): `l1`, `l2` or `squared`, over all values of an item.

    The gradient of `l2` is 0 where x equals y.
    """
    away = (x - y).flatten(1)
    if kind == "l1":
        return away.abs().sum(1)
    square = away.square().sum(1)
    if kind == "squared":
        return square
    return torch.where(square > 0, square, 1).sqrt() * (square > 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class XGEM(Explainer):
    """Minimise CE(f(D(z)), t) + lam ||x - D(z)|| over the code z, from the code of x.

    x has the shape (B, ...) of the items of `model`, which is on the classifier's device. Each
    state costs one forward and one backward pass of decoder and classifier; encoding costs one more
    forward pass of the generator. A failed item keeps its last state.

    With `path_steps`, `path` holds the query and then the decoded codes of path_steps + 1 points on
    the line from the query's code to the result's. Raises ValueError on settings out of range and
    on x of another shape.
    """

    model: LatentModel = field(repr=False)
    lam: float = 0.01  # lambda, weight of the distance
    distance: str = "l1"  # l1, l2, squared
    steps: int = 200  # the most updates of z
    lr: float = 0.02  # Adam step, in units of z
    stop: bool = True  # an item ends once it reaches tau; False: all steps
    path_steps: int = 0  # states of the path after the reconstruction; 0: no path

    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if a setting is out of range."""
        if self.distance not in DISTANCES:
            raise ValueError(f"distance: got {self.distance!r}, expected one of {DISTANCES}")
        if not (self.lam >= 0 and self.lr > 0):
            raise ValueError(f"lam, lr: got {self.lam}, {self.lr}, expected lam >= 0 and lr > 0")
        check_count("steps", self.steps)
        check_count("path_steps", self.path_steps, least=0)

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Optimise the code of each item."""
        generator = LatentPasses(self.model, len(x))
        with frozen(self.model):
            code = self._encode(generator, x)
            found = self._optimise(f, generator, code, x, target, tau if self.stop else None)
            path = self._decode_line(generator, code, found)
        check_output(found.output, x)
        broken = found.score.isnan().tolist()
        return SearchResult(
            found.output.to(x),
            path=None if path is None else path.to(x),
            path_len=None if path is None else torch.full((len(x),), path.shape[1]),
            reason=[NAN if nan else "" for nan in broken],
            generator=generator.total(),
        )

    def progression(
        self, classifier: nn.Module, x: Tensor, expected: Tensor, end: float = 0.95
    ) -> Progression:
        """Change x (B, ...) until class 1 of two has the wanted probabilities `expected` (B, K).

        Two searches per item, to either class, stop at probability `end`. The images lie on the
        lines from the query's code to the two results; bisection finds the place on the line.
        Raises ValueError on bad input.
        """
        line.check_expected(expected, x)
        self.check(x, expected)
        if not 0 < end < 1:
            raise ValueError(f"end: got {end}, expected a probability inside (0, 1)")
        f, generator = PassCounter(classifier, len(x)), LatentPasses(self.model, len(x))
        with frozen(classifier, self.model):
            code, rows = self._encode(generator, x), torch.arange(len(x))
            with torch.no_grad():
                output = generator.decode(code, rows)
                check_output(output, x)
                logits = f(output, rows)
            ends = []
            for label in (0, 1):
                target = torch.full((len(x),), label, device=x.device)
                ends.append(self._optimise(f, generator, code, x, target, end).code - code)
            whole = torch.ones_like(expected).to(code)
            return line.make_progression(
                f,
                generator,
                code,
                (output, logits),
                expected.to(code),
                (ends[0], ends[1]),
                (whole, whole),
                halvings=10,
            )

    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the reconstruction of x, the first state of the search."""
        return reconstruct(self.model, x)

    @torch.no_grad()
    def _encode(self, generator: LatentPasses, x: Tensor) -> Tensor:
        """Return the codes of x."""
        return generator.encode(cast_to_model(x, self.model), torch.arange(len(x))).detach()

    def _optimise(
        self,
        f: PassCounter,
        generator: LatentPasses,
        code: Tensor,
        x: Tensor,
        target: Tensor,
        tau: float | None,
    ) -> OptimisedCodes:
        """Minimise the loss from `code` on; with tau, only until it is reached."""

        def penalty(output: Tensor, z: Tensor, rows: Tensor) -> Tensor:
            query = x[rows.to(x.device)].to(output)
            check_output(output, query)
            return self.lam * measure_distance(query, output, self.distance)

        return optimise_code(
            f,
            generator,
            code,
            target,
            steps=self.steps,
            lr=self.lr,
            tau=tau,
            penalty=penalty if self.lam else None,
        )

    @torch.no_grad()
    def _decode_line(
        self, generator: LatentPasses, code: Tensor, found: OptimisedCodes
    ) -> Tensor | None:
        """Return the states of the path after the query, or None."""
        if not self.path_steps:
            return None
        share = torch.arange(self.path_steps, device=code.device) / self.path_steps
        states = walk(generator, code, found.code - code, share)
        return torch.cat([states, found.output[:, None]], 1)
