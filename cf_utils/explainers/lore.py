"""LORE: the rules of a decision tree on a genetic neighbourhood of the query.

Source: Guidotti, Monreale, Ruggieri, Pedreschi, Turini & Giannotti, "Local Rule-Based Explanations
of Black Box Decision Systems" (2018). Two populations begin as copies of x and evolve under

    fit_=(z)  = I[f(z) = f(x)]  + (1 - d(x, z)) - I[z = x]
    fit_!=(z) = I[f(z) != f(x)] + (1 - d(x, z)) - I[z = x]

by tournaments, two-point crossover, and mutation to values that the feature takes in the training
rows. A tree is grown on both populations; its paths are the rules (`shared/rules.py`).

Decisions:
* f(z) has two classes: decided as the target with probability tau or more, or not.
* d is a weighted mean of two distances: simple matching on the features `categorical`, Euclidean on
  the others. The latter are divided by their ranges in the training rows.
* Sizes and rates are those of the authors' code. In that code both fitness functions reward the
  decision for x; ours are the paper's. Its hall of fame, which adds the best individuals of all
  generations, is left out.
* The tree is scikit-learn's instead of YaDT. It is not pruned; each leaf has at least `leaf`
  neighbours.
* The paper gives rules, but no counterfactual. Ours is the query, moved just past the thresholds
  that it does not meet. A threshold lies halfway between two neighbours, so the classifier may not
  flip there; the point is therefore classified. If it fails, the changed features are copied from
  the nearest neighbour that meets the rule and is decided as the target. If that fails, the next
  rule is tried. Rules with the fewest changed features come first, and among those the nearest.
  Rules that the constraints forbid are dropped.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from cf_utils.core import (
    Explainer,
    Ids,
    PassCounter,
    SearchResult,
    check_query,
    frozen,
    item_noise,
    select_ids,
)
from cf_utils.core.checks import check_logits
from cf_utils.explainers.shared.genetic import draw_values, exchange_segments, tournament
from cf_utils.explainers.shared.rules import (
    Rule,
    Rules,
    fit_tree,
    move_to_neighbour,
    move_to_thresholds,
    read_rules,
)
from cf_utils.explainers.shared.search import is_reached

MAX_POINTS = 2**15  # neighbours in one pass of the classifier; limits the memory


class _Reading(NamedTuple):
    """Rules and points from one item's tree, before the points are classified."""

    factual: Rule
    counterfactual: tuple[Rule, ...]
    points: Tensor  # (M, 2, F): past the thresholds, and with a neighbour's values
    fidelity: float
    both_decisions: bool


