"""Latent shift: move the code of the query along one gradient.

Source: Cohen, Brooks, En, Zucker, Pareek, Lungren & Chaudhari, "Gifsplanation via Latent Shift: A
Simple Autoencoder Approach to Counterfactual Generation for Chest X-rays", MIDL 2021, section 2:

    x'_lambda = D(z + lambda df(D(z))/dz),  z = E(x)

The gradient is taken once, at the query's code. The amount lambda is searched for each item.

Decisions:
* f is the log-odds of the target. Its gradient has the direction of the probability's, for any
  number of classes, but does not vanish where the probability saturates.
* The search starts from the amount at which a linear f would reach tau. It doubles the amount until
  the target is reached or ||z' - z||_2 equals `limit`, and then bisects. The authors' code walks
  in fixed steps until the output has changed by 0.8 or 5 % of the pixels have changed.
* An item that does not reach tau keeps the visited point with the highest score.
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
    cast_to_model,
    check_output,
    reconstruct,
)
from cf_utils.explainers.shared.line import Lines, Progression
from cf_utils.explainers.shared.search import log_odds
from cf_utils.models.generators.latent import LatentModel

FLAT = "gradient of the score is 0 at the query's code"
PATHS = ("amount", "score")


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentShift(Explainer):
    """Shift the code of x along the gradient of the target's log-odds until the score is tau.

    x has the shape (B, ...) of the items of `model`, which is on the classifier's device. Per item,
    the search costs one encoding, one forward and backward pass of decoder and classifier, and one
    forward pass of both for each amount that is tried. The path costs further passes.

    `path` holds the query, the reconstruction and `path_steps` further states; the last one is the
    result. Raises ValueError on settings out of range and on x of another shape.
    """

    model: LatentModel = field(repr=False)
    limit: float = 40.0  # largest ||z' - z||_2
    halvings: int = 10  # steps of bisection
    path_steps: int = 10  # states of the path after the reconstruction
    path_by: str = (
        "amount"  # equal steps of the path: amount, or score (costs a bisection per state)
    )

    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if a setting is out of range."""
        if not self.limit > 0:
            raise ValueError(f"limit: got {self.limit}, expected a number above 0")
        check_count("halvings", self.halvings, least=0)
        check_count("path_steps", self.path_steps)
        if self.path_by not in PATHS:
            raise ValueError(f"path_by: got {self.path_by!r}, expected one of {PATHS}")

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Search the amount of each item."""
        generator = LatentPasses(self.model, len(x))
        with frozen(self.model):
            z, output, logits, gradient = self._differentiate(f, generator, x, target)
            length = gradient.flatten(1).norm(dim=1)
            wanted = torch.full_like(length, tau)
            lines = Lines(f, generator, torch.arange(len(x)), z, gradient, target, wanted)
            begin = lines.judge(output, logits, torch.arange(len(x), device=x.device))
            found = line.start(begin)
            first = self._predict(log_odds(logits, target), wanted, length)
            line.search_amounts(lines, found, first, self._limit(length), self.halvings)
            path = line.split_line(
                lines, begin, found, self.path_steps, self.path_by, self.halvings
            )
        path_len = torch.full((len(x),), path.shape[1])
        return SearchResult(
            found.output.to(x),
            path=path.to(x),
            path_len=path_len,
            reason=self._reasons(begin.finite, found.reached, length),
            generator=generator.total(),
        )

    def progression(self, classifier: nn.Module, x: Tensor, expected: Tensor) -> Progression:
        """Shift x (B, ...) until class 1 of two has the wanted probabilities `expected` (B, K).

        Codes move along the gradient of class 1 where more is wanted than at the reconstruction,
        and against it elsewhere. Raises ValueError on bad input.
        """
        line.check_expected(expected, x)
        self.check(x, expected)
        f, generator = PassCounter(classifier, len(x)), LatentPasses(self.model, len(x))
        with frozen(classifier, self.model):
            ones = torch.ones(len(x), dtype=torch.int64, device=x.device)
            z, output, logits, gradient = self._differentiate(f, generator, x, ones)
            length, expected = gradient.flatten(1).norm(dim=1)[:, None], expected.to(z)
            now = log_odds(logits, ones)[:, None]
            first = self._predict(now, expected, length).abs()
            most = self._limit(length).expand_as(first)
            return line.make_progression(
                f,
                generator,
                z,
                (output, logits),
                expected,
                (-gradient, gradient),
                (first, most),
                self.halvings,
            )

    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the reconstruction of x, the point at amount 0."""
        return reconstruct(self.model, x)

    @torch.enable_grad()
    def _differentiate(
        self, f: PassCounter, generator: LatentPasses, x: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return z, D(z), the logits f(D(z)) and the gradient of the target's log-odds in z.

        Gradients that are not finite are 0.
        """
        rows = torch.arange(len(x))
        with torch.no_grad():
            code = generator.encode(cast_to_model(x, self.model), rows)
        z = code.detach().requires_grad_(True)
        output = generator.decode(z, rows)
        check_output(output, x)
        point = output.detach().requires_grad_(True)
        logits = f(point, rows)
        upstream = f.grad(log_odds(logits, target).sum(), point)
        gradient = generator.decode.grad((output * upstream).sum(), z)
        return z.detach(), output.detach(), logits.detach(), gradient.nan_to_num(0, 0, 0)

    def _predict(self, now: Tensor, wanted: Tensor, length: Tensor) -> Tensor:
        """Return the amount at which linear log-odds, `now` at amount 0, give `wanted`."""
        away = torch.logit(wanted, eps=1e-6) - now
        return (away / length.square()).nan_to_num(0, 0, 0)

    def _limit(self, length: Tensor) -> Tensor:
        """Return the amount at the largest distance; 0 where the gradient is 0."""
        return torch.where(length > 0, self.limit / length, torch.zeros_like(length))

    def _reasons(self, finite: Tensor, reached: Tensor, length: Tensor) -> list[str]:
        """Return the failure reason per item."""
        far = f"score below tau up to distance {self.limit:g} in the latent space"
        reasons = [FLAT if flat else far for flat in (length == 0).tolist()]
        reasons = [r if ok else NAN for r, ok in zip(reasons, finite.tolist(), strict=True)]
        return ["" if ok else r for r, ok in zip(reasons, reached.tolist(), strict=True)]
