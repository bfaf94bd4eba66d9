"""Growing Spheres: the nearest enemy among draws in growing spherical layers, made sparse.

Source: Laugel, Lesot, Marsala, Renard & Detyniecki, "Inverse Classification for Comparison-based
Interpretability in Machine Learning" (2017) and "Comparison-Based Inverse Classification for
Interpretability in Machine Learning", IPMU 2018. An enemy is a point with another decision. The
method needs decisions only, no gradients. SL(x, a_0, a_1) is the layer between two spheres around
x. For each query x:

    draw n points in SL(x, 0, eta); while one is an enemy, halve eta and draw again
    draw n points in SL(x, a_0, a_0 + eta) for a_0 = eta, 2 eta, ..., until one is an enemy
    e: the nearest enemy; reset its features to x's values, the least changed first, until that
    would undo the decision

Draws are uniform in volume: radius r = (a_0^d + u (a_1^d - a_0^d))^(1/d) in a uniform direction.

Decisions:
* An enemy is decided as the target, with probability tau or more. The paper has two classes and no
  tau.
* e is the nearest of all enemies found, including those in a ball that was then halved.
* The paper gives neither eta nor n. Our defaults suit features scaled to [0, 1].
* `selection`: the paper stops at the first feature that cannot be reset ("stop"); its code tries
  the other features, too ("each").
* `constraints`: points are drawn in the subspace of the mutable features, uniformly in its volume.
  Each is then moved to the nearest allowed point, and its distance is that of the moved point.
* The k-th layer of an item has its own noise from (seed, id, k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cf_utils.core import Explainer, Ids, PassCounter, SearchResult, item_noise, select_ids
from cf_utils.explainers.shared.search import SearchState, is_reached

UNITS = 10.0  # scaled features are smaller
MAX_POINTS = 2**13  # points in one pass of the classifier; limits the memory


def in_layer(normal: Tensor, u: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """Return points (..., d) between two spheres around 0, uniform in volume.

    Args:
        normal: (..., d), draws from N(0, 1).
        u: (...), draws from U[0, 1).
        inner: radius >= 0, broadcast to u.
        outer: radius above `inner`, broadcast to u.
    """
    d = normal.shape[-1]
    hollow = (inner / outer) ** d  # relative to `outer`: a small radius ** d would underflow
    r = outer * (hollow + u * (1 - hollow)) ** (1 / d)
    return normal * (r / torch.linalg.vector_norm(normal, dim=-1).clamp(min=1e-30)).unsqueeze(-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class GrowingSpheres(Explainer):
    """The nearest enemy found in growing spheres, with few changed features. x has shape (B, F).

    Each item costs n passes per layer, and F for the selection. `path` holds the enemy before and
    after the selection. An item without an enemy in that many layers comes back unchanged; its
    reason gives the radius that was searched. Raises ValueError on x of another shape and on
    settings out of range.
    """

    n: int = 1000  # points per layer
    eta: float = 0.1  # first radius, in units of x
    shrink: float = 2.0  # divides the first ball's radius while the ball contains an enemy
    start: float = 1.0  # inner radius of the first layer, in radii of the ball without an enemy
    width: float = 1.0  # width of a layer, in radii of the ball without an enemy
    layers: int = 200  # most layers per item, balls included
    selection: str = "stop"  # stop: end at the first feature that must stay; each: try all
    clamp: bool = False  # keep draws inside bounds

    keeps_constraints: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError on x of another shape and on settings out of range."""
        if x.ndim != 2:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (B, F): Growing Spheres is for tables"
            )
        if self.n < 1 or self.layers < 1:
            raise ValueError(f"n, layers: got {self.n}, {self.layers}, expected at least 1")
        if self.eta <= 0 or self.shrink <= 1 or self.start <= 0 or self.width <= 0:
            raise ValueError(
                f"eta, shrink, start, width: got {self.eta}, {self.shrink}, {self.start}, "
                f"{self.width}, expected positive values and shrink above 1"
            )
        if self.selection not in ("stop", "each"):
            raise ValueError(f"selection: got {self.selection!r}, expected 'stop' or 'each'")
        if self.clamp and self.bounds is None:
            raise ValueError("bounds: got None, expected a range; clamp=True needs it")
        self._check_units(x)

    def _check_units(self, x: Tensor) -> None:
        """Raise ValueError if most rows have a feature that the search cannot move by its size."""
        reach = self.eta * (self.start + self.width * self.layers)
        size = x.abs().median(0).values
        if size.max() > max(reach, UNITS):
            i = int(size.argmax())
            raise ValueError(
                f"x: feature {i} has values about {size[i]:.4g}, but {self.layers} layers from "
                f"eta = {self.eta} reach only {reach:.3g}, expected features scaled to [0, 1]; "
                "scale them, for example with Table.from_frame"
            )

    @torch.no_grad()
    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        free = torch.arange(x.shape[1], device=x.device)
        if self.constraints is not None:
            free = free[~self.constraints.immutable.to(x.device)]
        if not len(free):
            reason = ["every feature is immutable"] * len(x)
            none = torch.zeros(len(x), dtype=torch.int64)
            return SearchResult(
                x.clone(), path=x[:, None].repeat(1, 2, 1), path_len=none, reason=reason
            )
        enemy, distance, reason = self._find_enemies(f, x, target, ids, tau, free)
        found = distance.isfinite()
        sparse = enemy.clone()
        if found.any():
            rows = found.nonzero().flatten().cpu()
            sparse[found] = self._select(f, x[found], enemy[found], target[found], tau, rows)
        return SearchResult(
            sparse,
            path=torch.stack([enemy, sparse], 1),
            path_len=2 * found.long(),
            reason=["" if ok else why for ok, why in zip(found.tolist(), reason, strict=True)],
        )

    def _find_enemies(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float, free: Tensor
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Return each item's nearest enemy (B, F) and its distance (B,), infinite without one.

        Also returns the failure reason per item, for the items without an enemy.
        """
        state = self._start(x, target)
        enemy, distance = state.enemy.clone(), state.distance.clone()
        radius, n_draws = state.inner.clone(), torch.zeros(len(x), dtype=torch.int64)
        for k in range(self.layers):
            found = self._grow(f, state, ids, tau, free, k)
            for out, values in ((enemy, state.enemy), (distance, state.distance)):
                state.write(out, values)
            state.write(radius, state.inner)
            state.write(n_draws, torch.full((len(state),), k + 1))
            state.keep(~found & (state.inner <= state.reach))
            if not len(state):
                break
        within = "" if self.constraints is None else ", inside the constraints"
        reason = [
            f"no enemy out to radius {r:.3g} in {n} layers of {self.n} draws{within}"
            for r, n in zip(radius.tolist(), n_draws.tolist(), strict=True)
        ]
        return enemy, distance, reason

    def _start(self, x: Tensor, target: Tensor) -> _Layers:
        distance = x.new_full((len(x),), torch.inf)
        outer = torch.full_like(distance, self.eta)
        return _Layers(
            rows=torch.arange(len(x)),
            query=x,
            target=target,
            reach=self._reach(x),
            enemy=x.clone(),
            distance=distance,
            inner=torch.zeros_like(distance),
            outer=outer,
            ball=outer.clone(),
        )

    def _grow(
        self, f: PassCounter, state: _Layers, ids: Ids, tau: float, free: Tensor, k: int
    ) -> Tensor:
        """Draw layer k of each item, set the radii of the next; return which are done, (R,)."""
        point, distance = self._draw(f, state, ids, tau, free, k)
        nearer = distance < state.distance
        state.enemy = torch.where(nearer[:, None], point, state.enemy)
        state.distance = torch.where(nearer, distance, state.distance)
        hit, is_ball = distance.isfinite(), state.inner == 0
        shrinks = is_ball & hit
        state.ball = torch.where(shrinks, state.ball / self.shrink, state.ball)
        first_layer = torch.where(hit, 0, self.start * state.ball)
        state.inner = torch.where(is_ball, first_layer, state.outer)
        state.outer = torch.where(shrinks, state.ball, state.inner + self.width * state.ball)
        return hit & ~is_ball

    def _draw(
        self, f: PassCounter, state: _Layers, ids: Ids, tau: float, free: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest enemy in each item's layer (R, F), and its distance (R,).

        The distance is infinite if no point of the layer is an enemy.
        """
        points, distances = [], []
        for part in torch.arange(len(state)).split(max(1, MAX_POINTS // self.n)):
            y = self._points(state, part, ids, free, k)
            at, rows = part.to(y.device), state.rows[part].repeat_interleave(self.n)
            target = state.target[at].repeat_interleave(self.n)
            hit = is_reached(f(y.flatten(0, 1), rows), target, tau).view(-1, self.n)
            away = torch.linalg.vector_norm(y - state.query[at, None], dim=2)
            distance, nearest = torch.where(hit, away, torch.inf).min(1)
            points.append(y[torch.arange(len(part)), nearest])
            distances.append(distance)
        return torch.cat(points), torch.cat(distances)

    def _points(self, state: _Layers, part: Tensor, ids: Ids, free: Tensor, k: int) -> Tensor:
        """Return the points (P, n, F) of layer k for the items at positions `part` of the state."""
        own = select_ids(ids, state.rows[part])
        at, d = part.to(state.query.device), len(free)
        query = state.query[at, None]  # (P, 1, F)
        normal = item_noise(self.seed, own, (self.n, d), f"layer {k}").to(query)
        u = item_noise(self.seed, own, (self.n,), f"radius {k}", "uniform").to(query)
        offset = in_layer(normal, u, state.inner[at, None], state.outer[at, None])  # (P, n, d)
        if d < query.shape[-1]:
            all_features = offset.new_zeros(*offset.shape[:2], query.shape[-1])
            offset = all_features.index_copy_(2, free, offset)
        y = query + offset
        if self.clamp and self.bounds is not None:
            low, high = (torch.as_tensor(b).to(query) for b in self.bounds)
            y = torch.maximum(torch.minimum(y, high), low)
        return self.snap(y, query)

    def _select(
        self, f: PassCounter, x: Tensor, enemy: Tensor, target: Tensor, tau: float, rows: Tensor
    ) -> Tensor:
        """Reset features of `enemy` (B, F) to x, the least changed first.

        The result is still an enemy.
        """
        n = x.shape[1]
        order = (enemy - x).abs().argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)  # (B, F): 0 is the least changed
        if self.selection == "stop":  # test all prefixes of the order at once
            reset = rank[:, None] <= torch.arange(n, device=x.device)[None, :, None]  # (B, F, F)
            y = torch.where(reset, x[:, None], enemy[:, None]).flatten(0, 1)
            logits = f(y, rows.repeat_interleave(n))
            hit = is_reached(logits, target.repeat_interleave(n), tau).view(-1, n)
            n_reset = hit.long().cumprod(1).sum(1, keepdim=True)  # first run of enemies
            return torch.where(rank < n_reset, x, enemy)
        for j in range(n):
            y = torch.where(rank == j, x, enemy)
            enemy = torch.where(is_reached(f(y, rows), target, tau)[:, None], y, enemy)
        return enemy

    def _reach(self, x: Tensor) -> Tensor:
        """Return the distance to the farthest allowed point (B,); infinite without constraints."""
        if self.constraints is None:
            return x.new_full((len(x),), torch.inf)
        low, high = self.constraints.box(x)
        return torch.linalg.vector_norm(torch.maximum(high - x, x - low), dim=1)


@dataclass(eq=False)
class _Layers(SearchState):
    """Items that are still being searched, and their next layer."""

    query: Tensor  # (R, F)
    target: Tensor  # (R,)
    reach: Tensor  # (R,), distance to the farthest allowed point
    enemy: Tensor  # (R, F), the nearest so far, or the query
    distance: Tensor  # (R,), infinite without an enemy
    inner: Tensor  # (R,), radii of the next layer; an inner radius of 0 makes it a ball
    outer: Tensor
    ball: Tensor  # (R,), radius of the ball without an enemy
