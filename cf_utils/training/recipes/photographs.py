"""DenseNet-121 and diffusion models of official photographs; training takes hours on a GPU.

`cases.official_case` uses the papers' published networks. These recipes are for other labels, crops
and seeds; none of their checkpoints ships.

Settings of the classifiers: Singla et al.'s multi-label DenseNet (Adam, learning rate 1e-4, batch
32, 10 epochs). Settings of the priors: DiME's script for CelebA, which does not give the number of
steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils import core
from cf_utils.datasets import bdd, celeba, celebahq
from cf_utils.datasets.base import OnDisk
from cf_utils.models import classifiers
from cf_utils.models.generators import diffusion
from cf_utils.models.image_classifiers import ImageDenseNet
from cf_utils.training import loop
from cf_utils.training.progress import report
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.diffusion import measure_denoising

WORKERS = min(8, (os.cpu_count() or 2) - 1)  # processes that decode JPEGs in advance
CLASSIFIER = {"epochs": 10, "batch_size": 32, "lr": 1e-4}
PRIOR = {
    "epochs": 60,
    "batch_size": 60,
    "lr": 1e-4,
    "weight_decay": 0.05,
    "ema": 0.9999,
    "clip": 1.0,
}
WIDTHS = {
    "widths": (128, 128, 256, 256, 512),
    "blocks": 2,
    "attention": (False, False, True, True, True),
    "head_width": 64,
    "groups": 32,
    "unshuffle": 1,
}


def read_batches(data: OnDisk, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x, y) of consecutive batches; each is read from disk when it is needed."""
    report(f"reading {len(data):,} images")
    starts = core.progress(range(0, len(data), size), desc="reading", leave=False)
    return (data[at : at + size][:2] for at in starts)


def labels_loss(module: nn.Module, batch: Any) -> Tensor:
    """Return the binary cross-entropy of a batch (x, y, ids), y of shape (B,) or (B, labels)."""
    x, y, _ = batch
    z = module(x)
    return F.binary_cross_entropy_with_logits(z, y.view(len(y), -1).to(z))


def mirrored_loss(module: nn.Module, batch: Any) -> Tensor:
    """Return `labels_loss` with half of the batches mirrored; not for labels such as "left"."""
    x, y, ids = batch
    return labels_loss(module, (x.flip(3) if torch.rand(()) < 0.5 else x, y, ids))


def train_classifier(
    name: str,
    train: OnDisk,
    validation: OnDisk,
    outputs: tuple[str, ...],
    seed: int,
    folder: Path | None,
    mirror: bool = True,
) -> Trained:
    """Train a DenseNet-121 with one output per label."""
    settings = CLASSIFIER | {"augmentation": "mirror" if mirror else None}
    model = ImageDenseNet(len(outputs))
    log = loop.fit(
        model,
        train,
        [loop.Part(mirrored_loss if mirror else labels_loss, lr=CLASSIFIER["lr"])],
        epochs=CLASSIFIER["epochs"],
        batch_size=min(CLASSIFIER["batch_size"], len(train)),
        seed=seed,
        workers=WORKERS,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": {"name": f"{name} (official)", "split": f"train ({len(train):,} images)"},
        "architecture": {"class": "ImageDenseNet", "arguments": {"outputs": len(outputs)}},
        "classes": list(outputs),
        "settings": settings,
    }
    return Trained(model.cpu(), card, log, lambda model: measure_labels(model, validation, outputs))


def measure_labels(
    model: nn.Module, validation: OnDisk, outputs: tuple[str, ...]
) -> dict[str, Any]:
    """Measure the accuracy of each label, next to the share of its more frequent value.

    A classifier that ignores the image reaches that share.
    """
    right, labels = [], []
    for x, y in read_batches(validation, 100):
        present = y.view(len(y), -1) > 0
        right.append((classifiers.predict(model, x) > 0) == present)
        labels.append(present)
    accuracy = torch.cat(right).double().mean(0)
    share = torch.cat(labels).double().mean(0)
    majority = torch.maximum(share, 1 - share)
    return {
        "validation_n": len(validation),
        "validation_accuracy": dict(zip(outputs, accuracy.tolist(), strict=True)),
        "validation_majority_rate": dict(zip(outputs, majority.tolist(), strict=True)),
    }


def train_prior(
    name: str,
    train: OnDisk,
    validation: OnDisk,
    size: tuple[int, int],
    steps: int,
    seed: int,
    folder: Path | None,
) -> Trained:
    """Train a diffusion model of images of `size` (height, width) with `steps` noise levels."""
    model = diffusion.build(size=size, steps=steps, **WIDTHS)
    log = loop.fit(
        model,
        train,
        [loop.Part(diffusion.loss, lr=PRIOR["lr"], weight_decay=PRIOR["weight_decay"])],
        epochs=PRIOR["epochs"],
        batch_size=min(PRIOR["batch_size"], len(train)),
        seed=seed,
        ema=PRIOR["ema"],
        clip=PRIOR["clip"],
        workers=WORKERS,
        folder=folder,
        settings=PRIOR,
    )
    card = {
        "data": {"name": f"{name} (official)", "split": f"train ({len(train):,} images)"},
        "architecture": diffusion.describe_architecture(model),
        "settings": PRIOR,
    }

    def measure(model: nn.Module) -> dict[str, Any]:
        few = validation.take(range(min(256, len(validation)))).in_memory().x
        return measure_denoising(model, few, seed)

    return Trained(model.cpu(), card, log, measure)


@recipe("celeba_densenet")
def celeba_densenet(root: str, seed: int, folder: Path | None) -> Trained:
    """DenseNet-121 of CelebA's 40 attributes, 128 pixels, crop of 178."""
    train, validation = (celeba.load(root, split, None) for split in ("train", "validation"))
    return train_classifier("celeba", train, validation, train.class_names, seed, folder)


@recipe("celebahq_densenet")
def celebahq_densenet(root: str, seed: int, folder: Path | None) -> Trained:
    """DenseNet-121 of CelebA-HQ's 40 attributes, 256 pixels."""
    train, validation = (celebahq.load(root, split, None) for split in ("train", "validation"))
    return train_classifier("celebahq", train, validation, train.class_names, seed, folder)


@recipe("bdd_densenet")
def bdd_densenet(root: str, seed: int, folder: Path | None) -> Trained:
    """DenseNet-121 of BDD-OIA's four actions (forward, stop, left, right), 256 x 512 pixels."""
    train, validation = (bdd.load(root, split, "oia", None) for split in ("train", "validation"))
    return train_classifier("bdd", train, validation, train.class_names, seed, folder, mirror=False)


@recipe("celeba_ddpm")
def celeba_ddpm(root: str, seed: int, folder: Path | None) -> Trained:
    """A diffusion prior of CelebA, 128 pixels, 500 noise levels."""
    train, validation = (celeba.load(root, split) for split in ("train", "validation"))
    return train_prior("celeba", train, validation, (128, 128), 500, seed, folder)


@recipe("bdd_ddpm")
def bdd_ddpm(root: str, seed: int, folder: Path | None) -> Trained:
    """A diffusion prior of BDD100k's 10k subset, 256 x 512 pixels, 1,000 noise levels.

    The paper's prior was trained on the same subset.
    """
    train, validation = (bdd.load(root, split, "10k") for split in ("train", "validation"))
    return train_prior("bdd10k", train, validation, (256, 512), 1000, seed, folder)
