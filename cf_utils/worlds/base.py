"""What worlds share: factors, their graph, streams, splits, labels.

An image is a row of factors, a seed and an id. Each factor has a stream of its own: one uniform number drawn from a SHA-256 of
(seed, id, name), all of them before any value is computed; the value is that number through the factor's quantile function.
So `sample(10)[:5]` is `sample(5)`, and moving a factor re-draws nothing else.

Graph. In a variant, a factor with parents has the normal score z = sum_p w_p z_p + r e, e its own draw, r such that z has
variance 1. Marginals are therefore the same in every variant, and correlations of the scores follow from the weights alone.
Bundles are another thing: a child (grey hair) is part of its parent (age) in every variant and moves with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.core import files

SPLITS = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}  # the first id of each
ROLES = ("cause", "child", "identity", "nuisance")
Graph = Mapping[str, Sequence[tuple[str, float]]]  # factor -> its (parent, weight) pairs


@dataclass(frozen=True)
class Factor:
    """One column of the table, in [0, 1]; a category is 0, 1, ... instead.

    `quantiles`: knots (probability, value) of the quantile function, linear in between. A binary factor is 1 with probability
    `p`; the renderer takes any value between as a fade. A category has the probabilities `shares`. A child has a `parent`
    and a `curve`, knots (parent's value, child's value), and deviates from it by at most `spread`.
    """

    name: str
    role: str = "nuisance"
    kind: str = "continuous"
    quantiles: tuple[tuple[float, float], ...] = ((0, 0), (1, 1))
    p: float = 0.5
    shares: tuple[float, ...] = ()
    parent: str | None = None
    curve: tuple[tuple[float, float], ...] = ()
    spread: float = 0.0

    def value(self, u: Tensor, parent: Tensor | None = None) -> Tensor:
        """Values float32 (N,) of uniform draws u (N,), given the parent's values for a child."""
        if self.parent is not None:
            return (
                (through(parent.double(), self.curve) + self.spread * (2 * u - 1))
                .clamp(0, 1)
                .float()
            )
        if self.kind == "binary":
            return (u >= 1 - self.p).float()
        if self.kind == "category":
            edges = torch.tensor(self.shares, dtype=torch.float64).cumsum(0)[:-1].contiguous()
            return torch.searchsorted(edges, u.contiguous(), right=True).float()
        return through(u, self.quantiles).float()


def through(t: Tensor, knots: Sequence[tuple[float, float]]) -> Tensor:
    """Piecewise linear interpolation of t (N,) float64 through (position, value) knots; constant outside them."""
    at, to = torch.tensor(knots, dtype=torch.float64).T.contiguous()
    i = torch.searchsorted(at, t.contiguous(), right=True).clamp(1, len(at) - 1)
    return to[i - 1] + (to[i] - to[i - 1]) * ((t - at[i - 1]) / (at[i] - at[i - 1])).clamp(0, 1)


def uniform(seed: int, i: int, stream: str) -> float:
    """The uniform number in (0, 1) that belongs to (seed, id, stream): 52 bits of their SHA-256."""
    digest = hashlib.sha256(f"{seed}|{i}|{stream}".encode()).digest()
    return ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) / 2**52


@dataclass(frozen=True)
class Label:
    """A binary label: a factor at or above a threshold, or a `rule` of several factors, Factors -> bool (N,).

    `neutral`: where the factors that it depends on are put so that an image says nothing about it."""

    name: str
    classes: tuple[str, str]
    factor: str | None = None
    threshold: float = 0.5
    rule: Callable[[Factors], Tensor] | None = None
    neutral: tuple[tuple[str, float], ...] = ()

    def __call__(self, factors: Factors) -> Tensor:
        on = self.rule(factors) if self.rule else factors[self.factor] >= self.threshold
        return on.long()

    def neutralised(self, factors: Factors) -> Factors:
        """The same images with what the label depends on (a factor and its bundle) at one fixed value for all."""
        for name, value in self.neutral or ((self.factor, self.threshold),):
            factors = factors.move(name, value)
        return factors

    def near(self, factors: Factors, width: float = 0.05) -> float:
        """Share of images whose factor lies within `width` of the threshold: those that no reader can be sure of."""
        return ((factors[self.factor] - self.threshold).abs() <= width).double().mean().item()


