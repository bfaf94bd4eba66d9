"""The conditional GAN of progressive exaggeration: encoder, generator and discriminator.

Source: Singla et al. (ICLR 2020), section 2 and appendix A.1. The condition is the bin of the
classifier's output: K equal bins divide [0, 1].

The official code conditions the encoder on the bin as well, and shares one vector v between all
thresholds of the ordinal term. This module follows the paper: E(x) knows no bin, and each of the
K - 1 thresholds has its own v_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cf_utils.models.generators.latent import LatentModel

WIDTHS = {32: (32, 64), 64: (16, 32, 64), 128: (16, 32, 64, 96)}  # channels per resolution


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose scale and offset depend on the bin (de Vries et al., 2017)."""

    def __init__(self, channels: int, bins: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.offset = nn.Embedding(bins, channels), nn.Embedding(bins, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.offset.weight)

    def forward(self, x: Tensor, bins: Tensor) -> Tensor:
        """Normalise x (B, C, H, W), then scale and shift each item by its bin, int64 (B,)."""
        scale, offset = (table(bins)[:, :, None, None] for table in (self.scale, self.offset))
        return torch.addcmul(offset, self.norm(x), scale)


class EncoderBlock(nn.Module):
    """Residual block BN-ReLU-Conv3-BN-ReLU-Conv3, with plain batch normalisation.

    The shortcut of a block that halves the resolution moves 2 x 2 pixels into channels, so that no
    detail is lost; an average would blur it.
    """

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        self.down = down
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(4 * inputs, outputs, 1) if down else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), or half of H and W with `down`."""
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        if not self.down:
            return h + self.skip(x)
        return F.avg_pool2d(h, 2) + self.skip(F.pixel_unshuffle(x, 2))


class GeneratorBlock(nn.Module):
    """Residual block BN-ReLU-Conv3-BN-ReLU-Conv3, with conditional batch normalisation.

    The shortcut of a block that doubles the resolution moves channels into 2 x 2 pixels.
    """

    def __init__(self, inputs: int, outputs: int, bins: int, up: bool):
        super().__init__()
        self.up = up
        self.norm1 = ConditionalBatchNorm(inputs, bins)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm2 = ConditionalBatchNorm(outputs, bins)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, 4 * outputs, 1) if up else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # starts as its shortcut

    def forward(self, x: Tensor, bins: Tensor) -> Tensor:
        """Return (B, outputs, H, W), or twice H and W with `up`."""
        h = F.relu(self.norm1(x, bins))
        if self.up:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        h = self.conv2(F.relu(self.norm2(self.conv1(h), bins)))
        skip = self.skip(x)
        return h + (F.pixel_shuffle(skip, 2) if self.up else skip)


class DiscriminatorBlock(nn.Module):
    """Residual block ReLU-Conv3-ReLU-Conv3 with spectral normalisation."""

    def __init__(self, inputs: int, outputs: int, down: bool, first: bool = False):
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = spectral_norm(nn.Conv2d(inputs, outputs, 3, 1, 1))
        self.conv2 = spectral_norm(nn.Conv2d(outputs, outputs, 3, 1, 1))
        self.skip = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W), or half of H and W with `down`."""
        h = self.conv1(x if self.first else F.relu(x))  # images need no ReLU
        h = self.conv2(F.relu(h)) + self.skip(x)
        return F.avg_pool2d(h, 2) if self.down else h


class Encoder(nn.Module):
    """E: images (B, C, H, W) in [-1, 1] -> codes (B, widths[-1], h, w); it knows no bin."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1)
        down = [EncoderBlock(a, b, True) for a, b in pairwise(widths)]
        flat = [EncoderBlock(widths[-1], widths[-1], False) for _ in range(blocks - len(down))]
        self.blocks = nn.Sequential(*down, *flat)

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of images x."""
        return self.blocks(self.stem(x))


