"""CEM's pertinent negatives, aimed at a class: what to add to x (here also to remove) so that it is decided otherwise.

Source: Dhurandhar, Chen, Luss, Tu, Ting, Shanmugam & Das, "Explanations based on the Missing", NeurIPS 2018, section 3.1:

    min_d  c max(max_{i != t} z_i - z_t, -kappa) + beta ||d||_1 + ||d||_2^2 + gamma ||x + d - AE(x + d)||_2^2

by projected FISTA, k = 0, 1, ...; S is the shrinkage operator, P the projection to the valid range, a_k = lr sqrt(1 - k/steps):

    d' = P[S_beta(y - a_k grad g(y))],    y' = P[d' + k/(k + 3) (d' - d)]

and a binary search over c, each try from d = 0: halve the interval after a success, times 10 while none is known. What comes
back is the success with the smallest elastic-net distance beta ||d||_1 + ||d||_2^2 of all tries. Decisions:
* Targeted. The original leaves the class of the query for whatever class is nearest (max_{i = s} z_i - max_{i != s} z_i);
  here target t is asked for, as its rival papers do when they compare with it.
* `only_add`: the original lets a pertinent negative only add to the image (x + d further from the blank value, the lower
  bound). Off by default: a wanted class often needs strokes removed, and the figures we compare with show both.
* `threshold`: the paper (and its code) shrink by beta itself, not by a_k beta. The loss that is truly minimised then weighs
  ||d||_1 by beta / a_k: 10 to infinity in place of 0.1. "paper" is the default; "prox" shrinks by a_k beta, the printed loss
  (30 embedded digits, 250 steps, gamma 10: 75 pixels changed by over 0.05 and L1 29 under "paper", 267 and 74 under "prox").
* `kappa=None`: success is p_t >= tau, and the hinge pulls to kappa = logit(tau) + log(K - 1), the least margin that is sure
  to give p_t >= tau with K classes (exact for K = 2), never under 0. With a number, success asks for that margin and tau.
* With `constraints` the classifier and the autoencoder are asked at the allowed point next to y, their gradient there moves y
  itself (straight through), P projects into each row's box, and a success is counted and kept at the allowed point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from cf_utils.core import NAN, Explainer, PassCounter, SearchResult, frozen


def shrink(d: Tensor, by: float | Tensor) -> Tensor:
    """S_by(d), the proximal step of by * ||d||_1: each element moves towards 0 by `by` (>= 0) and stops there."""
    return d.sign() * (d.abs() - by).clamp(min=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class CEM(Explainer):
    """Sparse, small change d that raises the target's logit over all others; an autoencoder keeps it data-like.

    x (B, ...) inside `bounds` (None: unbounded). Defaults are the original's for MNIST. tries * steps iterations an item:
    two forward and one backward pass of the classifier, one each of the autoencoder. Generator counts are the autoencoder's.
    An item that fails comes back in the last state of its last try. `path` holds the best state after each try (the query
    before the first success). Raises ValueError on settings out of range, or gamma > 0 without an autoencoder.
    """

    autoencoder: nn.Module | None = field(
        default=None, repr=False
    )  # x (B, ...) -> reconstruction of the same shape
    steps: int = 1000  # FISTA iterations of a try
    tries: int = 9  # values of c for each item
    c: float = 10.0  # the first one
    lr: float = 0.01  # first step size; falls as the square root of what is left
    beta: float = 0.1  # weight of ||d||_1
    gamma: float = 100.0  # weight of the autoencoder's error; 0: none needed
    kappa: float | None = None  # wanted margin z_t - max z_i, in logits; None: what tau asks for
    threshold: str = "paper"  # shrink by beta (paper), or by step size * beta (prox)
    only_add: bool = False  # d >= 0

    keeps_constraints: ClassVar[bool] = True

    @classmethod
    def recommended(cls, autoencoder: nn.Module | None, **changes) -> CEM:
        """For digits, 500 forward and 250 backward passes an item. gamma 10: with 100 a step of 0.01 is 2 / (2 gamma), the edge
        of stability of its quadratic term, and 50 steps end further from the autoencoder's images than they began."""
        return cls(autoencoder=autoencoder, **({"steps": 50, "tries": 5, "gamma": 10.0} | changes))

    @classmethod
    def tables(cls, autoencoder: nn.Module | None = None, **changes) -> CEM:
        """For tables (B, F), without the term of an autoencoder unless one is given.

        1,200 forward and 600 backward passes a row (UCI credit MLP, 500 test rows: all valid, 1.4 features changed by 0.001 or
        more; 3.6 with the threshold "prox").
        Without `bounds` values are free: the range comes by `constraints`, or there is none, as in the paper.
        """
        return cls(
            autoencoder=autoencoder,
            **(
                {
                    "bounds": None,
                    "steps": 100,
                    "tries": 6,
                    "gamma": 0.0 if autoencoder is None else 10.0,
                }
                | changes
            ),
        )

    def check(self, x, logits):
        if self.gamma > 0 and self.autoencoder is None:
            raise ValueError(
                f"autoencoder: None, but gamma = {self.gamma} weighs its error; pass one "
                "(`checkpoints.load(NAME, kind='autoencoder').model`) or gamma=0"
            )
        if self.steps < 1 or self.tries < 1:
            raise ValueError(f"steps, tries: got {self.steps}, {self.tries}, expected at least 1")
        if (
            self.c <= 0
            or self.lr <= 0
            or self.beta < 0
            or self.gamma < 0
            or (self.kappa is not None and self.kappa < 0)
        ):
            raise ValueError(
                f"c, lr, beta, gamma, kappa: got {self.c}, {self.lr}, {self.beta}, {self.gamma}, {self.kappa}, "
                "expected c and lr over 0, the others not negative"
            )
        if self.threshold not in ("paper", "prox"):
            raise ValueError(f"threshold: got {self.threshold!r}, expected 'paper' or 'prox'")

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        use_ae = self.gamma > 0
        ae = PassCounter(self.autoencoder, len(x)) if use_ae else None
        with frozen(*([self.autoencoder] if use_ae else [])):
            return self._search(f, ae, x, target, tau)

    def _search(
        self, f: PassCounter, ae: PassCounter | None, x: Tensor, target: Tensor, tau: float
    ) -> SearchResult:
        wide = (-1, *[1] * (x.ndim - 1))
        low, high = (
            torch.as_tensor(b, dtype=x.dtype, device=x.device).expand_as(x)
            for b in self.bounds or (-torch.inf, torch.inf)
        )
        if self.constraints is not None:
            least, most = self.constraints.box(x)
            low, high = torch.maximum(low, least), torch.minimum(high, most)

        result, reason = x.clone(), [""] * len(x)
        path = x[:, None].repeat(1, self.tries, *[1] * (x.ndim - 1))
        n_tries = torch.full((len(x),), self.tries)
        rows = torch.arange(len(x))  # still searched; all below is theirs
        q, t, under, over = x, target[:, None], x if self.only_add else low, high
        best, nearest = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        c, least, most = (
            torch.full_like(nearest, self.c),
            torch.zeros_like(nearest),
            torch.full_like(nearest, torch.inf),
        )
        for n in range(self.tries):
            a, y = q, q  # x + d and its momentum point, both in image space
            won = torch.zeros(len(q), dtype=torch.bool, device=x.device)
            for k in range(self.steps):
                size = self.lr * (1 - k / self.steps) ** 0.5
                at = self.snap(y, q).detach().requires_grad_(True)
                g = f.grad((c * self._hinge(f(at, rows), t, tau)).sum(), at)
                if ae is not None:
                    g = g.add(ae.grad(self._unlikely(ae(at, rows), at), at), alpha=self.gamma)
                d = y - q
                d = shrink(
                    d - size * (g + 2 * d), self.beta * (size if self.threshold == "prox" else 1.0)
                )
                new = torch.maximum(torch.minimum(q + d, over), under)
                y = torch.maximum(torch.minimum(new + k / (k + 3) * (new - a), over), under)
                a, state = new, self.snap(new, q)
                with torch.no_grad():
                    logits = f(state, rows)
                hit = self._success(logits, t, tau)
                dist = self._elastic(state - q)
                nearer = hit & (dist < nearest)
                won = won | hit
                best, nearest = (
                    torch.where(nearer.view(wide), state, best),
                    torch.where(nearer, dist, nearest),
                )
                broken = ~(logits.isfinite().all(1) & y.flatten(1).isfinite().all(1))
                if broken.any():  # leave now, with what was found before
                    self._book(rows, broken, best, nearest, q, NAN, result, reason)
                    path[rows[broken.cpu()].to(x.device), n:] = best[broken][:, None]
                    n_tries[rows[broken.cpu()]] = n + 1
                    stay = ~broken
                    rows, (q, t, under, over, best, nearest, c, least, most, a, y, state, won) = (
                        rows[stay.cpu()],
                        (
                            s[stay]
                            for s in (
                                q,
                                t,
                                under,
                                over,
                                best,
                                nearest,
                                c,
                                least,
                                most,
                                a,
                                y,
                                state,
                                won,
                            )
                        ),
                    )
                    if not len(rows):
                        break
            if not len(rows):
                break
            path[rows.to(x.device), n] = best
            most, least = (
                torch.where(won, torch.minimum(most, c), most),
                torch.where(won, least, torch.maximum(least, c)),
            )
            c = torch.where(most.isfinite(), (least + most) / 2, 10 * c)
        if len(rows):
            largest = self.c * 10.0 ** (self.tries - 1)
            every, why = (
                torch.ones_like(won),
                f"no success in {self.tries} values of c, the largest {largest:.3g}",
            )
            why += "" if self.constraints is None else ", inside the constraints"
            self._book(rows, every, best, nearest, state, why, result, reason)
            path[rows.to(x.device), -1] = result[rows.to(x.device)]
        return SearchResult(result, path=path, path_len=n_tries, reason=reason, generator=ae)

    @staticmethod
    def _book(rows, which, best, nearest, else_, why, result, reason) -> None:
        """Write the rows of `which` into the results: their best state, or `else_` and the reason why there is none."""
        found = nearest.isfinite()
        out = rows[which.cpu()]
        result[out.to(result.device)] = torch.where(
            found.view(-1, *[1] * (best.ndim - 1)), best, else_
        )[which]
        for i, ok in zip(out.tolist(), found[which].tolist(), strict=True):
            reason[i] = "" if ok else why

    def _margin(self, logits: Tensor, t: Tensor) -> Tensor:
        """z_t - max_{i != t} z_i, (B,)."""
        return logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).amax(1)

    def _pull(self, n_classes: int, tau: float) -> float:
        """kappa, or the margin that is sure to give p_t >= tau."""
        return (
            max(0.0, math.log(tau / (1 - tau)) + math.log(n_classes - 1))
            if self.kappa is None
            else self.kappa
        )

    def _hinge(self, logits: Tensor, t: Tensor, tau: float) -> Tensor:
        return (-self._margin(logits, t)).clamp(min=-self._pull(logits.shape[1], tau))

    def _success(self, logits: Tensor, t: Tensor, tau: float) -> Tensor:
        margin = self._margin(logits, t)
        enough = (margin > 0) & (logits.softmax(1).gather(1, t)[:, 0] >= tau)
        return enough if self.kappa is None else enough & (margin >= self.kappa)

    def _elastic(self, d: Tensor) -> Tensor:
        d = d.flatten(1)
        return self.beta * d.abs().sum(1) + d.square().sum(1)

    @staticmethod
    def _unlikely(again: Tensor, y: Tensor) -> Tensor:
        if again.shape != y.shape:
            raise ValueError(
                f"autoencoder: gave {tuple(again.shape)} for {tuple(y.shape)}, expected the same shape"
            )
        return (y - again).square().sum()
