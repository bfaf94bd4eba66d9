"""Renders of a world as training data: rendered once, kept on disk, read as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cf_utils import core
from cf_utils.core import files
from cf_utils.harness import folders
from cf_utils.models.classifiers import predict
from cf_utils.training.progress import report
from cf_utils.worlds import Factors, World

PLACES = (0.0, 0.5, 1.0)  # to which a continuous factor is moved


def channel_argument(world: World) -> dict[str, int]:
    """Return the argument that tells a network how many channels a world's images have.

    It is left out for colours, the networks' default, so that cards of older checkpoints hold.
    """
    return {} if world.channels == 3 else {"channels": world.channels}


def describe_data(world: World, split: str) -> dict[str, str]:
    """Return the entry `data` of a model card for renders; `split` says in words which."""
    return {
        "name": f"{world.name} (embedded)",
        "split": split,
        "world_sha256": world.sha256(),
    }


def render_bytes(factors: Factors) -> Tensor:
    """Return renders as uint8 (N, C, H, W).

    They are kept in results/run/cache, under a hash of the world's code and of the factors.
    """
    world = factors.world
    key = files.sha256(world.sha256(), factors.values, factors.ids, str(factors.seed))
    path = folders.root() / "cache" / f"{world.name}-{key[:20]}.safetensors"
    if not path.exists():
        report(f"rendering {len(factors):,} images of {world.name}")
        parts = [
            (world.render(factors.take(slice(at, at + 500))) * 255).round_().to(torch.uint8)
            for at in core.progress(range(0, len(factors), 500), desc="rendering")
        ]
        files.write_tensors(path, {"x": torch.cat(parts)})
    return files.read_tensors(path)["x"]


def predict_bytes(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs (N, K) of a model for images x uint8 (N, C, H, W)."""
    return torch.cat([predict(model, batch.float() / 255) for batch in x.split(500)])


class StoredImages(Dataset):
    """Images uint8 (N, C, H, W) with targets; item: (x in [0, 1], *targets)."""

    def __init__(self, x: Tensor, *targets: Tensor):
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return (self.x[i].float() / 255, *(target[i] for target in self.targets))


class Renders(StoredImages):
    """The renders of a table of factors, with targets."""

    def __init__(self, factors: Factors, *targets: Tensor):
        super().__init__(render_bytes(factors), *targets)


def move_each_factor(factors: Factors) -> list[tuple[str, Factors]]:
    """Move one factor at a time: return (its name, the same images with that factor moved).

    Each factor that is no child moves to each of `PLACES`, or to each of its levels.
    """
    tables = []
    for factor in factors.world.factors:
        if factor.parent is not None:
            continue
        places: Sequence[float] = PLACES
        if factor.kind != "continuous":
            places = range(factor.highest + 1)
        tables += [(factor.name, factors.move(factor.name, float(value))) for value in places]
    return tables


def concatenate(tables: list[Factors]) -> Factors:
    """Concatenate the rows of several tables of one world and one seed."""
    first = tables[0]
    return Factors(
        first.world,
        torch.cat([table.values for table in tables]),
        torch.cat([table.draws for table in tables]),
        first.seed,
        torch.cat([table.ids for table in tables]),
    )
