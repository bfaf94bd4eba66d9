"""The validity card of a world: can its label be read from what should tell, and from nothing else?

Readers are trained on renders of `train` and scored on renders of `test`. Scores, and so the bounds, are areas under the ROC
curve (AUC); the CNN's accuracy stands beside: a label is cut at a threshold, and the images next to it cap what can be right. The
CNN sees all training renders, the readers that should find nothing the first `FEW` of them. A neutralised render has the label's
cause and its bundle at one fixed value, so nothing may be left to read.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cf_utils import core, worlds
from cf_utils.core import files
from cf_utils.worlds import Label, World

FEW = 6000
FOLDER = files.ROOT / "results" / "worlds"
CHECKED = {"faces": ("smile", "age"), "roads": ("action",)}
BOUNDS = {  # of design.md, section 4: key -> lowest, highest
    "auc_neutralised": (0.47, 0.53),
    "auc_histogram": (0.0, 0.60),
    "auc_pixels": (0.0, 0.80),
    "auc_cnn": (0.97, 1.0),
    "flipped_by_pgd": (0.9, 1.0),
    "nearest_train_over_test": (0.98, np.inf),
}


class Reader(nn.Module):
    """A small CNN: four strided convolutions with batch norm, and a linear layer on a 4 x 4 grid of what they found."""

    def __init__(self, widths: tuple[int, ...] = (3, 20, 40, 64, 96)):
        super().__init__()
        self.layers = nn.Sequential(
            *(
                m
                for k, (i, o) in enumerate(pairwise(widths))
                for m in (
                    nn.Conv2d(i, o, 3 if k else 5, 2, 1 if k else 2, bias=False),
                    nn.BatchNorm2d(o),
                    nn.ReLU(),
                )
            )
        )
        self.head = nn.Linear(16 * widths[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.layers(2 * x - 1), 4).flatten(1))


def train(x: Tensor, y: Tensor, epochs: int, seed: int) -> Reader:
    """AdamW with a one-cycle rate; images are shifted by up to 3 pixels, which a reader may not mind."""
    core.seed_everything(seed)
    model = Reader()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=2e-2)
    batches = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * batches)
    for _ in core.progress(range(epochs), desc="reader", leave=False):
        for rows in torch.randperm(len(x))[: 64 * batches].split(64):
            dy, dx = torch.randint(-3, 4, (2,)).tolist()
            optimiser.zero_grad()
            F.cross_entropy(
                model(x[rows].roll((dy, dx), (2, 3))), y[rows], label_smoothing=0.02
            ).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def margin(model: nn.Module, x: Tensor) -> Tensor:
    """Logit of class 1 less that of class 0, (N,)."""
    return torch.cat([(z := model(b))[:, 1] - z[:, 0] for b in x.split(250)])


def auc(y: Tensor, score, draws: int = 200) -> tuple[float, float]:
    """Area under the ROC curve and its bootstrap standard error."""
    y, score = np.asarray(y), np.asarray(score)
    rng = np.random.default_rng(0)
    again = [
        roc_auc_score(y[i], score[i])
        for i in (rng.integers(0, len(y), len(y)) for _ in range(draws))
    ]
    return float(roc_auc_score(y, score)), float(np.std(again))


def histograms(x: Tensor, bins: int = 32) -> np.ndarray:
    """Per image the histograms of its three channels and of their mean, (N, 4 * bins)."""
    counts = []
    for b in x.split(500):
        planes = (
            torch.cat([b, b.mean(1, keepdim=True)], 1).flatten(0, 1).flatten(1)
        )  # (4 B, pixels)
        at = (planes * bins).long().clamp(0, bins - 1) + bins * torch.arange(len(planes))[:, None]
        counts.append(
            torch.bincount(at.flatten(), minlength=bins * len(planes)).view(len(b), 4 * bins)
        )
    return torch.cat(counts).numpy()


def from_histogram(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """The better AUC of a linear reader and of boosted trees on intensity histograms."""
    a, b = histograms(x), histograms(x_test)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500)).fit(a, y)
    trees = HistGradientBoostingClassifier(
        max_iter=80, learning_rate=0.06, max_leaf_nodes=12, random_state=0
    ).fit(a, y)
    return max(float(roc_auc_score(y_test, m.predict_proba(b)[:, 1])) for m in (linear, trees))


def from_pixels(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """AUC of logistic regression on all pixel values; the best of five ridge penalties (in favour of the reader)."""
    mean, sd = x.mean(0), x.std(0) + 1e-3
    a, b = ((x - mean) / sd).flatten(1), ((x_test - mean) / sd).flatten(1)
    best = 0.0
    for ridge in (3e-1, 1e-1, 3e-2, 1e-2, 1e-3):
        w = torch.zeros(a.shape[1] + 1, requires_grad=True)
        solver = torch.optim.LBFGS([w], max_iter=40, line_search_fn="strong_wolfe")

        def loss(ridge=ridge, w=w, solver=solver):
            solver.zero_grad()
            value = (
                F.binary_cross_entropy_with_logits(a @ w[:-1] + w[-1], y.float())
                + ridge * w[:-1].square().sum()
            )
            value.backward()
            return value

        solver.step(loss)
        best = max(best, float(roc_auc_score(y_test, (b @ w[:-1]).detach())))
    return best


def flipped(model: nn.Module, x: Tensor, eps: float = 2 / 255, steps: int = 20) -> float:
    """Share of x (N, ...) whose decision a PGD attack inside an L-infinity ball turns over."""
    was, turned = margin(model, x) > 0, []
    for b, on in zip(x.split(128), was.split(128), strict=True):
        sign, delta = torch.where(on, -1.0, 1.0), torch.zeros_like(b)
        for _ in range(steps):
            delta.requires_grad_(True)
            z = model((b + delta).clamp(0, 1))
            (g,) = torch.autograd.grad((sign * (z[:, 1] - z[:, 0])).sum(), delta)
            delta = (delta.detach() + 2.5 * eps / steps * g.sign()).clamp(-eps, eps)
        turned.append((margin(model, (b + delta).clamp(0, 1)) > 0) != on)
    return torch.cat(turned).double().mean().item()


def nearest(x: Tensor, x_test: Tensor, queries: int = 500) -> float:
    """Median distance of test renders to the nearest training render over that to the nearest other test render, among
    equally many; 1 where nothing is remembered, under 1 where the training set holds near copies."""
    q, rest = x_test[:queries].flatten(1), x_test[queries:].flatten(1)
    n = min(len(x), len(rest))
    near = [torch.cdist(q, pool[:n]).min(1).values.median() for pool in (x.flatten(1), rest)]
    return (near[0] / near[1]).item()


def check_label(
    world: World,
    label: Label,
    x: Tensor,
    x_test: Tensor,
    n: int,
    n_test: int,
    epochs: int,
    seed: int,
) -> dict:
    tables = world.sample(n, "train", seed=seed), world.sample(n_test, "test", seed=seed)
    y, y_test = (label(f) for f in tables)
    model = train(x, y, epochs, seed)
    score = margin(model, x_test)
    few = min(n, FEW)
    blank, blank_test = (
        world.render(label.neutralised(f)) for f in (tables[0].take(slice(0, few // 2)), tables[1])
    )
    neutral, se = auc(
        y_test, margin(train(blank, y[: few // 2], max(2, epochs // 2), seed), blank_test)
    )
    del blank, blank_test
    return {
        "share": y_test.double().mean().item(),
        "near_threshold": label.near(tables[1]) if label.factor else None,
        "auc_neutralised": neutral,
        "auc_neutralised_se": se,
        "auc_histogram": from_histogram(x[:few], y[:few], x_test, y_test),
        "auc_pixels": from_pixels(x[:few], y[:few], x_test, y_test),
        "auc_cnn": auc(y_test, score)[0],
        "accuracy_cnn": ((score > 0).long() == y_test).double().mean().item(),
        "flipped_by_pgd": flipped(model, x_test[:256]),
        "nearest_train_over_test": nearest(x[:few], x_test),
    }


def check(
    name: str, n: int = 16_000, n_test: int = 3000, epochs: int = 10, seed: int = 0, labels=None
) -> dict:
    """Measure a world. `n`, `n_test`: renders read from and scored on. Ten minutes a label on one core."""
    world, began = worlds.get(name), time.perf_counter()
    sets = [world.sample(k, split, seed=seed) for k, split in ((n, "train"), (n_test, "test"))]
    cpu = time.process_time()
    x, x_test = (world.render(f) for f in sets)
    ms = 1000 * (time.process_time() - cpu) / (n + n_test)
    found = {
        k: check_label(world, world.label(k), x, x_test, n, n_test, epochs, seed)
        for k in labels or CHECKED[name]
    }
    shares = {
        label.name: {"share": label(sets[1]).double().mean().item()}
        | ({"within_0.05": label.near(sets[1])} if label.factor else {})
        for label in world.labels
    }
    return {
        "world": name,
        "sha256": world.sha256(),
        "size": list(world.size),
        "n_train": n,
        "n_few": min(n, FEW),
        "n_test": n_test,
        "seed": seed,
        "cpu_ms_per_image": ms,
        "checked": found,
        "labels": shares,
        "outside": outside(found),
        "seconds": time.perf_counter() - began,
    }


def outside(found: dict[str, dict]) -> list[str]:
    """What lies outside its bounds, in words."""
    return [
        f"{label}: {key} {row[key]:.3f} is outside [{low}, {high}]"
        for label, row in found.items()
        for key, (low, high) in BOUNDS.items()
        if not low <= row[key] <= high
    ]
