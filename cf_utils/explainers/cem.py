"""CEM's pertinent negatives, aimed at a class: what to add to x, or remove, to flip the decision.

Source: Dhurandhar, Chen, Luss, Tu, Ting, Shanmugam & Das, "Explanations based on the Missing",
NeurIPS 2018, section 3.1:

    min_d  c max(max_{i != t} z_i - z_t, -kappa) + beta ||d||_1 + ||d||_2^2
           + gamma ||x + d - AE(x + d)||_2^2

Here z are the logits at x + d, and t is the target. Projected FISTA minimises this loss. Let g be
the loss without its L1 term, S the shrinkage operator, and P the projection to the valid range.
Iteration k = 0, 1, ... has step size a_k = lr sqrt(1 - k/steps):

    d' = P[S_beta(y - a_k grad g(y))],    y' = P[d' + k/(k + 3) (d' - d)]

Each try restarts from d = 0 with another c. Until the first success, c is multiplied by 10; after
it, a binary search halves the interval of c. The result is, among the successes of all tries, the
one with the smallest elastic-net distance beta ||d||_1 + ||d||_2^2.

Decisions:
* Targeted: the original accepts any class other than the query's. Here it must be the target t, as
  in the papers that compare with CEM.
* `only_add`: the original lets a pertinent negative only add to the image, that is, raise values.
  Off by default: a wanted class often needs parts removed.
* `threshold`: the paper and its code shrink by beta itself ("paper"). The proximal step of the
  printed loss shrinks by a_k beta ("prox").
* `kappa=None`: success is p_t >= tau. The hinge then uses kappa = logit(tau) + log(K - 1), at least
  0, the smallest margin that guarantees p_t >= tau with K classes. With a number, success needs
  that margin and p_t >= tau.
* With `constraints`, classifier and autoencoder are evaluated at the allowed point nearest to y.
  Their gradient there is applied to y (straight-through). P projects onto the box of values that
  are allowed for the item, and a success is an allowed point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cf_utils.core import Explainer, Ids, PassCounter, SearchResult, frozen
from cf_utils.explainers.shared.fista import FistaItems, FistaResults
from cf_utils.explainers.shared.latent import LatentPasses
from cf_utils.explainers.shared.search import logit_margin, target_score
from cf_utils.models.generators.latent import LatentModel


def shrink(d: Tensor, by: float | Tensor) -> Tensor:
    """Move each element of d towards 0 by `by` >= 0, at most to 0.

    This is the proximal step of by ||d||_1.
    """
    return d.sign() * (d.abs() - by).clamp(min=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class CEM(Explainer):
    """Sparse, small change that raises the target's logit over all others.

    The autoencoder's term keeps the result close to the data. x has shape (B, ...) and lies inside
    `bounds` (None: unbounded). Defaults are the original's for digits.

    Each of the tries * steps iterations costs two forward passes and one backward pass of the
    classifier. It also costs one forward and one backward pass of the autoencoder, which count as
    passes of the generator.

    A failed item keeps the last state of its last try. `path` holds the best state after each try;
    before the first success that is the query.

    Raises ValueError on settings out of range, or on gamma > 0 without an autoencoder.
    """

    # any module that maps x to its reconstruction will do
    autoencoder: LatentModel | None = field(default=None, repr=False)
    steps: int = 1000  # FISTA iterations per try
    tries: int = 9  # values of c per item
    c: float = 10.0  # first weight of the hinge
    lr: float = 0.01  # first step size
    beta: float = 0.1  # weight of ||d||_1
    gamma: float = 100.0  # weight of the autoencoder's squared error; 0: no autoencoder
    kappa: float | None = None  # wanted margin z_t - max z_i, in logits; None: what tau needs
    threshold: str = "paper"  # shrink by beta (paper), or by step size * beta (prox)
    only_add: bool = False  # d >= 0

    keeps_constraints: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError on settings out of range, or on gamma > 0 without an autoencoder."""
        if self.gamma > 0 and self.autoencoder is None:
            raise ValueError(
                f"autoencoder: got None, expected a model, because gamma = {self.gamma}; pass one, "
                "or gamma=0"
            )
        if self.steps < 1 or self.tries < 1:
            raise ValueError(f"steps, tries: got {self.steps}, {self.tries}, expected at least 1")
        negative = min(self.beta, self.gamma, self.kappa or 0.0) < 0
        if self.c <= 0 or self.lr <= 0 or negative:
            raise ValueError(
                f"c, lr, beta, gamma, kappa: got {self.c}, {self.lr}, {self.beta}, {self.gamma}, "
                f"{self.kappa}, expected c and lr above 0 and no negative value"
            )
        if self.threshold not in ("paper", "prox"):
            raise ValueError(f"threshold: got {self.threshold!r}, expected 'paper' or 'prox'")

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        if self.autoencoder is None or self.gamma == 0:
            return self._search_c(f, None, x, target, tau)
        with frozen(self.autoencoder):
            return self._search_c(f, LatentPasses(self.autoencoder, len(x)), x, target, tau)

    def _search_c(
        self, f: PassCounter, generator: LatentPasses | None, x: Tensor, target: Tensor, tau: float
    ) -> SearchResult:
        """Search over c, and within each try by FISTA."""
        state = self._start(x, target)
        found = FistaResults(x, self.tries)
        for n in range(self.tries):
            state.restart()
            for k in range(self.steps):
                broken = self._step(f, generator, state, k, tau)
                if broken.any():
                    found.write_broken(state, broken, n)
                    state.keep(~broken)
                if not len(state):
                    break
            if not len(state):
                break
            state.write(found.path[:, n], state.best)
            state.update_c()
        if len(state):
            largest = self.c * 10.0 ** (self.tries - 1)
            within = "" if self.constraints is None else ", inside the constraints"
            found.write_finished(
                state,
                f"no success in {self.tries} values of c, the largest {largest:.3g}{within}",
            )
        return SearchResult(
            found.result,
            path=found.path,
            path_len=found.n_tries,
            reason=found.reason,
            generator=None if generator is None else generator.total(),
        )

    def _start(self, x: Tensor, target: Tensor) -> FistaItems:
        low, high = (
            torch.as_tensor(b, dtype=x.dtype, device=x.device).expand_as(x)
            for b in self.bounds or (-torch.inf, torch.inf)
        )
        if self.constraints is not None:
            lowest, highest = self.constraints.box(x)
            low, high = torch.maximum(low, lowest), torch.minimum(high, highest)
        distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        return FistaItems(
            rows=torch.arange(len(x)),
            query=x,
            target=target,
            low=x if self.only_add else low,
            high=high,
            point=x,
            y=x,
            allowed=x,
            best=x.clone(),
            distance=distance,
            succeeded=torch.zeros(len(x), dtype=torch.bool, device=x.device),
            c=torch.full_like(distance, self.c),
            c_low=torch.zeros_like(distance),
            c_high=torch.full_like(distance, torch.inf),
        )

    def _step(
        self,
        f: PassCounter,
        generator: LatentPasses | None,
        state: FistaItems,
        k: int,
        tau: float,
    ) -> Tensor:
        """Make FISTA iteration k; return which items have become NaN or infinite, (B,)."""
        size = self.lr * (1 - k / self.steps) ** 0.5
        gradient = self._gradient(f, generator, state, tau)
        d = state.y - state.query
        by = self.beta * (size if self.threshold == "prox" else 1.0)
        d = shrink(d - size * (gradient + 2 * d), by)
        point = state.project(state.query + d)
        state.y = state.project(point + k / (k + 3) * (point - state.point))
        state.point, state.allowed = point, self.snap(point, state.query)
        with torch.no_grad():
            logits = f(state.allowed, state.rows)
        success = self._success(logits, state.target, tau)
        state.keep_best(success, self._elastic_net(state.allowed - state.query))
        return ~(logits.isfinite().all(1) & state.y.flatten(1).isfinite().all(1))

    def _gradient(
        self, f: PassCounter, generator: LatentPasses | None, state: FistaItems, tau: float
    ) -> Tensor:
        """Return the gradient at y of the hinge and of the autoencoder's term."""
        y = self.snap(state.y, state.query).detach().requires_grad_(True)
        hinge = self._hinge(f(y, state.rows), state.target, tau)
        gradient = f.grad((state.c * hinge).sum(), y)
        if generator is None:
            return gradient
        error = _squared_error(generator.reconstruct(y, state.rows), y)
        return gradient.add(generator.reconstruct.grad(error, y), alpha=self.gamma)

    def _wanted_margin(self, n_classes: int, tau: float) -> float:
        """Return kappa, or the margin that guarantees p_t >= tau."""
        if self.kappa is not None:
            return self.kappa
        return max(0.0, math.log(tau / (1 - tau)) + math.log(n_classes - 1))

    def _hinge(self, logits: Tensor, target: Tensor, tau: float) -> Tensor:
        margin = logit_margin(logits, target)
        return (-margin).clamp(min=-self._wanted_margin(logits.shape[1], tau))

    def _success(self, logits: Tensor, target: Tensor, tau: float) -> Tensor:
        margin = logit_margin(logits, target)
        success = (margin > 0) & (target_score(logits, target) >= tau)
        return success if self.kappa is None else success & (margin >= self.kappa)

    def _elastic_net(self, d: Tensor) -> Tensor:
        d = d.flatten(1)
        return self.beta * d.abs().sum(1) + d.square().sum(1)


def _squared_error(reconstruction: Tensor, y: Tensor) -> Tensor:
    if reconstruction.shape != y.shape:
        raise ValueError(
            f"autoencoder: got output of shape {tuple(reconstruction.shape)} for input of shape "
            f"{tuple(y.shape)}, expected the same shape"
        )
    return (y - reconstruction).square().sum()
