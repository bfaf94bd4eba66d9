"""Features of images, as frozen encoders (`models.encoders`) give them; what most metrics on images compare."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cf_utils.core import device_of, progress


@dataclass(frozen=True, eq=False)
class Features:
    """What an encoder sees in N images."""

    values: Tensor  # (N, D) float32 on the CPU
    encoder: str  # its class, for messages
    official_for: tuple[str, ...]  # metrics that it is the published network of

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor) -> Features:
        return Features(self.values[rows.cpu()], self.encoder, self.official_for)

    def name(self, metric: str) -> str:
        return metric if metric in self.official_for else f"{metric}_embedded"


@torch.no_grad()
def extract(encoder: nn.Module, images: Tensor, batch_size: int = 50) -> Features:
    """Features of images (N, 3, H, W) in [0, 1], batch by batch on the encoder's device, in eval mode."""
    check_images("images", images)
    place = device_of(encoder, images.device)
    was = encoder.training
    encoder.eval()
    batches = progress(images.split(batch_size), desc=type(encoder).__name__, leave=False)
    values = torch.cat(
        [encoder(b.to(place, torch.float32)).flatten(1).float().cpu() for b in batches]
    )
    encoder.train(was)
    return Features(values, type(encoder).__name__, tuple(getattr(encoder, "official_for", ())))


def check_images(name: str, x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            f"{name}: got {x.dtype} {tuple(x.shape)}, expected float images (N, 3, H, W), N >= 1"
        )
    low, high = x.amin().item(), x.amax().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails too
        raise ValueError(f"{name}: values from {low:.3g} to {high:.3g}, expected inside [0, 1]")


def check_pair(a: Features, b: Features) -> None:
    if (a.encoder, a.values.shape[1]) != (b.encoder, b.values.shape[1]):
        raise ValueError(
            f"features: got {a.encoder} ({a.values.shape[1]}) and {b.encoder} ({b.values.shape[1]}), expected one"
        )
