"""Probes of a world: models that try to read a label from renders, and distances of renders."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cf_utils import core


class Probe(nn.Module):
    """A small CNN with two logits: strided convolutions, then a linear layer on a 4 x 4 grid."""

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (20, 40, 64, 96)):
        super().__init__()
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise((channels, *widths))):
            kernel, padding = (3, 1) if k else (5, 2)
            convolution = nn.Conv2d(inputs, outputs, kernel, 2, padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(16 * widths[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2) of images x (B, channels, H, W) in [0, 1]."""
        return self.head(F.adaptive_avg_pool2d(self.layers(2 * x - 1), 4).flatten(1))


def train_probe(x: Tensor, y: Tensor, epochs: int, seed: int) -> Probe:
    """Train a CNN by AdamW with a one-cycle schedule, on images shifted by up to 3 pixels."""
    core.seed_everything(seed)
    model = Probe(x.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=2e-2)
    batches = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * batches)
    for _ in core.progress(range(epochs), desc="probe", leave=False):
        for rows in torch.randperm(len(x))[: 64 * batches].split(64):
            dy, dx = torch.randint(-3, 4, (2,)).tolist()
            optimiser.zero_grad()
            logits = model(x[rows].roll((dy, dx), (2, 3)))
            F.cross_entropy(logits, y[rows], label_smoothing=0.02).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def logit_margin(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logit of class 1 minus that of class 0, (N,)."""
    return torch.cat([(z := model(b))[:, 1] - z[:, 0] for b in x.split(250)])


def bootstrap_auc(y: ArrayLike, score: ArrayLike, draws: int = 200) -> tuple[float, float]:
    """Return the area under the ROC curve and its bootstrap standard error."""
    y, score = np.asarray(y), np.asarray(score)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        rows = rng.integers(0, len(y), len(y))
        values.append(roc_auc_score(y[rows], score[rows]))
    return float(roc_auc_score(y, score)), float(np.std(values))


def count_intensities(x: Tensor, bins: int = 32) -> np.ndarray:
    """Return histograms of the channels and of their mean, (N, (channels + 1) * bins)."""
    counts = []
    for batch in x.split(500):
        planes = torch.cat([batch, batch.mean(1, keepdim=True)], 1)
        planes = planes.flatten(0, 1).flatten(1)  # ((channels + 1) B, pixels)
        at = (planes * bins).long().clamp(0, bins - 1) + bins * torch.arange(len(planes))[:, None]
        count = torch.bincount(at.flatten(), minlength=bins * len(planes))
        counts.append(count.view(len(batch), -1))
    return torch.cat(counts).numpy()


def histogram_auc(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the test AUC of intensity histograms, the better of a linear model and of trees."""
    a, b = count_intensities(x), count_intensities(x_test)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500)).fit(a, y)
    trees = HistGradientBoostingClassifier(
        max_iter=80, learning_rate=0.06, max_leaf_nodes=12, random_state=0
    ).fit(a, y)
    return max(float(roc_auc_score(y_test, m.predict_proba(b)[:, 1])) for m in (linear, trees))


def pixel_auc(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the test AUC of logistic regression on all pixels.

    The best of five ridge penalties is chosen on the test renders, in favour of the probe.
    """
    mean, sd = x.mean(0), x.std(0) + 1e-3
    a, b = ((x - mean) / sd).flatten(1), ((x_test - mean) / sd).flatten(1)
    best = 0.0
    for ridge in (3e-1, 1e-1, 3e-2, 1e-2, 1e-3):
        w = torch.zeros(a.shape[1] + 1, requires_grad=True)
        solver = torch.optim.LBFGS([w], max_iter=40, line_search_fn="strong_wolfe")

        def loss(ridge: float = ridge, w: Tensor = w, solver: Any = solver) -> Tensor:
            solver.zero_grad()
            fit = F.binary_cross_entropy_with_logits(a @ w[:-1] + w[-1], y.float())
            value = fit + ridge * w[:-1].square().sum()
            value.backward()
            return value

        solver.step(loss)
        best = max(best, float(roc_auc_score(y_test, (b @ w[:-1]).detach())))
    return best


def pgd_flip_rate(model: nn.Module, x: Tensor, eps: float = 2 / 255, steps: int = 20) -> float:
    """Return the share of x (N, ...) whose decision PGD flips inside an L-infinity ball."""
    decisions, flips = logit_margin(model, x) > 0, []
    for batch, positive in zip(x.split(128), decisions.split(128), strict=True):
        sign, delta = torch.where(positive, -1.0, 1.0), torch.zeros_like(batch)
        for _ in range(steps):
            delta.requires_grad_(True)
            z = model((batch + delta).clamp(0, 1))
            (g,) = torch.autograd.grad((sign * (z[:, 1] - z[:, 0])).sum(), delta)
            delta = (delta.detach() + 2.5 * eps / steps * g.sign()).clamp(-eps, eps)
        flips.append((logit_margin(model, (batch + delta).clamp(0, 1)) > 0) != positive)
    return torch.cat(flips).double().mean().item()


def nearest_distance_ratio(x: Tensor, x_test: Tensor, queries: int = 500) -> float:
    """Compare how close test renders are to training renders and to other test renders.

    Returns the median distance to the nearest training render, divided by that to the nearest
    other test render, among equally many of both. The ratio is near 1 for independent renders, and
    below 1 if the training set contains near copies.
    """
    query, rest = x_test[:queries].flatten(1), x_test[queries:].flatten(1)
    n = min(len(x), len(rest))
    near = [torch.cdist(query, pool[:n]).min(1).values.median() for pool in (x.flatten(1), rest)]
    return (near[0] / near[1]).item()
