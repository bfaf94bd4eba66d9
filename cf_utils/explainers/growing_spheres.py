"""Growing Spheres: the nearest enemy among draws in ever wider spherical layers, then as few changed features as it allows.

Source: Laugel, Lesot, Marsala, Renard & Detyniecki, "Inverse Classification for Comparison-based Interpretability in Machine
Learning" (2017) and "Comparison-Based Inverse Classification for Interpretability in Machine Learning", IPMU 2018. An enemy is a
point that the classifier decides otherwise; it asks for decisions alone, no gradients. For each query x:

    draw n points in the ball of radius eta; while one is an enemy, halve eta        SL(x, 0, eta)
    draw n points in the layer from a_0 = eta to a_1 = a_0 + eta, in the next, ...   SL(x, a_0, a_1)    until one is an enemy
    e: the nearest enemy; put its features back to x's values, the least changed first, until that would undo the decision

Draws are uniform in volume, r = (a_0^d + u (a_1^d - a_0^d))^(1/d) along a uniform direction. Decisions:
* Enemy: decided as the target, with probability tau or more. The paper knows two classes and no tau.
* The enemy kept is the nearest of all that were met, those of a ball that was then halved among them.
* The paper gives neither eta nor n: ours, for features scaled to [0, 1].
* `selection`: the paper stops at the first feature that cannot go back ("stop"); its code tries the others too ("each").
* `constraints`: directions lie in the subspace of the features that are not immutable, where the volume law is the right one;
  a draw is then moved to the allowed point next to it, so distances are those of allowed points, not of the layer.
* All draws of a layer, for all queries that are still open, are one computation. The k-th draw of an item has its own noise
  by (seed, id, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cf_utils.core import Explainer, PassCounter, SearchResult, item_noise

POINTS = 2**13  # in one pass of the classifier; more (2 ** 16) was no faster, and takes memory


def in_layer(normal: Tensor, u: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Points between two spheres around 0, uniform in volume: normal (..., d) from N(0, 1), u (...) from U[0, 1) -> (..., d).

    0 <= inner < outer, broadcast to u. Radii are drawn in shares of `outer`: a small one to the power of d would vanish.
    """
    d = normal.shape[-1]
    hollow = (inner / outer) ** d
    r = outer * (hollow + u * (1 - hollow)) ** (1 / d)
    return normal * (r / torch.linalg.vector_norm(normal, dim=-1).clamp(min=1e-30)).unsqueeze(-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class GrowingSpheres(Explainer):
    """The nearest enemy found in growing spheres, with few changed features. x (B, F); the classifier needs no gradient.

    n passes a layer and an item, then F for the selection. `path` holds the enemy before and after the selection. An item
    without an enemy in `layers` draws comes back unchanged, with the radius that was searched. Raises ValueError on x of
    another shape and on settings out of range.
    """

    n: int = 1000  # points in a layer
    eta: float = 0.1  # first radius, in units of x
    shrink: float = 2.0  # the first ball's radius is divided by it while it holds an enemy
    start: float = (
        1.0  # first layer begins there, in units of the radius of the ball without an enemy
    )
    width: float = 1.0  # of a layer, in the same units
    layers: int = 200  # draws at most, balls included
    selection: str = (
        "stop"  # features put back: until the first that cannot (stop), or each that can
    )
    clamp: bool = False  # keep draws inside bounds

    keeps_constraints: ClassVar[bool] = True

    @classmethod
    def tables(cls, **changes) -> GrowingSpheres:
        """For scaled tables: without `bounds` values are free, the range comes by `constraints` or there is none."""
        return cls(**({"bounds": None, "clamp": changes.get("bounds") is not None} | changes))

    @classmethod
    def official(cls, **changes) -> GrowingSpheres:
        """The authors' released code: 2,000 draws, the ball's radius divided by 10, layers from a tenth of it in steps of 0.18 of
        it, and every feature tried in the selection. Kept from the paper: the nearest enemy of all."""
        return cls.tables(
            **(
                {"n": 2000, "shrink": 10.0, "start": 0.1, "width": 0.18, "selection": "each"}
                | changes
            )
        )

    def check(self, x, logits):
        if x.ndim != 2:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (B, F): Growing Spheres is for tables"
            )
        if self.n < 1 or self.layers < 1:
            raise ValueError(f"n, layers: got {self.n}, {self.layers}, expected at least 1")
        if self.eta <= 0 or self.shrink <= 1 or self.start <= 0 or self.width <= 0:
            raise ValueError(
                f"eta, shrink, start, width: got {self.eta}, {self.shrink}, {self.start}, {self.width}, "
                "expected positive ones and shrink over 1"
            )
        if self.selection not in ("stop", "each"):
            raise ValueError(f"selection: got {self.selection!r}, expected 'stop' or 'each'")
        if self.clamp and self.bounds is None:
            raise ValueError("bounds: None, but clamp needs a range")

    @torch.no_grad()
    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        free = torch.arange(x.shape[1], device=x.device)
        if self.constraints is not None:
            free = free[~self.constraints.immutable.to(x.device)]
        enemy, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        reach = self._reach(x)
        inner, outer = (
            torch.zeros_like(nearest),
            torch.full_like(nearest, self.eta),
        )  # the layer that is drawn next
        unit = outer.clone()  # radius of the ball without an enemy
        rows, k = torch.arange(len(x) if len(free) else 0), 0
        while len(rows) and k < self.layers:
            here = rows.to(x.device)
            point, dist = self._draw(f, x, target, ids, tau, rows, inner, outer, free, k)
            closer = dist < nearest[here]
            enemy[here] = torch.where(closer[:, None], point, enemy[here])
            nearest[here] = torch.where(closer, dist, nearest[here])
            hit, ball = dist.isfinite(), inner[here] == 0
            unit[here] = torch.where(ball & hit, unit[here] / self.shrink, unit[here])
            inner[here] = torch.where(
                ball, torch.where(hit, 0, self.start * unit[here]), outer[here]
            )
            outer[here] = torch.where(ball & hit, unit[here], inner[here] + self.width * unit[here])
            rows, k = rows[((ball | ~hit) & (inner[here] <= reach[here])).cpu()], k + 1
        found = nearest.isfinite()
        fewer = enemy.clone()
        if found.any():
            fewer[found] = self._select(
                f, x[found], enemy[found], target[found], tau, found.nonzero().flatten().cpu()
            )
        within = "" if self.constraints is None else ", inside the constraints"
        why = [
            f"no enemy out to radius {r:.3g} in {k} layers of {self.n} draws{within}"
            if len(free)
            else "every feature is immutable"
            for r in inner.tolist()
        ]
        return SearchResult(
            fewer,
            path=torch.stack([enemy, fewer], 1),
            path_len=2 * found.long(),
            reason=["" if ok else w for ok, w in zip(found.tolist(), why, strict=True)],
        )

    def _draw(self, f, x, target, ids, tau, rows, inner, outer, free, k) -> tuple[Tensor, Tensor]:
        """The nearest enemy of the k-th draw of each of `rows`: the point (R, F) and its distance (R,), infinite where none."""
        d, points, dists = len(free), [], []
        for part in rows.split(max(1, POINTS // self.n)):
            here = part.to(x.device)
            own = ids[part] if isinstance(ids, Tensor) else [ids[i] for i in part.tolist()]
            normal = item_noise(self.seed, own, (self.n, d), f"layer {k}").to(x)
            u = item_noise(self.seed, own, (self.n,), f"radius {k}", "uniform").to(x)
            q = x[here, None]  # (R, 1, F)
            off = in_layer(normal, u, inner[here, None], outer[here, None])  # (R, n, d)
            y = q + (
                off
                if d == x.shape[1]
                else off.new_zeros(*off.shape[:2], x.shape[1]).index_copy_(2, free, off)
            )
            if self.clamp:
                low, high = (torch.as_tensor(b).to(x) for b in self.bounds)
                y = torch.maximum(torch.minimum(y, high), low)
            y = self.snap(y, q)
            hit = self._enemies(
                f,
                y.flatten(0, 1),
                target[here].repeat_interleave(self.n),
                tau,
                part.repeat_interleave(self.n),
            )
            away = torch.where(
                hit.view(-1, self.n), torch.linalg.vector_norm(y - q, dim=2), torch.inf
            )
            dist, best = away.min(1)
            points.append(y[torch.arange(len(part)), best])
            dists.append(dist)
        return torch.cat(points), torch.cat(dists)

    def _select(self, f, x, enemy, target, tau, rows) -> Tensor:
        """Put features of `enemy` (B, F) back to x's values in ascending order of the change while it stays an enemy."""
        n = x.shape[1]
        rank = (
            (enemy - x).abs().argsort(dim=1, stable=True).argsort(dim=1)
        )  # (B, F): 0 is the least changed
        if (
            self.selection == "stop"
        ):  # all prefixes of the order at once, and the longest run of enemies
            back = rank[:, None] <= torch.arange(n, device=x.device)[None, :, None]  # (B, F, F)
            y = torch.where(back, x[:, None], enemy[:, None])
            hit = self._enemies(
                f, y.flatten(0, 1), target.repeat_interleave(n), tau, rows.repeat_interleave(n)
            ).view(-1, n)
            return torch.where(rank < hit.long().cumprod(1).sum(1, keepdim=True), x, enemy)
        for j in range(n):
            y = torch.where(rank == j, x, enemy)
            enemy = torch.where(self._enemies(f, y, target, tau, rows)[:, None], y, enemy)
        return enemy

    def _reach(self, x: Tensor) -> Tensor:
        """How far from x (B, F) the farthest allowed point lies, (B,); infinite without walls."""
        if self.constraints is None:
            return x.new_full((len(x),), torch.inf)
        low, high = self.constraints.box(x)
        return torch.linalg.vector_norm(torch.maximum(high - x, x - low), dim=1)

    @staticmethod
    def _enemies(f: PassCounter, y: Tensor, target: Tensor, tau: float, rows: Tensor) -> Tensor:
        logits = f(y, rows)
        return (logits.argmax(1) == target) & (
            logits.softmax(1).gather(1, target[:, None])[:, 0] >= tau
        )
