"""The noise levels of a Gaussian diffusion, and all that has a closed form given them.

    z_k = sqrt(abar_k) z_0 + sqrt(1 - abar_k) eps,   abar_k = prod_{i <= k} (1 - beta_i)        Ho et al. 2020 (DDPM), Eq. 4
    q(z_{k-1} | z_k, z_0) = N(mean, variance)                                                   Eqs. 6, 7
    log variance = v log beta_k + (1 - v) log (posterior variance), v in [0, 1]                 Nichol & Dhariwal 2021, Eq. 15
    z_{k-1} = sqrt(abar_{k-1}) z_0' + sqrt(1 - abar_{k-1}) eps', no noise                       Song et al. 2021 (DDIM), Eq. 12
    v = sqrt(abar_k) eps - sqrt(1 - abar_k) z_0                                                 Salimans & Ho 2022, Eq. 12

Levels are numbered 0 (least noise) to N - 1 here; `t[k]` is the number that the network was trained with. A re-spaced schedule
keeps some of the levels and takes the betas that lead from one kept level to the next, so abar stays what it was. diffusers'
schedulers have no re-spacing into sections and no learned variance on it, and copy tables at every step: they are what the
tests compare with. Images are in [-1, 1] here. A level k is an int, one for all rows, or an int64 tensor (B,).
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
    """N levels. `fixed`: the variance of a step where the network gives none, `large` (beta) or `small` (the posterior's)."""

    betas: Tensor  # (N,) float64 in (0, 1), on the CPU
    t: tuple[int, ...]  # (N,) the network's numbers of the levels
    fixed: str = "large"

    def __len__(self) -> int:
        return len(self.t)

    @cached_property
    def abar(self) -> Tensor:  # (N,)
        return (1 - self.betas).cumprod(0)

    @cached_property
    def abar_before(self) -> Tensor:
        return torch.cat([self.abar.new_ones(1), self.abar[:-1]])

    @cached_property
    def sigma(self) -> Tensor:
        """Standard deviation of the noise at each level (N,), in units of images in [-1, 1]."""
        return (1 - self.abar).sqrt()

    @cached_property
    def log_variances(self) -> tuple[Tensor, Tensor]:
        """log of the posterior's variance and of beta, each (N,). At level 0 the posterior has none: level 1's stands in."""
        variance = self.betas * (1 - self.abar_before) / (1 - self.abar)
        first = variance[1:2] if len(self) > 1 else self.betas
        return torch.cat([first, variance[1:]]).log(), self.betas.log()

    def steps_for(self, sigma: float) -> int:
        """How many levels, counted from the least noise, end nearest to this standard deviation."""
        return int((self.sigma - sigma).abs().argmin()) + 1

    def respaced(self, spacing: str | int | Sequence[int]) -> Schedule:
        """The levels that `spaced` keeps."""
        keep = spaced(len(self), spacing)
        abar = self.abar[keep]
        betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])
        return Schedule(betas, tuple(self.t[k] for k in keep), self.fixed)

    def noised(self, z0: Tensor, k: int | Tensor, noise: Tensor) -> Tensor:
        return _at(self.abar.sqrt(), k, z0) * z0 + _at(self.sigma, k, z0) * noise

    def clean(self, z: Tensor, k: int | Tensor, eps: Tensor, clip: bool = False) -> Tensor:
        """z_0 that z_k and its noise eps say; clipped to [-1, 1] on wish."""
        z0 = _at(self.abar.rsqrt(), k, z) * z - _at((1 / self.abar - 1).sqrt(), k, z) * eps
        return z0.clamp(-1, 1) if clip else z0

    def noise_in(self, z: Tensor, k: int | Tensor, v: Tensor) -> Tensor:
        """The noise in z_k that v says."""
        return _at(self.sigma, k, z) * z + _at(self.abar.sqrt(), k, z) * v

    def posterior_mean(self, z0: Tensor, z: Tensor, k: int | Tensor) -> Tensor:
        of_z0 = self.betas * self.abar_before.sqrt() / (1 - self.abar)
        of_z = (1 - self.abar_before) * (1 - self.betas).sqrt() / (1 - self.abar)
        return _at(of_z0, k, z) * z0 + _at(of_z, k, z) * z

    def mean_variance(
        self, z: Tensor, k: int | Tensor, out: Tensor, clip: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, log variance, z_0) of the step from z_k to z_{k-1}, given the network's output: the noise (B, C, H, W), or with
        2 C channels the noise and where the log variance lies between its bounds, -1 for the lower and 1 for the upper."""
        eps, low, high = out[:, : z.shape[1]], *(_at(v, k, z) for v in self.log_variances)
        if out.shape[1] == 2 * z.shape[1]:
            share = (out[:, z.shape[1] :] + 1) / 2
            log_variance = share * high + (1 - share) * low
        else:
            log_variance = torch.zeros_like(z) + (high if self.fixed == "large" else low)
        z0 = self.clean(z, k, eps, clip)
        return self.posterior_mean(z0, z, k), log_variance, z0

    def ddim(self, z: Tensor, k: int, eps: Tensor, to: int, clip: bool = False) -> Tensor:
        """z at level `to` (-1: no noise) on the deterministic path through z_k with this noise; to > k inverts."""
        z0 = self.clean(z, k, eps, clip)
        if clip:  # the noise that the clipped z_0 leaves
            eps = (z - _at(self.abar.sqrt(), k, z) * z0) / _at(self.sigma, k, z)
        return self.noised(z0, to, eps) if to >= 0 else z0

    def bound(self, z0: Tensor, z: Tensor, k: Tensor, out: Tensor) -> Tensor:
        """Term k of the variational bound (B,), in bits a pixel value: KL of the true step and the network's, and for level 0
        minus the log probability of the 8-bit value at z_0 (Ho et al., Eq. 13)."""
        mean, log_variance, _ = self.mean_variance(z, k, out, clip=False)
        true_mean, true_log = self.posterior_mean(z0, z, k), _at(self.log_variances[0], k, z)
        kl = (
            log_variance
            - true_log
            + (true_log - log_variance).exp()
            - 1
            + (true_mean - mean).square() * (-log_variance).exp()
        ) / 2
        scale = (-log_variance / 2).exp()
        upper, lower = (
            torch.special.ndtr(scale * (z0 - mean + half)) for half in (1 / 255, -1 / 255)
        )
        inside = torch.where(z0 > 0.999, 1.0, upper) - torch.where(
            z0 < -0.999, 0.0, lower
        )  # 0 and 255 take the tails
        first = -inside.clamp(min=1e-12).log()
        return torch.where(k == 0, first.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def linear(steps: int, fixed: str = "large") -> Schedule:
    """Betas from 1e-4 to 0.02 in equal steps for 1,000 levels; for another number scaled so that the last level is as noisy."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if fixed not in ("large", "small"):
        raise ValueError(f"fixed: got {fixed!r}, expected 'large' or 'small'")
    scale = 1000 / steps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"steps: got {steps}, the last beta would be {scale * 0.02:.3g}; expected at least 21"
        )
    return Schedule(
        torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64),
        tuple(range(steps)),
        fixed,
    )