class Generator(nn.Module):
    """G: codes (B, widths[-1], h, w) and bins (B,) -> images (B, C, H, W) in (-1, 1)."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, bins: int):
        super().__init__()
        up = [GeneratorBlock(b, a, bins, True) for a, b in pairwise(widths)][::-1]
        flat = [
            GeneratorBlock(widths[-1], widths[-1], bins, False) for _ in range(blocks - len(up))
        ]
        self.blocks = nn.ModuleList([*flat, *up])
        self.norm = nn.BatchNorm2d(widths[0])
        self.to_image = nn.Conv2d(widths[0], channels, 3, 1, 1)

    def forward(self, z: Tensor, bins: Tensor) -> Tensor:
        """Return the images of codes z under the condition `bins`."""
        for block in self.blocks:
            z = block(z, bins)
        return torch.tanh(self.to_image(F.relu(self.norm(z))))


class Discriminator(nn.Module):
    """D(x, c) = r(c | x) + psi(phi(x)), the projection discriminator of Eqs. 3 and 4."""

    def __init__(self, channels: int, width: int, blocks: int, bins: int, size: int):
        super().__init__()
        widths = [channels] + [min(width * 2**k, 8 * width) for k in range(blocks)]
        stages = []
        for k, (a, b) in enumerate(pairwise(widths)):
            stages.append(DiscriminatorBlock(a, b, down=size // 2**k > 4, first=k == 0))
        self.blocks = nn.Sequential(*stages)
        self.psi = spectral_norm(nn.Linear(widths[-1], 1))
        self.thresholds = spectral_norm(nn.Linear(widths[-1], bins - 1, bias=False))  # rows: v_i

    def features(self, x: Tensor) -> Tensor:
        """Return phi(x), (B, F), of images x in [-1, 1]."""
        return F.relu(self.blocks(x)).sum((2, 3))

    def ordinal_ratio(self, phi: Tensor, bins: Tensor) -> Tensor:
        """Return r(c = k | x), (B,), of features phi (B, F) for each item's bin k, int64 (B,)."""
        # Eq. 4: r(c = k | x) = sum_{i < k} v_i^T phi(x)
        terms = F.pad(self.thresholds(phi).cumsum(1), (1, 0))
        return terms.gather(1, bins[:, None])[:, 0]

    def forward(self, x: Tensor, bins: Tensor) -> Tensor:
        """Return D(x, c), (B,)."""
        phi = self.features(x)
        # Eq. 3: r(c | x) + psi(phi(x))
        return self.ordinal_ratio(phi, bins) + self.psi(phi)[:, 0]


class ConditionalGAN(LatentModel):
    """Encoder E, generator G and discriminator D. I_f(x, delta) = G(E(x), c_f(x, delta)), Eq. 2.

    Images are (B, channels, size, size) in [0, 1] outside and in [-1, 1] inside the networks. In
    eval mode, all batch normalisation uses running statistics, so items are independent.

    Args:
        channels: 1 or 3.
        size: side of the image in pixels, divisible by 16.
        bins: number K of bins of the classifier's output.
        widths: channels at full, half, quarter ... resolution; the last one is that of the codes.
            None: the default of the size.
        blocks: residual blocks of encoder and generator.
        critic: channels of the discriminator's first block.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 64,
        bins: int = 10,
        widths: Sequence[int] | None = None,
        blocks: int = 5,
        critic: int = 16,
        critic_blocks: int = 5,
    ):
        super().__init__()
        if size < 16 or size % 16:
            raise ValueError(f"size: got {size}, expected a multiple of 16")
        if bins < 2:
            raise ValueError(f"bins: got {bins}, expected at least 2")
        if widths is None and size not in WIDTHS:
            raise ValueError(f"widths: got None for size {size}; pass the channels per resolution")
        widths = tuple(WIDTHS[size] if widths is None else widths)
        if len(widths) - 1 > blocks or size % 2 ** (len(widths) - 1):
            raise ValueError(
                f"widths: got {len(widths)} resolutions, expected at most {blocks + 1} for "
                f"{blocks} blocks, and a size divisible by {2 ** (len(widths) - 1)}"
            )
        self.channels, self.size, self.bins = channels, size, bins
        self.encoder = Encoder(channels, widths, blocks)
        self.generator = Generator(channels, widths, blocks, bins)
        self.discriminator = Discriminator(channels, critic, critic_blocks, bins, size)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes E(x) of images x (B, channels, size, size) in [0, 1]."""
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.size, self.size):
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected images "
                f"(B, {self.channels}, {self.size}, {self.size})"
            )
        return self.encoder(2 * x - 1)

    def decode(self, z: Tensor, bins: Tensor | None = None) -> Tensor:
        """Return the images G(z, c) in [0, 1] of codes z for the bins c, int64 (B,)."""
        if bins is None:
            raise ValueError("bins: got None; the generator needs a bin per item")
        return (self.generator(z, bins) + 1) / 2

    def forward(self, x: Tensor, bins: Tensor | None = None) -> Tensor:
        """Return G(E(x), c), the explanations of images x for the bins c, int64 (B,)."""
        return self.decode(self.encode(x), bins)

    def criticise(self, x: Tensor, bins: Tensor) -> Tensor:
        """Return D(x, c), (B,): high for images in [0, 1] that look like real ones of the bin c."""
        return self.discriminator(2 * x - 1, bins)

    def bin_of(self, probability: Tensor) -> Tensor:
        """Return the bin c_f(x, 0) of each output of the classifier, int64; 1.0 is in the last."""
        return (probability * self.bins).long().clamp(0, self.bins - 1)
