"""Attribute oracles: networks that read all labels of a world and are never explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.models.oracles import AttributeOracle
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.augment import blur_and_add_noise
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import (
    Renders,
    channel_argument,
    predict_bytes,
    render_bytes,
)
from cf_utils.worlds import Factors, World

ORACLE_SEED = 1000  # added to the seed of the world: oracles see other draws than the classifiers


def read_labels(factors: Factors) -> Tensor:
    """Return all labels of a world (N, L), in {0, 1}."""
    return torch.stack([label(factors) for label in factors.world.labels], 1)


def train_oracle(name: str, seed: int, folder: Path | None, n: int, epochs: int) -> Trained:
    """Train an attribute oracle on n renders of a world."""
    world, seed_of_oracle = worlds.get(name), seed + ORACLE_SEED
    factors = world.sample(n, "train", seed=seed_of_oracle)
    names = [label.name for label in world.labels]
    settings = {
        "n": n,
        "epochs": epochs,
        "batch_size": 64,
        "lr": 3e-3,
        "augmentation": "blur, noise up to 0.05",
    }

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(module(blur_and_add_noise(x)), y.float())

    arguments = {"names": names, "size": world.size, **channel_argument(world)}
    model = channels_last(AttributeOracle(**arguments))
    log = loop.fit(
        model,
        Renders(factors, read_labels(factors)),
        [loop.Part(loss, lr=settings["lr"], weight_decay=2e-2)],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed_of_oracle,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, independent, seed {seed_of_oracle})",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "AttributeOracle", "arguments": arguments},
        "settings": settings,
    }
    return Trained(model, card, log, lambda model: measure(model, world, seed))


def measure(model: AttributeOracle, world: World, seed: int, n: int = 2000) -> dict[str, Any]:
    """Measure the accuracy of each label on n test renders."""
    test = world.sample(n, "test", seed=seed)
    right = (predict_bytes(model, render_bytes(test)) > 0) == read_labels(test)
    accuracy = dict(zip(model.names, right.double().mean(0).tolist(), strict=True))
    return {"test_n": n, "test_accuracy": accuracy}


@recipe("faces_attributes", embedded=True)
def faces_attributes(root: str, seed: int, folder: Path | None) -> Trained:
    """The attribute oracle of rendered faces (for MNAC and CD): the world's eight labels."""
    return train_oracle("faces", seed, folder, n=10_000, epochs=9)


@recipe("roads_attributes", embedded=True)
def roads_attributes(root: str, seed: int, folder: Path | None) -> Trained:
    """The independent judge of rendered roads (for COUT): action, and the world's other labels."""
    return train_oracle("roads", seed, folder, n=12_000, epochs=9)
