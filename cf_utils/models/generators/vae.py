"""Variational autoencoder of images: the generator of xGEM and of latent shift.

Sources: Kingma & Welling, "Auto-Encoding Variational Bayes", 2014; for beta, Higgins et al., 2017:

    q(z | x) = N(mu(x), diag sigma^2(x)),  p(z) = N(0, I),  p(x | z) = N(D(z), beta I)
    loss = 1/2 ||x - D(z)||^2 + beta KL(q(z | x) || p(z)),  z = mu + sigma eps, eps ~ N(0, I)
    KL = 1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)      Kingma & Welling, appendix B

Minimising this loss maximises the evidence lower bound for pixels of variance beta.

Encoder and decoder are built from the residual blocks of Singla et al. 2020, appendix A.1,
BN-ReLU-Conv3-BN-ReLU-Conv3. The VAE can so have as many parameters as their encoder and generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import device_of
from cf_utils.core.checks import check_count
from cf_utils.models.generators.latent import LatentModel

MULTIPLE = 16  # divides the sides of an image


def _halve(h: Tensor) -> Tensor:
    return F.avg_pool2d(h, 2)


def _double(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2, mode="nearest")


class ResidualBlock(nn.Module):
    """BN-ReLU-Conv3-BN-ReLU-Conv3 plus a shortcut: (B, n_in, H, W) -> (B, n_out, H', W').

    before: resizes the input, such as `_double`; after: resizes the output, such as `_halve`.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(n_in), nn.BatchNorm2d(n_out)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's output."""
        r = self.conv1(self.before(F.relu(self.norm1(h))))
        r = self.conv2(F.relu(self.norm2(r)))
        return self.after(r + self.before(self.shortcut(h)))


class Posterior(NamedTuple):
    """The distribution q(z | x) = N(mean, exp(log_variance)) of the codes."""

    mean: Tensor  # (B, *latent_shape)
    log_variance: Tensor  # (B, *latent_shape)

    def sample(self) -> Tensor:
        """Draw one code per item, (B, *latent_shape); differentiable in both parameters."""
        return self.mean + (self.log_variance / 2).exp() * torch.randn_like(self.mean)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) per latent dimension, (B, *latent_shape), in nats."""
        mean, log_variance = self.mean, self.log_variance
        return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


class VAE(LatentModel):
    """VAE of images x (B, channels, H, W) in [0, 1].

    A code is a map (B, latent, H / factor, W / factor), or with `vector` a vector (B, latent).
    Batch normalisation uses running statistics in eval mode; there, items are independent.

    Args:
        size: height and width, multiples of 16.
        channels: of x, 1 or 3.
        widths: channels of five residual blocks, from the size of x down to that of the code; the
            decoder mirrors the encoder. They set the number of parameters.
        latent: channels of a code.
        factor: between the sides of an image and those of its code, 8 or 16.
        vector: map the last grid linearly to a code without places, and back.

    Raises ValueError on other values.
    """

    def __init__(
        self,
        size: Sequence[int] = (64, 64),
        channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 112, 112),
        latent: int = 8,
        factor: int = 8,
        vector: bool = False,
    ):
        super().__init__()
        _check(size, channels, widths, latent, factor)
        self.size, self.channels = (size[0], size[1]), channels
        n_halved = {8: 3, 16: 4}[factor]
        resized = [True] * n_halved + [False] * (5 - n_halved)
        n_in = (widths[0], *widths[:-1])
        down = [
            ResidualBlock(a, b, after=_halve if half else None)
            for a, b, half in zip(n_in, widths, resized, strict=True)
        ]
        back = widths[::-1]
        n_in = (back[0], *back[:-1])
        up = [
            ResidualBlock(a, b, before=_double if double else None)
            for a, b, double in zip(n_in, back, resized[::-1], strict=True)
        ]
        grid = (widths[-1], size[0] // factor, size[1] // factor)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1),
            *down,
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            *_map_to_code(grid, 2 * latent, vector),
        )
        self.decoder = nn.Sequential(
            *_map_to_grid(latent, grid, vector),
            *up,
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.Conv2d(widths[0], channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z | x). Raises ValueError unless x has the model's channels and size."""
        expected = (self.channels, *self.size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, {expected})")
        mean, log_variance = self.encoder(2 * x - 1).chunk(2, 1)
        return Posterior(mean, log_variance.clamp(-15, 15))  # exp stays finite

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of x (B, channels, H, W): the mean of q(z | x)."""
        return self.posterior(x).mean

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, channels, H, W) in (0, 1) of codes z."""
        return self.decoder(z)


