"""ACE of one image, in plain autograd; `explainers.ace` by PGD with the l1 distance.

Source: Jeanneret, Simon & Jurie, CVPR 2023, Eqs. 1 to 4. Images z of the chain are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.generators.schedule import Schedule

Noise = Callable[[int], Tensor]  # level -> standard normal noise of the image's shape


def add_noise(s: Schedule, z0: Tensor, k: int, noise: Tensor) -> Tensor:
    """Return sqrt(abar_k) z_0 + sqrt(1 - abar_k) eps, Eq. 1."""
    return s.abar[k].sqrt() * z0 + (1 - s.abar[k]).sqrt() * noise


def denoising_step(prior: nn.Module, s: Schedule, z: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return mean and variance of z_{k-1} given z_k, Eq. 2, and the predicted clean image.

    `prior` (z, t) predicts the noise and where the log variance lies between its two bounds.
    """
    eps, v = prior(z, torch.tensor([s.t[k]])).chunk(2, 1)
    abar, beta, before = s.abar[k], s.betas[k], s.abar_before[k]
    clean = ((z - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
    mean = (before.sqrt() * beta * clean + (1 - before) * (1 - beta).sqrt() * z) / (1 - abar)
    j = max(k, 1)  # level 0 has no posterior variance; that of level 1 replaces it
    posterior = s.betas[j] * (1 - s.abar_before[j]) / (1 - s.abar[j])
    share = (v + 1) / 2
    return mean, (share * beta.log() + (1 - share) * posterior.log()).exp(), clean


def denoise(prior: nn.Module, s: Schedule, z: Tensor, steps: int, noise: Noise) -> Tensor:
    """Return z_0 from z at level steps - 1."""
    for k in range(steps - 1, -1, -1):
        mean, variance, _ = denoising_step(prior, s, z, k)
        z = mean + variance.sqrt() * noise(k) if k else mean
    return z


def attack_step(
    x_prime: Tensor, gradient: Tensor, x: Tensor, step: float, eps: float = 1.0
) -> Tensor:
    """Return x' after one signed step of PGD, within eps of x and inside [0, 1]."""
    moved = x_prime - step * gradient.sign()
    return torch.maximum(torch.minimum(moved, x + eps), x - eps).clamp(0, 1)


def attack(
    f: nn.Module,
    prior: nn.Module,
    s: Schedule,
    x: Tensor,
    target: int,
    noise_of: Callable[[int], Noise],
    steps: int,
    iterations: int,
    step: float,
    lam: float,
) -> Tensor:
    """Return x' that minimises L_class(F_tau(x'); t) + lam ||x' - x||_1, Eq. 3.

    Args:
        x: one image (1, C, H, W) in [0, 1].
        noise_of: iteration -> its noise; noise(steps) is added to x', noise(k) by step k.
        steps: tau, passes of the filter F_tau.
    """
    x_prime = x.clone()
    for i in range(iterations):
        x_prime.requires_grad_(True)
        noise = noise_of(i)
        z = add_noise(s, 2 * x_prime - 1, steps - 1, noise(steps))
        filtered = (denoise(prior, s, z, steps, noise) + 1) / 2  # F_tau(x')
        class_loss = -f(filtered).log_softmax(1)[0, target]
        loss = class_loss + lam * (x_prime - x).abs().sum()
        (gradient,) = torch.autograd.grad(loss, x_prime)
        x_prime = attack_step(x_prime.detach(), gradient, x, step)
    return x_prime


def find_mask(x: Tensor, pre: Tensor, threshold: float, dilation: int) -> Tensor:
    """Return where the dilated change is at least `threshold` times the largest, (1, 1, H, W)."""
    change = (pre - x).abs().sum(1, keepdim=True)
    size = F.max_pool2d(change, dilation, stride=1, padding=dilation // 2)
    return size >= threshold * size.max()


@torch.no_grad()
def refine(
    prior: nn.Module,
    s: Schedule,
    x: Tensor,
    pre: Tensor,
    mask: Tensor,
    steps: int,
    noise: Noise,
    query_noise: Noise,
) -> Tensor:
    """Return the counterfactual: `pre` denoised inside the mask, x outside, Eq. 4."""
    z = add_noise(s, 2 * pre - 1, steps - 1, noise(steps))
    for k in range(steps - 1, -1, -1):
        z = torch.where(mask, z, add_noise(s, 2 * x - 1, k, query_noise(k)))  # the collage
        mean, variance, _ = denoising_step(prior, s, z, k)
        z = mean + variance.sqrt() * noise(k) if k else mean
    return torch.where(mask, ((z + 1) / 2).clamp(0, 1), x)
