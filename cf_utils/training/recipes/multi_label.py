"""Classifiers of rendered faces: a biased one, and a multi-label one.

The biased classifier saw a training set in which smiling people mostly have short hair, as in
Singla et al., section 4.4, where all smiling people are male. Hair length stands in for gender.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import (
    Renders,
    describe_data,
    predict_bytes,
    render_bytes,
)
from cf_utils.training.recipes.world_classifiers import SMALL, measure_uses, train_classifier
from cf_utils.worlds import Graph, World

SHORT_HAIR_SMILES: Graph = {"hair_length": (("smile", -0.95),)}  # variant of faces
LABELS = ("smile", "age", "fringe")  # outputs of `faces_labels_causal`


def labels_loss(module: nn.Module, batch: Any) -> Tensor:
    """Return the binary cross-entropy of all labels, of images shifted and mirrored at random."""
    x, y = batch
    x = x.roll(tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3))
    x = x.flip(3) if torch.rand(()) < 0.5 else x
    return F.binary_cross_entropy_with_logits(module(x), y.float())


def train_labels(
    name: str, labels: tuple[str, ...], seed: int, folder: Path | None, n: int, epochs: int
) -> Trained:
    """Train a small DenseNet with one output per label on n renders with independent factors."""
    world = worlds.get(name)
    factors = world.sample(n, "train", seed=seed)
    settings = {"n": n, "epochs": epochs, "batch_size": 32, "lr": 3e-3}
    arguments = {**SMALL, "outputs": len(labels)}
    model = channels_last(SmallDenseNet(**arguments))
    log = loop.fit(
        model,
        Renders(factors, torch.stack([world.label(label)(factors) for label in labels], 1)),
        [loop.Part(labels_loss, lr=settings["lr"], weight_decay=1e-2)],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": describe_data(world, f"train ({n:,} renders, independent)"),
        "architecture": {"class": "SmallDenseNet", "arguments": arguments},
        "classes": list(labels),
        "settings": settings | {"augmentation": "shift by 3, mirror"},
    }
    return Trained(model, card, log, lambda model: measure_labels(model, world, labels, seed))


def measure_labels(
    model: nn.Module, world: World, labels: tuple[str, ...], seed: int, n: int = 2000
) -> dict[str, Any]:
    """Measure each output on test renders with independent factors."""
    factors = world.sample(n, "test", seed=seed)
    decided = predict_bytes(model, render_bytes(factors)) > 0
    truth = torch.stack([world.label(label)(factors) for label in labels], 1) > 0
    right = (decided == truth).double().mean(0).tolist()
    uses = {
        label: measure_uses(OneOutput(model, i), world, seed=seed) for i, label in enumerate(labels)
    }
    return {
        "test_n": n,
        "test_accuracy": dict(zip(labels, right, strict=True)),
        "uses": {label: dict(list(of.items())[:6]) for label, of in uses.items()},
    }


@recipe("faces_labels_causal", embedded=True)
def faces_labels_causal(root: str, seed: int, folder: Path | None) -> Trained:
    """Smile, age and fringe as three outputs, trained where no factor is correlated."""
    return train_labels("faces", LABELS, seed, folder, n=14_000, epochs=7)


@recipe("faces_smile_biased", embedded=True)
def faces_smile_biased(root: str, seed: int, folder: Path | None) -> Trained:
    """Smiling or not, trained where smiling people mostly have short hair."""
    variant = SHORT_HAIR_SMILES
    return train_classifier("faces", "smile", seed, folder, n=8000, epochs=5, variant=variant)
