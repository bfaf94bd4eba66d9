"""Classifiers of credit tables."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils.core import files
from cf_utils.datasets import german_credit, heloc, tabular, uci_credit
from cf_utils.models import classifiers
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe


def train_mlp(
    table: ModuleType,
    root: str,
    seed: int,
    folder: Path | None,
    epochs: int,
    batch_size: int,
    noise: float,
) -> Trained:
    """Train a network of five layers on the standardised features of a table.

    Weight decay, few epochs and noise on the inputs keep the network smooth and its scores
    calibrated. Only rows of the training split are used. The standardisation ends up in the first
    layer.

    table: module of the data set. noise: standard deviation, relative to that of the features.
    """
    splits = {split: table.load(root, split) for split in tabular.SPLITS}
    train = splits["train"]
    mean = train.x.mean(0)
    std = train.x.std(0).clamp(min=1e-3)  # a feature with a single value carries no signal
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": 2e-3,
        "weight_decay": 1e-2,
        "noise": noise,
    }

    def loss(module: nn.Module, batch: Any) -> Tensor:
        z, y = batch
        return F.cross_entropy(module(z + noise * torch.randn_like(z)), y)

    model = classifiers.TabularMLP(train.x.shape[1])
    log = loop.fit(
        model,
        TensorDataset((train.x - mean) / std, train.y),
        [loop.Part(loss, lr=settings["lr"], weight_decay=settings["weight_decay"])],
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        folder=folder,
        settings=settings,
    )
    model.cpu().fold(mean, std)
    card = {
        "data": {
            "name": train.layout.name,
            "split": f"train ({len(train):,} rows)",
            "sha256": files.sha256(train.x)[:16],
        },
        "architecture": {"class": "TabularMLP", "arguments": {"n_features": train.x.shape[1]}},
        "settings": settings,
    }
    return Trained(model, card, log, lambda model: measure(model, splits))


def measure(model: nn.Module, splits: dict[str, tabular.Table]) -> dict[str, Any]:
    """Measure accuracy, next to the share of the larger class, and the score of the mean logits.

    The mean logits are those of the training rows that are classified correctly. Gradual
    Construction pulls a search towards them, so their score must exceed tau.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    test, train, validation = splits["test"], splits["train"], splits["validation"]
    logits, own = classifiers.predict(model, test.x), classifiers.predict(model, train.x)
    mean = torch.stack([own[(own.argmax(1) == c) & (train.y == c)].mean(0) for c in (0, 1)])
    return {
        "test_accuracy": classifiers.accuracy(model, test.x, test.y),
        "test_n": len(test),
        "validation_accuracy": classifiers.accuracy(model, validation.x, validation.y),
        "test_majority_rate": test.y.bincount(minlength=2).max().item() / len(test),
        "test_balanced_accuracy": float(balanced_accuracy_score(test.y, logits.argmax(1))),
        "test_auc": float(roc_auc_score(test.y, logits.softmax(1)[:, 1])),
        "test_cross_entropy": F.cross_entropy(logits, test.y).item(),
        "mean_logits": mean.tolist(),
        "mean_logits_score": mean.softmax(1).diagonal().tolist(),
    }


@recipe("uci_credit_mlp")
def uci_credit_mlp(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of UCI's 30,000 credit card clients.

    Class 1 is approved (no default), class 0 refused.
    """
    return train_mlp(uci_credit, root, seed, folder, epochs=12, batch_size=256, noise=0.2)


@recipe("heloc_mlp")
def heloc_mlp(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of FICO's HELOC table, 22 features.

    Class 1 is approved (Good), class 0 refused (Bad).
    """
    return train_mlp(heloc, root, seed, folder, epochs=8, batch_size=128, noise=0.5)


@recipe("german_credit_mlp", embedded=True)
def german_credit_mlp(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of the embedded German credit table.

    Class 1 is approved (good), class 0 refused (bad).
    """
    return train_mlp(german_credit, "", seed, folder, epochs=8, batch_size=32, noise=0.5)
