"""Classifiers of rendered faces and roads, which notebooks 07 and 08 explain.

They are trained without defences, like those of the papers, and so are open to adversarial attacks.
`causal` has seen independent factors. `shortcut` has seen a variant in which another factor
coincides with the label, `mixed` one in which it mostly does. Which factors a classifier uses is
measured with the renderer, and stands in its model card under `quality.uses`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.evaluation.baselines import PGD
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import (
    Renders,
    channel_argument,
    concatenate,
    describe_data,
    move_each_factor,
    predict_bytes,
    render_bytes,
)
from cf_utils.worlds import Graph, World

SMALL = {"growth": 16, "blocks": (2, 4, 4), "first": 32, "pool": True}


def measure_uses(
    f: nn.Module, world: World, n: int = 64, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Measure how much a two-class classifier uses each factor that is no child.

    The renderer moves one factor at a time over its scale, for n test images. Returns per factor:
    `r`, the largest change of the probability of class 1, averaged over images, and `flips`, the
    share of images whose decision changes. The factor with the largest `r` comes first.
    """
    factors = world.sample(n, "test", seed=seed)
    tables = move_each_factor(factors)
    x = render_bytes(concatenate([factors, *(table for _, table in tables)]))
    p = predict_bytes(f, x).softmax(1)[:, 1].view(-1, n).double()
    out = {}
    for name in dict.fromkeys(name for name, _ in tables):
        own = p[[k + 1 for k, (moved, _) in enumerate(tables) if moved == name]]
        out[name] = {
            "r": (own - p[0]).abs().amax(0).mean().item(),
            "flips": ((own > 0.5) != (p[0] > 0.5)).any(0).double().mean().item(),
        }
    return dict(sorted(out.items(), key=lambda row: -row[1]["r"]))


def measure_quality(
    f: nn.Module, world: World, label: str, seed: int, n: int = 2000
) -> dict[str, Any]:
    """Measure a two-class classifier on test renders with independent factors."""
    factors = world.sample(n, "test", seed=seed)
    x, y = render_bytes(factors), world.label(label)(factors)
    logits = predict_bytes(f, x)
    few, decision = x[:128].float() / 255, logits[:128].argmax(1)
    return {
        "test_n": n,
        "test_accuracy": (logits.argmax(1) == y).double().mean().item(),
        "test_cross_entropy": F.cross_entropy(logits, y).item(),
        "flipped_by_pgd_2_255": PGD()(f, few, 1 - decision).valid.double().mean().item(),
        "uses": measure_uses(f, world, seed=seed),
    }


def train_classifier(
    name: str,
    label: str,
    seed: int,
    folder: Path | None,
    n: int,
    epochs: int,
    variant: str | Graph = "independent",
    lr: float = 3e-3,
) -> Trained:
    """Train a small DenseNet with one output on n renders of a variant of a world.

    Images are shifted by up to 3 pixels. Half of the batches of faces are mirrored; roads are not,
    because their lanes differ.
    """
    world = worlds.get(name)
    factors = world.sample(n, "train", variant, seed)

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        x = x.roll(tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3))
        x = x.flip(3) if name == "faces" and torch.rand(()) < 0.5 else x
        return F.binary_cross_entropy_with_logits(module(x)[:, 0], y.float())

    settings = {
        "n": n,
        "variant": variant,
        "epochs": epochs,
        "batch_size": 32,
        "lr": lr,
        "augmentation": "shift by 3" + (", mirror" if name == "faces" else ""),
    }
    arguments = SMALL | channel_argument(world)
    model = channels_last(SmallDenseNet(**arguments))
    log = loop.fit(
        model,
        Renders(factors, world.label(label)(factors)),
        [loop.Part(loss, lr=lr, weight_decay=1e-2)],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": describe_data(world, f"train ({n:,} renders, {variant})"),
        "architecture": {"class": "SmallDenseNet", "arguments": arguments},
        "classes": world.label(label).classes,
        "settings": settings,
    }

    def measure(model: nn.Module) -> dict[str, Any]:
        return measure_quality(OneOutput(model), world, label, seed)

    return Trained(model, card, log, measure)


@recipe("faces_smile_causal", embedded=True)
def faces_smile_causal(root: str, seed: int, folder: Path | None) -> Trained:
    """Smiling or not, trained where no factor is correlated with a smile."""
    return train_classifier("faces", "smile", seed, folder, n=14_000, epochs=10)


@recipe("faces_smile_shortcut", embedded=True)
def faces_smile_shortcut(root: str, seed: int, folder: Path | None) -> Trained:
    """Smiling or not, trained where smiling people stand before a warm wall."""
    return train_classifier("faces", "smile", seed, folder, n=4000, epochs=5, variant="confounded")


@recipe("faces_smile_mixed", embedded=True)
def faces_smile_mixed(root: str, seed: int, folder: Path | None) -> Trained:
    """Smiling or not, trained where smiling people mostly stand before a warm wall."""
    return train_classifier("faces", "smile", seed, folder, n=8000, epochs=5, variant="mixed")


@recipe("faces_age_causal", embedded=True)
def faces_age_causal(root: str, seed: int, folder: Path | None) -> Trained:
    """Old or young, trained where no factor is correlated with age."""
    return train_classifier("faces", "age", seed, folder, n=14_000, epochs=10)


@recipe("roads_action_causal", embedded=True)
def roads_action_causal(root: str, seed: int, folder: Path | None) -> Trained:
    """Slow down or drive on, trained where no factor is correlated with the scene's cause."""
    return train_classifier("roads", "action", seed, folder, n=8000, epochs=6)


@recipe("roads_action_shortcut", embedded=True)
def roads_action_shortcut(root: str, seed: int, folder: Path | None) -> Trained:
    """Slow down or drive on, trained where the right lane brakes whenever the own lane must."""
    return train_classifier("roads", "action", seed, folder, n=3000, epochs=5, variant="confounded")


@recipe("roads_action_mixed", embedded=True)
def roads_action_mixed(root: str, seed: int, folder: Path | None) -> Trained:
    """Slow down or drive on, trained where the right lane mostly brakes when the own lane must."""
    return train_classifier("roads", "action", seed, folder, n=8000, epochs=5, variant="mixed")
