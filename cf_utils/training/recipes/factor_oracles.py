"""Factor oracles: ensembles that read the factors of a render and are never explained.

They see other draws than any classifier (another seed of the world). They are trained on renders
that are plain, blurred or noisy, and on zero edits of every generator that they will judge, so that
the generators' artefacts do not count as displacements. Zero edits of the diffusion prior belong to
all stages, those of GANs and autoencoders to a third one, which can be repeated alone. Without a
checkpoint of a generator, its part is left out and the model card says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset

from cf_utils import core, worlds
from cf_utils.models import checkpoints
from cf_utils.models.oracle_columns import list_columns, true_readings
from cf_utils.models.oracles import FactorOracle
from cf_utils.models.weights import channels_last
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.base import Trained, recipe, round_weights
from cf_utils.training.recipes.calibration import calibrate, load_oracle
from cf_utils.training.recipes.oracle_stages import (
    CAUSE_WEIGHT,
    EPS,
    Settings,
    Stage,
    describe_third_stage,
    fit_stage,
    make_losses,
    prepare_third_stage,
)
from cf_utils.training.recipes.renders import (
    Renders,
    StoredImages,
    channel_argument,
    describe_data,
)
from cf_utils.training.recipes.zero_edits import SIGMAS, find_prior, render_zero_edits
from cf_utils.worlds import World


def train_oracle(
    name: str,
    seed: int,
    folder: Path | None,
    n: int,
    epochs: int,
    n_prior: int,
    hard_epochs: int,
    bfloat16: bool = False,
) -> Trained:
    """Train the members of an oracle, each with its own initial weights, order and augmentation.

    A third stage follows if a GAN or an autoencoder of the world ships; see `fine_tune_again`.

    n: renders of the first stage. n_prior: how many of them also pass through the prior.
    hard_epochs: epochs of a second stage on twice as many renders, each attacked such that the
    member reads it wrongly; 0 leaves it out. An oracle that reacts to adversarial noise cannot
    measure semantic change. bfloat16: run convolutions in bfloat16 while training.
    """
    world = worlds.get(name)
    names, prior = list_columns(world), find_prior(world)
    settings: Settings = {
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
    if bfloat16:
        settings["precision"] = "bfloat16 in convolutions"
    if hard_epochs:
        settings["second_stage"] = {
            "n": 2 * n,
            "epochs": hard_epochs,
            "lr": 1.5e-3,
            "worst_of_a_box_up_to": EPS,
        }
    third = describe_third_stage(world)
    if third:
        settings["third_stage"] = third
    stages = prepare_stages(world, names, settings, seed)
    arguments = {"names": names, "size": world.size, **channel_argument(world)}
    model = channels_last(FactorOracle(**arguments))
    logs = train_members(model, stages, settings, seed, folder)
    if third:
        logs += fine_tune_members(model, world, settings, seed, folder)
    log = add_logs({}, logs, epochs + hard_epochs + (third["epochs"] if third else 0))
    card = {
        "data": describe_data(world, describe_split(settings, seed)),
        "architecture": {"class": "FactorOracle", "arguments": arguments},
        "settings": settings,
    }
    return Trained(model, card, log, lambda model: calibrate(model, world, seed))


def describe_split(settings: Mapping[str, Any], seed: int) -> str:
    """Describe the training data in words, for the model card."""
    n = settings["n"] * (2 if "second_stage" in settings else 1)
    n += settings.get("third_stage", {"n_plain": 0})["n_plain"]
    return f"train ({n:,} renders, independent, seed {seed + ORACLE_SEED})"


def add_logs(before: Mapping[str, Any], logs: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Return the log of a training: the sums of an earlier one and of those of each member.

    epochs: of one member, without those of the earlier training.
    """
    return {
        "seconds": before.get("seconds", 0) + sum(log["seconds"] for log in logs),
        "steps": before.get("steps", 0) + sum(log["steps"] for log in logs),
        "epochs": before.get("epochs", 0) + epochs,
        "losses": [*before.get("losses", []), *(log["losses"] for log in logs)],
    }


