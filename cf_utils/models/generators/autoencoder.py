"""A small convolutional autoencoder of digits: the prior that CEM's loss holds an explanation to.

CEM (Dhurandhar et al. 2018) asks that ||x - AE(x)||^2 stay small: an image that the autoencoder cannot say in its few latent
numbers does not look like the digits it was trained on. Deviations from the authors' network: theirs passes a 14 x 14 map of
one channel, wide enough to copy noise; here all goes through `latent` numbers, and sub-pixel convolutions keep a pass short.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.models.generators.latent import LatentModel


class AutoEncoder(LatentModel):
    """x (B, 1, 28, 28) in [0, 1] -> its reconstruction, same shape, in (0, 1). No randomness, no batch statistics: a row's
    reconstruction depends on that row alone. `encode` gives the latent (B, latent)."""

    def __init__(self, latent: int = 20, width: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width // 2, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 4, 2, 1),
            nn.SiLU(),  # 28 -> 14 -> 7
            nn.Flatten(),
            nn.Linear(width * 49, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, width * 49),
            nn.SiLU(),
            nn.Unflatten(1, (width, 7, 7)),
            nn.Conv2d(width, 2 * width, 3, 1, 1),
            nn.PixelShuffle(2),
            nn.SiLU(),  # 7 -> 14
            nn.Conv2d(width // 2, 4, 3, 1, 1),
            nn.PixelShuffle(2),
            nn.Sigmoid(),
        )  # 14 -> 28

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def reconstruction_error(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """||x - AE(x)||_2^2 of each image (N,), the quantity that CEM weighs with gamma; lower is more digit-like.

    Blind spot: a blank or very thin image is reconstructed well and is no digit."""
    with torch.no_grad():
        return torch.cat([(b - model(b)).square().flatten(1).sum(1) for b in x.split(batch_size)])
