"""Calibration of factor oracles, and what their model cards say about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cf_utils import core, worlds
from cf_utils.evaluation.baselines import PGD
from cf_utils.evaluation.truth import displacement
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import predict
from cf_utils.models.oracle_columns import factor_of, true_readings
from cf_utils.models.oracles import FactorOracle
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.base import round_weights
from cf_utils.training.recipes.renders import concatenate, move_each_factor, render_bytes
from cf_utils.training.recipes.zero_edits import (
    find_prior,
    hash_of,
    is_slow,
    list_generators,
    load_two_classes,
    render_zero_edits,
)
from cf_utils.worlds import Factors, Label, World

N_SLOW = 40  # images that pass through a slow generator
COMPARED = ("lung_ct",)  # worlds that compare a diffusion prior with generators of other kinds


def read_bytes(model: FactorOracle, x: Tensor) -> Tensor:
    """Return the readings (N, K) of images x uint8 (N, 3, H, W)."""
    return torch.cat([model.read(batch.float() / 255)[0] for batch in x.split(500)])


@torch.no_grad()
def fit_slopes(model: FactorOracle, factors: Factors) -> None:
    """Set the oracle's `slope` and `centre` by regressing readings on the truth of fresh renders.

    The slope is at least 0.5: dividing by less would turn the noise of a column that is hardly read
    into the largest displacement.
    """
    value, shown = true_readings(factors, model.names)
    read = read_bytes(model, render_bytes(factors))
    count = shown.sum(0).clamp(min=2)
    centre, middle = ((t * shown).sum(0) / count for t in (value, read))
    a, b = (value - centre) * shown, (read - middle) * shown
    model.slope.copy_(((a * b).sum(0) / a.square().sum(0).clamp(min=1e-9)).clamp(0.5, 1))
    model.centre.copy_(middle)


@torch.no_grad()
def calibrate(
    model: FactorOracle, world: World, seed: int, n: int = 1500, n_null: int = 300
) -> dict[str, Any]:
    """Set the oracle's calibration buffers, and return the quality for its model card.

    n: renders for slope, centre and sd. n_null: images for the displacement without an edit.
    Buffers are rounded to float16, as they are stored, before anything is measured with them.

    The buffer `null` is that of the diffusion prior. In a world without a prior, and in those of
    `COMPARED`, it is the largest of camera noise, drawn again, and of all generators, per column.
    The entry `null_per_generator` holds the null of every shipped generator with the hash of its
    weights.
    """
    model.eval()
    fit_slopes(model, world.sample(n, "validation", seed=seed + ORACLE_SEED))
    round_weights(model)
    factors = world.sample(n, "test", seed=seed + ORACLE_SEED)
    value, shown = true_readings(factors, model.names)
    x = render_bytes(factors)
    error = (read_bytes(model, x) - value).square() * shown
    count = shown.sum(0).clamp(min=2)
    mean = (value * shown).sum(0) / count
    model.sd.copy_((error.sum(0) / count).sqrt())
    r2 = 1 - error.sum(0) / ((value - mean).square() * shown).sum(0)
    few, some = factors.take(slice(0, n_null)), x[:n_null].float() / 255
    prior = None if world.name in COMPARED else find_prior(world)
    unedited = render_null(few, some, seed, prior)
    own = displacement.null_sd(model, some, unedited)
    nulls = measure_nulls(model, few, some, seed)
    if prior is None:
        own = torch.stack([own, *(torch.tensor([*row["null"].values()]) for row in nulls.values())])
        own = own.amax(0)
    model.null.copy_(own)
    round_weights(model)
    disagreement = model.read(unedited)[1]
    columns = {
        name: {
            "sd": model.sd[k].item(),
            "r2": r2[k].item(),
            "null": model.null[k].item(),
            "slope": model.slope[k].item(),
        }
        for k, name in enumerate(model.names)
    }
    return {
        "test_n": n,
        "null_by": prior or ", ".join(["camera noise", *nulls]),
        "null_by_sha256": prior and hash_of(prior),
        "null_per_generator": nulls,
        "columns": columns,
        "unread_after_zero_edit": (disagreement > 2 * model.sd).double().mean().item(),
        "leakage_over_half": measure_leakage(model, world, seed),
        "pgd": measure_adversarial(model, world, seed),
    }


def render_null(factors: Factors, x: Tensor, seed: int, prior: str | None) -> Tensor:
    """Render the images of a table once more, with nothing edited, like x (N, C, H, W) in [0, 1].

    They pass through the prior of that name; with None, only the camera noise is drawn again.
    """
    world = factors.world
    if prior is not None:
        return render_zero_edits(factors, seed, prior).float() / 255
    noise = core.item_noise(seed, factors.ids, x.shape[1:], "another camera")
    clean = world.render(factors, noise=False)
    return (clean + world.noise_sd(factors)[:, None, None, None] * noise).clamp(0, 1)


@torch.no_grad()
def measure_nulls(
    model: FactorOracle, factors: Factors, x: Tensor, seed: int
) -> dict[str, dict[str, Any]]:
    """Measure the null of each generator of a world that ships.

    factors: of the images x (N, C, H, W) in [0, 1]. A slow generator passes the first `N_SLOW`.

    Returns per generator:

    * sha256: of its weights. n: number of images.
    * null: `displacement.null_sd` of its zero edits, per column.
    * unread_after_zero_edit: share of (image, column) pairs whose members disagree by more than
      2 sd.
    """
    out = {}
    for name in list_generators(factors.world):
        rows = slice(0, N_SLOW if is_slow(name) else len(x))
        unedited = render_zero_edits(factors.take(rows), seed, name).float() / 255
        null = displacement.null_sd(model, x[rows], unedited).tolist()
        disagreement = model.read(unedited)[1]
        out[name] = {
            "sha256": hash_of(name),
            "n": len(unedited),
            "null": {column: round(v, 4) for column, v in zip(model.names, null, strict=True)},
            "unread_after_zero_edit": (disagreement > 2 * model.sd).double().mean().item(),
        }
    return out


def load_oracle(name: str) -> tuple[FactorOracle, Card, World]:
    """Load a shipped factor oracle with uncorrected readings, its card and its world.

    Raises ValueError if the checkpoint is no factor oracle.
    """
    model, card = checkpoints.load(name)
    if not isinstance(model, FactorOracle):
        raise ValueError(
            f"{name}: got a {type(model).__name__}, expected a FactorOracle; "
            "only factor oracles are calibrated and fine-tuned"
        )
    model.slope.fill_(1)  # `fit_slopes` expects uncorrected readings
    return model, card, worlds.of_checkpoint(name)


def calibrate_again(name: str, out: Path = checkpoints.FOLDER) -> dict[str, Any]:
    """Calibrate a shipped oracle with the generators that ship now; its members stay unchanged.

    Writes checkpoint and model card to the folder `out`, and returns the card.
    Raises ValueError if the checkpoint is no factor oracle.
    """
    model, card, world = load_oracle(name)
    card = dataclasses.replace(card, quality=calibrate(model, world, card.seed or 0))
    checkpoints.save(name, model, card, out)
    return checkpoints.read_card(name, out).to_json()


def measure_leakage(
    model: FactorOracle, world: World, seed: int, n: int = 64, least: float = 0.5
) -> dict[str, dict[str, float]]:
    """Measure which columns react when the renderer moves one factor over its scale.

    Returns, per moved factor, the mean |displacement| of each column in units of its `sd`. Columns
    below `least` are left out.
    """
    factors = world.sample(n, "test", seed=seed)
    tables = move_each_factor(factors)
    x = render_bytes(concatenate([factors, *(table for _, table in tables)]))
    read = read_bytes(model, x).view(-1, n, len(model.names))
    out = {}
    for name in dict.fromkeys(name for name, _ in tables):
        own = read[[k + 1 for k, (moved, _) in enumerate(tables) if moved == name]]
        largest = ((own - read[0]).abs() / model.sd).amax(0).mean(0)
        out[name] = {
            column: round(largest[k].item(), 2)
            for k, column in enumerate(model.names)
            if largest[k] >= least
        }
    return out


def measure_adversarial(
    model: FactorOracle, world: World, seed: int, n: int = 128
) -> dict[str, dict[str, Any]]:
    """Measure how far PGD attacks (2/255) on the shipped classifiers of a world move the readings.

    A perfect oracle reads nothing as moved. Returns per classifier, over the images that flip:

    * n: their number.
    * columns_not_moved: share of (image, column) pairs that are not read as moved.
    * causes_not_moved: share of images in which no cause is read as moved.
    * causes_within_1_sd: share of images in which every cause moves by at most 1 sd.
    * most_moved_cause_sd: mean over images of the largest move of a cause, in sd.
    """
    factors = world.sample(n, "test", seed=seed)
    x, out = render_bytes(factors).float() / 255, {}
    shipped = checkpoints.names("classifier")
    for label in world.labels:
        for name in shipped:
            if not f"{name}_".startswith(f"{world.name}_{label.name}_"):
                continue
            classifier = load_two_classes(name)
            cfs = PGD()(classifier, x, 1 - predict(classifier, x).argmax(1))
            if cfs.valid.any():
                moves = displacement.measure(cfs, model)
                out[name] = summarise_moves(moves, cfs.valid, model, label)
    return out


def summarise_moves(
    moves: displacement.Displacement, valid: Tensor, model: FactorOracle, label: Label
) -> dict[str, Any]:
    """Summarise the displacements of valid images; see `measure_adversarial`."""
    names = {label.factor, *(name for name, _ in label.neutral)}
    causes = [k for k, column in enumerate(model.names) if factor_of(column) in names]
    still = ~moves.moved[valid]
    largest = (moves.value.abs() / model.sd)[valid][:, causes].amax(1).double()
    return {
        "n": len(still),
        "columns_not_moved": still.double().mean().item(),
        "causes_not_moved": still[:, causes].all(1).double().mean().item(),
        "causes_within_1_sd": (largest <= 1).double().mean().item(),
        "most_moved_cause_sd": largest.mean().item(),
    }
