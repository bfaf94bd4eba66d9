"""Denoising diffusion model of images: diffusers' UNet, and the chain of steps that removes noise.

Sources: Ho, Jain & Abbeel 2020 (DDPM: chain, loss), Nichol & Dhariwal 2021 (learned variance, fewer
steps), Song, Meng & Ermon 2021 (DDIM), Salimans & Ho 2022 (v). `schedule.py` holds the formulas.

Images x are in [0, 1]. States z of the chain are in [-1, 1], plus noise. Noise is passed in as a
function of the level, so that it can depend on an item alone (`noise_of`) or be used twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cf_utils import core
from cf_utils.models.generators import schedule
from cf_utils.models.generators.schedule import Schedule
from cf_utils.models.weights import channels_last

Noise = Callable[[int], Tensor]  # number of a level -> (B, C, H, W)


@dataclass(frozen=True)
class Settings:
    """Architecture of a model that `build` makes; plain JSON, kept in the checkpoint's card."""

    size: tuple[int, int] = (64, 64)  # height, width of x
    channels: int = 3  # of x
    steps: int = 500  # noise levels T
    learned_variance: bool = True
    prediction: str = "epsilon"  # what the network predicts, `epsilon` (the noise) or `v`
    unshuffle: int = 2  # side of the pixel blocks that become channels
    widths: tuple[int, ...] = (48, 64, 96)  # channels per resolution, from the highest down
    blocks: int = 2  # residual blocks per resolution
    attention: tuple[bool, ...] = (False, False, True)  # per resolution
    head_width: int = 32  # channels per attention head
    groups: int = 16  # of the normalisation; divides every width

    def check(self) -> None:
        """Raise ValueError unless sizes and widths fit each other."""
        factor = self.unshuffle * 2 ** (len(self.widths) - 1)
        if any(side % factor for side in self.size):
            raise ValueError(
                f"size: got {self.size}, expected multiples of {factor} (unshuffle, then halved at "
                "each width but the first)"
            )
        if len(self.attention) != len(self.widths) or any(w % self.groups for w in self.widths):
            raise ValueError(
                f"widths: got {self.widths}, expected multiples of groups ({self.groups}), and as "
                f"many as attention has entries ({len(self.attention)})"
            )
        attending = [w for w, a in zip(self.widths, self.attention, strict=True) if a]
        if any(w % self.head_width for w in (*attending, self.widths[-1])):
            raise ValueError(
                f"head_width: {self.head_width} does not divide all widths with attention, and the "
                "last width (the middle block has attention)"
            )


