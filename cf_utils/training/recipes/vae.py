"""Variational autoencoders of the rendered worlds: the generators of xGEM and of latent shift.

In lung CT, the VAE sees single slices, like the diffusion autoencoder whose rival it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.evaluation.metrics.reconstruction import psnr
from cf_utils.models.generators import vae
from cf_utils.models.generators.slices import split_slices
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import StoredImages, describe_data, render_bytes

WIDTHS = (16, 32, 64, 112, 112)  # 1.1 million parameters


def mirrored_loss(
    module: nn.Module, batch: Sequence[Tensor], mirror: bool, **settings: Any
) -> Tensor:
    """Return `vae.loss` with the settings; with `mirror`, half of the batches are mirrored."""
    x = batch[0]
    if mirror and torch.rand(()) < 0.5:
        x = x.flip(3)
    return vae.loss(module, (x,), **settings)


def train_vae(
    name: str,
    seed: int,
    folder: Path | None,
    n: int,
    epochs: int,
    mirror: bool,
    widths: tuple[int, ...] = WIDTHS,
    latent: int = 8,
    beta: float = 0.003,
    vector: bool = False,
    sliced: bool = False,
) -> Trained:
    """Train a VAE on n renders of a world at its default size.

    mirror: mirror half of the batches; only for worlds whose left and right are alike.
    latent, vector: of the VAE. sliced: each channel of a render is an image of one channel.
    """
    world = worlds.get(name)

    def render(n: int, split: str) -> Tensor:
        x = render_bytes(world.sample(n, split, seed=seed))
        return split_slices(x) if sliced else x

    data = StoredImages(render(n, "train"))
    settings = {
        "n": n,
        "epochs": epochs,
        "batch_size": 16,
        "lr": 3e-3,
        "beta": beta,
        "augmentation": "mirror" if mirror else "none",
        "precision": "bfloat16 in convolutions",
    }
    size, channels = world.size, data.x.shape[1]
    arguments = {"size": size, "channels": channels, "widths": widths, "latent": latent}
    arguments |= {"vector": True, "factor": 16} if vector else {}
    model = channels_last(vae.VAE(**arguments))
    loss = functools.partial(mirrored_loss, mirror=mirror, beta=beta, bfloat16=True)
    log = loop.fit(
        model,
        data,
        [loop.Part(loss, lr=settings["lr"])],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": describe_data(world, f"train ({n:,} renders, independent)"),
        "architecture": {"class": "VAE", "arguments": arguments},
        "settings": settings,
    }

    def measure(model: vae.VAE) -> dict[str, Any]:
        x = render(500 // world.channels if sliced else 500, "test").float() / 255
        return {**vae.measure_quality(model, x), "psnr": measure_psnr(model, x)}

    return Trained(model.cpu(), card, log, measure)


@torch.no_grad()
def measure_psnr(model: nn.Module, x: Tensor, batch_size: int = 100) -> float:
    """Return the mean PSNR in dB of the reconstructions of x (N, C, H, W) in [0, 1]."""
    return torch.cat([psnr(model(part), part) for part in x.split(batch_size)]).mean().item()


@recipe("faces_vae", embedded=True)
def faces_vae(root: str, seed: int, folder: Path | None) -> Trained:
    """A variational autoencoder of rendered faces, 64 x 64 pixels, for xGEM and latent shift."""
    return train_vae("faces", seed, folder, n=24_000, epochs=4, mirror=True)


@recipe("radiographs_vae", embedded=True)
def radiographs_vae(root: str, seed: int, folder: Path | None) -> Trained:
    """A variational autoencoder of rendered radiographs, 64 x 64 pixels, one channel."""
    return train_vae("radiographs", seed, folder, n=24_000, epochs=4, mirror=False)


@recipe("lung_ct_vae", embedded=True)
def lung_ct_vae(root: str, seed: int, folder: Path | None) -> Trained:
    """A variational autoencoder of rendered lung CT: one slice of 96 x 96 pixels, a code of 64."""
    return train_vae(
        "lung_ct",
        seed,
        folder,
        n=3000,
        epochs=2,
        mirror=False,
        widths=(16, 32, 48, 64, 64),
        latent=64,
        vector=True,
        sliced=True,
    )