@dataclass(frozen=True, eq=False)
class LORE(Explainer):
    """Move the query to where both a local tree and the classifier decide the target.

    x has shape (B, F) and is scaled. `rules` returns the rules themselves. Each item costs
    (generations + 1) * population passes, plus two per rule. If no rule holds on the classifier,
    the item comes back unchanged, with a failure reason. Raises ValueError on x of another shape,
    on training rows that do not fit, and on settings out of range.
    """

    train: Tensor = field(repr=False)  # (N, F) training rows, scaled as x; mutation draws from them
    _: KW_ONLY
    population: int = 1000  # neighbours, one half for each decision
    generations: int = 10
    crossover: float = 0.5  # share of pairs that exchange a segment of features
    mutation: float = 0.2  # share of individuals that mutate, and of their features that change
    tournament: int = 3  # individuals in a tournament
    leaf: int = 5  # fewest neighbours in a leaf
    # how far past a threshold a continuous feature moves, in units of x
    overshoot: float = field(default=1e-3, metadata={"stored_as": "over"})
    categorical: tuple[int, ...] = ()  # features whose distance is 0 or 1
    bounds: tuple | None = None  # not needed: new values come from training rows or thresholds

    keeps_constraints: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError on x of another shape, unfit training rows, or settings out of range."""
        if x.ndim != 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, F): LORE is for tables")
        rows_fit = self.train.ndim == 2 and self.train.shape[1:] == x.shape[1:] and len(self.train)
        if not rows_fit or not self.train.isfinite().all():
            raise ValueError(
                f"train: got {tuple(self.train.shape)}, expected finite rows (N, {x.shape[1]})"
            )
        sizes = self.population, self.generations, self.tournament, self.leaf
        if self.population % 4 or min(sizes) < 1:
            raise ValueError(
                "population, generations, tournament, leaf: got "
                f"{', '.join(map(str, sizes))}, expected at least 1, and for population a multiple "
                "of 4 (pairs in two halves)"
            )
        rates_fit = 0 <= self.crossover <= 1 and 0 < self.mutation <= 1
        if not rates_fit or self.overshoot <= 0:
            raise ValueError(
                f"crossover, mutation, overshoot: got {self.crossover}, {self.mutation}, "
                f"{self.overshoot}, expected shares in [0, 1], mutation and overshoot above 0"
            )
        if any(not 0 <= c < x.shape[1] for c in self.categorical):
            raise ValueError(
                f"categorical: got {self.categorical}, expected features 0 to {x.shape[1] - 1}"
            )

    @torch.no_grad()
    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        result, reason = x.clone(), [""] * len(x)
        within = "" if self.constraints is None else ", inside the constraints"
        for i, rules in enumerate(self._explain(f, x, target, ids, tau)):
            if rules.best is not None:
                result[i] = rules.points[rules.best]
            elif not rules.both_decisions:
                reason[i] = "no neighbour is decided as the target"
            else:
                n = len(rules.holds)
                reason[i] = f"none of {n} counterfactual rules holds on the classifier{within}"
        return SearchResult(result, reason=reason)

    @torch.no_grad()
    def rules(
        self,
        classifier: nn.Module,
        x: Tensor,
        target: Tensor,
        ids: Ids | None = None,
        tau: float | None = None,
    ) -> list[Rules]:
        """Return the rules per item; the arguments are those of the call.

        The items must not be decided as the target yet. The call returns the point of each item's
        best rule.
        """
        ids = check_query(x, target, ids, self.bounds, tau)
        self._check_constraints(x)
        f = PassCounter(classifier, len(x))
        with frozen(classifier):
            logits = f(x, torch.arange(len(x)))
            check_logits(logits, x, target)
            self.check(x, logits)
            return self._explain(f, x, target, ids, self.tau if tau is None else tau)

    def _explain(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> list[Rules]:
        """Return the rules per item, in parts of at most `MAX_POINTS` neighbours."""
        rules = []
        for rows in torch.arange(len(x)).split(max(1, MAX_POINTS // self.population)):
            at = rows.to(x.device)
            query = x[at]
            z, wanted = self._breed(f, query, target[at], select_ids(ids, rows), tau, rows)
            pairs = zip(query, z.cpu().numpy(), wanted.cpu().numpy(), strict=True)
            readings = [self._read_tree(*pair) for pair in pairs]
            rules += self._test_points(f, query, target[at], tau, rows, readings)
        return rules

    def _test_points(
        self,
        f: PassCounter,
        query: Tensor,
        target: Tensor,
        tau: float,
        rows: Tensor,
        readings: list[_Reading],
    ) -> list[Rules]:
        """Classify the two points of all rules of all items at once; return the rules per item."""
        sizes = torch.tensor([len(reading.points) for reading in readings])
        points = torch.cat([reading.points for reading in readings])  # (all rules, 2, F)
        holds = torch.zeros(len(points), 2, dtype=torch.bool, device=query.device)
        if len(points):
            item = torch.arange(len(rows)).repeat_interleave(2 * sizes)
            logits = f(points.flatten(0, 1), rows[item])
            holds = is_reached(logits, target[item.to(target.device)], tau).view(-1, 2)
        use_second = holds[:, 1] & ~holds[:, 0]
        points = torch.where(use_second[:, None], points[:, 1], points[:, 0])
        pairs = zip(points.split(sizes.tolist()), holds.any(1).split(sizes.tolist()), strict=True)
        return [
            Rules(
                query=x,
                factual=reading.factual,
                counterfactual=reading.counterfactual,
                points=own_points,
                holds=tuple(own_holds.tolist()),
                fidelity=reading.fidelity,
                both_decisions=reading.both_decisions,
            )
            for x, reading, (own_points, own_holds) in zip(query, readings, pairs, strict=True)
        ]

    def _breed(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evolve both populations of each item.

        Returns the neighbours (R, population, F), and whether each is decided as the target.
        """
        (r, n), half = x.shape, self.population // 2
        train = self.train.to(x)
        query = x[:, None, None]
        item = rows.repeat_interleave(2 * half)
        item_target = target.repeat_interleave(2 * half)
        z = query.expand(r, 2, half, n).clone()
        for g in range(self.generations):
            size = self.tournament + 4 + 2 * n
            u = item_noise(self.seed, ids, (2, half, size), f"generation {g}", "uniform").to(x)
            compete, pair, which, value = u.split([self.tournament, 4, n, n], -1)
            mix, first, second, mutant = pair.unbind(-1)
            wanted = is_reached(f(z.view(-1, n), item), item_target, tau).view(r, 2, half)
            winner = tournament(self._fitness(z, query, wanted, train), compete)
            z = z.gather(2, winner[..., None].expand(-1, -1, -1, n))
            z = exchange_segments(z, mix < self.crossover, first, second)
            changes = (mutant[..., None] < self.mutation) & (which < self.mutation)
            z = torch.where(changes, draw_values(train, value), z)
        z = z.view(r, 2 * half, n)
        return z, is_reached(f(z.view(-1, n), item), item_target, tau).view(r, -1)

    def _fitness(self, z: Tensor, query: Tensor, wanted: Tensor, train: Tensor) -> Tensor:
        """Return the fitness (R, 2, half) of z (R, 2, half, F); `wanted`: decided as the target."""
        n, n_categorical = z.shape[-1], len(self.categorical)
        spread = train.amax(0) - train.amin(0)
        spread = torch.where(spread > 0, spread, 1)
        match = torch.zeros(n, dtype=torch.bool, device=z.device)
        match[list(self.categorical)] = True
        square = ((z - query) / spread).square() * ~match
        euclidean = (square.sum(3) / max(1, n - n_categorical)).sqrt() * (~match).sum() / n
        away = euclidean + ((z != query) & match).sum(3) / n
        as_its_population = torch.stack([~wanted[:, 0], wanted[:, 1]], 1)
        return as_its_population + (1 - away) - (z == query).all(3).to(z)

    def _read_tree(self, x: Tensor, z: np.ndarray, wanted: np.ndarray) -> _Reading:
        """Fit a tree on the neighbours z (N, F) of one item x (F,), and read its rules.

        The counterfactual rules are those that the constraints allow, in the order they are tried.
        """
        tree: Any = self._fit_tree(z, wanted)
        query, node = x.cpu().double().numpy(), tree.apply(z)
        ranked: list[tuple[int, float, int, Rule, Tensor]] = []
        rules = read_rules(tree)
        for rule in rules:
            n_unmet = int(rule.unmet(query).sum())
            if not n_unmet or not rule.wanted:
                continue
            points = self._allowed_points(rule, x, z[(node == rule.node) & wanted])
            if points is not None:
                far = float((points[0] - x).abs().sum())
                ranked.append((n_unmet, far, len(ranked), rule, points))
        ranked.sort(key=lambda entry: entry[:3])
        return _Reading(
            next(rule for rule in rules if not rule.unmet(query).any()),
            tuple(rule for *_, rule, _ in ranked),
            torch.stack([p for *_, p in ranked]) if ranked else x.new_zeros(0, 2, len(query)),
            float(tree.score(z, wanted)),
            bool(0 < wanted.sum() < len(wanted)),
        )

    def _allowed_points(self, rule: Rule, x: Tensor, members: np.ndarray) -> Tensor | None:
        """Return two points (2, F) that meet `rule`, or None if the constraints allow none.

        The first lies just past the thresholds; the second has the values of the nearest of
        `members`. If only one of them is allowed, it is returned twice.
        """
        query = x.cpu().double().numpy()
        step = np.zeros(len(query))
        if self.constraints is not None:
            step = self.constraints.step.cpu().double().numpy()
        points = np.stack(
            [
                move_to_thresholds(rule, query, self.overshoot, step),
                move_to_neighbour(rule, query, members),
            ]
        )
        snapped = self.snap(torch.from_numpy(points).to(x), x[None])
        allowed = [p for p in snapped if not rule.unmet(p.cpu().numpy()).any()]
        return torch.stack([allowed[0], allowed[-1]]) if allowed else None

    def _fit_tree(self, z: np.ndarray, wanted: np.ndarray) -> DecisionTreeClassifier:
        return fit_tree(z, wanted, self.leaf, self.seed)