class DDPM(nn.Module):
    """Diffusion model of images of one size; always predicts the noise.

    Args:
        unet: diffusers' UNet2DModel.
        size: height and width of the images.
        steps: number of noise levels T.
        unshuffle: edge of the pixel blocks that become channels of the network.
        fixed: variance of a step if `unet` predicts none, see `Schedule`.
        prediction: what `unet` predicts, `epsilon` or `v`; v is converted into the noise.
    """

    def __init__(
        self,
        unet: nn.Module,
        size: tuple[int, int],
        steps: int,
        channels: int = 3,
        unshuffle: int = 1,
        fixed: str = "large",
        prediction: str = "epsilon",
    ):
        super().__init__()
        if prediction not in ("epsilon", "v"):
            raise ValueError(f"prediction: got {prediction!r}, expected 'epsilon' or 'v'")
        self.prediction = prediction
        self.unet, self.size, self.channels, self.unshuffle = unet, tuple(size), channels, unshuffle
        self.schedule = schedule.linear(steps, fixed)
        self.settings: Settings | None = None  # of a model that `build` made

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Return the noise in z (B, C, H, W); with a learned variance, 2 C channels.

        The second half says where the log variance lies: -1 at its lower bound, 1 at its upper. `t`
        holds the network's own level numbers, int64 (B,) or one number. z may be on any device.
        """
        if tuple(z.shape[1:]) != (self.channels, *self.size):
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, this diffusion model was trained on "
                f"(B, {self.channels}, {self.size[0]}, {self.size[1]})"
            )
        device = core.device_of(self.unet, z.device)
        numbers = t.to(device) if isinstance(t, Tensor) else t
        out = self.unet(F.pixel_unshuffle(z.to(device), self.unshuffle), numbers).sample
        folded = out.split(self.channels * self.unshuffle**2, 1)
        first, *variance = (F.pixel_shuffle(part, self.unshuffle).to(z) for part in folded)
        eps = self.schedule.noise_from_v(z, t, first) if self.prediction == "v" else first
        return torch.cat([eps, *variance], 1)

    def chain(self, spacing: str | int | Sequence[int] | None = None, **settings: Any) -> Chain:
        """Return the denoising chain on all levels, or on those that a spacing keeps.

        `schedule.select_levels` explains spacings such as `"50"` and `"ddim25"`. `settings` are
        fields of `Chain`.
        """
        levels = self.schedule if spacing is None else self.schedule.respace(spacing)
        return Chain(self, levels, **settings)


@dataclass(frozen=True, eq=False)
class Chain:
    """Denoising chain: a network with a schedule.

    `dataclasses.replace(chain, model=...)` replaces the network, for example by a counted one.
    """

    model: Callable[[Tensor, Tensor], Tensor]  # (z, t) -> noise, and variance
    schedule: Schedule
    clip: bool = True  # limit z_0 to [-1, 1] in each step
    checkpoint: bool = False  # save memory: compute activations again in the backward pass

    def predict(self, z: Tensor, k: int) -> Tensor:
        """Return the model's output for z at level k."""
        t = torch.full((len(z),), self.schedule.t[k], dtype=torch.int64, device=z.device)
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.model, z, t, use_reentrant=False)
        return self.model(z, t)

    def step(self, z: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
        """Return z_{k-1} from z_k, or z_0 for k = 0. Noise is added for k > 0 if it is given."""
        mean, log_variance, _ = self.schedule.mean_variance(z, k, self.predict(z, k), self.clip)
        return mean if noise is None or k == 0 else mean + (log_variance / 2).exp() * noise

    def denoise(self, z: Tensor, steps: int, noise: Noise | None = None) -> Tensor:
        """Return z_0 from z at level steps - 1, through `steps` passes.

        noise(k) is added by the step from level k.
        """
        self._check(steps)
        for k in range(steps - 1, -1, -1):
            z = self.step(z, k, noise(k) if noise is not None and k > 0 else None)
        return z

    def filter(self, x: Tensor, steps: int, noise: Noise) -> Tensor:
        """Return F_tau(x): x in [0, 1] with noise of level steps - 1, denoised again.

        noise(steps) is added to x. The result is in [0, 1] if `clip`.
        """
        self._check(steps)
        z = self.schedule.add_noise(to_model(x), steps - 1, noise(steps))
        return to_image(self.denoise(z, steps, noise))

    def sample(self, noise: Noise) -> Tensor:
        """Return images in [0, 1] from pure noise; a chain of N levels starts with noise(N)."""
        levels = len(self.schedule)
        return to_image(self.denoise(noise(levels), levels, noise)).clamp(0, 1)

    def ddim(self, z: Tensor, k: int, to: int) -> Tensor:
        """Return the deterministic step from level k to level `to`; see `Schedule.ddim`."""
        eps = self.predict(z, k)[:, : z.shape[1]]
        return self.schedule.ddim(z, k, eps, to, self.clip and to < k)

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= len(self.schedule):
            raise ValueError(
                f"steps: got {steps}, expected 1 to {len(self.schedule)}, the levels of this chain"
            )


def to_model(x: Tensor) -> Tensor:
    """Map an image in [0, 1] to the model's range [-1, 1]."""
    return 2 * x - 1


def to_image(z: Tensor) -> Tensor:
    """Map a state in [-1, 1] to an image in [0, 1]."""
    return (z + 1) / 2


def noise_of(seed: int, ids: core.Ids, like: Tensor, stream: str) -> Noise:
    """Return noise for `like` (B, ...), which depends on (seed, id, stream, level) alone."""
    return lambda level: core.item_noise(seed, ids, like.shape[1:], f"{stream}:{level}").to(like)


def build(settings: Settings | None = None, **changes: Any) -> DDPM:
    """Build an untrained model from settings, or from the default ones with `changes`.

    Raises ValueError when sizes and widths do not fit each other.
    """
    from diffusers import UNet2DModel  # imported here: it takes seconds

    s = dataclasses.replace(settings or Settings(), **changes)
    s.check()
    folded = s.channels * s.unshuffle**2
    unet: Any = UNet2DModel(
        sample_size=tuple(side // s.unshuffle for side in s.size),
        in_channels=folded,
        out_channels=folded * (1 + s.learned_variance),
        block_out_channels=tuple(s.widths),
        layers_per_block=s.blocks,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in s.attention],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(s.attention)],
        attention_head_dim=s.head_width,
        norm_num_groups=s.groups,
        attn_norm_num_groups=s.groups,
        resnet_time_scale_shift="scale_shift",
    )
    nn.init.zeros_(unet.conv_out.weight)  # the first prediction is zero, at middle variance
    channels_last(unet)
    model = DDPM(unet, s.size, s.steps, s.channels, s.unshuffle, prediction=s.prediction)
    model.settings = s
    return model


def describe_architecture(model: DDPM) -> dict[str, Any]:
    """Return the card's entry from which `checkpoints.load` rebuilds a model made by `build`."""
    if model.settings is None:
        raise ValueError("model: got one with published weights, expected one made by `build`")
    return {"class": "DDPM", "arguments": dataclasses.asdict(model.settings)}


def loss(
    module: nn.Module,
    batch: Sequence[Tensor],
    low: float = 0.0,
    low_steps: int | None = None,
    bfloat16: bool = False,
) -> Tensor:
    """Return the training loss of a batch: mean squared error of what the network predicts.

    For a learned variance, T / 1000 times the variational bound is added; no gradient flows through
    its noise. Levels and noise are drawn from torch's global generator.

    Args:
        module: a DDPM, possibly wrapped by accelerate.
        batch: (x, ...), x (B, C, H, W) in [0, 1].
        low: share of items that draw their level from the lowest `low_steps` (default T / 5), for
            methods that use these levels only.
        bfloat16: run the network in autocast.
    """
    model: Any = getattr(module, "module", module)  # behind accelerate's wrapper
    s, z0 = model.schedule, to_model(batch[0])
    drawn_low = torch.rand(len(z0), device=z0.device) < low
    levels = torch.where(drawn_low, low_steps or max(len(s) // 5, 1), len(s))
    k = (torch.rand(len(z0), device=z0.device) * levels).long().clamp(max=len(s) - 1)
    noise = torch.randn_like(z0)
    z = s.add_noise(z0, k, noise)
    with torch.autocast(z0.device.type, torch.bfloat16, enabled=bfloat16):
        out = module(z, k)
    eps = out[:, : model.channels]
    error = (eps - noise).square().flatten(1).mean(1)
    if model.prediction == "v":
        error = error / s.abar.to(error)[k]  # eps = sigma z + sqrt(abar) v
    total = error.mean()
    if out.shape[1] > model.channels:
        fixed_noise = torch.cat([eps.detach(), out[:, model.channels :]], 1)
        total = total + len(s) / 1000 * s.bound(z0, z, k, fixed_noise).mean()
    return total
