"""An adversarial autoencoder: an autoencoder whose codes a discriminator cannot tell from draws of N(0, I).

Source: Makhzani, Shlens, Jaitly, Goodfellow & Frey, "Adversarial Autoencoders", 2015, section 2 (deterministic encoder, no
labels). Three losses, minimised in turn on every batch, each over its own parameters (`training.Part`):

    reconstruction   BCE(decode(encode(x)), x)                          encoder, decoder
    discrimination   -log D(z) - log(1 - D(encode(x))),  z ~ N(0, I)    discriminator
    deception        -log D(encode(x))                                  encoder

Re-implementation. Deviations: layers of 240 instead of 1000 units, so that the checkpoint stays at 1 MB; latent of 8 (as
for their digits; ABELE took 4); Adam instead of SGD with momentum; cross-entropy instead of squared error, pixels
being in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.generators.latent import LatentModel


class AdversarialAutoencoder(LatentModel):
    """`encoder` (B, *shape) in [0, 1] -> codes (B, latent); `decoder` codes -> (B, *shape) in [0, 1]; `discriminator` codes ->
    logits (B,) of having been drawn from N(0, I)."""

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 28, 28),
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
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


# ---------------------------------------------------------------- the losses


def reconstruction_loss(made: Tensor, x: Tensor) -> Tensor:
    """Binary cross-entropy in nats, summed over an image's pixels, mean over images; both (B, ...) in [0, 1]."""
    return F.binary_cross_entropy(made, x, reduction="sum") / len(x)


def discriminator_loss(prior: Tensor, codes: Tensor) -> Tensor:
    """-log D(prior draw) - log(1 - D(code)), means over (B,) logits; 2 log 2 when the discriminator knows nothing."""
    return F.softplus(-prior).mean() + F.softplus(codes).mean()


def generator_loss(codes: Tensor) -> Tensor:
    """-log D(code), mean over (B,) logits: small when the codes pass for draws from the prior."""
    return F.softplus(-codes).mean()


def reconstruction(module: AdversarialAutoencoder, batch) -> Tensor:
    """`reconstruction_loss` of a batch (x, ...)."""
    return reconstruction_loss(module(batch[0]), batch[0])


def discrimination(module: AdversarialAutoencoder, batch) -> Tensor:
    """`discriminator_loss` of a batch (x, ...) against as many draws from N(0, I); no gradient reaches the encoder."""
    codes = module.encoder(batch[0]).detach()
    return discriminator_loss(
        module.discriminator(torch.randn_like(codes)), module.discriminator(codes)
    )


def deception(module: AdversarialAutoencoder, batch) -> Tensor:
    """`generator_loss` of a batch (x, ...)."""
    return generator_loss(module.discriminator(module.encoder(batch[0])))


# ---------------------------------------------------------------- measure


@torch.no_grad()
def quality(
    module: AdversarialAutoencoder, x: Tensor, classifier: nn.Module, seed: int = 0
) -> dict[str, float]:
    """What a card says, over x (N, *shape), all in eval mode.

    reconstruction_error: mean |decode(encode(x)) - x| a pixel, in [0, 1] (lower is better). discriminator_accuracy: codes of x
    against as many prior draws, threshold 1/2 (0.5: cannot tell). classifier_agreement: share of x whose reconstruction gets
    the decision of x itself (higher is better). codes_accepted: share of codes with D >= 0.4 (ABELE's filter).
    """
    codes = module.encoder(x)
    made = module.decoder(codes)
    prior = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed)).to(codes)
    fake, real = module.discriminator(codes), module.discriminator(prior)
    pairs = zip(made.split(500), x.split(500), strict=True)
    agree = torch.cat([classifier(a).argmax(1) == classifier(b).argmax(1) for a, b in pairs])
    return {
        "n": len(x),
        "reconstruction_error": (made - x).abs().mean().item(),
        "reconstruction_rmse": (made - x).square().mean().sqrt().item(),
        "discriminator_accuracy": ((fake < 0).float().mean() + (real >= 0).float().mean()).item()
        / 2,
        "classifier_agreement": agree.float().mean().item(),
        "codes_accepted": (fake.sigmoid() >= 0.4).float().mean().item(),
        "code_mean": codes.mean(0).abs().max().item(),
        "code_std_low": codes.std(0).min().item(),
        "code_std_high": codes.std(0).max().item(),
    }
