"""Factor oracles: ensembles that read the factors of a render and are never explained.

They see other draws than any classifier (another seed of the world). They are trained on renders
that are plain, blurred or noisy, and on zero edits of the diffusion prior, so that the prior's
artefacts do not count as displacements. Without a checkpoint of the prior, that part is left out
and the model card says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset

from cf_utils import core, worlds
from cf_utils.models.oracle_columns import factor_of, list_columns, true_readings
from cf_utils.models.oracles import FactorOracle
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.augment import attack_in_one_step, blur_and_add_noise
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.calibration import calibrate
from cf_utils.training.recipes.renders import Renders, StoredImages, channel_argument
from cf_utils.training.recipes.zero_edits import SIGMAS, find_prior, render_zero_edits
from cf_utils.worlds import World

CAUSE_WEIGHT = 10.0  # weight of the squared error of a cause
EPS = 4 / 255  # largest change of a pixel by the attacks of the second stage

Loss = Callable[[nn.Module, Any], Tensor]


class Stage(NamedTuple):
    """One training of a member: on which data, by which loss."""

    data: Dataset
    loss: Loss
    lr: float
    epochs: int


def cause_columns(world: World, names: list[str]) -> list[int]:
    """Return the columns that read a factor with the role of a cause."""
    return [k for k, column in enumerate(names) if factor_of(column) in world.role("cause")]


def train_oracle(
    name: str, seed: int, folder: Path | None, n: int, epochs: int, n_prior: int, hard_epochs: int
) -> Trained:
    """Train the members of an oracle, each with its own initial weights, order and augmentation.

    n: renders of the first stage. n_prior: how many of them also pass through the prior.
    hard_epochs: epochs of a second stage on twice as many renders, each attacked such that the
    member reads it wrongly; 0 leaves it out. An oracle that reacts to adversarial noise cannot
    measure semantic change.
    """
    world = worlds.get(name)
    names, prior = list_columns(world), find_prior(world)
    settings = {
        "n": n,
        "n_prior": n_prior if prior else 0,
        "epochs": epochs,
        "batch_size": 64,
        "lr": 3e-3,
        "members": 3,
        "cause_weight": CAUSE_WEIGHT,
        "augmentation": "blur, noise up to 0.05",
        "prior": prior,
        "sigmas": SIGMAS if prior else None,
    }
    if hard_epochs:
        settings["second_stage"] = {
            "n": 2 * n,
            "epochs": hard_epochs,
            "lr": 1.5e-3,
            "worst_of_a_box_up_to": EPS,
        }
    stages = prepare_stages(world, names, settings, seed)
    arguments = {"names": names, "size": world.size, **channel_argument(world)}
    model = channels_last(FactorOracle(**arguments))
    logs = train_members(model, stages, settings, seed, folder)
    log = {
        "seconds": sum(log["seconds"] for log in logs),
        "steps": sum(log["steps"] for log in logs),
        "epochs": epochs + hard_epochs,
        "losses": [log["losses"] for log in logs],
    }
    split = f"train ({n * len(stages):,} renders, independent, seed {seed + ORACLE_SEED})"
    card = {
        "data": {"name": f"{name} (embedded)", "split": split, "world_sha256": world.sha256()},
        "architecture": {"class": "FactorOracle", "arguments": arguments},
        "settings": settings,
    }
    return Trained(model, card, log, lambda model: calibrate(model, world, seed))


def train_members(
    model: FactorOracle,
    stages: list[Stage],
    settings: dict[str, Any],
    seed: int,
    folder: Path | None,
) -> list[dict[str, Any]]:
    """Train each member through all stages; return the logs."""
    logs = []
    for k, member in enumerate(model.members):
        core.seed_everything(seed + ORACLE_SEED + k)
        member.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        for i, stage in enumerate(stages):
            log = loop.fit(
                member,
                stage.data,
                [loop.Part(stage.loss, lr=stage.lr, weight_decay=1e-2)],
                epochs=stage.epochs,
                batch_size=settings["batch_size"],
                seed=seed + ORACLE_SEED + k + 50 * i,
                folder=folder and folder / (f"{k}-hard" if i else str(k)),
                settings=settings,
            )
            logs.append(log)
    return logs


def prepare_stages(
    world: World, names: list[str], settings: dict[str, Any], seed: int
) -> list[Stage]:
    """Render the training data, and build the loss of each stage."""
    n, n_prior = settings["n"], settings["n_prior"]
    factors = world.sample(n, "train", seed=seed + ORACLE_SEED)
    value, shown = true_readings(factors, names)
    first: list[Dataset] = [Renders(factors, value, shown)]
    if settings["prior"]:
        x = render_zero_edits(factors.take(slice(0, n_prior)), seed)
        first += [StoredImages(x, value[:n_prior], shown[:n_prior])] * 2
    weight = torch.ones(len(names))
    weight[cause_columns(world, names)] = CAUSE_WEIGHT
    plain, hard = make_losses((value * shown).std(0).clamp(min=1e-3), weight)
    stages = [Stage(ConcatDataset(first), plain, settings["lr"], settings["epochs"])]
    if second := settings.get("second_stage"):
        more = world.sample(n, "train", seed=seed + ORACLE_SEED, start=n)
        data = ConcatDataset([*first, Renders(more, *true_readings(more, names))])
        stages.append(Stage(data, hard, second["lr"], second["epochs"]))
    return stages


def make_losses(spread: Tensor, weight: Tensor) -> tuple[Loss, Loss]:
    """Build the losses of both stages: squared errors of visible columns, weighted.

    spread: standard deviation of each column (K,), the unit of its error. weight: (K,).
    """

    def error(module: nn.Module, x: Tensor, value: Tensor, shown: Tensor) -> Tensor:
        squared = ((module(x) - value) / spread).square()
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


@recipe("faces_oracle", embedded=True)
def faces_oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered faces: three regressors of every factor that is no child."""
    return train_oracle("faces", seed, folder, n=14_000, epochs=10, n_prior=1200, hard_epochs=4)


@recipe("roads_oracle", embedded=True)
def roads_oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered roads: three regressors of every factor.

    Scene and weather have one column per level. A cause reads 0 outside its scene.
    """
    return train_oracle("roads", seed, folder, n=12_000, epochs=9, n_prior=1200, hard_epochs=2)
