"""Classifiers of credit tables."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils.core import files
from cf_utils.datasets import german_credit, heloc, tabular, uci_credit
from cf_utils.models import classifiers
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe


def _credit(table, root, seed, folder, epochs, batch_size, noise):
    """Five layers on standardised features (folded into the first layer afterwards). Noise of `noise` standard deviations on the
    inputs, weight decay and few epochs keep the network smooth and its scores calibrated; no row outside `train` is used."""
    splits = {s: table.load(root, s) for s in tabular.SPLITS}
    train = splits["train"]
    mean, std = (
        train.x.mean(0),
        train.x.std(0).clamp(min=1e-3),
    )  # a feature of one value only is no signal
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": 2e-3,
        "weight_decay": 1e-2,
        "noise": noise,
    }

    def loss(module, batch):
        z, y = batch
        return F.cross_entropy(module(z + noise * torch.randn_like(z)), y)

    model = classifiers.TabularMLP(train.x.shape[1])
    log = loop.fit(
        model,
        TensorDataset((train.x - mean) / std, train.y),
        [loop.Part(loss, lr=2e-3, weight_decay=1e-2)],
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        folder=folder,
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
    return model, card, log | {"quality": _credit_quality(model, splits)}


def _credit_quality(model: nn.Module, splits: dict) -> dict:
    """Accuracy beside what the share of the larger class alone gives, and the score of the mean logits of the training rows that
    are classified correctly (the search is pulled there: it must be above tau)."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    test, train = splits["test"], splits["train"]
    logits, own = classifiers.predict(model, test.x), classifiers.predict(model, train.x)
    mean = torch.stack([own[(own.argmax(1) == c) & (train.y == c)].mean(0) for c in (0, 1)])
    return {
        "test_accuracy": classifiers.accuracy(model, test.x, test.y),
        "test_n": len(test),
        "validation_accuracy": classifiers.accuracy(
            model, splits["validation"].x, splits["validation"].y
        ),
        "test_majority_rate": test.y.bincount(minlength=2).max().item() / len(test),
        "test_balanced_accuracy": float(balanced_accuracy_score(test.y, logits.argmax(1))),
        "test_auc": float(roc_auc_score(test.y, logits.softmax(1)[:, 1])),
        "test_cross_entropy": F.cross_entropy(logits, test.y).item(),
        "mean_logits": mean.tolist(),
        "mean_logits_score": mean.softmax(1).diagonal().tolist(),
    }


@recipe("uci_credit_mlp")
def uci_credit_mlp(root, seed, folder):
    """The explained classifier of UCI's 30,000 credit card clients: class 1 approved (no default), class 0 refused."""
    return _credit(uci_credit, root, seed, folder, epochs=12, batch_size=256, noise=0.2)


@recipe("heloc_mlp")
def heloc_mlp(root, seed, folder):
    """The explained classifier of FICO's HELOC table, 22 features: class 1 approved (Good), class 0 refused (Bad)."""
    return _credit(heloc, root, seed, folder, epochs=8, batch_size=128, noise=0.5)


@recipe("german_credit_mlp", embedded=True)
def german_credit_mlp(root, seed, folder):
    """The explained classifier of the embedded German credit table: class 1 approved (good), class 0 refused (bad)."""
    return _credit(german_credit, "", seed, folder, epochs=8, batch_size=32, noise=0.5)
