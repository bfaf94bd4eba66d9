"""Small convolutional autoencoder of digits, the prior in CEM's loss.

CEM (Dhurandhar et al., 2018) keeps ||x - AE(x)||^2 small. An image that the autoencoder cannot
reconstruct does not look like the digits that it was trained on. Deviation: the authors' bottleneck
is a 14 x 14 map of one channel; ours is a vector of `latent` values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.models.generators.latent import LatentModel


class AutoEncoder(LatentModel):
    """Autoencoder of digits x (B, 1, 28, 28) in [0, 1], with codes (B, latent).

    It has no randomness and no batch statistics, so items are independent.
    """

    def __init__(self, latent: int = 20, width: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width // 2, 4, 2, 1),  # 28 -> 14
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 4, 2, 1),  # 14 -> 7
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * 49, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, width * 49),
            nn.SiLU(),
            nn.Unflatten(1, (width, 7, 7)),
            nn.Conv2d(width, 2 * width, 3, 1, 1),
            nn.PixelShuffle(2),  # 7 -> 14
            nn.SiLU(),
            nn.Conv2d(width // 2, 4, 3, 1, 1),
            nn.PixelShuffle(2),  # 14 -> 28
            nn.Sigmoid(),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, latent) of digits x."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return digits (B, 1, 28, 28) in (0, 1) from codes z."""
        return self.decoder(z)


@torch.no_grad()
def reconstruction_error(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Return the squared error ||x - AE(x)||_2^2 per image (N,), which CEM weights with gamma.

    Lower is closer to the training images. Blind spot: a blank or very thin image is reconstructed
    well, but is no digit.
    """
    errors = [(b - model(b)).square().flatten(1).sum(1) for b in x.split(batch_size)]
    return torch.cat(errors)
