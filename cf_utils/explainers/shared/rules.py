"""Rules from a decision tree: why an item has its decision, and which changes would flip it.

Source: Guidotti, Monreale, Ruggieri, Pedreschi, Turini & Giannotti, "Local Rule-Based Explanations
of Black Box Decision Systems" (2018), section 5. A rule is the path to a leaf. A counterfactual
rule is a path to a leaf of the other decision with the fewest conditions that the item does not
meet. All conditions on one feature form one interval, so unmet conditions are counted per feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

Unit = Callable[[int, float], str]  # (feature, scaled value) -> the value in the data's units


@dataclass(frozen=True, eq=False)
class Rule:
    """A leaf of a tree with classes False and True: low < x_i <= high for every feature i."""

    low: np.ndarray  # (F,), -inf where open
    high: np.ndarray  # (F,), inf where open
    wanted: bool  # whether the leaf is decided as the target
    support: int  # neighbours in the leaf
    share: float  # share of them that the classifier decides like the leaf
    node: int  # number of the leaf in its tree

    def unmet(self, x: np.ndarray) -> np.ndarray:
        """Return which conditions x (..., F) does not meet, bool of the same shape.

        Compares in float32, as the tree does.
        """
        x = np.asarray(x, dtype=np.float32)
        return ~((x > self.low) & (x <= self.high))

    def text(
        self,
        names: Sequence[str],
        unit: Unit | None = None,
        at: np.ndarray | None = None,
        x: np.ndarray | None = None,
    ) -> str:
        """Return the conditions in words.

        Args:
            names: of the features.
            unit: prints a value of a feature; None: the scaled value.
            at: a point (F,) that meets the rule. Each condition then also states the values of x
                and of the point.
            x: the query (F,), needed with `at`. Only conditions that it does not meet are listed.
        """
        name_value = unit or (lambda i, v: f"{v:.3g}")
        shown = np.isfinite(self.low) | np.isfinite(self.high) if x is None else self.unmet(x)
        parts = []
        for i in np.flatnonzero(shown).tolist():
            part = _interval(names[i], i, float(self.low[i]), float(self.high[i]), name_value)
            if x is not None and at is not None:
                part += f" (here {name_value(i, float(x[i]))}, to {name_value(i, float(at[i]))})"
            parts.append(part)
        return " and ".join(parts) or "always"


@dataclass(frozen=True, eq=False)
class Rules:
    """Rules of the tree around one row: the row's own, and those that lead to the target.

    `counterfactual` holds the rules that the constraints allow, fewest changes first.
    """

    query: Tensor  # (F,)
    factual: Rule
    counterfactual: tuple[Rule, ...]
    points: Tensor  # (M, F): for each counterfactual rule, the query moved to meet it
    holds: tuple[bool, ...]  # whether the classifier decides the target at that point
    fidelity: float  # share of the neighbourhood on which tree and classifier agree
    both_decisions: bool  # whether the neighbourhood contains both decisions

    @property
    def best(self) -> int | None:
        """Position of the first counterfactual rule that holds on the classifier, or None."""
        return self.holds.index(True) if True in self.holds else None

    def text(
        self,
        names: Sequence[str],
        unit: Unit | None = None,
        words: tuple[str, str] = ("refused", "accepted"),
    ) -> str:
        """Return the factual rule and the best other one as `refused because ...; accepted if ...`.

        Args:
            names: of the features.
            unit: prints a value of a feature; None: the scaled value.
            words: for the other decision and for the target.
        """
        because = f"{words[int(self.factual.wanted)]} because {self.factual.text(names, unit)}"
        if self.best is None:
            return f"{because}; no rule found that makes it {words[1]}"
        at, x = self.points[self.best].cpu().numpy(), self.query.cpu().numpy()
        return f"{because}; {words[1]} if {self.counterfactual[self.best].text(names, unit, at, x)}"


@dataclass(frozen=True, eq=False)
class LeafBox:
    """A leaf of a tree on latent codes z (d,): low < z <= high in every dimension."""

    low: np.ndarray  # (d,), -inf where open
    high: np.ndarray  # (d,), inf where open
    label: int  # class of the leaf
    n_changes: int  # dimensions in which the query's code lies outside

    def __str__(self) -> str:
        parts = [
            (f"{low:.2f} < " if np.isfinite(low) else "")
            + f"z{i}"
            + (f" <= {high:.2f}" if np.isfinite(high) else "")
            for i, (low, high) in enumerate(zip(self.low, self.high, strict=True))
            if np.isfinite(low) or np.isfinite(high)
        ]
        return f"{' and '.join(parts) or 'always'}: {self.label}"

    def contains(self, z: np.ndarray) -> np.ndarray:
        """Return which codes z (N, d) lie in the leaf, bool (N,)."""
        inside: Any = (z > self.low) & (z <= self.high)
        return inside.all(-1)

    def project(self, z: np.ndarray, margin: float = 1e-4) -> np.ndarray:
        """Return the leaf's point nearest to z (d,), `margin` inside its bounds.

        The margin is needed because trees compare in float32.
        """
        width = np.minimum(margin, (self.high - self.low) / 4)
        return np.clip(z, self.low + width, self.high - width)


def fit_tree(
    x: np.ndarray, label: np.ndarray, leaf: int, seed: int, weight: np.ndarray | None = None
) -> DecisionTreeClassifier:
    """Fit a decision tree.

    Args:
        x: (N, F).
        label: (N,), bool or integer.
        leaf: fewest items in a leaf.
        seed: of the order in which features are tried.
        weight: per item (N,); None: all the same.
    """
    tree: Any = DecisionTreeClassifier(min_samples_leaf=leaf, random_state=seed % 2**32)
    return tree.fit(x, label, weight)


def read_rules(tree: DecisionTreeClassifier) -> list[Rule]:
    """Return the leaves of a tree with classes False and True as rules, from left to right."""
    nodes: Any = tree.tree_
    classes, rules = [bool(c) for c in tree.classes_], []
    for node, low, high in _leaves(tree):
        values = nodes.value[node, 0]
        shares = dict(zip(classes, (values / values.sum()).tolist(), strict=True))
        wanted = shares.get(True, 0.0) > shares.get(False, 0.0)
        support = int(nodes.n_node_samples[node])
        rules.append(Rule(low, high, wanted, support, shares[wanted], node))
    return rules


def read_boxes(tree: DecisionTreeClassifier, z: np.ndarray) -> list[LeafBox]:
    """Return the leaves of a tree on codes as boxes, from left to right.

    z (d,) is the query's code. The box that contains it has `n_changes` 0.
    """
    nodes: Any = tree.tree_
    boxes = []
    for node, low, high in _leaves(tree):
        n_changes = int(((z <= low) | (z > high)).sum())
        label = int(tree.classes_[nodes.value[node, 0].argmax()])
        boxes.append(LeafBox(low, high, label, n_changes))
    return boxes


def move_to_thresholds(rule: Rule, x: np.ndarray, overshoot: float, step: np.ndarray) -> np.ndarray:
    """Return x (F,) moved as little as `rule` needs.

    Args:
        rule: to be met.
        x: query (F,).
        overshoot: how far past a threshold a feature moves, at most to the interval's middle.
        step: grid step of each feature (F,). If positive, the feature moves to the first multiple
            of it past the threshold.
    """
    i = np.flatnonzero(rule.unmet(x))
    low, high, size, rises = rule.low[i], rule.high[i], step[i], x[i] <= rule.low[i]
    past = np.minimum(overshoot, (high - low) / 2)
    moved, unit = x.copy(), np.where(size > 0, size, 1)
    grid = np.where(rises, np.floor(low / unit + 1e-6) + 1, np.floor(high / unit + 1e-6)) * unit
    moved[i] = np.where(size > 0, grid, np.where(rises, low + past, high - past))
    return moved


def move_to_neighbour(rule: Rule, x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return x (F,) with the features that do not meet `rule` copied from its nearest neighbour.

    `members` (M >= 1, F) are the neighbours in the leaf; the distance is L1 over those features.
    """
    unmet = rule.unmet(x)
    moved = x.copy()
    moved[unmet] = members[np.abs(members - x)[:, unmet].sum(1).argmin()][unmet]
    return moved


def _leaves(tree: DecisionTreeClassifier) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield node, low and high (F,) of each leaf, from left to right."""
    nodes: Any = tree.tree_
    open_end = np.full(nodes.n_features, np.inf)
    stack = [(0, -open_end, open_end)]
    while stack:
        node, low, high = stack.pop()
        if nodes.children_left[node] < 0:
            yield node, low, high
            continue
        i, threshold = nodes.feature[node], nodes.threshold[node]
        left_high, right_low = high.copy(), low.copy()
        left_high[i], right_low[i] = min(high[i], threshold), max(low[i], threshold)
        stack.append((nodes.children_right[node], right_low, high))
        stack.append((nodes.children_left[node], low, left_high))


def _interval(
    name: str, i: int, low: float, high: float, name_value: Callable[[int, float], str]
) -> str:
    """Return `low < name <= high` in words, without the ends that are open."""
    if np.isfinite(low) and np.isfinite(high):
        return f"{name_value(i, low)} < {name} ≤ {name_value(i, high)}"
    return (
        f"{name} > {name_value(i, low)}" if np.isfinite(low) else f"{name} ≤ {name_value(i, high)}"
    )