def spaced(steps: int, spacing: str | int | Sequence[int]) -> list[int]:
    """Which of `steps` levels a spacing keeps, ascending; the published models' own rule (Nichol & Dhariwal's).

    "25" or 25: the first, the last, and 23 between at equal, rounded distances. "10,15": two halves with 10 and 15 each.
    "ddim25": every m-th from 0, for the whole m that gives 25. ValueError where it cannot be done.
    """
    text = str(spacing) if isinstance(spacing, (str, int)) else ",".join(map(str, spacing))
    whole = text.removeprefix("ddim")
    if not all(part.strip().isdigit() and int(part) > 0 for part in whole.split(",")) or (
        whole != text and "," in whole
    ):
        raise ValueError(f"spacing: got {spacing!r}, expected like '25', '10,15' or 'ddim25'")
    counts = [int(part) for part in whole.split(",")]
    if whole != text:
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == counts[0]:
                return list(range(0, steps, stride))
        raise ValueError(f"spacing: no whole stride keeps {counts[0]} of {steps} levels")
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise ValueError(
                f"spacing: cannot keep {count} of the {size} levels of section {i + 1} in {spacing!r}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1
        at = 0.0
        for _ in range(count):  # summed, not multiplied: ties round as in the published code
            kept.append(start + round(at))
            at += stride
        start += size
    return kept


def _at(table: Tensor, k: int | Tensor, like: Tensor) -> float | Tensor:
    """table[k] as a number (no copy to a device), or for a tensor k as (B, 1, ...) on the device and of the type of `like`."""
    if isinstance(k, int):
        return table[k].item()
    return table.to(like.dtype).to(like.device)[k].view(-1, *[1] * (like.ndim - 1))
