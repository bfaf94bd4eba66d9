"""UNet whose residual blocks are conditioned on a noise level and a code, and an encoder of codes.

Source: Preechakul et al., "Diffusion autoencoders", CVPR 2022, Eq. 7, adaptive group normalisation:

    AdaGN(h, t, z) = z_s (t_s GroupNorm(h) + t_b)
        with z_s = Affine(z) and (t_s, t_b) = MLP(psi(t)), psi a sinusoidal encoding

As in their code, both scales are predicted as differences from 1.

Deviation: images enter as blocks of pixels, each block's pixels being channels (pixel unshuffle),
and there is no attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMBEDDING = 128  # dimensions of the embedding of a noise level


def encode_level(t: Tensor, dimensions: int = EMBEDDING) -> Tensor:
    """Return psi(t), (B, dimensions): sines and cosines of the level numbers t (B,).

    The wavelengths rise geometrically from 2 pi to 20,000 pi. Source: Ho et al. 2020, appendix B.
    """
    half = dimensions // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class _GroupNorm(torch.autograd.Function):
    """Group normalisation followed by a scale and a shift per item and channel.

    Several times faster on a CPU than `F.group_norm` for bfloat16 in channels-last layout.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float):
        mean = _group_mean(_sum(h), groups, h)
        square = _group_mean(_sum(h * h), groups, h)
        rate = (square - mean.square()).clamp(min=0).add(eps).rsqrt()
        ctx.save_for_backward(h, scale, mean, rate)
        ctx.groups = groups
        return torch.addcmul(_map(shift - mean * rate * scale, h), h, _map(rate * scale, h))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        (grad,) = grad_outputs
        h, scale, mean, rate = ctx.saved_tensors
        of_shift = _sum(grad)
        of_scale = rate * (_sum(grad * h) - mean * of_shift)
        # dh = rate (scale grad - <scale grad> - normalised <scale grad normalised>), <> over groups
        first = _group_mean(scale * of_shift, ctx.groups, h)
        slope = rate.square() * _group_mean(scale * of_scale, ctx.groups, h)
        rest = torch.addcmul(_map(slope * mean - rate * first, h), h, _map(-slope, h))
        of_h = torch.addcmul(rest, grad, _map(rate * scale, h))
        return of_h, of_scale.to(scale), of_shift.to(scale), None, None


def _sum(h: Tensor) -> Tensor:
    """Return the sums over the pixels (B, C), in float32 for shorter floats."""
    wide = torch.float32 if h.dtype in (torch.bfloat16, torch.float16) else h.dtype
    return h.sum((2, 3), dtype=wide)


def _group_mean(sums: Tensor, groups: int, h: Tensor) -> Tensor:
    """Return the mean over pixels and channels of a group, for each channel (B, C)."""
    size = h.shape[1] // groups
    mean = sums.view(len(h), groups, size).mean(2, keepdim=True) / (h.shape[2] * h.shape[3])
    return mean.expand(-1, -1, size).reshape(len(h), -1)


def _map(values: Tensor, h: Tensor) -> Tensor:
    """Return values (B, C) as (B, C, 1, 1) of the dtype of h."""
    return values.to(h.dtype)[:, :, None, None]


def group_norm(h: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Return scale * GroupNorm(h) + shift.

    h: (B, C, H, W). scale, shift: (B, C). Differentiable once.
    """
    return _GroupNorm.apply(h, scale, shift, groups, eps)


class Norm(nn.Module):
    """Group normalisation with a learned scale and shift per channel."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.groups = groups

    def forward(self, h: Tensor) -> Tensor:
        """Return the normalised h (B, C, H, W)."""
        scale, shift = (v.expand(len(h), -1) for v in (self.weight, self.bias))
        return group_norm(h, scale, shift, self.groups)


class AdaptiveNorm(nn.Module):
    """AdaGN: group normalisation whose scale and shift depend on the noise level and the code."""

    def __init__(self, width: int, groups: int, latent: int):
        super().__init__()
        self.groups = groups
        self.of_level = nn.Linear(EMBEDDING, 2 * width)
        self.of_code = nn.Linear(latent, width)

    def forward(self, h: Tensor, level: Tensor, code: Tensor) -> Tensor:
        """Return AdaGN(h, t, z) for h (B, C, H, W); level (B, EMBEDDING), code (B, latent)."""
        t_scale, t_shift = self.of_level(level).chunk(2, 1)
        z_scale = 1 + self.of_code(code)
        # Preechakul et al., Eq. 7
        return group_norm(h, z_scale * (1 + t_scale), z_scale * t_shift, self.groups)


class ResidualBlock(nn.Module):
    """Norm-SiLU-Conv3-Norm-SiLU-Conv3 plus a shortcut: (B, n_in, H, W) -> (B, n_out, H, W).

    With a `latent`, the second normalisation is adaptive. The block starts as its shortcut.
    """

    def __init__(self, n_in: int, n_out: int, groups: int, latent: int = 0):
        super().__init__()
        self.norm1 = Norm(n_in, groups)
        self.norm2 = AdaptiveNorm(n_out, groups, latent) if latent else Norm(n_out, groups)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, *condition: Tensor) -> Tensor:
        """Return the block's output; condition: (level, code) of an adaptive block."""
        r = self.conv1(F.silu(self.norm1(h)))
        return self.conv2(F.silu(self.norm2(r, *condition))) + self.shortcut(h)


