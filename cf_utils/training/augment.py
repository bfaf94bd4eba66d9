"""Random changes of training images, and attacks for adversarial training.

All draw from torch's global generator, keep the shape of x (B, C, H, W), and return values in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def warp(
    x: Tensor, turn: float = 0.2, scale: float = 0.12, shear: float = 0.15, shift: float = 0.1
) -> Tensor:
    """Apply a random affine map to each image.

    Each argument is the largest change: turn in radians, scale and shear as factors, shift in half
    widths of the image.
    """

    def draw(width: float) -> Tensor:
        return (torch.rand(len(x), device=x.device) * 2 - 1) * width

    a, k, s = draw(turn), 1 + draw(scale), draw(shear)
    row_x = torch.stack([k * a.cos(), k * (s - a.sin()), draw(shift)], 1)
    row_y = torch.stack([k * a.sin(), k * a.cos(), draw(shift)], 1)
    theta = torch.stack([row_x, row_y], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def shift(x: Tensor, largest: int) -> Tensor:
    """Move each image by up to `largest` whole pixels along each axis; what leaves re-enters."""
    by = torch.randint(-largest, largest + 1, (len(x), 2)).tolist()
    return torch.stack([image.roll(move, (1, 2)) for image, move in zip(x, by, strict=True)])


def add_noise(x: Tensor, largest: float) -> Tensor:
    """Add Gaussian noise whose standard deviation is drawn per image from [0, largest)."""
    return (x + largest * _draw(x) * torch.randn_like(x)).clamp(0, 1)


def smudge(x: Tensor) -> Tensor:
    """Disturb digits in ways that a person reads through.

    Each image gets, at random: a fainter ghost of another digit, grey clouds, blur, and 4 x 4
    blocks that are wiped or greyed.
    """

    def choose(p: float = 0.5) -> Tensor:
        return (_draw(x) < p).to(x)

    x = torch.maximum(x, choose() * 0.6 * _draw(x) * x.roll(1, 0))
    cells = int(torch.randint(3, 15, ()))
    cloud = torch.rand(len(x), 1, cells, cells, device=x.device)
    cloud = F.interpolate(cloud, x.shape[-2:], mode="bilinear", align_corners=False)
    cloud = (cloud - 0.5).clamp(min=0) * 2 * _draw(x)
    x = torch.maximum(x, choose() * cloud)
    soft = choose(0.3)
    x = soft * F.avg_pool2d(x, 3, 1, 1) + (1 - soft) * x
    blocks = torch.rand(len(x), 1, 7, 7, device=x.device)
    blocks = (blocks < 0.12 * _draw(x) * choose()).to(x)
    wiped = F.interpolate(blocks, scale_factor=4.0)
    return x * (1 - wiped) + wiped * 0.4 * _draw(x)


def blur_and_add_noise(x: Tensor) -> Tensor:
    """Blur half of the images a little, and add noise of a standard deviation up to 0.05."""
    soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, soft, (2 * _draw(x) - 1).clamp(min=0))
    return (x + 0.05 * _draw(x).square() * torch.randn_like(x)).clamp(0, 1)


def attack(module: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Raise the cross-entropy of labels y by PGD inside an L-infinity ball of radius eps.

    Random start; steps of 2.5 eps / steps.
    """
    delta = (torch.rand_like(x) * 2 - 1) * eps
    for _ in range(steps):
        delta.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(module((x + delta).clamp(0, 1)), y), delta)
        delta = (delta.detach() + 2.5 * eps / steps * grad.sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1).detach()


def attack_in_one_step(error: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Tensor:
    """Raise `error(x)`, a scalar, by one signed step from a random point of a box around x.

    Each image has a box of its own size, at most eps (Wong, Rice & Kolter, 2020).
    """
    size = eps * _draw(x)
    y = (x + size * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_(True)
    y = y.detach() + size * torch.autograd.grad(error(y), y)[0].sign()
    return torch.maximum(torch.minimum(y, x + size), x - size).clamp(0, 1)


def _draw(x: Tensor) -> Tensor:
    """Draw one uniform number per image, (B, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, device=x.device)