def _map_to_code(grid: tuple[int, int, int], n: int, vector: bool) -> list[nn.Module]:
    if vector:
        return [nn.Flatten(), nn.Linear(math.prod(grid), n)]
    return [nn.Conv2d(grid[0], n, 1)]


def _map_to_grid(latent: int, grid: tuple[int, int, int], vector: bool) -> list[nn.Module]:
    if vector:
        return [nn.Linear(latent, math.prod(grid)), nn.Unflatten(1, grid)]
    return [nn.Conv2d(latent, grid[0], 3, padding=1)]


def _check(
    size: Sequence[int], channels: int, widths: Sequence[int], latent: int, factor: int
) -> None:
    """Raise ValueError on an architecture that cannot be built."""
    if len(size) != 2 or any(side < MULTIPLE or side % MULTIPLE for side in size):
        raise ValueError(f"size: got {tuple(size)}, expected two multiples of {MULTIPLE}")
    if channels not in (1, 3):
        raise ValueError(f"channels: got {channels}, expected 1 or 3")
    if len(widths) != 5:
        raise ValueError(f"widths: got {tuple(widths)}, expected five numbers of channels")
    for width in widths:
        check_count("widths", width)
    check_count("latent", latent)
    if factor not in (8, 16):
        raise ValueError(f"factor: got {factor}, expected 8 or 16")


# ---------------------------------------------------------------- loss


def reconstruction_loss(reconstruction: Tensor, x: Tensor) -> Tensor:
    """Return 1/2 ||x - reconstruction||^2 per item (B,), summed over pixels and channels."""
    return (x - reconstruction).square().flatten(1).sum(1) / 2


def loss(model: VAE, batch: Sequence[Tensor], beta: float, bfloat16: bool = False) -> Tensor:
    """Return the mean over the batch (x, ...) of reconstruction loss + beta KL.

    One code is drawn per item. `bfloat16` runs convolutions in bfloat16; the
    distribution of the codes and the loss keep the dtype of x.
    """
    x = batch[0].contiguous(memory_format=torch.channels_last)
    with torch.autocast(device_of(model, x.device).type, torch.bfloat16, enabled=bfloat16):
        q = Posterior(*(value.to(x) for value in model.posterior(x)))
        reconstruction = model.decode(q.sample())
    return (reconstruction_loss(reconstruction.to(x), x) + beta * q.kl().flatten(1).sum(1)).mean()


# ---------------------------------------------------------------- quality


@torch.no_grad()
def measure_quality(model: VAE, x: Tensor, batch_size: int = 100) -> dict[str, float | int]:
    """Measure reconstructions and codes of x (N, C, H, W) in [0, 1]; the model is in eval mode.

    Returns:
        n: number of images.
        reconstruction_l1, reconstruction_mse: mean absolute and mean squared error of a pixel value
            of decode(encode(x)), in [0, 1]; lower is better.
        kl: mean of KL(q(z | x) || p(z)) in nats.
        active_units: number of latent dimensions whose mean mu_j(x) has a variance over x above
            0.01 (Burda, Grosse & Salakhutdinov, 2016).
        latent: number of latent dimensions.
    """
    l1, squared, kl, means = [], [], [], []
    for part in x.split(batch_size):
        q = model.posterior(part)
        away = model.decode(q.mean) - part
        l1.append(away.abs().flatten(1).mean(1))
        squared.append(away.square().flatten(1).mean(1))
        kl.append(q.kl().flatten(1).sum(1))
        means.append(q.mean.flatten(1))
    return {
        "n": len(x),
        "reconstruction_l1": torch.cat(l1).mean().item(),
        "reconstruction_mse": torch.cat(squared).mean().item(),
        "kl": torch.cat(kl).mean().item(),
        "active_units": int((torch.cat(means).var(0) > 0.01).sum()),
        "latent": means[0].shape[1],
    }
