"""DiME of one image at one scale, in plain autograd; `explainers.dime` without a perceptual loss.

Source: Jeanneret, Simon & Jurie, ACCV 2022:

    z_{k-1} = mu_k(z_k) - Sigma_k(z_k) g + Sigma_k(z_k)^(1/2) eps
    g = grad_x [ s L_class(x_k) ] / sqrt(abar_k)  +  l1 sign(z_k - q)

q is the query and x_k the clean image that an unguided chain makes from z_k, all in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cf_utils.explainers.reference.ace import Noise, add_noise, denoise, denoising_step
from cf_utils.models.generators.schedule import Schedule


def class_gradient(f: nn.Module, clean: Tensor, target: int) -> Tensor:
    """Return the gradient at a clean image of L_class, minus the target's log-odds."""
    clean = clean.detach().requires_grad_(True)
    p = f((clean + 1) / 2).softmax(1)[0, target]
    return torch.autograd.grad(-(p / (1 - p)).log(), clean)[0]


def guide_step(mean: Tensor, variance: Tensor, g: Tensor, noise: Tensor | float) -> Tensor:
    """Return mu - Sigma g + Sigma^(1/2) eps, the guided z_{k-1}."""
    return mean - variance * g + variance.sqrt() * noise


def dime(
    f: nn.Module,
    prior: nn.Module,
    s: Schedule,
    x: Tensor,
    target: int,
    scale: float,
    steps: int,
    l1: float,
    start: Tensor,
    noise: Noise,
    noise_below: Callable[[int], Noise],
) -> Tensor:
    """Return the image of one guided chain, (1, C, H, W) in [0, 1].

    Args:
        x: one image (1, C, H, W) in [0, 1].
        scale: s, weight of the class loss.
        steps: tau, guided steps.
        start: noise that is added to x at the first level; noise(k) is added by step k.
        noise_below: k -> noise of the unguided chain that makes x_k from z_k.
    """
    q = 2 * x - 1
    z, clean = add_noise(s, q, steps - 1, start), q
    for k in range(steps - 1, -1, -1):
        with torch.no_grad():
            mean, variance, _ = denoising_step(prior, s, z, k)
        g = scale * class_gradient(f, clean, target) / s.abar[k].sqrt() + l1 * (z - q).sign()
        z = guide_step(mean, variance, g, noise(k) if k else 0.0)
        if k:
            with torch.no_grad():
                clean = denoise(prior, s, z, k, noise_below(k))
    return ((z + 1) / 2).clamp(0, 1)
