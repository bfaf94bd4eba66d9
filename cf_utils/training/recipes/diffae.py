"""Diffusion autoencoders of the rendered worlds' slices: the generator of DiffExplainer.

A patient of several slices gives as many training images of one channel, as in the paper, where the
autoencoder sees single slices.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cf_utils import worlds
from cf_utils.evaluation.metrics.reconstruction import psnr
from cf_utils.models.generators import diffae
from cf_utils.models.generators.diffae import DiffusionAutoencoder
from cf_utils.models.generators.diffae_rows import reconstruct_rows
from cf_utils.models.generators.slices import split_slices
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import StoredImages, describe_data, render_bytes


def fit_autoencoder(
    x: Tensor,
    arguments: dict[str, Any],
    seed: int,
    folder: Path | None,
    epochs: int,
    norm: str = "l1",
) -> tuple[DiffusionAutoencoder, dict[str, Any], dict[str, Any]]:
    """Train a diffusion autoencoder on the slices of patients x, uint8 (N, S, H, W).

    Returns the model with the exponential average of its weights, the log, and the settings for its
    card. Codes are normalised over slices of up to 2,000 of the patients.

    arguments: of `DiffusionAutoencoder`.
    """
    data = StoredImages(split_slices(x))
    settings = {
        "n": len(x),
        "epochs": epochs,
        "batch_size": 32,
        "lr": 1e-3,
        "ema": 0.999,
        "clip": 1.0,
        "norm": norm,
        "precision": "bfloat16 in the networks",
    }
    model = channels_last(DiffusionAutoencoder(**arguments))
    loss = functools.partial(diffae.loss, norm=norm, bfloat16=True)
    log = loop.fit(
        model,
        data,
        [loop.Part(loss, lr=settings["lr"])],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed,
        ema=settings["ema"],
        clip=settings["clip"],
        folder=folder,
        settings=settings,
    )
    model.cpu()
    normalise_codes(model, data.x[: 2000 * x.shape[1]])
    return model, log, settings


def train_autoencoder(
    name: str,
    seed: int,
    folder: Path | None,
    n: int,
    epochs: int,
    norm: str = "l1",
    **arguments: Any,
) -> Trained:
    """Train a diffusion autoencoder on the slices of n rendered patients of a world.

    arguments: of `DiffusionAutoencoder`.
    """
    world = worlds.get(name)
    arguments = {"size": world.size, "channels": 1, **arguments}
    x = render_bytes(world.sample(n, "train", seed=seed))
    model, log, settings = fit_autoencoder(x, arguments, seed, folder, epochs, norm)
    card = {
        "data": describe_data(
            world, f"train ({n:,} renders of {world.channels} slices, independent)"
        ),
        "architecture": {"class": "DiffusionAutoencoder", "arguments": arguments},
        "settings": settings,
    }
    few = world.render(world.sample(32 // world.channels + 1, "test", seed=seed))
    return Trained(model, card, log, lambda model: measure_rows(model, few, seed))


@torch.no_grad()
def normalise_codes(model: DiffusionAutoencoder, x: Tensor) -> None:
    """Set the normalisation of the codes from images x, uint8 (N, C, H, W)."""
    model.set_normalisation(torch.cat([model.encode(part.float() / 255) for part in x.split(100)]))


@torch.no_grad()
def measure_rows(model: DiffusionAutoencoder, x: Tensor, seed: int = 0) -> dict[str, Any]:
    """Measure the reconstruction of the slices of all patients x (N, C, H, W) but the last.

    Returns PSNR in dB, the mean over slices: with own code and inverted x_T (a), x_T of Eq. 1 as
    printed (b), random x_T (c), and the code of the next patient with own x_T (d). `loss` is the l1
    loss of the noise.
    """
    own, other = split_slices(x[:-1]), split_slices(x[1:])
    rows = reconstruct_rows(model, own, other, torch.arange(len(own)), seed)
    torch.manual_seed(seed)
    losses = [diffae.loss(model, (own,)).item() for _ in range(16)]
    return {
        "n": len(own),
        "steps": diffae.STEPS,
        "iterations": diffae.ITERATIONS,
        "psnr_a": psnr(rows.inverted, own).mean().item(),
        "psnr_b": psnr(rows.printed, own).mean().item(),
        "psnr_c": torch.stack([psnr(y, own) for y in rows.random]).mean().item(),
        "psnr_d": psnr(rows.other_code, own).mean().item(),
        "loss": sum(losses) / len(losses),
    }


@recipe("lung_ct_diffae", embedded=True)
def lung_ct_diffae(root: str, seed: int, folder: Path | None) -> Trained:
    """The diffusion autoencoder of rendered lung CT: one slice of 96 x 96 pixels, a code of 64."""
    return train_autoencoder("lung_ct", seed, folder, n=8000, epochs=14, prediction="v")
