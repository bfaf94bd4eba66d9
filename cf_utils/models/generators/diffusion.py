"""A denoising diffusion model of images: diffusers' UNet, trained to say which noise was added, and the chain that removes it.

Source: Ho, Jain & Abbeel 2020 (the chain, the loss), Nichol & Dhariwal 2021 (learned variance, fewer steps), Song, Meng & Ermon
2021 (deterministic steps). Formulas: `schedule.py`. Decisions:
* `unshuffle` folds r x r pixels into channels, so a network of 3 million parameters sees a 64 px face as 32 x 32.
* The variance is learned by default: with 5 of 500 steps the two fixed choices lie far apart.
* Inside, the network may say v (Salimans & Ho 2022) instead of the noise; outside, the model always says the noise. Near pure
  noise z_0 is z less the noise, times 160 at the last of 500 levels: a small error of the noise is a tint of the whole image
  (and, folded, one for each place of a fold: a pattern). An error of v is one of z_0, at most as large.
* Noise comes from outside, as a function of the level: so it can depend on an item alone (`noise_of`), or be the same twice.
* The gradient flows through every step, the clipping and the learned variance; `checkpoint` computes each pass of the network
  twice instead of keeping it (equal results).

Images x are in [0, 1], states z of the chain in [-1, 1] (plus noise).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cf_utils import core
from cf_utils.models.generators import schedule
from cf_utils.models.generators.schedule import Schedule
from cf_utils.models.weights import channels_last

Noise = Callable[[int], Tensor]  # number -> (B, C, H, W)


@dataclass(frozen=True)
class Settings:
    """What `build` makes; plain JSON, kept in a checkpoint's card. The defaults have 3.2 million parameters."""

    size: tuple[int, int] = (64, 64)  # height, width of x
    channels: int = 3  # of x
    steps: int = 500  # noise levels T
    learned_variance: bool = True
    prediction: str = "epsilon"  # what the network itself says, "epsilon" or "v"
    unshuffle: int = 2  # r
    widths: tuple[int, ...] = (48, 64, 96)  # channels at each resolution, from size / r down
    blocks: int = 2  # residual blocks a resolution
    attention: tuple[bool, ...] = (False, False, True)
    head_width: int = 32  # channels an attention head
    groups: int = 16  # of the normalisation; divides every width


