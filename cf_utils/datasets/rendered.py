"""Renders of a world as a data set: faces and roads, the embedded stand-ins. Every image comes with the factors that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cf_utils import worlds
from cf_utils.datasets.base import InMemory
from cf_utils.worlds import Factors, Graph

MAIN = {"faces": "smile", "roads": "action"}


@dataclass(frozen=True, eq=False)
class Rendered(InMemory):
    """Images float32 (N, 3, H, W) in [0, 1] with `factors` (world, values, seed, ids: enough to render each again, moved)
    and `labels`, int64 (N, L), one column a name in `label_names`; y is the column that was asked for."""

    factors: Factors
    labels: Tensor
    label_names: tuple[str, ...]

    def take(self, rows: Tensor | Sequence[int]) -> Rendered:
        rows = torch.as_tensor(rows)
        return Rendered(
            self.x[rows],
            self.y[rows],
            self.ids[rows],
            self.class_names,
            self.source,
            self.factors.take(rows),
            self.labels[rows],
            self.label_names,
        )


def load(
    name: str,
    split: str = "test",
    n: int = 1000,
    variant: str | Graph = "independent",
    size: tuple[int, int] | None = None,
    seed: int = 0,
    label: str | None = None,
) -> Rendered:
    """The first n images of a split of a world; `label` names y (smile of faces, action of roads where it is None).

    ValueError on an unknown world, split, variant or label, on n < 1, and on a size of another proportion.
    """
    world = worlds.get(name)
    main = world.label(label or MAIN[name])
    factors = world.sample(n, split, variant, seed)
    x = world.render(factors, size)
    labels = torch.stack([one(factors) for one in world.labels], 1)
    names = tuple(one.name for one in world.labels)
    return Rendered(x, main(factors), factors.ids, main.classes, "embedded", factors, labels, names)
