"""Counterfactuals after Wachter et al.: the nearest input with the wanted score, by annealing.

Source: Wachter, Mittelstadt & Russell, "Counterfactual Explanations Without Opening the Black Box",
Harvard J. Law & Tech. 2017:

    min_x' max_lam  lam (f_t(x') - y')^2 + d(x, x')        Eq. 2
    d(x, x') = sum_k |x_k - x'_k| / MAD_k                  Eq. 4; plain L1 without `mad`

Minimise with Adam for a fixed lam, raise lam, continue from there, until f_t(x') is close to y'.
The paper gives no lam, no step size and no tolerance; these numbers are ours. Decisions:
* The tolerance is one-sided, because methods are compared at an equal final score:
  y' = tau + tolerance, at most halfway from tau to 1. An item is done when the state at the end of
  a round is decided as the target with a score of tau or more.
* The result is the nearest of all visited states with that decision and score, not the last state.
* f_t is the softmax probability. Its gradient vanishes on a saturated network, where lam must
  become very large before anything moves. `term="log_odds"` puts the squared error on
  log(p / (1 - p)) instead, with y' on that scale.
* The step size falls linearly to 0 within a round, so that a round ends in a minimum;
  `decay=False` keeps it constant.
* Values stay within `bounds` (`clamp`). With `constraints`, the classifier sees the allowed point
  nearest to x'. Its gradient there is applied to x' (straight-through), so that a whole number can
  cross to the next one. The loss uses the distance of x'; the result is an allowed point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cf_utils.core import NAN, Explainer, Ids, PassCounter, SearchResult, target_score
from cf_utils.explainers.shared.search import Adam, SearchState, log_odds, per_item

TERMS, DISTANCES = ("probability", "log_odds"), ("l1", "l2")


@dataclass(eq=False)
class _State(SearchState):
    """The items still being searched."""

    query: Tensor  # x (B, ...)
    target: Tensor  # t (B,)
    z: Tensor  # x' (B, ...)
    nearest: Tensor  # (B, ...), the nearest state so far that reached tau
    distance: Tensor  # (B,), distance of `nearest`; inf if there is none

    def update_nearest(self, point: Tensor, logits: Tensor, distance: Tensor, tau: float) -> Tensor:
        """Keep points that reach tau and are the nearest so far; return which reach tau, (B,)."""
        reached = logits.argmax(1) == self.target
        reached &= target_score(logits, self.target) >= tau
        nearer = reached & (distance < self.distance)
        torch.where(per_item(nearer, point), point, self.nearest, out=self.nearest)
        torch.where(nearer, distance, self.distance, out=self.distance)
        return reached


@dataclass(frozen=True, eq=False, kw_only=True)
class Wachter(Explainer):
    """Find the nearest input whose target probability is at least tau. x (B, ...) has any shape.

    Each item takes at most rounds * steps gradient passes, and leaves at the end of the round in
    which it is done. `path` holds the state at the end of each round; its last entry is the result.
    A failed item keeps its last state.
    """

    steps: int = 200  # Adam steps per round
    rounds: int = 16  # the most values of lam
    lam: float = 1.0  # weight of the squared error in the first round
    factor: float = 10.0  # lam is multiplied by it after each round
    tolerance: float = 0.02  # y' = tau + tolerance, in units of probability
    lr: float = 0.02  # Adam step at the start of a round, in units of x
    decay: bool = True  # lr falls linearly to 0 within a round
    term: str = "probability"  # scale of the squared error: probability or log_odds
    distance: str = "l1"  # l1: sum |x' - x|; l2: sum (x' - x)^2
    mad: Tensor | None = field(default=None, repr=False)  # (...) > 0, divides differences
    clamp: bool = True  # keep x' within bounds

    keeps_constraints: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if the settings are out of range or do not fit x."""
        for name, known in (("term", TERMS), ("distance", DISTANCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        for name, least in (("steps", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name, least in (("lam", 0), ("lr", 0), ("tolerance", 0), ("factor", 1)):
            if getattr(self, name) <= least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than {least}")
        if self.clamp and self.bounds is None and self.constraints is None:
            raise ValueError(
                "bounds: got None, expected a range for clamp=True; pass bounds, constraints or "
                "clamp=False"
            )
        if self.mad is not None:
            self._check_mad(self.mad, x)

    @staticmethod
    def _check_mad(mad: Tensor, x: Tensor) -> None:
        try:
            fits = torch.broadcast_shapes(mad.shape, x.shape[1:]) == x.shape[1:]
        except RuntimeError:
            fits = False
        if not fits or not (mad.isfinite() & (mad > 0)).all():
            raise ValueError(
                f"mad: got shape {tuple(mad.shape)}, smallest {mad.min():.3g}, expected finite "
                f"values above 0 for items of shape {tuple(x.shape[1:])}; compute them with "
                "core.median_absolute_deviation"
            )

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Minimise Eq. 2 over x' for one lam after another."""
        rows, none = torch.arange(len(x)), torch.full_like(x.flatten(1).sum(1), torch.inf)
        state = _State(rows, x, target, x.clone(), x.clone(), none)
        result, n_rounds, reason = x.clone(), torch.ones_like(rows), [""] * len(x)
        path: list[Tensor] = []
        lam = self.lam
        for r in range(self.rounds):
            self._minimise(f, state, lam, tau)
            point, done, broken = self._end_round(f, state, tau)
            path.append((path[-1] if path else x).clone())
            state.write(path[-1], point)
            state.write(n_rounds, torch.full_like(state.rows, r + 1))
            leave = done | broken if r + 1 < self.rounds else torch.ones_like(done)
            if leave.any():
                found = state.distance.isfinite()
                last = torch.where(per_item(broken, x), state.query, point)
                back = torch.where(per_item(found, x), state.nearest, last)
                for out in (result, path[-1]):
                    state.write(out, back[leave], leave)
                why = f"score below tau after {r + 1} values of lam, the last {lam:.3g}"
                why += "" if self.constraints is None else ", inside the constraints"
                for j in leave.nonzero().flatten().tolist():
                    reason[int(state.rows[j])] = "" if found[j] else NAN if broken[j] else why
                state.keep(~leave)
            if not len(state):
                break
            lam *= self.factor
        return SearchResult(result, path=torch.stack(path, 1), path_len=n_rounds, reason=reason)

    def _minimise(self, f: PassCounter, state: _State, lam: float, tau: float) -> None:
        """Run one round of Adam on lam (f_t(x') - y')^2 + d(x, x')."""
        y = self._aim(tau)
        low, high = self._find_limits(state.query)
        decay = self.decay
        lr = [self.lr * (1 - k / self.steps if decay else 1) for k in range(self.steps)]
        adam = Adam(state.z, lr, self.steps)
        for _ in range(self.steps):
            z = state.z.requires_grad_(True)
            point = self._allow(z, state.query)
            logits = f(point, state.rows)
            distance = self._distance(z, state.query)
            error = (self._score(logits, state.target) - y).square()
            gradient = f.grad((lam * error + distance).sum(), z)
            state.z, point, distance = z.detach(), point.detach(), distance.detach()
            if self.constraints is not None:
                distance = self._distance(point, state.query)
            state.update_nearest(point, logits.detach(), distance, tau)
            adam.step_(state.z, gradient)
            if low is not None and high is not None:
                state.z = torch.maximum(torch.minimum(state.z, high), low)

    def _end_round(
        self, f: PassCounter, state: _State, tau: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the round's last point (B, ...), whether it reaches tau, and whether it is NaN."""
        with torch.no_grad():
            point = self._allow(state.z, state.query)
            logits = f(point, state.rows)
            distance = self._distance(point, state.query)
            done = state.update_nearest(point, logits, distance, tau)
        finite = logits.isfinite().all(1) & state.z.flatten(1).isfinite().all(1)
        return point, done, ~finite

    def _aim(self, tau: float) -> float:
        """Return y' on the scale of the term."""
        y = min(tau + self.tolerance, (1 + tau) / 2)
        if self.term == "probability":
            return y
        return torch.logit(torch.tensor(y, dtype=torch.float64)).item()

    def _find_limits(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the lowest and highest values, which broadcast against x; None without limits."""
        low = high = None
        if self.clamp and self.bounds is not None:
            low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in self.bounds)
        if self.constraints is None:
            return low, high
        least, most = self.constraints.box(x)
        if low is None or high is None:
            return least, most
        return torch.maximum(least, low), torch.minimum(most, high)

    def _allow(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the allowed point nearest to z, with the gradient passed straight through."""
        if self.constraints is None:
            return z
        return self.snap(z.detach(), x) + (z - z.detach())  # adds 0, but passes the gradient

    def _score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return f_t (B,) on the scale of the term."""
        return (target_score if self.term == "probability" else log_odds)(logits, target)

    def _distance(self, z: Tensor, x: Tensor) -> Tensor:
        """Return d(x, x') per item, (B,)."""
        away = z - x if self.mad is None else (z - x) / self.mad.to(x)
        return (away.abs() if self.distance == "l1" else away.square()).flatten(1).sum(1)
