"""Small convolutional autoencoder of digits or other images, the prior in CEM's loss.

CEM (Dhurandhar et al., 2018) keeps ||x - AE(x)||^2 small. An image that the autoencoder cannot
reconstruct does not look like the images that it was trained on. Deviation: the authors' bottleneck
is a 14 x 14 map of one channel; ours is a vector of `latent` values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.generators.latent import LatentModel


class AutoEncoder(LatentModel):
    """Autoencoder of images x (B, C, H, W) in [0, 1], with codes (B, latent).

    It has no randomness and no batch statistics, so items are independent. A side that is no
    multiple of 4 is padded with its last pixels inside.

    Args:
        size: height and width.
        channels: 1 (grey) or 3 (RGB).
    """

    def __init__(
        self,
        latent: int = 20,
        width: int = 16,
        size: Sequence[int] = (28, 28),
        channels: int = 1,
    ):
        super().__init__()
        self.size, self.channels = (size[0], size[1]), channels
        height, length = (-(-side // 4) for side in self.size)  # of the map
        self.pad = (0, 4 * length - self.size[1], 0, 4 * height - self.size[0])
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, 2, 1),  # 28 -> 14
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 4, 2, 1),  # 14 -> 7
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * height * length, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, width * height * length),
            nn.SiLU(),
            nn.Unflatten(1, (width, height, length)),
            nn.Conv2d(width, 2 * width, 3, 1, 1),
            nn.PixelShuffle(2),  # 7 -> 14
            nn.SiLU(),
            nn.Conv2d(width // 2, 4 * channels, 3, 1, 1),
            nn.PixelShuffle(2),  # 14 -> 28
            nn.Sigmoid(),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, latent) of images x. Raises ValueError for another shape."""
        if tuple(x.shape[1:]) != (self.channels, *self.size):
            raise ValueError(
                f"x: got images of shape {tuple(x.shape[1:])}, the autoencoder was made for "
                f"{(self.channels, *self.size)}"
            )
        return self.encoder(F.pad(x, self.pad, mode="replicate") if any(self.pad) else x)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W) in (0, 1) from codes z."""
        return self.decoder(z)[:, :, : self.size[0], : self.size[1]]


@torch.no_grad()
def reconstruction_error(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Return the squared error ||x - AE(x)||_2^2 per image (N,), which CEM weights with gamma.

    Lower is closer to the training images. Blind spot: a blank or very thin image is reconstructed
    well, but is no digit.
    """
    errors = [(b - model(b)).square().flatten(1).sum(1) for b in x.split(batch_size)]
    return torch.cat(errors)
