"""Reconstructions by a diffusion autoencoder that separate what the code holds from what x_T holds.

Sources: Fang et al. 2024, sections 2.1 and 3.4; Preechakul et al. 2022, Fig. 4 and Table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils.core import Ids, item_noise
from cf_utils.models.generators.diffae import ITERATIONS, STEPS, DiffusionAutoencoder


class Rows(NamedTuple):
    """Reconstructions of x (B, C, H, W) in [0, 1].

    If `other_code` is about as close to x as `inverted`, the code is unused.
    """

    inverted: Tensor  # A: own code, x_T by inversion (B, C, H, W)
    printed: Tensor  # B: own code, x_T of Eq. 1 as printed (B, C, H, W)
    random: Tensor  # C: own code, random x_T (draws, B, C, H, W)
    other_code: Tensor  # D: code of another patient, own inverted x_T (B, C, H, W)


@torch.no_grad()
def reconstruct_rows(
    model: DiffusionAutoencoder,
    x: Tensor,
    other: Tensor,
    ids: Ids,
    seed: int = 0,
    steps: int = STEPS,
    iterations: int = ITERATIONS,
    draws: int = 4,
) -> Rows:
    """Reconstruct x (B, C, H, W) in [0, 1] in four ways.

    Args:
        other: images of other patients, of the shape of x, whose codes row D takes.
        ids: of the items; noise depends on (seed, id).
        draws: number of random x_T per item.

    Raises ValueError on other shapes, or on a number of steps outside 2..T.
    """
    if other.shape != x.shape:
        raise ValueError(f"other: got shape {tuple(other.shape)}, expected {tuple(x.shape)}")
    q = model.encode(x)
    x_T = model.invert(x, q, steps, iterations)
    noise = [item_noise(seed, ids, x.shape[1:], f"rows:{i}").to(x) for i in range(draws + 1)]
    return Rows(
        model.decode(q, x_T, steps),
        model.decode(q, model.add_noise(x, noise[0]), steps),
        torch.stack([model.decode(q, n, steps) for n in noise[1:]]),
        model.decode(model.encode(other), x_T, steps),
    )
