"""An autoencoder of your own images, the prior in CEM's loss, with a card of its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card, hash_data
from cf_utils.models.generators.autoencoder import AutoEncoder, reconstruction_error
from cf_utils.training import loop
from cf_utils.training.own_split import split_images
from cf_utils.training.recipes.base import round_weights
from cf_utils.training.recipes.renders import StoredImages

NAME = "autoencoder"
LATENT = 64  # length of the code
BATCH, LR = 32, 4e-3
NOISE = 0.3  # standard deviation of the noise that the card asks about
HALF, TWICE = 0.5, 2.0  # bounds in the card's sentences, see `describe_quality`


def train(
    images: str | Path,
    size: int | None = None,
    channels: int | None = None,
    steps: int = 3000,
    seed: int = 0,
    resume: Path | None = None,
    out: Path | None = None,
) -> Card:
    """Train an autoencoder on a folder of images; with `out`, write it and its card.

    Args:
        images, size, channels: as in `own_images.load`; any size.
        steps: training steps of 32 images.
        resume: folder of the training state.

    A tenth of the images is held out for the card. Raises ValueError for too few images.
    """
    core.check_count("steps", steps)
    core.seed_everything(seed)
    x, held_out = split_images(images, size, channels, seed)
    shape = {"size": tuple(x.shape[2:]), "channels": x.shape[1], "latent": LATENT}
    model = AutoEncoder(**shape)
    batch = min(BATCH, len(x))
    epochs = max(1, round(steps / (len(x) // batch)))
    settings = {
        "n": len(x),
        "batch_size": batch,
        "epochs": epochs,
        "lr": LR,
        "loss": "squared error",
    }
    log = loop.fit(
        model,
        StoredImages((255 * x).round().to(torch.uint8)),
        [loop.Part(_squared_error, lr=LR)],
        epochs=epochs,
        batch_size=batch,
        seed=seed,
        folder=resume,
        settings=settings,
    )
    round_weights(model.cpu())
    card = Card(
        recipe=f"cf train {NAME} --images DIR --size {x.shape[2]} --steps {steps} --seed {seed}",
        about="An autoencoder of one's own images.",
        seed=seed,
        data={"name": Path(images).resolve().name, "split": "train", "sha256": hash_data(x)},
        architecture={"class": "AutoEncoder", "arguments": shape},
        settings=settings,
        quality=describe_quality(model, x, held_out, seed),
        training=log,
        torch=torch.__version__,
    )
    if out is not None:
        checkpoints.save(NAME, model, card, out)
    return card


def _squared_error(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]) - batch[0]).square().flatten(1).sum(1).mean()


def describe_quality(
    model: nn.Module, train: Tensor, held_out: Tensor, seed: int
) -> dict[str, Any]:
    """Measure an autoencoder on held-out images (N, C, H, W), and say what it can and cannot do.

    Returns a card's quality: `explained`, 1 minus its squared error over that of the training
    images' mean; `noise_ratio`, by which factor noise of standard deviation `NOISE` raises the
    error; and the sentences `can` and `cannot`.
    """
    error = reconstruction_error(model, held_out).mean()
    of_mean = (held_out - train.mean(0)).square().flatten(1).sum(1).mean()
    noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(seed))
    noisy = reconstruction_error(model, (held_out + NOISE * noise).clamp(0, 1)).mean()
    explained = (1 - error / of_mean.clamp(min=1e-12)).item()
    ratio = (noisy / error.clamp(min=1e-12)).item()
    can, cannot = [], []
    text = f"reconstruct held-out images: it explains {explained:.2f} of their variance"
    (can if explained >= HALF else cannot).append(text)
    text = f"tell images from noise: noise of {NOISE} makes the error {ratio:.1f} times as large"
    (can if ratio >= TWICE else cannot).append(text)
    cannot.append("show fine detail: it keeps an image close to the folder's, and draws nothing")
    measured = {"squared_error": error.item(), "explained": explained, "noise_ratio": ratio}
    return measured | {"can": can, "cannot": cannot}
