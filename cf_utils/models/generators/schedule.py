"""Noise levels of a Gaussian diffusion, and the quantities that have a closed form.

    z_k = sqrt(abar_k) z_0 + sqrt(1 - abar_k) eps                    DDPM, Eq. 4
        with abar_k = prod_{i <= k} (1 - beta_i)
    q(z_{k-1} | z_k, z_0) = N(mean, variance)                        DDPM, Eqs. 6, 7
    log variance = w log beta_k + (1 - w) log (posterior variance)
        with w in [0, 1]                                             Nichol & Dhariwal, Eq. 15
    z_{k-1} = sqrt(abar_{k-1}) z_0' + sqrt(1 - abar_{k-1}) eps'      DDIM, Eq. 12
    v = sqrt(abar_k) eps - sqrt(1 - abar_k) z_0                      Salimans & Ho 2022, Eq. 12

DDPM: Ho, Jain & Abbeel 2020. DDIM: Song, Meng & Ermon 2021. Nichol & Dhariwal 2021.

Images are in [-1, 1]. Levels are numbered from 0 (least noise) to N - 1. A level k is an int, the
same for all items, or an int64 tensor (B,). A respaced schedule keeps some levels of a longer one;
`t[k]` is the number of level k in the longer one, which the network was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """N noise levels and the steps between them."""

    betas: Tensor  # (N,) float64 in (0, 1), on the CPU
    t: tuple[int, ...]  # (N,) the network's numbers of the levels
    fixed: str = "large"  # variance if none is learned: `large` (beta) or `small` (posterior)

    def __len__(self) -> int:
        return len(self.t)

    @cached_property
    def abar(self) -> Tensor:
        """Share of z_0's variance that is left at each level, (N,)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def abar_before(self) -> Tensor:
        """`abar` of the level below each level, (N,); 1 below level 0."""
        return torch.cat([self.abar.new_ones(1), self.abar[:-1]])

    @cached_property
    def sigma(self) -> Tensor:
        """Standard deviation of the noise at each level (N,), in units of images in [-1, 1]."""
        return (1 - self.abar).sqrt()

    @cached_property
    def log_variances(self) -> tuple[Tensor, Tensor]:
        """Bounds of the log variance of a step: the posterior's and beta's, each (N,).

        The posterior at level 0 has no variance; that of level 1 replaces it.
        """
        variance = self.betas * (1 - self.abar_before) / (1 - self.abar)
        first = variance[1:2] if len(self) > 1 else self.betas
        return torch.cat([first, variance[1:]]).log(), self.betas.log()

    def steps_for(self, sigma: float) -> int:
        """Return n such that level n - 1 has the standard deviation of noise closest to `sigma`."""
        return int((self.sigma - sigma).abs().argmin()) + 1

    def respace(self, spacing: str | int | Sequence[int]) -> Schedule:
        """Return the schedule of the levels that `select_levels` keeps; `abar` stays the same."""
        keep = select_levels(len(self), spacing)
        abar = self.abar[keep]
        betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
        return Schedule(betas, tuple(self.t[k] for k in keep), self.fixed)

    def add_noise(self, z0: Tensor, k: int | Tensor, noise: Tensor) -> Tensor:
        """Return z_k from z_0 and standard normal noise."""
        return _at(self.abar.sqrt(), k, z0) * z0 + _at(self.sigma, k, z0) * noise

    def remove_noise(self, z: Tensor, k: int | Tensor, eps: Tensor, clip: bool = False) -> Tensor:
        """Return z_0 from z_k and its noise; `clip` limits it to [-1, 1]."""
        z0 = _at(self.abar.rsqrt(), k, z) * z - _at((1 / self.abar - 1).sqrt(), k, z) * eps
        return z0.clamp(-1, 1) if clip else z0

    def noise_from_v(self, z: Tensor, k: int | Tensor, v: Tensor) -> Tensor:
        """Return the noise in z_k from v."""
        return _at(self.sigma, k, z) * z + _at(self.abar.sqrt(), k, z) * v

    def posterior_mean(self, z0: Tensor, z: Tensor, k: int | Tensor) -> Tensor:
        """Return the mean of z_{k-1} given z_0 and z_k."""
        of_z0 = self.betas * self.abar_before.sqrt() / (1 - self.abar)
        of_z = (1 - self.abar_before) * (1 - self.betas).sqrt() / (1 - self.abar)
        return _at(of_z0, k, z) * z0 + _at(of_z, k, z) * z

    def mean_variance(
        self, z: Tensor, k: int | Tensor, out: Tensor, clip: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log variance of the step from z_k to z_{k-1}, and the predicted z_0.

        Args:
            z: z_k, (B, C, H, W).
            out: the network's output, (B, C, H, W) noise, or with 2 C channels noise followed by
                where the log variance lies, from -1 (lower bound) to 1 (upper bound).
            clip: limit z_0 to [-1, 1].
        """
        eps, low, high = out[:, : z.shape[1]], *(_at(v, k, z) for v in self.log_variances)
        if out.shape[1] == 2 * z.shape[1]:
            share = (out[:, z.shape[1] :] + 1) / 2
            log_variance = share * high + (1 - share) * low
        else:
            log_variance = torch.zeros_like(z) + (high if self.fixed == "large" else low)
        z0 = self.remove_noise(z, k, eps, clip)
        return self.posterior_mean(z0, z, k), log_variance, z0

    def ddim(self, z: Tensor, k: int, eps: Tensor, to: int, clip: bool = False) -> Tensor:
        """Return z at level `to` on the deterministic path through z_k with this noise.

        `to` = -1 is z_0, and `to` > k inverts the path.
        """
        z0 = self.remove_noise(z, k, eps, clip)
        if clip:  # the noise that belongs to the clipped z_0
            eps = (z - _at(self.abar.sqrt(), k, z) * z0) / _at(self.sigma, k, z)
        return self.add_noise(z0, to, eps) if to >= 0 else z0

    def bound(self, z0: Tensor, z: Tensor, k: Tensor, out: Tensor) -> Tensor:
        """Return term k of the variational bound (B,), in bits per pixel value.

        It is the divergence of the true step from the network's. For level 0 it is minus the log
        probability of the 8-bit value at z_0 (Ho et al. 2020, Eq. 13).
        """
        mean, log_variance, _ = self.mean_variance(z, k, out, clip=False)
        true_mean, true_log = self.posterior_mean(z0, z, k), _at(self.log_variances[0], k, z)
        kl = log_variance - true_log + (true_log - log_variance).exp() - 1
        kl = (kl + (true_mean - mean).square() * (-log_variance).exp()) / 2
        scale = (-log_variance / 2).exp()
        upper = torch.special.ndtr(scale * (z0 - mean + 1 / 255))
        lower = torch.special.ndtr(scale * (z0 - mean - 1 / 255))
        upper = torch.where(z0 > 0.999, 1.0, upper)  # 0 and 255 include the tails
        lower = torch.where(z0 < -0.999, 0.0, lower)
        first = -(upper - lower).clamp(min=1e-12).log()
        return torch.where(k == 0, first.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def linear(steps: int, fixed: str = "large") -> Schedule:
    """Return the linear schedule: 1,000 betas in equal steps from 1e-4 to 0.02.

    For another number of steps the betas are scaled by 1,000 / steps, so that the last level stays
    about as noisy. Raises ValueError when the last beta would reach 1.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if fixed not in ("large", "small"):
        raise ValueError(f"fixed: got {fixed!r}, expected 'large' or 'small'")
    scale = 1000 / steps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"steps: got {steps}, the last beta would be {scale * 0.02:.3g}; expected at least 21"
        )
    betas = torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
    return Schedule(betas, tuple(range(steps)), fixed)