@dataclass(frozen=True, eq=False)
class Factors:
    """A table of N images: `values` float32 (N, K); what re-makes them: `draws` float64 (N, K), `seed`, `ids` int64 (N,)."""

    world: World = field(repr=False)
    values: Tensor
    draws: Tensor = field(repr=False)
    seed: int
    ids: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[:, self.world.column(name)]

    def take(self, rows: Tensor | Sequence[int] | slice) -> Factors:
        rows = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return replace(self, values=self.values[rows], draws=self.draws[rows], ids=self.ids[rows])

    def move(self, name: str, value: Tensor | float) -> Factors:
        """Set one factor (a number or (N,)); its children follow, each with its own draw; nothing else changes.

        The value is a fixed place on the factor's own scale. ValueError: unknown factor, values outside the scale.
        """
        factor, values = self.world.factors[self.world.column(name)], self.values.clone()
        value = torch.as_tensor(value, dtype=torch.float32).expand(len(self)).contiguous()
        high = len(factor.shares) - 1 if factor.kind == "category" else 1
        if not ((value >= 0) & (value <= high)).all():  # NaN too
            raise ValueError(
                f"value: from {value.min():.3g} to {value.max():.3g} for {name}, expected inside [0, {high}]"
            )
        values[:, self.world.column(name)] = value
        for k in self.world.children(name):
            values[:, k] = self.world.factors[k].value(self.draws[:, k], value)
        return replace(self, values=values)

    def stream(self, name: str, shape: Sequence[int], kind: str = "uniform") -> Tensor:
        """Draws (N, *shape) float32 that belong to no factor (strands of hair, camera noise)."""
        return core.item_noise(self.seed, self.ids, shape, f"{self.world.name}/{name}", kind)


