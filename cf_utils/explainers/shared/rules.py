"""Rules read off a decision tree: why a row is decided as it is, and what would have to hold for another decision.

Source: Guidotti, Monreale, Ruggieri, Pedreschi, Turini & Giannotti, "Local Rule-Based Explanations of Black Box Decision
Systems" (2018), section 5: a rule is the path to a leaf; a counterfactual rule is a path to a leaf of the other decision with the
fewest conditions that the row does not meet. Conditions of a path on one feature are joined to one interval, so those not met are
counted by feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

Unit = Callable[[int, float], str]


@dataclass(frozen=True, eq=False)
class Rule:
    """low < x_i <= high for every feature i, and the tree's decision there."""

    low: np.ndarray  # (F,) -inf where open
    high: np.ndarray  # (F,) inf where open
    wanted: bool  # decided as the target?
    support: int  # neighbours in the leaf
    share: float  # of them, that the classifier decides so
    node: int  # the leaf's number in its tree

    def broken(self, x: np.ndarray) -> np.ndarray:
        """Which conditions rows x (..., F) do not meet, bool of that shape. The tree compares in float32, so we do."""
        x = np.asarray(x, dtype=np.float32)
        return ~((x > self.low) & (x <= self.high))

    def text(
        self,
        names: Sequence[str],
        unit: Unit | None = None,
        at: np.ndarray | None = None,
        x: np.ndarray | None = None,
    ) -> str:
        """Its conditions in words; `unit(i, value)` says a scaled value of feature i in the data's units.

        With a point `at` and a query `x` (F,): only the conditions that x does not meet, each with the point's value.
        """
        say, parts = unit or (lambda i, v: f"{v:.3g}"), []
        shown = np.isfinite(self.low) | np.isfinite(self.high) if at is None else self.broken(x)
        for i in np.flatnonzero(shown).tolist():
            low, high = float(self.low[i]), float(self.high[i])
            if np.isfinite(low) and np.isfinite(high):
                parts.append(f"{say(i, low)} < {names[i]} ≤ {say(i, high)}")
            else:
                parts.append(
                    f"{names[i]} > {say(i, low)}"
                    if np.isfinite(low)
                    else f"{names[i]} ≤ {say(i, high)}"
                )
            parts[-1] += (
                "" if at is None else f" (here {say(i, float(x[i]))}, to {say(i, float(at[i]))})"
            )
        return " and ".join(parts) or "always"


@dataclass(frozen=True, eq=False)
class Rules:
    """What the tree around one row says: the row's own rule, and those that lead to the target, the fewest changes first."""

    query: Tensor  # (F,)
    factual: Rule
    counterfactual: tuple[Rule, ...]  # only those that the constraints allow
    points: Tensor  # (M, F): the query moved to where each of them holds
    holds: tuple[bool, ...]  # does the classifier decide the target at that point?
    fidelity: float  # share of the neighbourhood on which the tree agrees with the classifier
    both: bool  # did the neighbourhood hold both decisions?

    @property
    def best(self) -> int | None:
        """The first counterfactual rule that the classifier agrees with; None where there is none."""
        return self.holds.index(True) if True in self.holds else None

    def text(
        self,
        names: Sequence[str],
        unit: Unit | None = None,
        words: tuple[str, str] = ("refused", "accepted"),
    ) -> str:
        """`refused because ...; accepted if ...`: the factual rule, and what must change for `best`."""
        because = f"{words[int(self.factual.wanted)]} because {self.factual.text(names, unit)}"
        if self.best is None:
            return f"{because}; no rule found that makes it {words[1]}"
        at, x = self.points[self.best].cpu().numpy(), self.query.cpu().numpy()
        return f"{because}; {words[1]} if {self.counterfactual[self.best].text(names, unit, at, x)}"


def leaves(tree: DecisionTreeClassifier) -> list[Rule]:
    """Every path of a tree of classes False and True, from left to right."""
    t, out = tree.tree_, []
    every = np.full(t.n_features, np.inf)
    stack = [(0, -every, every)]
    while stack:
        node, low, high = stack.pop()
        if t.children_left[node] < 0:
            shares = dict(
                zip(
                    tree.classes_.tolist(),
                    (t.value[node, 0] / t.value[node, 0].sum()).tolist(),
                    strict=True,
                )
            )
            wanted = shares.get(True, 0.0) > shares.get(False, 0.0)
            out.append(Rule(low, high, wanted, int(t.n_node_samples[node]), shares[wanted], node))
            continue
        i, at = t.feature[node], t.threshold[node]
        under, over = high.copy(), low.copy()
        under[i], over[i] = min(high[i], at), max(low[i], at)
        stack += [(t.children_right[node], over, high), (t.children_left[node], low, under)]
    return out


def least_move(rule: Rule, x: np.ndarray, over: float, step: np.ndarray) -> np.ndarray:
    """x (F,) moved as little as `rule` asks: `over` past a threshold (at most to the middle of the interval), or to the first
    point of the grid k * step beyond it where step > 0."""
    i = np.flatnonzero(rule.broken(x))
    low, high, size, up = rule.low[i], rule.high[i], step[i], x[i] <= rule.low[i]
    over = np.minimum(over, (high - low) / 2)
    y, unit = x.copy(), np.where(size > 0, size, 1)
    grid = np.where(up, np.floor(low / unit + 1e-6) + 1, np.floor(high / unit + 1e-6)) * unit
    y[i] = np.where(size > 0, grid, np.where(up, low + over, high - over))
    return y


def nearest_move(rule: Rule, x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """x (F,) with the features that break `rule` as the nearest (L1 over these) of the rule's neighbours (M >= 1, F) has them."""
    broken = rule.broken(x)
    y = x.copy()
    y[broken] = members[np.abs(members - x)[:, broken].sum(1).argmin()][broken]
    return y
