"""DenseNet-121 and diffusion models of official photographs, by this project's own loop: hours on a GPU.

The papers' published networks are what `cases.official_case` takes; these are for other labels, crops and seeds. Nothing of them
ships. Settings: classifiers as Singla et al.'s multi-label DenseNet (Adam 1e-4, batch 32, 10 epochs), priors as DiME's script for
CelebA (lr 1e-4, batch 60, weight decay 0.05, average 0.9999; its number of steps is not given). A killed training goes on with
`--resume`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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
from cf_utils.training.recipes.base import recipe
from cf_utils.training.recipes.diffusion import denoising

READERS = min(8, (os.cpu_count() or 2) - 1)  # processes that decode JPEGs ahead of the training
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


def batches(data: OnDisk, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) in order, read as they are asked for."""
    return (
        data[at : at + size][:2]
        for at in core.progress(range(0, len(data), size), desc="reading", leave=False)
    )


def labels_loss(module: nn.Module, batch) -> Tensor:
    """Cross-entropy of each yes-or-no label, (x, y, id); y of one label or of several."""
    x, y, _ = batch
    z = module(x)
    return F.binary_cross_entropy_with_logits(z, y.view(len(y), -1).to(z))


def mirrored_loss(module: nn.Module, batch) -> Tensor:
    """`labels_loss` with half of the batches mirrored: for faces. On a road that makes left of right."""
    x, y, ids = batch
    return labels_loss(module, (x.flip(3) if torch.rand(()) < 0.5 else x, y, ids))


def _classifier(
    name: str,
    train: OnDisk,
    held: OnDisk,
    outputs: tuple[str, ...],
    seed: int,
    folder: Path | None,
    mirror: bool = True,
):
    """DenseNet-121 with an output a label."""
    model, loss = ImageDenseNet(len(outputs)), mirrored_loss if mirror else labels_loss
    log = loop.fit(
        model,
        train,
        [loop.Part(loss, lr=CLASSIFIER["lr"])],
        epochs=CLASSIFIER["epochs"],
        batch_size=min(CLASSIFIER["batch_size"], len(train)),
        seed=seed,
        workers=READERS,
        folder=folder,
    )
    model = model.cpu()
    right = torch.cat(
        [
            (classifiers.predict(model, x) > 0) == (y.view(len(y), -1) > 0)
            for x, y in batches(held, 100)
        ]
    )
    card = {
        "data": {"name": f"{name} (official)", "split": f"train ({len(train):,} images)"},
        "architecture": {"class": "ImageDenseNet", "arguments": {"outputs": len(outputs)}},
        "classes": list(outputs),
        "settings": CLASSIFIER | {"augmentation": "mirror" if mirror else None},
    }
    return (
        model,
        card,
        log
        | {
            "quality": {
                "validation_n": len(held),
                "validation_accuracy": dict(
                    zip(outputs, right.double().mean(0).tolist(), strict=True)
                ),
            }
        },
    )


def _prior(
    name: str,
    train: OnDisk,
    held: OnDisk,
    size: tuple[int, int],
    steps: int,
    seed: int,
    folder: Path | None,
):
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
        workers=READERS,
        folder=folder,
    )
    card = {
        "data": {"name": f"{name} (official)", "split": f"train ({len(train):,} images)"},
        "architecture": diffusion.card_of(model),
        "settings": PRIOR,
    }
    some = held.take(range(min(256, len(held)))).in_memory().x
    return model.cpu(), card, log | {"quality": denoising(model.cpu(), some, seed)}


@recipe("celeba_densenet")
def celeba_densenet(root, seed, folder):
    """DenseNet-121 of CelebA's 40 attributes, 128 pixels, the crop of 178 (smile, age and all others at once)."""
    train, held = (celeba.load(root, split, None) for split in ("train", "validation"))
    return _classifier("celeba", train, held, train.class_names, seed, folder)


@recipe("celebahq_densenet")
def celebahq_densenet(root, seed, folder):
    """DenseNet-121 of CelebA-HQ's 40 attributes, 256 pixels."""
    train, held = (celebahq.load(root, split, None) for split in ("train", "validation"))
    return _classifier("celebahq", train, held, train.class_names, seed, folder)


@recipe("bdd_densenet")
def bdd_densenet(root, seed, folder):
    """DenseNet-121 of BDD-OIA's four actions (forward, stop, left, right), 256 x 512 pixels."""
    train, held = (bdd.load(root, split, "oia", None) for split in ("train", "validation"))
    return _classifier("bdd", train, held, train.class_names, seed, folder, mirror=False)


@recipe("celeba_ddpm")
def celeba_ddpm(root, seed, folder):
    """A diffusion prior of CelebA, 128 pixels, 500 levels."""
    return _prior(
        "celeba",
        celeba.load(root, "train"),
        celeba.load(root, "validation"),
        (128, 128),
        500,
        seed,
        folder,
    )


@recipe("bdd_ddpm")
def bdd_ddpm(root, seed, folder):
    """A diffusion prior of BDD100k's 10k subset, on which the paper's was trained; 256 x 512 pixels, 1,000 levels."""
    train, held = (bdd.load(root, split, "10k") for split in ("train", "validation"))
    return _prior("bdd10k", train, held, (256, 512), 1000, seed, folder)