def train_members(
    model: FactorOracle, stages: list[Stage], settings: Settings, seed: int, folder: Path | None
) -> list[dict[str, Any]]:
    """Train each member through the first stages; return the logs."""
    logs = []
    for k, member in enumerate(model.members):
        core.seed_everything(seed + ORACLE_SEED + k)
        member.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        for i, stage in enumerate(stages):
            logs.append(fit_stage(model, k, i, stage, settings, seed, folder))
    return logs


def fine_tune_members(
    model: FactorOracle, world: World, settings: Settings, seed: int, folder: Path | None
) -> list[dict[str, Any]]:
    """Train each member through the third stage, from the weights that it has; return the logs."""
    stage = prepare_third_stage(world, model.names, settings, seed)
    members = range(len(model.members))
    return [fit_stage(model, k, 2, stage, settings, seed, folder) for k in members]


def prepare_stages(
    world: World, names: tuple[str, ...], settings: Settings, seed: int
) -> list[Stage]:
    """Render the training data of the first two stages, and build their losses."""
    n, n_prior = settings["n"], settings["n_prior"]
    factors = world.sample(n, "train", seed=seed + ORACLE_SEED)
    value, shown = true_readings(factors, names)
    first: list[Dataset] = [Renders(factors, value, shown)]
    if settings["prior"]:
        x = render_zero_edits(factors.take(slice(0, n_prior)), seed)
        first += [StoredImages(x, value[:n_prior], shown[:n_prior])] * 2
    plain, hard = make_losses(world, names, value, shown, "precision" in settings)
    stages = [Stage(ConcatDataset(first), plain, settings["lr"], settings["epochs"])]
    if second := settings.get("second_stage"):
        more = world.sample(n, "train", seed=seed + ORACLE_SEED, start=n)
        data = ConcatDataset([*first, Renders(more, *true_readings(more, names))])
        stages.append(Stage(data, hard, second["lr"], second["epochs"]))
    return stages


def fine_tune_again(
    name: str, folder: Path | None = None, out: Path = checkpoints.FOLDER
) -> dict[str, Any]:
    """Train a shipped oracle through the third stage alone, with the generators that ship now.

    The members start from their shipped weights. Writes checkpoint and model card to the folder
    `out`, and returns the card. It names the weights of the start, and the third stage of an oracle
    that had one already.

    folder: of training states, from which a killed training resumes; None keeps none.
    Raises ValueError if the checkpoint is no factor oracle, or if no GAN or autoencoder of its
    world ships.
    """
    model, card, world = load_oracle(name)
    third = describe_third_stage(world)
    if third is None:
        raise ValueError(
            f"{name}: got no shipped GAN or autoencoder of {world.name}, expected at least one; "
            "train one first, see `cf train --list`"
        )
    third["start"] = {
        "sha256": card.sha256,
        "third_stage": card.settings.get("third_stage"),
    }
    seed, settings = card.seed or 0, {**card.settings, "third_stage": third}
    core.seed_everything(seed)
    logs = fine_tune_members(model, world, settings, seed, folder)
    round_weights(model)
    card = dataclasses.replace(
        card,
        recipe=f"cf train {name} --fine-tune",
        data={**card.data, "split": describe_split(settings, seed)},
        settings=settings,
        quality=calibrate(model, world, seed),
        training=add_logs(card.training, logs, third["epochs"]),
        torch=torch.__version__,
    )
    checkpoints.save(name, model, card, out)
    return checkpoints.read_card(name, out).to_json()


@recipe("faces_oracle", embedded=True)
def faces_oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered faces: three regressors of every factor that is no child."""
    return train_oracle("faces", seed, folder, n=14_000, epochs=10, n_prior=1200, hard_epochs=4)


@recipe("lung_ct_oracle", embedded=True)
def lung_ct_oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered CT: three regressors of every factor.

    Side, zone and depth of the fibrosis count only in patients who have it.
    """
    return train_oracle(
        "lung_ct", seed, folder, n=9000, epochs=10, n_prior=1200, hard_epochs=4, bfloat16=True
    )


@recipe("roads_oracle", embedded=True)
def roads_oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered roads: three regressors of every factor.

    Scene and weather have one column per level. A cause reads 0 outside its scene.
    """
    return train_oracle("roads", seed, folder, n=12_000, epochs=9, n_prior=1200, hard_epochs=2)
