"""Patients of several slices, encoded and decoded by a model of single slices.

A patient is an image x (B, S, H, W) of S slices; the model takes slices (B, 1, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core.checks import check_count
from cf_utils.models.generators.latent import LatentModel

SLICES_PER_BATCH = 128  # bounds the memory of a pass


def split_slices(x: Tensor) -> Tensor:
    """Return patients (B, S, H, W) as slices (B * S, 1, H, W), one patient after the other."""
    return x.flatten(0, 1)[:, None]


class SlicedModel(LatentModel):
    """Encodes and decodes each slice of a patient by `model`, a `LatentModel` of single slices.

    Codes are (B, S, *latent_shape).
    """

    def __init__(self, model: LatentModel):
        super().__init__()
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, S, *latent_shape) of x (B, S, H, W)."""
        return self.model.encode(split_slices(x)).unflatten(0, x.shape[:2])

    def decode(self, z: Tensor) -> Tensor:
        """Return the patients (B, S, H, W) of codes z (B, S, *latent_shape)."""
        return self.model.decode(z.flatten(0, 1))[:, 0].unflatten(0, z.shape[:2])


class DiffusionCodes(LatentModel):
    """Patients and their codes under a diffusion autoencoder of single slices.

    The code of a slice has two parts, as in Preechakul et al. (CVPR 2022): the semantic code q,
    followed by the inverted noise x_T that holds the remaining detail. Decoding is differentiable
    in q alone: the gradient in x_T is 0, so that a search moves q and keeps x_T.

    Args:
        model: has `encode(x) -> q (B, d)`, `invert(x, q, steps) -> x_T` and
            `decode(q, x_T, steps)`, for slices x and x_T (B, 1, H, W).
        size: height and width of a slice.
        steps: of the inversion and of the decoding.
        bfloat16: run the networks in bfloat16 (torch.autocast), which is faster; states, codes and
            images keep their dtype.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], steps: int, bfloat16: bool = False):
        super().__init__()
        check_count("steps", steps)
        self.model, self.size, self.steps = model, (size[0], size[1]), steps
        self.in_bfloat16 = bfloat16
        settings = torch.tensor([*self.size, steps, int(bfloat16)])
        self.register_buffer("settings", settings)  # enters the hash of an explainer's settings

    @property
    def n_noise(self) -> int:
        """Number of values of x_T, the last ones of the code of a slice."""
        return self.size[0] * self.size[1]

    def semantic(self, z: Tensor) -> Tensor:
        """Return the semantic part q of codes z, (B, S * d), slice after slice."""
        return z[..., : -self.n_noise].flatten(1)

    def extend(self, q: Tensor, slices: int) -> Tensor:
        """Return codes (B, S, d + H * W) whose semantic part is q (B, S * d) and whose noise is 0.

        As a direction, it moves q and keeps x_T.
        """
        q = q.unflatten(1, (slices, -1))
        return torch.cat([q, q.new_zeros(*q.shape[:2], self.n_noise)], 2)

    def encode_semantic(self, x: Tensor) -> Tensor:
        """Return the semantic codes q of x (B, S, H, W), (B, S * d), without an inversion."""
        model: Any = self.model
        with self._precision(x):
            parts = [model.encode(x0) for x0 in split_slices(x).split(SLICES_PER_BATCH)]
        return torch.cat(parts).view(len(x), -1)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, S, d + H * W) of x (B, S, H, W) in [0, 1]."""
        model: Any = self.model
        parts = []
        with self._precision(x):
            for x0 in split_slices(x).split(SLICES_PER_BATCH):
                q = model.encode(x0)
                parts.append(torch.cat([q, model.invert(x0, q, self.steps).flatten(1)], 1))
        return torch.cat(parts).unflatten(0, x.shape[:2])

    def decode(self, z: Tensor) -> Tensor:
        """Return the patients (B, S, H, W) of codes z (B, S, d + H * W)."""
        model: Any = self.model
        codes, parts = z.flatten(0, 1), []
        with self._precision(z):
            for code in codes.split(SLICES_PER_BATCH):
                q, noise = code[:, : -self.n_noise], code[:, -self.n_noise :].detach()
                noise = noise.unflatten(1, (1, *self.size))
                parts.append(model.decode(q, noise, self.steps)[:, 0])
        return torch.cat(parts).unflatten(0, z.shape[:2])

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self.in_bfloat16)