class DDPM(nn.Module):
    """`unet` (diffusers' UNet2DModel) on images of one size. (z, t) -> the noise in z (B, C, H, W), with a learned variance
    followed by C channels that place it between its bounds. `fixed`: the variance of steps otherwise. `prediction`: what `unet`
    says of an image, "epsilon" (the noise) or "v", which is turned into the noise."""

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

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """z (B, C, H, W) on any device, t int64 (B,) or a number: the network's own numbers of levels. ValueError on another
        size."""
        if tuple(z.shape[1:]) != (self.channels, *self.size):
            raise ValueError(
                f"z: got shape {tuple(z.shape)}, this diffusion model was trained on (B, {self.channels}, "
                f"{self.size[0]}, {self.size[1]})"
            )
        place = core.device_of(self.unet, z.device)
        there = t.to(place) if isinstance(t, Tensor) else t
        out = self.unet(F.pixel_unshuffle(z.to(place), self.unshuffle), there).sample
        first, *variance = (
            F.pixel_shuffle(p, self.unshuffle).to(z)
            for p in out.split(self.channels * self.unshuffle**2, 1)
        )
        eps = self.schedule.noise_in(z, t, first) if self.prediction == "v" else first
        return torch.cat([eps, *variance], 1)

    def chain(self, spacing: str | int | None = None, **settings) -> Chain:
        """The denoising chain on all levels, or on those that a spacing keeps ("50", "ddim25": `schedule.spaced`)."""
        return Chain(
            self, self.schedule if spacing is None else self.schedule.respaced(spacing), **settings
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """A network with a (re-spaced) schedule. `dataclasses.replace(chain, model=...)` counts or batches its passes."""

    model: Callable[[Tensor, Tensor], Tensor]  # (z, t) -> noise (and variance)
    schedule: Schedule
    clip: bool = True  # z_0 to [-1, 1] in each step
    checkpoint: bool = (
        False  # keep no activations of the network, compute them again in the backward pass
    )

    def predict(self, z: Tensor, k: int) -> Tensor:
        t = torch.full((len(z),), self.schedule.t[k], dtype=torch.int64, device=z.device)
        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(self.model, z, t, use_reentrant=False)
        return self.model(z, t)

    def step(self, z: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
        """z_k -> z_{k-1}, k = 0 -> z_0; noise is added for k > 0 where it is given."""
        mean, log_variance, _ = self.schedule.mean_variance(z, k, self.predict(z, k), self.clip)
        return mean if noise is None or k == 0 else mean + (log_variance / 2).exp() * noise

    def denoise(self, z: Tensor, steps: int, noise: Noise | None = None) -> Tensor:
        """z at level steps - 1 -> z_0, through `steps` passes; noise(k) is what the step from level k adds."""
        self._check(steps)
        for k in range(steps - 1, -1, -1):
            z = self.step(z, k, noise(k) if noise is not None and k > 0 else None)
        return z

    def filter(self, x: Tensor, steps: int, noise: Noise) -> Tensor:
        """F_tau: x in [0, 1] noised to level steps - 1 by noise(steps), and denoised back; in [0, 1] when `clip`."""
        self._check(steps)
        return to_image(
            self.denoise(self.schedule.noised(to_model(x), steps - 1, noise(steps)), steps, noise)
        )

    def sample(self, noise: Noise) -> Tensor:
        """Images in [0, 1] from pure noise: noise(N) is where the chain of N levels begins."""
        return to_image(self.denoise(noise(len(self.schedule)), len(self.schedule), noise)).clamp(
            0, 1
        )

    def ddim(self, z: Tensor, k: int, to: int) -> Tensor:
        """The deterministic step from level k to level `to`; -1 is no noise. to > k inverts."""
        return self.schedule.ddim(
            z, k, self.predict(z, k)[:, : z.shape[1]], to, self.clip and to < k
        )

    def _check(self, steps: int) -> None:
        if not 1 <= steps <= len(self.schedule):
            raise ValueError(
                f"steps: got {steps}, expected 1 to {len(self.schedule)}, the levels of this chain"
            )


def to_model(x: Tensor) -> Tensor:
    return 2 * x - 1


def to_image(z: Tensor) -> Tensor:
    return (z + 1) / 2


def noise_of(seed: int, ids, like: Tensor, stream: str) -> Noise:
    """Noise that depends on (seed, id, stream, number) alone, for items of the shape of `like` (B, ...)."""
    return lambda number: core.item_noise(seed, ids, like.shape[1:], f"{stream}:{number}").to(like)


def build(settings: Settings | None = None, **changes) -> DDPM:
    """A fresh model; `changes` to the default settings. ValueError on widths and sizes that do not fit each other."""
    from diffusers import UNet2DModel  # here: it takes seconds to import

    s = dataclasses.replace(settings or Settings(), **changes)
    fold = s.unshuffle * 2 ** (len(s.widths) - 1)
    if any(side % fold for side in s.size):
        raise ValueError(
            f"size: got {s.size}, expected multiples of {fold} (unshuffle, then halved at each width but the first)"
        )
    if len(s.attention) != len(s.widths) or any(w % s.groups for w in s.widths):
        raise ValueError(
            f"widths: got {s.widths}, expected multiples of groups ({s.groups}) and an entry of attention each"
        )
    if (
        any(w % s.head_width for w, a in zip(s.widths, s.attention, strict=True) if a)
        or s.widths[-1] % s.head_width
    ):
        raise ValueError(
            f"head_width: {s.head_width} does not divide the widths that attend, or the last (the middle attends)"
        )
    folded = s.channels * s.unshuffle**2
    unet = UNet2DModel(
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
    nn.init.zeros_(unet.conv_out.weight)  # the first guess is no noise, at middle variance
    model = DDPM(
        channels_last(unet), s.size, s.steps, s.channels, s.unshuffle, prediction=s.prediction
    )
    model.settings = s
    return model


def loss(
    module: nn.Module, batch, low: float = 0.0, low_steps: int | None = None, bfloat16: bool = False
) -> Tensor:
    """Mean squared error of what the network says (the noise or v), plus T / 1000 of the bound's term for a learned variance
    (the noise then held fixed).

    batch: (x, ...), x in [0, 1]. A share `low` of the rows draws its level from the lowest `low_steps` (default T / 5), for a
    method that never goes further; the rest from all. bfloat16: the network in autocast. Draws from torch's generator.
    """
    model = getattr(module, "module", module)  # behind accelerate's wrapper
    s, z0 = model.schedule, to_model(batch[0])
    most = torch.where(
        torch.rand(len(z0), device=z0.device) < low, low_steps or max(len(s) // 5, 1), len(s)
    )
    k = (torch.rand(len(z0), device=z0.device) * most).long().clamp(max=len(s) - 1)
    noise = torch.randn_like(z0)
    z = s.noised(z0, k, noise)
    with torch.autocast(z0.device.type, torch.bfloat16, enabled=bfloat16):
        out = module(z, k)
    eps = out[:, : model.channels]
    error = (eps - noise).square().flatten(1).mean(1)
    total = (
        error / s.abar.to(error)[k] if model.prediction == "v" else error
    ).mean()  # eps = sigma z + sqrt(abar) v
    if out.shape[1] > model.channels:
        held = torch.cat([eps.detach(), out[:, model.channels :]], 1)
        total = total + len(s) / 1000 * s.bound(z0, z, k, held).mean()
    return total


def card_of(model: DDPM) -> dict:
    """The card's entry from which `checkpoints.load` builds the model again."""
    return {"class": "DDPM", "arguments": dataclasses.asdict(model.settings)}