def select_levels(steps: int, spacing: str | int | Sequence[int]) -> list[int]:
    """Return which of `steps` levels a spacing keeps, ascending, as in the published models.

    Args:
        spacing: `"25"` or 25 keeps 25 levels at equal, rounded distances, the first and the last
            among them. `"10,15"` keeps 10 levels of the lower half and 15 of the upper. `"ddim25"`
            keeps every m-th level from 0, for the integer m that gives 25.

    Raises ValueError when the spacing cannot be read or met. Source: Nichol & Dhariwal's code.
    """
    text = str(spacing) if isinstance(spacing, (str, int)) else ",".join(map(str, spacing))
    counts_text = text.removeprefix("ddim")
    counted = all(p.strip().isdigit() and int(p) > 0 for p in counts_text.split(","))
    if not counted or (counts_text != text and "," in counts_text):
        raise ValueError(f"spacing: got {spacing!r}, expected like '25', '10,15' or 'ddim25'")
    counts = [int(part) for part in counts_text.split(",")]
    if counts_text != text:
        return _select_every(steps, counts[0])
    selected: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise ValueError(
                f"spacing: cannot keep {count} of the {size} levels of section {i + 1} in "
                f"{spacing!r}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):  # a sum, not a product: ties round as in the published code
            selected.append(start + round(place))
            place += stride
        start += size
    return selected


def _select_every(steps: int, count: int) -> list[int]:
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return list(range(0, steps, stride))
    raise ValueError(f"spacing: no integer stride keeps {count} of {steps} levels")


def _at(table: Tensor, k: int | Tensor, like: Tensor) -> float | Tensor:
    """Return table[k] as a float; for a tensor k, (B, 1, ...) of the dtype and device of `like`."""
    if isinstance(k, int):
        return table[k].item()
    return table.to(like.dtype).to(like.device)[k].view(-1, *[1] * (like.ndim - 1))
