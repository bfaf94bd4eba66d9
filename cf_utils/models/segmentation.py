"""A small U-Net that segments organs in grey images (Ronneberger et al., 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import eval_mode

ORGANS, SIZE, WIDTHS = ("heart", "lungs"), (64, 64), (16, 32, 48, 64)


class Double(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, before: int, width: int):
        layers: list[nn.Module] = []
        for channels in (before, width):
            layers += [
                nn.Conv2d(channels, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net: a chain of halved sizes and back, with a connection at each size.

    It works at `size` (height, width), multiples of 2 ** (len(widths) - 1). Images of another size
    are resized to it, and the logits back. Masks may overlap: one logit per organ.

    Args: organs: names of the masks. size: see above. widths: channels at each size.
    """

    def __init__(
        self,
        organs: Sequence[str] = ORGANS,
        size: Sequence[int] = SIZE,
        widths: Sequence[int] = WIDTHS,
    ):
        super().__init__()
        step = 2 ** (len(widths) - 1)
        if any(side % step for side in size):
            raise ValueError(f"size: got {tuple(size)}, expected multiples of {step}")
        self.organs, self.size = tuple(organs), tuple(size)
        self.down = nn.ModuleList(
            Double(before, width) for before, width in zip((1, *widths), widths, strict=False)
        )
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(Double(low + high, high) for low, high in pairs)
        self.head = nn.Conv2d(widths[0], len(self.organs), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, organs, H, W) of images x (B, 1, H, W) in [0, 1].

        Raises ValueError for another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, 1, H, W), one channel")
        z, kept = 2 * resize(x, self.size) - 1, []
        for k, block in enumerate(self.down):
            z = block(F.max_pool2d(z, 2) if k else z)
            kept.append(z)
        for block in self.up:
            kept.pop()
            z = F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)
            z = block(torch.cat([z, kept[-1]], 1))
        return resize(self.head(z), x.shape[2:])

    @torch.no_grad()
    def segment(self, x: Tensor, batch_size: int = 250) -> dict[str, Tensor]:
        """Return the probability of each organ at each pixel, organ -> (B, 1, H, W).

        Uses the running statistics of batch norm, so that an image does not depend on its batch.
        """
        device = self.head.weight.device
        with eval_mode(self):
            parts = [self(b.to(device)).sigmoid().to(x.device) for b in x.split(batch_size)]
        maps = torch.cat(parts)
        return {organ: maps[:, k : k + 1] for k, organ in enumerate(self.organs)}


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images (B, C, H, W) to `size` (height, width), bilinear, without aliasing."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False, antialias=True)
