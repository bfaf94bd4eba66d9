"""Variational autoencoders of the rendered worlds: the generators of xGEM and of latent shift."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.models.generators import vae
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import Renders, render_bytes

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
) -> Trained:
    """Train a VAE on n renders of a world at its default size.

    mirror: mirror half of the batches; only for worlds whose left and right are alike.
    """
    world = worlds.get(name)
    data = Renders(world.sample(n, "train", seed=seed))
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
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, independent)",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "VAE", "arguments": arguments},
        "settings": settings,
    }

    def measure(model: vae.VAE) -> dict[str, Any]:
        test = render_bytes(world.sample(500, "test", seed=seed))
        return vae.measure_quality(model, test.float() / 255)

    return Trained(model.cpu(), card, log, measure)


@recipe("faces_vae", embedded=True)
def faces_vae(root: str, seed: int, folder: Path | None) -> Trained:
    """A variational autoencoder of rendered faces, 64 x 64 pixels, for xGEM and latent shift."""
    return train_vae("faces", seed, folder, n=24_000, epochs=4, mirror=True)


@recipe("radiographs_vae", embedded=True)
def radiographs_vae(root: str, seed: int, folder: Path | None) -> Trained:
    """A variational autoencoder of rendered radiographs, 64 x 64 pixels, one channel."""
    return train_vae("radiographs", seed, folder, n=24_000, epochs=4, mirror=False)
