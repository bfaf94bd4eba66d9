"""Diffusion models of the rendered worlds: the priors of ACE and DiME on the embedded data.

The methods noise an image to a standard deviation of about 0.5 at most. Therefore a share of each
batch is drawn from the noise levels below that.

The first rounds of a prior predict the noise (epsilon), the last one predicts v. At low noise both
are nearly equal, so the last round continues from the weights of the first. At high noise,
predicting epsilon gives samples with a colour cast.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cf_utils import core, worlds
from cf_utils.models.generators import diffusion
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import Renders


class Round(NamedTuple):
    """One training with its own learning rate schedule.

    prediction: "epsilon" or "v". low: share of the rows whose noise level is one of the low ones.
    """

    epochs: int
    batch_size: int
    prediction: str = "epsilon"
    low: float = 0.6


def train_prior(
    name: str,
    seed: int,
    folder: Path | None,
    n: int,
    rounds: tuple[Round, ...],
    bfloat16: bool = False,
    **build: Any,
) -> Trained:
    """Train a diffusion model on n renders of a world, round by round.

    The model ends with the exponential average of its weights. bfloat16: run the network in
    autocast. build: settings of the network.
    """
    world = worlds.get(name)
    model = diffusion.build(size=world.size, prediction=rounds[-1].prediction, **build)
    data = Renders(world.sample(n, "train", seed=seed))
    settings, log = fit_rounds(model, data, rounds, seed, folder, bfloat16)
    card = {
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, independent)",
            "world_sha256": world.sha256(),
        },
        "architecture": diffusion.describe_architecture(model),
        "settings": settings,
    }
    x = world.render(world.sample(256, "test", seed=seed))
    return Trained(model.cpu(), card, log, lambda model: measure_denoising(model, x, seed))


def fit_rounds(
    model: diffusion.DDPM,
    data: Dataset,
    rounds: tuple[Round, ...],
    seed: int,
    folder: Path | None,
    bfloat16: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a diffusion model on a data set of (x, ...), round by round; return settings and log.

    The model ends with the exponential average of its weights.
    """
    settings = {
        "n": len(data),  # type: ignore[arg-type]
        "stages": [stage._asdict() for stage in rounds],
        "lr": 8e-4,
        "ema": 0.999,
        "low_steps": model.schedule.steps_for(0.55),
        "clip": 1.0,
    }
    if bfloat16:
        settings["precision"] = "bfloat16 in the network"
    logs = []
    for k, stage in enumerate(rounds):
        model.prediction = stage.prediction
        low = {"low": stage.low, "low_steps": settings["low_steps"]}
        loss = functools.partial(diffusion.loss, **low, bfloat16=bfloat16)
        log = loop.fit(
            model,
            data,
            [loop.Part(loss, lr=settings["lr"])],
            epochs=stage.epochs,
            batch_size=stage.batch_size,
            seed=seed + 50 * k,
            ema=settings["ema"],
            clip=settings["clip"],
            folder=folder and (folder / f"again{k}" if k else folder),
            settings=settings,
        )
        logs.append(log)
    total = {key: sum(log[key] for log in logs) for key in ("seconds", "steps", "epochs")}
    return settings, total | {"losses": [log["losses"] for log in logs]}


@torch.no_grad()
def measure_denoising(model: diffusion.DDPM, x: Tensor, seed: int = 0) -> dict[str, Any]:
    """Measure the error of the clean image that the model predicts in one step from a noisy one.

    x: images (N, C, H, W) in [0, 1]. Returns, for several standard deviations of the noise, the
        root mean square error in pixel units of [0, 1]. Noise levels refer to images in [-1, 1], so
        an error of half the noise level means that nothing was removed.
    """
    out: dict[str, Any] = {"test_n": len(x)}
    noise = core.item_noise(seed, torch.arange(len(x)), x.shape[1:], "denoising")
    for sigma in (0.14, 0.27, 0.5, 0.9, 0.99):
        k = model.schedule.steps_for(sigma) - 1
        errors = []
        for z0, e in zip(diffusion.to_model(x).split(64), noise.split(64), strict=True):
            z = model.schedule.add_noise(z0, k, e)
            predicted = model(z, torch.full((len(z),), k))[:, : z.shape[1]]
            guess = model.schedule.remove_noise(z, k, predicted, clip=True)
            errors.append((guess - z0).square().flatten(1).mean(1) / 4)
        out[f"rmse_{sigma}"] = torch.cat(errors).mean().sqrt().item()
    return out


@recipe("faces_ddpm", embedded=True)
def faces_ddpm(root: str, seed: int, folder: Path | None) -> Trained:
    """The diffusion prior of rendered faces, 64 x 64 pixels."""
    rounds = (Round(6, 16), Round(5, 16, "v", low=0.4))
    return train_prior("faces", seed, folder, n=14_000, rounds=rounds, blocks=1)


@recipe("roads_ddpm", embedded=True)
def roads_ddpm(root: str, seed: int, folder: Path | None) -> Trained:
    """The diffusion prior of rendered roads, 64 x 128 pixels."""
    rounds = (Round(4, 32), Round(5, 16), Round(5, 16, "v", low=0.4))
    return train_prior("roads", seed, folder, n=6_000, rounds=rounds, blocks=1)


@recipe("lung_ct_ddpm", embedded=True)
def lung_ct_ddpm(root: str, seed: int, folder: Path | None) -> Trained:
    """The diffusion prior of rendered lung CT: the four slices of a patient, 96 x 96 pixels."""
    network = {"channels": 4, "unshuffle": 4, "widths": (64, 96, 128), "blocks": 1}
    rounds = (Round(10, 16, "v"),)
    return train_prior("lung_ct", seed, folder, n=8000, rounds=rounds, bfloat16=True, **network)
