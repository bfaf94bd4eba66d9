"""Rain in the air, exposure, white balance, vignette."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import grain, ramp, rgb, tint
from cf_utils.worlds.factors import Factors


def add_weather_and_lens(p: SimpleNamespace, image: Tensor, factors: Factors) -> Tensor:
    """Add rain and vignette to the image, in place; return it with exposure and white balance."""
    rows = p.wet.flatten().nonzero().flatten()
    if len(rows):
        lattice = factors.take(rows).stream("rain", (40, 96))
        x, y = torch.broadcast_tensors((p.X + 0.10 * p.Y).expand(len(rows), -1, -1), p.Y)
        near = grain(lattice, 9 * x + 31, 1.5 * y + 9)
        far = grain(lattice, 16 * x + 60, 2.4 * y + 30)
        drops = ramp(far, 0.72, 0.95) + 0.6 * ramp(near, 0.80, 0.97)
        image[rows] += (0.35 * drops)[:, None] * (rgb(0.82, 0.86, 0.90) - image[rows])
    tint(image, (0.10 * (0.25 * p.X * p.X + p.Y * p.Y)).clamp(max=0.35), rgb(0.2, 0.2, 0.2))
    tone = 0.86 + 0.30 * p.exposure
    white = 1 + rgb(0.08, 0.0, -0.10) * (2 * p.warmth[:, None] - 1)
    return image * tone[:, None] * white