class Stage(nn.ModuleList):
    """Adaptive residual blocks of one resolution, one after the other."""

    def forward(self, h: Tensor, *condition: Tensor) -> Tensor:
        """Return the output of the last block."""
        for block in self:
            h = block(h, *condition)
        return h


class Encoder(nn.Module):
    """The semantic encoder: images (B, C, H, W) in [-1, 1] -> codes (B, latent).

    Each width has one residual block; after each, the sides are halved. The last map is flattened,
    so that the code can tell positions.
    """

    def __init__(
        self,
        size: Sequence[int],
        channels: int,
        unshuffle: int,
        widths: Sequence[int],
        groups: int,
        latent: int,
    ):
        super().__init__()
        self.unshuffle = unshuffle
        self.first = nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)
        n_in = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, groups) for a, b in zip(n_in, widths, strict=True)
        )
        self.norm = Norm(widths[-1], groups)
        places = size[0] * size[1] // (unshuffle * 2 ** len(widths)) ** 2
        self.last = nn.Linear(widths[-1] * places, latent)

    def forward(self, z: Tensor) -> Tensor:
        """Return the codes of images z."""
        h = self.first(_fold(z, self.unshuffle))
        for block in self.blocks:
            h = F.avg_pool2d(block(h), 2)
        return self.last(F.silu(self.norm(h)).flatten(1))


class AdaptiveUNet(nn.Module):
    """The noise predictor D(x_t, t, z): (B, C, H, W), (B,), (B, latent) -> (B, C, H, W).

    Each width has `blocks` adaptive residual blocks on the way down and on the way up; between
    widths the sides are halved.
    """

    def __init__(
        self,
        channels: int,
        unshuffle: int,
        widths: Sequence[int],
        blocks: int,
        groups: int,
        latent: int,
    ):
        super().__init__()
        self.unshuffle = unshuffle
        folded = channels * unshuffle**2
        self.level = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())
        self.first = nn.Conv2d(folded, widths[0], 3, padding=1)
        down, up = [], []
        for above, width in zip((widths[0], *widths[:-1]), widths, strict=True):
            n_in = [above] + [width] * (blocks - 1)
            down.append(Stage(ResidualBlock(n, width, groups, latent) for n in n_in))
        for below, width in zip((*widths[1:], widths[-1]), widths, strict=True):
            n_in = [below + width] + [width] * (blocks - 1)
            up.append(Stage(ResidualBlock(n, width, groups, latent) for n in n_in))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up[::-1])
        self.middle = ResidualBlock(widths[-1], widths[-1], groups, latent)
        self.norm = Norm(widths[0], groups)
        self.last = nn.Conv2d(widths[0], folded, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, z: Tensor, t: Tensor, code: Tensor) -> Tensor:
        """Return the network's output for noisy images z, level numbers t and codes."""
        condition = self.level(encode_level(t).to(z)), code
        h, skipped = self.first(_fold(z, self.unshuffle)), []
        for blocks in self.down:
            if skipped:
                h = F.avg_pool2d(h, 2)
            h = blocks(h, *condition)
            skipped.append(h)
        h = self.middle(h, *condition)
        for blocks in self.up:
            skip = skipped.pop()
            if h.shape[-1] != skip.shape[-1]:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = torch.cat([h, skip], 1)
            h = blocks(h, *condition)
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.unshuffle)


def _fold(z: Tensor, unshuffle: int) -> Tensor:
    return F.pixel_unshuffle(z, unshuffle).contiguous(memory_format=torch.channels_last)
