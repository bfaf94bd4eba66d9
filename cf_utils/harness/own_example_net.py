"""The file `net.py` of notebook 12: classifiers of your own, which `cf` calls by name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn


class Net(nn.Module):
    """A small network: grey images (B, 1, 32, 32) in [0, 1] to logits (B, 2)."""

    def __init__(self):
        super().__init__()
        first, second = nn.Conv2d(1, 16, 5, 2, 2), nn.Conv2d(16, 32, 3, 2, 1)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(32 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2)."""
        return self.head(self.layers(x))


class Softmaxed(Net):
    """The same network with a last layer too many."""

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities (B, 2)."""
        return super().forward(x).softmax(1)


def build() -> nn.Module:
    """Return the network; `--weights` fills it."""
    return Net()


def softmaxed() -> nn.Module:
    """Return the network that ends in a softmax."""
    return Softmaxed()


def forest(path: str | Path = "cells.csv") -> RandomForestClassifier:
    """Return a random forest, fitted to three of four rows of a table."""
    rows = pd.read_csv(path)
    rows = rows[rows.index % 4 != 0]
    model = RandomForestClassifier(50, min_samples_leaf=3, random_state=0)
    return model.fit(rows.drop(columns="diagnosis"), rows["diagnosis"])
