"""Classifiers of film reviews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils.core import files
from cf_utils.datasets import glove, imdb
from cf_utils.explainers.shared.prototypes import average_by_class
from cf_utils.models import classifiers
from cf_utils.models.texts import predict_texts
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe

SETTINGS = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "first_words": 400}


@recipe("imdb_cnn")
def imdb_cnn(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of reviews, trained on all 25,000 official training reviews."""
    return train_cnn(root, seed, folder, glove.load())


@recipe("imdb_cnn_100d")
def imdb_cnn_100d(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of reviews on the paper's 100-dimensional word vectors.

    The data folder must also hold glove.6B.100d.txt.
    """
    return train_cnn(root, seed, folder, glove.load(root, 100))


@recipe("imdb_cnn_300d")
def imdb_cnn_300d(root: str, seed: int, folder: Path | None) -> Trained:
    """The explained classifier of reviews on the paper's 300-dimensional word vectors.

    The data folder must also hold glove.6B.300d.txt.
    """
    return train_cnn(root, seed, folder, glove.load(root, 300))


def train_cnn(root: str, seed: int, folder: Path | None, vectors: glove.Glove) -> Trained:
    """Train a convolutional network on word vectors, which stay fixed.

    Raises ValueError if `root` holds Kaggle's table, whose halves are not the official splits.
    """
    splits = {split: imdb.load(root, split) for split in imdb.SPLITS}
    if splits["test"].source != "official":
        raise ValueError(
            f"--data: got {root}, which holds Kaggle's table, without the official splits; "
            "expected aclImdb/"
        )

    def loss(module: nn.Module, batch: Any) -> Tensor:
        words, y = batch
        words = words[:, : (words >= 0).sum(1).max() + glove.TAIL]
        return F.cross_entropy(module(glove.embed(vectors, words)), y)

    model = classifiers.TextCNN(vectors.dim)
    log = loop.fit(
        model,
        encode_reviews(vectors, [splits["train"], splits["validation"]]),
        [loop.Part(loss, lr=SETTINGS["lr"])],
        epochs=SETTINGS["epochs"],
        batch_size=SETTINGS["batch_size"],
        seed=seed,
        folder=folder,
        settings=SETTINGS | {"vectors": vectors.dim},
    )
    card = {
        "data": {
            "name": "aclImdb",
            "split": "train (25,000)",
            "sha256": files.sha256(*splits["train"].texts)[:16],
        },
        "architecture": {"class": "TextCNN", "arguments": {"d": vectors.dim}},
        "vectors": f"GloVe 6B, {vectors.dim}d, frozen",
        "settings": SETTINGS,
    }
    return Trained(model, card, log, lambda model: measure(model, vectors, splits, seed))


def encode_reviews(vectors: glove.Glove, reviews: list[imdb.Reviews]) -> TensorDataset:
    """Return (rows of the word vectors, padded with -1, and label) of all reviews."""
    rows = [glove.encode(vectors, split.texts) for split in reviews]
    longest = max(r.shape[1] for r in rows)
    padded = [F.pad(r, (0, longest - r.shape[1]), value=-1) for r in rows]
    return TensorDataset(torch.cat(padded), torch.cat([split.y for split in reviews]))


def measure(
    model: nn.Module, vectors: glove.Glove, splits: dict[str, imdb.Reviews], seed: int
) -> dict[str, Any]:
    """Measure the accuracy on all test reviews, and the score of the mean logits of each class.

    The mean is over 100 training reviews per class. Its score must exceed tau.
    """

    def predict(reviews: imdb.Reviews) -> Tensor:
        return predict_texts(model, vectors, reviews.texts)

    test, embedded = splits["test"], imdb.load("", "test")
    mean = average_by_class(predict(splits["train"]), seed=seed)
    return {
        "test_accuracy": (predict(test).argmax(1) == test.y).double().mean().item(),
        "test_n": len(test),
        "embedded_accuracy": (predict(embedded).argmax(1) == embedded.y).double().mean().item(),
        "embedded_n": len(embedded),
        "mean_logits": mean.tolist(),
        "mean_logits_score": mean.softmax(1).diagonal().tolist(),
    }
