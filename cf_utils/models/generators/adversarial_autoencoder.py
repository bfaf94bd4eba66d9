"""Adversarial autoencoder: trained so that its codes look like draws of N(0, I).

Source: Makhzani, Shlens, Jaitly, Goodfellow & Frey, "Adversarial Autoencoders", 2015, section 2
(deterministic encoder, no labels). Every batch minimises three losses in turn, each over its own
parameters:

    reconstruction   BCE(decode(encode(x)), x)                          encoder, decoder
    discriminator    -log D(z) - log(1 - D(encode(x))),  z ~ N(0, I)    discriminator
    generator        -log D(encode(x))                                  encoder

Deviations: narrower layers, so that the checkpoint is small; Adam instead of SGD with momentum;
cross-entropy instead of squared error, because pixels are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.generators.latent import LatentModel


class AdversarialAutoencoder(LatentModel):
    """Autoencoder of x (B, *shape) in [0, 1] with codes (B, latent) and a discriminator of codes.

    `discriminator` maps codes to logits (B,); a high logit means "drawn from N(0, I)".
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 28, 28),
        latent: int = 8,
        hidden: int = 240,
        critic: int = 64,
    ):
        super().__init__()
        self.shape, self.latent, n = tuple(shape), latent, math.prod(shape)
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(n, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, n),
            nn.Sigmoid(),
            nn.Unflatten(1, self.shape),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(latent, critic),
            nn.LeakyReLU(0.2),
            nn.Linear(critic, critic),
            nn.LeakyReLU(0.2),
            nn.Linear(critic, 1),
            nn.Flatten(0),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, latent) of x."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the outputs (B, *shape) in (0, 1) of codes z."""
        return self.decoder(z)


# ---------------------------------------------------------------- losses


def reconstruction_loss(reconstruction: Tensor, x: Tensor) -> Tensor:
    """Return the binary cross-entropy in nats, summed over pixels, averaged over items.

    Both arguments are (B, ...) in [0, 1].
    """
    return F.binary_cross_entropy(reconstruction, x, reduction="sum") / len(x)


def discriminator_loss(prior: Tensor, codes: Tensor) -> Tensor:
    """Return the mean of -log D(prior draw) plus the mean of -log(1 - D(code)).

    Both arguments are logits (B,). The loss is 2 log 2 if the discriminator gives only 1/2.
    """
    return F.softplus(-prior).mean() + F.softplus(codes).mean()


def generator_loss(codes: Tensor) -> Tensor:
    """Return the mean of -log D(code) over logits (B,); small if codes look like prior draws."""
    return F.softplus(-codes).mean()


def batch_reconstruction_loss(model: AdversarialAutoencoder, batch: Sequence[Tensor]) -> Tensor:
    """Return `reconstruction_loss` of a batch (x, ...)."""
    return reconstruction_loss(model(batch[0]), batch[0])


def batch_discriminator_loss(model: AdversarialAutoencoder, batch: Sequence[Tensor]) -> Tensor:
    """Return `discriminator_loss` of a batch (x, ...) and as many draws of N(0, I).

    No gradient reaches the encoder.
    """
    codes = model.encoder(batch[0]).detach()
    prior = torch.randn_like(codes)
    return discriminator_loss(model.discriminator(prior), model.discriminator(codes))


def batch_generator_loss(model: AdversarialAutoencoder, batch: Sequence[Tensor]) -> Tensor:
    """Return `generator_loss` of a batch (x, ...)."""
    return generator_loss(model.discriminator(model.encoder(batch[0])))


# ---------------------------------------------------------------- quality


@torch.no_grad()
def measure_quality(
    model: AdversarialAutoencoder, x: Tensor, classifier: nn.Module, seed: int = 0
) -> dict[str, float]:
    """Measure the entries of the card's quality over x (N, *shape); all modules in eval mode.

    Returns:
        n: number of items.
        reconstruction_error, reconstruction_rmse: mean absolute error per pixel and root mean
            square error, in [0, 1]; lower is better.
        discriminator_accuracy: on the codes of x and as many prior draws; 1/2 is chance, and best
            for the autoencoder.
        classifier_agreement: share of x whose reconstruction keeps the classifier's decision.
        codes_accepted: share of codes that ABELE's filter accepts, D >= 0.4.
        code_mean: largest absolute mean of a latent dimension; 0 for N(0, I).
        code_std_low, code_std_high: lowest and highest standard deviation of a latent dimension.
    """
    codes = model.encoder(x)
    made = model.decoder(codes)
    prior = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed)).to(codes)
    of_codes, of_prior = model.discriminator(codes), model.discriminator(prior)
    pairs = zip(made.split(500), x.split(500), strict=True)
    agree = torch.cat([classifier(a).argmax(1) == classifier(b).argmax(1) for a, b in pairs])
    right = (of_codes < 0).float().mean() + (of_prior >= 0).float().mean()
    return {
        "n": len(x),
        "reconstruction_error": (made - x).abs().mean().item(),
        "reconstruction_rmse": (made - x).square().mean().sqrt().item(),
        "discriminator_accuracy": right.item() / 2,
        "classifier_agreement": agree.float().mean().item(),
        "codes_accepted": (of_codes.sigmoid() >= 0.4).float().mean().item(),
        "code_mean": codes.mean(0).abs().max().item(),
        "code_std_low": codes.std(0).min().item(),
        "code_std_high": codes.std(0).max().item(),
    }
