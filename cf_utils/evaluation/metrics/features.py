"""Features of images from a frozen encoder (`models.encoders`), the input of most image metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import device_of, eval_mode, progress


@dataclass(frozen=True, eq=False)
class Features:
    """Features of N images."""

    values: Tensor  # (N, D) float32 on the CPU
    encoder: str  # the encoder's class name, for messages
    official_for: tuple[str, ...]  # metrics whose published network this encoder is

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor) -> Features:
        """Select images by position (int64) or by a bool mask."""
        return Features(self.values[rows.cpu()], self.encoder, self.official_for)

    def name(self, metric: str) -> str:
        """Return `metric` if the encoder is its published network, else `<metric>_embedded`."""
        return metric if metric in self.official_for else f"{metric}_embedded"


@torch.no_grad()
def extract(encoder: nn.Module, images: Tensor, batch_size: int = 50) -> Features:
    """Encode images in eval mode, batch by batch, on the encoder's device.

    Args: encoder: maps images to features; images (N, 3, H, W) in [0, 1].
    """
    check_images("images", images)
    device = device_of(encoder, images.device)
    batches = progress(images.split(batch_size), desc=type(encoder).__name__, leave=False)
    with eval_mode(encoder):
        parts = [encoder(b.to(device, torch.float32)).flatten(1).float().cpu() for b in batches]
    official_for: Any = getattr(encoder, "official_for", ())
    return Features(torch.cat(parts), type(encoder).__name__, tuple(official_for))


def check_images(name: str, x: Tensor) -> None:
    """Raise ValueError unless x, the argument `name`, holds float images (N, 3, H, W) in [0, 1]."""
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"{name}: got {x.dtype} {tuple(x.shape)}, expected float images (N, 3, H, W), N >= 1"
        )
    low, high = x.amin().item(), x.amax().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also refuses NaN
        raise ValueError(f"{name}: values from {low:.3g} to {high:.3g}, expected inside [0, 1]")


def check_pair(a: Features, b: Features) -> None:
    """Raise ValueError unless both sets of features come from the same encoder."""
    if (a.encoder, a.values.shape[1]) != (b.encoder, b.values.shape[1]):
        raise ValueError(
            f"features: got {a.encoder} ({a.values.shape[1]}) and "
            f"{b.encoder} ({b.values.shape[1]}), expected one encoder"
        )
