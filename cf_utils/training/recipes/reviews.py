"""Classifiers of film reviews."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from cf_utils.core import files
from cf_utils.datasets import glove, imdb
from cf_utils.explainers.shared.prototypes import average_by_class
from cf_utils.models import classifiers
from cf_utils.models.texts import predict_texts
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe


@recipe("imdb_cnn")
def imdb_cnn(root, seed, folder):
    """The explained review classifier, trained on all 25,000 official training reviews."""
    return _reviews(root, seed, folder, glove.load())


@recipe("imdb_cnn_100d")
def imdb_cnn_100d(root, seed, folder):
    """The same on the paper's 100-dimensional vectors; DIR holds glove.6B.100d.txt too."""
    return _reviews(root, seed, folder, glove.load(root, 100))


@recipe("imdb_cnn_300d")
def imdb_cnn_300d(root, seed, folder):
    """The same on the paper's 300-dimensional vectors; DIR holds glove.6B.300d.txt too."""
    return _reviews(root, seed, folder, glove.load(root, 300))


def _reviews(root: str, seed: int, folder: Path | None, vectors: glove.Glove):
    splits = {s: imdb.load(root, s) for s in imdb.SPLITS}
    if splits["test"].source != "official":
        raise ValueError(
            f"--data: {root} holds Kaggle's form, whose halves are not the official ones; expected aclImdb/"
        )
    rows = [glove.encode(vectors, splits[s].texts) for s in ("train", "validation")]
    most = max(r.shape[1] for r in rows)
    data = TensorDataset(
        torch.cat([F.pad(r, (0, most - r.shape[1]), value=-1) for r in rows]),
        torch.cat([splits["train"].y, splits["validation"].y]),
    )
    settings = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "first_words": 400}

    def loss(module, batch):
        words, y = batch
        words = words[:, : (words >= 0).sum(1).max() + glove.TAIL]
        return F.cross_entropy(module(glove.embed(vectors, words)), y)

    model = classifiers.TextCNN(vectors.dim)
    log = loop.fit(
        model, data, [loop.Part(loss, lr=1e-3)], epochs=10, batch_size=64, seed=seed, folder=folder
    )
    card = {
        "data": {
            "name": "aclImdb",
            "split": "train (25,000)",
            "sha256": files.sha256(*splits["train"].texts)[:16],
        },
        "architecture": {"class": "TextCNN", "arguments": {"d": vectors.dim}},
        "vectors": f"GloVe 6B, {vectors.dim}d, frozen",
    }
    return (
        model,
        card | {"settings": settings},
        log | {"quality": _review_quality(model, vectors, splits, seed)},
    )


def _review_quality(model: nn.Module, vectors: glove.Glove, splits: dict, seed: int) -> dict:
    """Accuracy on all test reviews, and the score of the mean logits of 100 training reviews a class (it must be above tau)."""

    def logits(reviews):
        return predict_texts(model, vectors, reviews.texts)

    test, embedded = splits["test"], imdb.load("", "test")
    mean = average_by_class(logits(splits["train"]), seed=seed)
    return {
        "test_accuracy": (logits(test).argmax(1) == test.y).double().mean().item(),
        "test_n": len(test),
        "embedded_accuracy": (logits(embedded).argmax(1) == embedded.y).double().mean().item(),
        "embedded_n": len(embedded),
        "mean_logits": mean.tolist(),
        "mean_logits_score": mean.softmax(1).diagonal().tolist(),
    }