@dataclass(frozen=True, eq=False)
class World:
    """`draw(factors, height, width) -> (N, 3, height, width)` without camera noise; `noise` names the factor that scales it."""

    name: str
    factors: tuple[Factor, ...]
    labels: tuple[Label, ...]
    variants: Mapping[str, Graph]
    draw: Callable[[Factors, int, int], Tensor] = field(repr=False)
    size: tuple[int, int] = (64, 64)  # default height, width
    noise: tuple[str, float, float] = ("noise", 0.0, 0.03)  # factor, sd at 0, sd at 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.factors)

    def column(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"factor: got {name!r}, expected one of {self.names}")
        return self.names.index(name)

    def children(self, name: str) -> list[int]:
        return [k for k, f in enumerate(self.factors) if f.parent == name]

    def role(self, role: str) -> tuple[str, ...]:
        """Names of the factors that are `cause`, `child`, `identity` or `nuisance`."""
        if role not in ROLES:
            raise ValueError(f"role: got {role!r}, expected one of {ROLES}")
        return tuple(f.name for f in self.factors if f.role == role)

    def label(self, name: str) -> Label:
        known = {label.name: label for label in self.labels}
        if name not in known:
            raise ValueError(f"label: got {name!r}, expected one of {tuple(known)}")
        return known[name]

    def graph(self, variant: str | Graph) -> Graph:
        """A variant by name, or a graph of one's own (factor -> (parent, weight) pairs), checked."""
        if isinstance(variant, str):
            if variant not in self.variants:
                raise ValueError(
                    f"variant: got {variant!r}, expected one of {tuple(self.variants)} or a graph"
                )
            return self.variants[variant]
        for name in {*variant, *(p for pairs in variant.values() for p, _ in pairs)}:
            if self.factors[self.column(name)].parent is not None:
                raise ValueError(
                    f"variant: {name!r} is a child and follows its parent; it has no other place in a graph"
                )
        return variant

    def scores(self, graph: Graph) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """Order of computing, weights W (K, K), residual r (K,), and the correlation (K, K) of normal scores they imply."""
        k = len(self.factors)
        w, r, c = (
            torch.zeros(k, k, dtype=torch.float64),
            torch.ones(k, dtype=torch.float64),
            torch.eye(k, dtype=torch.float64),
        )
        order, left = (
            [i for i, n in enumerate(self.names) if n not in graph],
            [n for n in self.names if n in graph],
        )
        while left:
            ready = [n for n in left if all(p not in left for p, _ in graph[n])]
            if not ready:
                raise ValueError(
                    f"variant: {left} are each other's ancestors, expected a graph without circles"
                )
            for name in ready:
                i = self.column(name)
                for parent, weight in graph[name]:
                    w[i, self.column(parent)] = weight
                explained = w[i] @ c @ w[i]
                if explained > 1 + 1e-9:
                    raise ValueError(
                        f"variant: the parents of {name!r} explain a variance of {explained:.3f}, over 1"
                    )
                r[i] = (1 - explained).clamp(0).sqrt()
                c[i] = c[:, i] = w[i] @ c
                c[i, i] = 1
                order.append(i)
                left.remove(name)
        return order, w, r, c

    def sample(
        self,
        n: int,
        split: str = "train",
        variant: str | Graph = "independent",
        seed: int = 0,
        start: int = 0,
    ) -> Factors:
        """Factors of images start .. start + n - 1 of a split. The ids of splits never meet, so neither do their draws."""
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, expected one of {tuple(SPLITS)}")
        if n < 1 or start < 0 or start + n > SPLITS["validation"]:
            raise ValueError(
                f"n, start: got {n}, {start}, expected n >= 1 and 0 <= start, at most 10^9 images a split"
            )
        graph = self.graph(variant)
        order, w, r, _ = self.scores(graph)
        ids = SPLITS[split] + start + torch.arange(n)
        draws = torch.tensor(
            [
                [uniform(seed, i, f"{self.name}/factor/{name}") for name in self.names]
                for i in ids.tolist()
            ],
            dtype=torch.float64,
        )
        z, u = torch.special.ndtri(draws), draws.clone()
        for i in order:
            if w[i].any():
                z[:, i] = (
                    sum(w[i, j] * z[:, j] for j in w[i].nonzero().flatten().tolist())
                    + r[i] * z[:, i]
                )
                u[:, i] = torch.special.ndtr(z[:, i])
        values = torch.zeros(n, len(self.factors))
        for i, factor in sorted(
            enumerate(self.factors), key=lambda pair: pair[1].parent is not None
        ):
            parent = None if factor.parent is None else values[:, self.column(factor.parent)]
            values[:, i] = factor.value(u[:, i], parent)
        return Factors(self, values, draws, seed, ids)

    def render(
        self, factors: Factors, size: tuple[int, int] | None = None, noise: bool = True
    ) -> Tensor:
        """Images float32 (N, 3, H, W) in [0, 1]; `noise=False` leaves out the camera's noise alone.

        An image depends on its own row, seed and id; pixels are made by operations that IEEE 754 rounds correctly and by no
        others, so it is bit-equal in any batch and order and for any number of threads.
        """
        height, width = size or self.size
        if height < 16 or width * self.size[0] != height * self.size[1]:
            raise ValueError(
                f"size: got {(height, width)}, expected height >= 16 and the proportion of {self.size}"
            )
        chunk = max(1, 2**17 // (height * width))  # planes that stay in the cache
        parts = []
        for at in range(0, len(factors), chunk):
            part = factors.take(slice(at, at + chunk))
            x = self.draw(part, height, width)
            if noise:
                x = x + self.noise_sd(part)[:, None, None, None] * part.stream(
                    "camera", (3, height, width), "normal"
                )
            parts.append(x.clamp_(0, 1))
        return torch.cat(parts)

    def noise_sd(self, factors: Factors) -> Tensor:
        """Standard deviation (N,) of the camera's noise, in units of [0, 1]."""
        name, low, high = self.noise
        return low + (high - low) * factors[name]

    def sha256(self) -> str:
        """Hash of all that an image depends on: this world's code, the drawing tools, this file."""
        here = Path(__file__).parent
        return files.sha256(
            Path(__file__), here / "draw.py", *sorted(here.glob(f"{self.name}*.py"))
        )
