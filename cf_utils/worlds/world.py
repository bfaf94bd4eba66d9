"""Worlds: sample factors, render images, read labels.

All draws are made before any value is computed, so a variant changes values but no draw.
See `factors` for the table and `graph` for the dependence between factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cf_utils.worlds.code_hash import hash_world
from cf_utils.worlds.factors import Factor, Factors, draw_uniform
from cf_utils.worlds.graph import Graph, build_score_model

SPLITS = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}  # first id of each split
ROLES = ("cause", "child", "identity", "nuisance")


@dataclass(frozen=True)
class Label:
    """A binary label: 1 where a factor reaches a threshold, or where a rule holds.

    classes: names of class 0 and class 1. rule: Factors -> bool (N,).
    neutral: (factor, value) pairs at which an image carries no information about the label; by
        default the label's factor at its threshold.
    """

    name: str
    classes: tuple[str, str]
    factor: str | None = None
    threshold: float = 0.5
    rule: Callable[[Factors], Tensor] | None = None
    neutral: tuple[tuple[str, float], ...] = ()

    def __call__(self, factors: Factors) -> Tensor:
        on = self.rule(factors) if self.rule else factors[self.factor] >= self.threshold
        return on.long()

    def neutralise(self, factors: Factors) -> Factors:
        """Set what the label depends on, and its children, to one value for all images."""
        for name, value in self.neutral or ((self.factor, self.threshold),):
            factors = factors.move(name, value)
        return factors

    def share_near_threshold(self, factors: Factors, width: float = 0.05) -> float:
        """Return the share of images whose factor lies within `width` of the threshold."""
        return ((factors[self.factor] - self.threshold).abs() <= width).double().mean().item()


@dataclass(frozen=True, eq=False)
class World:
    """A renderer with known factors.

    draw: (factors, height, width) -> (N, channels, height, width), without camera noise.
    variants: name -> graph of dependence between factors. size: default (height, width).
    noise: (factor that scales the camera noise, standard deviation at 0, standard deviation at 1).
    channels: 3 for colours, 1 for grey levels.
    """

    name: str
    factors: tuple[Factor, ...]
    labels: tuple[Label, ...]
    variants: Mapping[str, Graph]
    draw: Callable[[Factors, int, int], Tensor] = field(repr=False)
    size: tuple[int, int] = (64, 64)
    noise: tuple[str, float, float] = ("noise", 0.0, 0.03)
    channels: int = 3

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the factors, in the order of the columns."""
        return tuple(f.name for f in self.factors)

    def column(self, name: str) -> int:
        """Return the column of a factor; raise ValueError if there is none of that name."""
        if name not in self.names:
            raise ValueError(f"factor: got {name!r}, expected one of {self.names}")
        return self.names.index(name)

    def children(self, name: str) -> list[int]:
        """Return the columns of the children of a factor."""
        return [k for k, f in enumerate(self.factors) if f.parent == name]

    def role(self, role: str) -> tuple[str, ...]:
        """Return the names of the factors with one of the `ROLES`."""
        if role not in ROLES:
            raise ValueError(f"role: got {role!r}, expected one of {ROLES}")
        return tuple(f.name for f in self.factors if f.role == role)

    def label(self, name: str) -> Label:
        """Return a label by name; raise ValueError if there is none of that name."""
        known = {label.name: label for label in self.labels}
        if name not in known:
            raise ValueError(f"label: got {name!r}, expected one of {tuple(known)}")
        return known[name]

    def graph(self, variant: str | Graph) -> Graph:
        """Return the graph of a named variant, or check a graph of your own.

        Raises ValueError for an unknown variant or factor, and for a child, which follows its
        parent in every variant.
        """
        if isinstance(variant, str):
            if variant not in self.variants:
                raise ValueError(
                    f"variant: got {variant!r}, expected one of {tuple(self.variants)} or a graph"
                )
            return self.variants[variant]
        for name in {*variant, *(p for pairs in variant.values() for p, _ in pairs)}:
            if self.factors[self.column(name)].parent is not None:
                raise ValueError(
                    f"variant: got {name!r}, which is a child and follows its parent; "
                    "expected factors without a parent"
                )
        return variant

    def sample(
        self,
        n: int,
        split: str = "train",
        variant: str | Graph = "independent",
        seed: int = 0,
        start: int = 0,
    ) -> Factors:
        """Sample the factors of images start to start + n - 1 of one of the `SPLITS`.

        Splits have disjoint ids, hence disjoint draws. Raises ValueError on a bad split, variant, n
        or start.
        """
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}, expected one of {tuple(SPLITS)}")
        if n < 1 or start < 0 or start + n > SPLITS["validation"]:
            raise ValueError(
                f"n, start: got {n}, {start}, expected n >= 1, start >= 0 and n + start <= 10^9"
            )
        graph = self.graph(variant)
        ids = SPLITS[split] + start + torch.arange(n)
        rows = [
            [draw_uniform(seed, i, f"{self.name}/factor/{name}") for name in self.names]
            for i in ids.tolist()
        ]
        draws = torch.tensor(rows, dtype=torch.float64)
        return Factors(self, self._values(draws, graph), draws, seed, ids)

    def _values(self, draws: Tensor, graph: Graph) -> Tensor:
        """Map draws (N, K) to values float32 (N, K) by normal scores and quantile functions."""
        order, w, r, _ = build_score_model(self.names, graph)
        z, u = torch.special.ndtri(draws), draws.clone()
        for i in order:
            if w[i].any():
                parents = w[i].nonzero().flatten().tolist()
                z[:, i] = sum(w[i, j] * z[:, j] for j in parents) + r[i] * z[:, i]
                u[:, i] = torch.special.ndtr(z[:, i])
        values = torch.zeros(len(draws), len(self.factors))
        children_last = sorted(enumerate(self.factors), key=lambda pair: pair[1].parent is not None)
        for i, factor in children_last:
            parent = None if factor.parent is None else values[:, self.column(factor.parent)]
            values[:, i] = factor.from_uniform(u[:, i], parent)
        return values

    def render(
        self, factors: Factors, size: tuple[int, int] | None = None, noise: bool = True
    ) -> Tensor:
        """Render images float32 (N, C, H, W) in [0, 1], with camera noise unless `noise` is False.

        An image depends on its own row, seed and id. Pixels use only operations that IEEE 754
        rounds correctly. They are therefore bit-equal in any batch, in any order and for any number
        of threads. Raises ValueError if `size` (height, width) is below 16 or has another aspect
        ratio than the world.
        """
        height, width = size or self.size
        if height < 16 or width * self.size[0] != height * self.size[1]:
            raise ValueError(
                f"size: got {(height, width)}, "
                f"expected height >= 16 and the aspect ratio of {self.size}"
            )
        chunk = max(1, 2**17 // (height * width))  # planes of a chunk fit into the CPU's cache
        parts = []
        for at in range(0, len(factors), chunk):
            part = factors.take(slice(at, at + chunk))
            x = self.draw(part, height, width)
            if noise:
                camera = part.stream("camera", (self.channels, height, width), "normal")
                x = x + self.noise_sd(part)[:, None, None, None] * camera
            parts.append(x.clamp_(0, 1))
        return torch.cat(parts)

    def noise_sd(self, factors: Factors) -> Tensor:
        """Return the standard deviation (N,) of the camera noise, in pixel units of [0, 1]."""
        name, low, high = self.noise
        return low + (high - low) * factors[name]

    def sha256(self) -> str:
        """Hash the code that an image depends on. Rewording or moving code keeps the hash.

        See `code_hash.hash_world` for what counts.
        """
        return hash_world(self.name, self.draw.__module__)
