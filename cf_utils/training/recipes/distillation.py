"""Black boxes and their linear agents, trained on folds of patients: DiffExplainer's section 2.2.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024). The recipes of rendered lung CT and of
OSIC share these trainings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from cf_utils.models.agent import Agent, distillation_loss
from cf_utils.models.classifiers import predict
from cf_utils.models.generators.slices import DiffusionCodes
from cf_utils.models.teacher import Teacher
from cf_utils.training import loop
from cf_utils.training.folds import balanced_loss, class_weights, train_folds
from cf_utils.training.recipes.renders import StoredImages, predict_bytes

FOLDS = 5
Loss = Callable[[nn.Module, Any], Tensor]


def fit_fold(
    model: nn.Module,
    rows: Tensor,
    folder: Path | None,
    prepare: Callable[[Tensor], tuple[Dataset, Loss]],
    settings: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Train a model on the rows of one fold, and return the log.

    prepare: rows -> their data and the loss. settings: epochs, batch_size, lr and others.
    """
    data, loss = prepare(rows)
    return loop.fit(
        model,
        data,
        [loop.Part(loss, lr=settings["lr"])],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )


def teacher_loss(
    module: nn.Module, batch: Any, weights: Sequence[float], shift: int, bfloat16: bool = False
) -> Tensor:
    """Return the class-weighted cross-entropy of images that are shifted by up to `shift` pixels.

    batch: (x, y). weights: one per class. `bfloat16` runs convolutions in bfloat16.
    """
    x, y = batch
    by = torch.randint(-shift, shift + 1, (2,)).tolist()
    x = x.roll(tuple(by), (2, 3)).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        logits = module(x)
    return balanced_loss(logits.float(), y, torch.tensor(weights))


def fit_teacher(
    build: Callable[[], Teacher],
    x: Tensor,
    y: Tensor,
    settings: dict[str, Any],
    seed: int,
    folder: Path | None,
    shift: int,
    bfloat16: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Train a black box on each fold of patients, and return the best one and its log.

    Args:
        build: makes an untrained one.
        x, y: patients uint8 (N, S, H, W) and labels int64 (N,).
        settings: epochs, batch_size, lr and others.
        shift, bfloat16: of `teacher_loss`.
    """

    def prepare(rows: Tensor) -> tuple[StoredImages, Loss]:
        weights = class_weights(y[rows]).tolist()
        loss = functools.partial(teacher_loss, weights=weights, shift=shift, bfloat16=bfloat16)
        return StoredImages(x[rows], y[rows]), loss

    return train_folds(
        build,
        functools.partial(fit_fold, prepare=prepare, settings=settings, seed=seed),
        lambda model, rows: predict_bytes(model, x[rows]),
        y,
        FOLDS,
        seed,
        folder,
    )


def agent_loss(module: nn.Module, batch: Any, objective: str) -> Tensor:
    """Return `distillation_loss` of a batch (codes, features, logits)."""
    agent: Any = module
    return distillation_loss(agent, *batch, objective)


@torch.no_grad()
def read_patients(
    autoencoder: nn.Module, teacher: Teacher, x: Tensor, batch_size: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (N, S * d), the teacher's features (N, F) and logits (N, 2).

    x: patients uint8 (N, S, H, W). Both models are in eval mode.
    """
    codes_of = DiffusionCodes(autoencoder, (x.shape[2], x.shape[3]), steps=1)
    parts = []
    for batch in x.split(batch_size):
        images = batch.float() / 255
        features = teacher.features(images)
        parts.append((codes_of.encode_semantic(images), features, teacher.classify(features)))
    codes, features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return codes, features, logits


def fit_agent(
    teacher: Teacher,
    table: tuple[Tensor, Tensor, Tensor],
    arguments: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
    folder: Path | None,
) -> tuple[Agent, dict[str, Any]]:
    """Train an agent on each fold of patients, and return the best one and its log.

    The teacher's decisions take the place of labels.

    Args:
        table: of `read_patients`.
        arguments: of `Agent`.
        settings: objective, epochs, batch_size, lr and others.
    """
    codes, _, logits = table

    def build() -> Agent:
        agent = Agent(**arguments)
        agent.copy_head(teacher.head)
        agent.set_covariance(codes)
        return agent

    def prepare(rows: Tensor) -> tuple[TensorDataset, Loss]:
        loss = functools.partial(agent_loss, objective=settings["objective"])
        return TensorDataset(*(part[rows] for part in table)), loss

    return train_folds(
        build,
        functools.partial(fit_fold, prepare=prepare, settings=settings, seed=seed),
        lambda model, rows: predict(model, codes[rows]).detach(),
        logits.argmax(1),
        FOLDS,
        seed,
        folder,
    )
