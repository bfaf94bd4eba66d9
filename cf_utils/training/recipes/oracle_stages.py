"""Stages of the training of a factor oracle: their data, losses and the fit of one member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.oracle_columns import factor_of, true_readings
from cf_utils.models.oracles import FactorOracle
from cf_utils.training import loop
from cf_utils.training.augment import attack_in_one_step, blur_and_add_noise
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.renders import Renders, StoredImages
from cf_utils.training.recipes.zero_edits import (
    find_prior,
    hash_of,
    is_slow,
    list_generators,
    render_zero_edits,
)
from cf_utils.worlds import World

CAUSE_WEIGHT = 10.0  # weight of the squared error of a cause
EPS = 4 / 255  # largest change of a pixel by the attacks of the second and third stage
WEIGHT_DECAY = 1e-2
FOLDERS = ("{}", "{}-hard", "{}-generators")  # of a member's training state, per stage

Loss = Callable[[nn.Module, Any], Tensor]
Settings = dict[str, Any]


class Stage(NamedTuple):
    """One training of a member: on which data, by which loss."""

    data: Dataset
    loss: Loss
    lr: float
    epochs: int


class Tuning(NamedTuple):
    """Settings of the third stage, which lets the members see zero edits of all generators.

    n_plain: fresh renders. n_each: how many of them also pass through the autoencoders, and how
    many through the GANs; several of a kind share them. n_prior: how many pass through the prior.
    """

    n_plain: int = 9000
    n_each: int = 4500
    n_prior: int = 600
    epochs: int = 2
    lr: float = 3e-4


TUNING = Tuning()


def cause_columns(world: World, names: tuple[str, ...]) -> list[int]:
    """Return the columns that read a factor with the role of a cause."""
    return [k for k, column in enumerate(names) if factor_of(column) in world.role("cause")]


def make_losses(
    world: World, names: tuple[str, ...], value: Tensor, shown: Tensor, bfloat16: bool = False
) -> tuple[Loss, Loss]:
    """Build the losses without and with an attack: squared errors of visible columns, weighted.

    value, shown: true readings of the training images (N, K) and where they are visible. The
    standard deviation of a column's visible values is the unit of its error. A cause weighs
    `CAUSE_WEIGHT` as much as another column. `bfloat16` runs convolutions in bfloat16.
    """
    spread = (value * shown).std(0).clamp(min=1e-3)
    weight = torch.ones(len(names))
    weight[cause_columns(world, names)] = CAUSE_WEIGHT

    def error(module: nn.Module, x: Tensor, value: Tensor, shown: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            read = module(x)
        squared = ((read.float() - value) / spread).square()
        return (squared * shown * weight).sum() / (shown * weight).sum()

    def plain(module: nn.Module, batch: Any) -> Tensor:
        x, value, shown = batch
        return error(module, blur_and_add_noise(x), value, shown)

    def hard(module: nn.Module, batch: Any) -> Tensor:
        x, value, shown = batch
        x = blur_and_add_noise(x)
        x = attack_in_one_step(lambda y: error(module, y, value, shown), x, EPS)
        return error(module, x, value, shown)

    return plain, hard


def describe_third_stage(world: World, tuning: Tuning = TUNING) -> Settings | None:
    """Return the settings of the third stage, or None if no GAN or autoencoder ships.

    They name the generators with the hashes of their weights. A diffusion autoencoder is left out:
    its zero edits are slow, and closer to the image than the camera noise.
    """
    generators = [name for name in list_generators(world) if not is_slow(name)]
    if not set(generators) - {find_prior(world)}:
        return None
    return {
        **tuning._asdict(),
        "worst_of_a_box_up_to": EPS,
        "generators": {name: hash_of(name) for name in generators},
    }


def prepare_third_stage(
    world: World, names: tuple[str, ...], settings: Settings, seed: int
) -> Stage:
    """Render the data of the third stage: fresh renders, plain and through each generator.

    A render through a GAN does not teach the column of the GAN's own label. The GAN draws the bin
    that the classifier gives the image, so a trace of the bin would reveal the label, and the
    oracle would then read that trace as a change of the factor.

    settings: of the whole training; the images follow those of the first two stages.
    """
    third = settings["third_stage"]
    factors = world.sample(
        third["n_plain"], "train", seed=seed + ORACLE_SEED, start=2 * settings["n"]
    )
    value, shown = true_readings(factors, names)
    plain = Renders(factors, value, shown)
    data: list[Dataset] = [plain]
    for name, rows in deal_rows(world, third).items():
        seen = shown[rows].clone()
        seen[:, label_columns(checkpoints.read_card(name), world, names)] = False
        x = render_zero_edits(factors.take(rows), seed, name, plain.x[rows])
        data.append(StoredImages(x, value[rows], seen))
    _, hard = make_losses(world, names, value, shown, "precision" in settings)
    return Stage(ConcatDataset(data), hard, third["lr"], third["epochs"])


def deal_rows(world: World, third: Settings) -> dict[str, Tensor]:
    """Return, per generator, the rows of the fresh renders that pass through it, int64.

    GANs share the first `n_each` rows, and so do autoencoders; the prior takes the first `n_prior`.
    """
    prior, out = find_prior(world), {}
    kinds: dict[str, list[str]] = {}
    for name in third["generators"]:
        kind = "prior" if name == prior else checkpoints.read_card(name).architecture["class"]
        kinds.setdefault(kind, []).append(name)
    for kind, same in kinds.items():
        n = third["n_prior"] if kind == "prior" else third["n_each"]
        for k, name in enumerate(same):
            out[name] = torch.arange(k, min(n, third["n_plain"]), len(same))
    return out


def label_columns(card: Card, world: World, names: tuple[str, ...]) -> list[int]:
    """Return the columns of what decides the label that a GAN explains; none for no GAN.

    The label is that whose classes the GAN's card names. Raises ValueError if no label has them.
    """
    if card.architecture.get("class") != "ConditionalGAN":
        return []
    classes = tuple(card.extra.get("classes", ()))
    for label in world.labels:
        if tuple(label.classes) == classes:
            decisive = {label.factor, *(factor for factor, _ in label.neutral)}
            return [k for k, column in enumerate(names) if factor_of(column) in decisive]
    raise ValueError(
        f"{card.name}: got classes {classes} in its card, expected those of a label of "
        f"{world.name}: {[tuple(label.classes) for label in world.labels]}"
    )


def fit_stage(
    model: FactorOracle,
    k: int,
    i: int,
    stage: Stage,
    settings: Settings,
    seed: int,
    folder: Path | None,
) -> dict[str, Any]:
    """Train member k of an oracle through its stage i (0, 1 or 2); return the log."""
    if i < 2:  # states of the first stages stay valid when a generator changes
        settings = {key: value for key, value in settings.items() if key != "third_stage"}
    return loop.fit(
        model.members[k],
        stage.data,
        [loop.Part(stage.loss, lr=stage.lr, weight_decay=WEIGHT_DECAY)],
        epochs=stage.epochs,
        batch_size=settings["batch_size"],
        seed=seed + ORACLE_SEED + k + 50 * i,
        folder=folder and folder / FOLDERS[i].format(k),
        settings=settings,
    )
