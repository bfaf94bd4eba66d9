"""Running statistics of batch normalisation for the passes that a trained GAN is used for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset

from cf_utils.models.generators.cgan import ConditionalGAN

BATCH = 32


class _Explanations(nn.Module):
    """The images of a GAN for random bins, as `update_bn` expects a model."""

    def __init__(self, gan: ConditionalGAN):
        super().__init__()
        self.gan = gan

    def forward(self, x: Tensor) -> Tensor:
        return self.gan(x, torch.randint(self.gan.bins, (len(x),), device=x.device))


def update_statistics(gan: ConditionalGAN, data: Dataset, seed: int, n: int = 2048) -> None:
    """Replace the running statistics of batch normalisation by those of n explanations.

    While the GAN trains, half of the passes are those of the cycle, which starts from generated
    images. Their statistics differ from those of the passes that explain.

    Args: data: items (x, p), drawn anew at each access. Leaves the GAN in eval mode.
    """
    torch.manual_seed(seed)
    some = [
        torch.stack([data[(i + k) % len(data)][0] for k in range(BATCH)])
        for i in range(0, n, BATCH)
    ]
    device = next(gan.parameters()).device
    update_bn(some, _Explanations(gan).train(), device)
    gan.eval()
