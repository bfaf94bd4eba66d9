"""Networks of OSIC's patients, with the settings of DiffExplainer; takes hours on a GPU.

None of these checkpoints ships. Source: Fang et al., DiffExplainer (MICCAI workshop 2024), sections
2 and 3: slices of 256 x 256 pixels, codes of 512, DenseNet-121, five folds. The paper gives no
number of epochs. All read the patients of the split train who have the label; the autoencoder reads
those of "decline", which the official files give.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cf_utils.datasets import osic
from cf_utils.evaluation.metrics.alignment import auc, confusion, measure_alignment
from cf_utils.models import checkpoints
from cf_utils.models.agent import Agent
from cf_utils.models.classifiers import predict
from cf_utils.models.teacher import Teacher
from cf_utils.training.recipes import diffae
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.distillation import (
    FOLDS,
    fit_agent,
    fit_teacher,
    read_patients,
)
from cf_utils.training.recipes.photographs import read_batches
from cf_utils.training.recipes.renders import predict_bytes

SIZE = 256
AUTOENCODER = {
    "latent": 512,
    "prediction": "v",
    "widths": (128, 256, 384, 512),
    "blocks": 2,
    "encoder_widths": (64, 128, 256, 512),
}
BLACK_BOX = {"epochs": 60, "batch_size": 8, "lr": 1e-4, "shift": 8}
AGENT = {"epochs": 200, "batch_size": 64, "lr": 1e-2, "objective": "l1"}


def read_split(root: str, split: str, label: str, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Read patients uint8 (N, 4, size, size), and their labels (N,)."""
    data = osic.load(root, split, label, size)
    parts = [(x * 255).round().to(torch.uint8) for x, _ in read_batches(data, 8)]
    return torch.cat(parts), data.y


def train_autoencoder(
    root: str, seed: int, folder: Path | None, epochs: int = 1000, **arguments: Any
) -> Trained:
    """Train the diffusion autoencoder on single slices; `arguments` replace some of the settings.

    Its reconstructions are measured on slices of test patients.
    """
    arguments = {"size": (SIZE, SIZE), "channels": 1, **AUTOENCODER, **arguments}
    x, _ = read_split(root, "train", "decline", arguments["size"][0])
    model, log, settings = diffae.fit_autoencoder(x, arguments, seed, folder, epochs)
    few = read_split(root, "test", "decline", arguments["size"][0])[0][:9].float() / 255
    card = _describe(len(x), settings, "DiffusionAutoencoder", arguments)
    return Trained(model, card, log, lambda model: diffae.measure_rows(model, few, seed))


def train_teacher(
    label: str, root: str, seed: int, folder: Path | None, size: int = SIZE, **arguments: Any
) -> Trained:
    """Train five DenseNets on folds of the patients, and keep the best one.

    It is measured on the test patients.
    """
    x, y = read_split(root, "train", label, size)
    arguments = {"slices": x.shape[1], "network": "densenet121", **arguments}
    build, shift = functools.partial(Teacher, **arguments), int(BLACK_BOX["shift"])
    model, log = fit_teacher(build, x, y, BLACK_BOX, seed, folder, shift)
    card = _describe(len(x), {"folds": FOLDS, **BLACK_BOX}, "Teacher", arguments)
    card["classes"] = list(osic.CLASSES[label])

    def measure(model: Teacher) -> dict[str, Any]:
        test, truth = read_split(root, "test", label, size)
        logits = predict_bytes(model, test)
        found = confusion(logits.argmax(1), truth)
        return {"test_n": len(test), "auc": auc(logits[:, 1] - logits[:, 0], truth), **found}

    return Trained(model.cpu(), card, log, measure)


def train_agent(label: str, root: str, seed: int, folder: Path | None) -> Trained:
    """Train agents of the black box of a label on folds of the patients, and keep the best one.

    Its agreement with the black box is measured on the test patients.
    """
    teacher = checkpoints.load(f"osic_{label}", kind="classifier").model
    autoencoder = checkpoints.load("osic_diffae", kind="autoencoder").model
    size = autoencoder.size[0]
    x, _ = read_split(root, "train", label, size)
    table = _, features, _ = read_patients(autoencoder, teacher, x)
    arguments = {"latent": autoencoder.latent, "features": features.shape[1], "slices": x.shape[1]}
    model, log = fit_agent(teacher, table, arguments, AGENT, seed, folder)
    source = {"teacher": f"osic_{label}", "autoencoder": "osic_diffae", "folds": FOLDS, **AGENT}

    def measure(model: Agent) -> dict[str, Any]:
        test, _ = read_split(root, "test", label, size)
        codes, _, logits = read_patients(autoencoder, teacher, test)
        return measure_alignment(predict(model, codes), logits)

    return Trained(model.cpu(), _describe(len(x), source, "Agent", arguments), log, measure)


def _describe(
    n: int, settings: dict[str, Any], name: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the entries of a model card for a class `name` that is built with `arguments`."""
    return {
        "data": {"name": "osic (official)", "split": f"train ({n:,} patients)"},
        "architecture": {"class": name, "arguments": arguments},
        "settings": settings,
    }


@recipe("osic_diffae")
def osic_diffae(root: str, seed: int, folder: Path | None) -> Trained:
    """The diffusion autoencoder of OSIC: one slice of 256 x 256 pixels, a code of 512."""
    return train_autoencoder(root, seed, folder)


@recipe("osic_decline")
def osic_decline(root: str, seed: int, folder: Path | None) -> Trained:
    """Decline of the forced vital capacity within a year or none, from four CT slices."""
    return train_teacher("decline", root, seed, folder)


@recipe("osic_mortality")
def osic_mortality(root: str, seed: int, folder: Path | None) -> Trained:
    """Death within a year or survival, from four CT slices; needs your own mortality.csv."""
    return train_teacher("mortality", root, seed, folder)


@recipe("osic_decline_agent")
def osic_decline_agent(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of osic_decline, by the l1 distance of features."""
    return train_agent("decline", root, seed, folder)


@recipe("osic_mortality_agent")
def osic_mortality_agent(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of osic_mortality, by the l1 distance of features."""
    return train_agent("mortality", root, seed, folder)
