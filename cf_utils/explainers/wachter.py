"""Counterfactuals after Wachter et al.: the nearest input with the wanted score, the score's weight raised until it is met.

Source: Wachter, Mittelstadt & Russell, "Counterfactual Explanations Without Opening the Black Box", Harvard J. Law & Tech. 2017:

    min_x' max_lam  lam (f_t(x') - y')^2 + d(x, x')        Eq. 2
    d(x, x') = sum_k |x_k - x'_k| / MAD_k                   Eq. 4; unweighted L1 where no `mad` is given

Minimise by Adam for a fixed lam, raise lam, go on from there, until |f_t(x') - y'| <= tolerance. The paper gives no lam, no
step size and no tolerance; the numbers here are ours. Decisions:
* All methods here are compared at an equal final score, so the tolerance is laid on one side: y' = tau + tolerance (at most
  halfway from tau to 1), and an item is done when a round ends with the target decided and its score at tau or above.
* What comes back is the nearest state met on the way with that decision and score, not the last one.
* f_t is the softmax probability, literally. On a saturated network its gradient carries p (1 - p), about 1e-8 for a clear
  digit: nothing moves until lam is of the inverse order, then everything moves at once and too far, and raising lam can no
  longer bring it back. `term="log_odds"` lays the squared error on log(p / (1 - p)) instead, with y' there too (the same
  decision, f being any score in the paper). It is an option, not the default: on 30 embedded digits at 60 steps a round it
  reached tau = 0.9 for all with a mean L1 of 23, the literal term for 28 with 87.
* The step size falls linearly to zero within a round, for a round is to end in a minimum: under a constant one each of n
  features goes on jumping by lr, which the L1 distance counts n times. `decay=False` leaves it constant.
* Values are kept inside `bounds` (`clamp`); the paper discusses only fixed features. With `constraints` the classifier is
  asked at the allowed point next to the free variable and its gradient there is applied to that variable (straight through),
  so that a whole number can cross from one to the next. Distance pulls on the free variable; what is kept is the allowed point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cf_utils.core import NAN, Explainer, PassCounter, SearchResult

TERMS, DISTANCES = ("probability", "log_odds"), ("l1", "l2")


@dataclass(frozen=True, eq=False, kw_only=True)
class Wachter(Explainer):
    """The nearest input found whose target probability is at least tau, by annealed lam. x (B, ...) of any shape.

    At most rounds * steps gradient passes an item; an item that is done leaves at the end of its round. `path` holds the
    state at the end of each round, so its length says how often lam was raised; its last entry is the result. An item that
    fails comes back in its last state. Raises ValueError on settings out of range or a `mad` that does not fit x.
    """

    steps: int = 200  # Adam steps for each lam
    rounds: int = 16  # values of lam at most
    lam: float = 1.0  # the first one
    factor: float = 10.0  # lam is multiplied by it while the score is not met
    tolerance: float = 0.02  # y' = tau + tolerance, in units of probability
    lr: float = 0.02  # Adam step, in units of x, at the start of a round
    decay: bool = True  # lr falls linearly to 0 within a round
    term: str = "probability"  # squared error of what: probability, or log_odds
    distance: str = "l1"  # l1: sum |x' - x|; l2: sum (x' - x)^2
    mad: Tensor | None = field(
        default=None, repr=False
    )  # (...) > 0: differences are divided by it, feature by feature
    clamp: bool = True  # keep x' inside bounds

    keeps_constraints: ClassVar[bool] = True

    @classmethod
    def recommended(cls, **changes) -> Wachter:
        """For digits: log-odds and 60 steps a round, about 260 passes an item (487 at most)."""
        return cls(
            **(
                {
                    "term": "log_odds",
                    "steps": 60,
                    "rounds": 8,
                    "lam": 0.1,
                    "factor": 4.0,
                    "lr": 0.05,
                }
                | changes
            )
        )

    @classmethod
    def tables(cls, mad: Tensor | None, **changes) -> Wachter:
        """For tables (B, F): L1 in units of `mad` (core.median_absolute_deviation of the scaled training rows).

        480 passes a row on a credit MLP of 23 features (UCI, 300 test rows: all valid, 1.5 features changed by 0.001 or more;
        with 60 steps of 0.05, as for digits, Adam's last jumps leave 9.5).
        Without `bounds` values are free: the range comes by `constraints`, or there is none, as in the paper.
        """
        own = {
            "mad": mad,
            "bounds": None,
            "clamp": changes.get("bounds") is not None,
            "term": "log_odds",
            "steps": 100,
            "rounds": 12,
            "lam": 0.3,
            "factor": 3.0,
            "lr": 0.02,
        }
        return cls(**(own | changes))

    def check(self, x, logits):
        for name, known in (("term", TERMS), ("distance", DISTANCES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        if self.steps < 1 or self.rounds < 1:
            raise ValueError(f"steps, rounds: got {self.steps}, {self.rounds}, expected at least 1")
        if self.lam <= 0 or self.lr <= 0 or self.factor <= 1 or self.tolerance <= 0:
            raise ValueError(
                f"lam, lr, tolerance, factor: got {self.lam}, {self.lr}, {self.tolerance}, {self.factor}, "
                "expected positive ones and a factor over 1"
            )
        if self.clamp and self.bounds is None and self.constraints is None:
            raise ValueError(
                "bounds: None, but clamp needs a range (or clamp=False, or constraints)"
            )
        if self.mad is not None:
            try:
                fits = torch.broadcast_shapes(self.mad.shape, x.shape[1:]) == x.shape[1:]
            except RuntimeError:
                fits = False
            if not fits or not (self.mad.isfinite() & (self.mad > 0)).all():
                raise ValueError(
                    f"mad: got shape {tuple(self.mad.shape)}, smallest {self.mad.min():.3g}, expected finite, > 0 "
                    f"and for items of shape {tuple(x.shape[1:])}"
                )

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        aim = min(tau + self.tolerance, (1 + tau) / 2)
        goal = (
            torch.logit(torch.tensor(aim, dtype=torch.float64)).item()
            if self.term == "log_odds"
            else aim
        )
        scale = None if self.mad is None else self.mad.to(x)
        low, high = self._walls(x)
        wide = (-1, *[1] * (x.ndim - 1))

        result, n_rounds, reason = x.clone(), torch.ones(len(x), dtype=torch.int64), [""] * len(x)
        path, within = [], "" if self.constraints is None else ", inside the constraints"
        rows = torch.arange(len(x))  # still searched; all below is theirs
        q, t, z = x, target[:, None], x.clone()
        best, nearest = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        lam = self.lam
        for r in range(self.rounds):
            m, v = torch.zeros_like(z), torch.zeros_like(z)
            for k in range(1, self.steps + 1):
                z.requires_grad_(True)
                y = self._asked(z, q)
                logits = f(y, rows)
                dist = self._distance(z, q, scale)
                g = f.grad((lam * (self._score(logits, t) - goal).square() + dist).sum(), z)
                z, y = z.detach(), y.detach()
                away = dist.detach() if self.constraints is None else self._distance(y, q, scale)
                _keep(y, logits.detach(), away, t, tau, best, nearest, wide)
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                size = self.lr * (1 - (k - 1) / self.steps if self.decay else 1) / (1 - 0.9**k)
                z = z.addcdiv(m, (v / (1 - 0.999**k)).sqrt_().add_(1e-8), value=-size)
                if low is not None:
                    z = torch.maximum(torch.minimum(z, high), low)
            with torch.no_grad():  # the state that this lam's minimisation ended in
                y = self._asked(z, q)
                logits = f(y, rows)
                done = _keep(y, logits, self._distance(y, q, scale), t, tau, best, nearest, wide)
            broken = ~(logits.isfinite().all(1) & z.flatten(1).isfinite().all(1))
            path.append((path[-1] if path else x).clone())
            path[-1][rows.to(x.device)] = y
            n_rounds[rows] = r + 1
            leave = done | broken if r + 1 < self.rounds else torch.ones_like(done)
            if leave.any():
                found = nearest.isfinite()
                back = torch.where(found.view(wide), best, torch.where(broken.view(wide), q, y))
                out = rows[leave.cpu()]
                result[out.to(x.device)] = path[-1][out.to(x.device)] = back[leave]
                for i, ok, bad in zip(
                    out.tolist(), found[leave].tolist(), broken[leave].tolist(), strict=True
                ):
                    reason[i] = (
                        ""
                        if ok
                        else NAN
                        if bad
                        else (
                            f"score below tau after {r + 1} values of lam, the last {lam:.3g}{within}"
                        )
                    )
                stay = ~leave
                rows, (q, t, z, best, nearest) = (
                    rows[stay.cpu()],
                    (s[stay] for s in (q, t, z, best, nearest)),
                )
                if self.constraints is not None:
                    low, high = low[stay], high[stay]
                if not len(rows):
                    break
            lam *= self.factor
        return SearchResult(result, path=torch.stack(path, 1), path_len=n_rounds, reason=reason)

    def _walls(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Lowest and highest value: (), (F,) or like one row where only bounds hold, (B, F) under constraints; None: no walls."""
        low = high = None
        if self.clamp and self.bounds is not None:
            low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in self.bounds)
        if self.constraints is None:
            return low, high
        least, most = self.constraints.box(x)
        return (
            (least, most) if low is None else (torch.maximum(least, low), torch.minimum(most, high))
        )

    def _asked(self, z: Tensor, x: Tensor) -> Tensor:
        """Where the classifier is asked: at z, or at the allowed point next to it, with the gradient passed straight through."""
        return (
            z if self.constraints is None else self.snap(z.detach(), x) + (z - z.detach())
        )  # the bracket is exactly 0

    def _score(self, logits: Tensor, t: Tensor) -> Tensor:
        """f_t (B,): the target's probability, or its log-odds z_t - log sum_{i != t} exp z_i, which do not saturate."""
        if self.term == "probability":
            return logits.softmax(1).gather(1, t)[:, 0]
        return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).logsumexp(1)

    def _distance(self, z: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
        """d(x, x') of each item (B,)."""
        away = z - x if scale is None else (z - x) / scale
        return (away.abs() if self.distance == "l1" else away.square()).flatten(1).sum(1)


def _keep(
    z: Tensor,
    logits: Tensor,
    dist: Tensor,
    t: Tensor,
    tau: float,
    best: Tensor,
    nearest: Tensor,
    wide,
) -> Tensor:
    """Which rows decide the target at tau or above (B,); those nearer than ever are written into `best` and `nearest`."""
    hit = (logits.argmax(1) == t[:, 0]) & (logits.softmax(1).gather(1, t)[:, 0] >= tau)
    nearer = hit & (dist < nearest)
    torch.where(nearer.view(wide), z, best, out=best)
    torch.where(nearer, dist, nearest, out=nearest)
    return hit
