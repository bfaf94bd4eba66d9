"""Renders of a world as a data set, each with the factors that made it.

Faces, roads, radiographs and lung CT stand in for CelebA, BDD, CheXpert and OSIC, whose licences
forbid us to ship a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from cf_utils import worlds
from cf_utils.core import check_count
from cf_utils.datasets.base import InMemory, Rows
from cf_utils.worlds import Factors, Graph

# world -> the label that y is by default
MAIN = {
    "faces": "smile",
    "roads": "action",
    "radiographs": "cardiomegaly",
    "lung_ct": "mortality",
}


@dataclass(frozen=True, eq=False)
class Rendered(InMemory):
    """Renders x (N, C, H, W) float32 in [0, 1] with the factors that made them."""

    factors: Factors  # enough to render each image again, with a factor moved
    labels: Tensor  # (N, L) int64, one column per label of the world
    label_names: tuple[str, ...]

    def take(self, rows: Rows) -> Rendered:
        """Return the renders at these rows, in that order."""
        rows = torch.as_tensor(rows)
        part = cast(Rendered, super().take(rows))
        return replace(part, factors=self.factors.take(rows), labels=self.labels[rows])


def load(
    name: str,
    split: str = "test",
    n: int = 1000,
    variant: str | Graph = "independent",
    size: tuple[int, int] | None = None,
    seed: int = 0,
    label: str | None = None,
) -> Rendered:
    """Render the first n images of a split of a world.

    Args:
        name: faces, roads, radiographs or lung_ct.
        split: train, validation or test.
        n: number of images.
        variant: how the factors depend on each other; see the world.
        size: height and width in pixels; None: the world's own.
        seed: of the factors.
        label: the label that becomes y; None: smile of faces, action of roads,
            cardiomegaly of radiographs, mortality of lung_ct.

    Raises ValueError for an unknown world, split, variant or label, for n < 1, and for a size of
    other proportions.
    """
    check_count("n", n)
    world = worlds.get(name)
    main = world.label(label or MAIN[name])
    factors = world.sample(n, split, variant, seed)
    x = world.render(factors, size)
    labels = torch.stack([column(factors) for column in world.labels], 1)
    names = tuple(column.name for column in world.labels)
    y, classes = main(factors), main.classes
    return Rendered(x, y, factors.ids, classes, "embedded", factors, labels, names)
