"""Autoencoders of handwritten digits, for CEM and ABELE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.models import checkpoints
from cf_utils.models.generators import adversarial_autoencoder as aae
from cf_utils.models.generators import autoencoder
from cf_utils.training import loop
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.digits import load_digits


@recipe("mnist_autoencoder")
def mnist_autoencoder(root: str, seed: int, folder: Path | None) -> Trained:
    """The prior of CEM: a convolutional autoencoder of digits with a code of 20 numbers."""
    splits, data = load_digits(root)
    settings = {
        "epochs": 12,
        "batch_size": 128,
        "lr": 4e-3,
        "loss": "squared error, summed over pixels",
    }

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return (module(batch[0]) - batch[0]).square().flatten(1).sum(1).mean()

    model = autoencoder.AutoEncoder()
    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(loss, lr=settings["lr"])],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )
    card = {"data": data, "settings": settings}
    x = splits["test"].x
    return Trained(model, card, log, lambda model: measure_reconstruction(model, x, seed))


def measure_reconstruction(model: nn.Module, x: Tensor, seed: int) -> dict[str, Any]:
    """Measure the squared error of digits x (N, 1, H, W), plain and with two levels of noise."""
    gen = torch.Generator().manual_seed(seed)
    images = {"digits": x}
    for sd in (0.1, 0.3):
        images[f"noise_{sd}"] = (x + sd * torch.randn(x.shape, generator=gen)).clamp(0, 1)
    errors = {
        f"squared_error_{kind}": autoencoder.reconstruction_error(model, v).mean().item()
        for kind, v in images.items()
    }
    return errors | {"test_n": len(x)}


@recipe("mnist_aae")
def mnist_aae(root: str, seed: int, folder: Path | None) -> Trained:
    """The latent space of ABELE: an adversarial autoencoder of digits, trained without labels."""
    splits, data = load_digits(root)
    lr = {"reconstruction": 2e-3, "discrimination": 1e-3, "deception": 1e-3}
    settings = {"epochs": 14, "batch_size": 256, "lr": lr}
    betas = (0.5, 0.999)
    parts = [
        loop.Part(aae.batch_reconstruction_loss, lr["reconstruction"], _autoencoder_parameters),
        loop.Part(
            aae.batch_discriminator_loss,
            lr["discrimination"],
            lambda model: model.discriminator.parameters(),
            betas=betas,
        ),
        loop.Part(
            aae.batch_generator_loss,
            lr["deception"],
            lambda model: model.encoder.parameters(),
            betas=betas,
        ),
    ]
    model = aae.AdversarialAutoencoder()
    log = loop.fit(
        model,
        splits["train"],
        parts,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
        folder=folder,
        settings=settings,
    )

    def measure(model: nn.Module) -> dict[str, Any]:
        classifier = checkpoints.load("mnist_cnn").model
        quality = aae.measure_quality(model, splits["test"].x, classifier)
        return quality | {"agreement_with": "mnist_cnn"}

    return Trained(model, {"data": data, "settings": settings}, log, measure)


def _autoencoder_parameters(model: aae.AdversarialAutoencoder) -> list[nn.Parameter]:
    return [*model.encoder.parameters(), *model.decoder.parameters()]
