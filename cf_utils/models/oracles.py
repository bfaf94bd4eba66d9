"""Oracles of rendered images: networks that are never explained and judge what an edit changed.

`FactorOracle` reads the factors behind a render, `AttributeOracle` its binary labels, and
`IdentityEncoder` identifies the person. All are strided convolutions that keep spatial positions.
Unlike them, the explained networks are DenseNets, trained on other draws with other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE, WIDTHS = (64, 64), (24, 48, 80, 112)  # of images; channels per convolution


class Residual(nn.Module):
    """Residual block: ReLU of the sum of x and two 3 x 3 convolutions of x."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, of the shape of x."""
        return F.relu(x + self.layers(x))


class ConvNet(nn.Module):
    """Strided convolutions with batch norm and ReLU, then a linear map of the whole last grid.

    A residual block follows each convolution but the first. `size` is the height and width of the
    images. Each convolution halves both, so they must be multiples of 2 ** len(widths). `channels`:
    3 for colours, 1 for grey levels.
    """

    def __init__(
        self,
        outputs: int,
        size: Sequence[int] = SIZE,
        widths: Sequence[int] = WIDTHS,
        channels: int = 3,
    ):
        super().__init__()
        if any(side % 2 ** len(widths) for side in size):
            raise ValueError(f"size: got {tuple(size)}, expected multiples of {2 ** len(widths)}")
        self.size, self.channels = tuple(size), channels
        layers: list[nn.Module] = []
        before = channels
        for k, width in enumerate(widths):
            kernel = 3 if k else 5
            layers += [
                nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [Residual(width)] if k else []
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before * (size[0] * size[1] // 4 ** len(widths)), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, outputs) of images x (B, channels, *size) in [0, 1]."""
        expected = (self.channels, *self.size)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (B, {', '.join(map(str, expected))}), "
                "the size that this network was trained on"
            )
        return self.head(self.layers(2 * x - 1).flatten(1))


class AttributeOracle(ConvNet):
    """Logits (B, L) of the binary labels `names`; a label is present if its logit is positive."""

    def __init__(
        self,
        names: Sequence[str],
        size: Sequence[int] = SIZE,
        widths: Sequence[int] = WIDTHS,
        channels: int = 3,
    ):
        super().__init__(len(names), size, widths, channels)
        self.names = tuple(names)


class IdentityEncoder(ConvNet):
    """Embedding (B, width) of unit length; the inner product of two images measures identity.

    Two images show the same person if it exceeds `threshold`, which a checkpoint's card holds.
    """

    def __init__(
        self,
        width: int = 64,
        size: Sequence[int] = SIZE,
        widths: Sequence[int] = WIDTHS,
        threshold: float | None = None,
        channels: int = 3,
    ):
        super().__init__(width, size, widths, channels)
        self.threshold = threshold

    def embed(self, x: Tensor) -> Tensor:
        """Return the embedding (B, width) before its normalisation."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding (B, width) of unit length."""
        return F.normalize(self.embed(x), dim=1)


class FactorOracle(nn.Module):
    """Ensemble of regressors that reads the columns `names` (K) in the factors' own units.

    A regressor is biased towards the mean: if a factor moves by 1, its output moves by `slope` < 1.
    Readings are divided by the slope around `centre`, so displacements have no such bias.

    Buffers of the calibration, each (K,):
        slope, centre: see above.
        sd: standard deviation of the error on test renders that show the factor.
        null: root mean square displacement without an edit, as the card says: of the world's
            diffusion prior, or the largest of camera noise, drawn again, and of all generators.
            The null of each generator is in the card.
    """

    slope: Tensor
    centre: Tensor
    sd: Tensor
    null: Tensor

    def __init__(
        self,
        names: Sequence[str],
        size: Sequence[int] = SIZE,
        widths: Sequence[int] = WIDTHS,
        members: int = 3,
        channels: int = 3,
    ):
        super().__init__()
        self.names = tuple(names)
        self.members = nn.ModuleList(
            ConvNet(len(self.names), size, widths, channels) for _ in range(members)
        )
        self.register_buffer("slope", torch.ones(len(self.names)))
        self.register_buffer("centre", torch.zeros(len(self.names)))
        self.register_buffer("sd", torch.ones(len(self.names)))
        self.register_buffer("null", torch.ones(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the reading of each member (members, B, K) for images x (B, channels, *size)."""
        readings = torch.stack([member(x) for member in self.members])
        return (readings - self.centre) / self.slope + self.centre

    @torch.no_grad()
    def read(self, x: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over the members, each (B, K), on the device of x.

        The standard deviation is the disagreement of the members.
        """
        parts = [self(b.to(self.sd.device)).to(x.device) for b in x.split(batch_size)]
        return torch.cat([p.mean(0) for p in parts]), torch.cat([p.std(0) for p in parts])
