"""How well a trained GAN of progressive exaggeration responds and reconstructs, for model cards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.training.exaggeration import wanted_output


@torch.no_grad()
def measure_quality(
    gan: ConditionalGAN, classifier: nn.Module, x: Tensor, batch_size: int = 64
) -> dict[str, Any]:
    """Measure response, reconstruction and reversal of a GAN on images x (N, C, H, W) in [0, 1]."""
    parts = [_measure_batch(gan, classifier, batch) for batch in x.split(batch_size)]
    expected, actual, same, back = (torch.cat(values) for values in zip(*parts, strict=True))
    both = torch.stack([expected.flatten(), actual.flatten()])
    return {
        "test_n": len(x),
        "response_correlation": torch.corrcoef(both)[0, 1].item(),
        "response_error": (expected - actual).abs().mean().item(),
        "identity_error": same.mean().item(),
        "reversal_error": back.mean().item(),
    }


def _measure_batch(gan: ConditionalGAN, f: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Return expected and actual outputs (B, K), and errors of identity and reversal (B,)."""
    p = f(x).softmax(1)[:, 1]
    own, bins = gan.bin_of(p), torch.arange(gan.bins).expand(len(x), -1)
    z = gan.encode(x)
    images = torch.stack([gan.decode(z, bins[:, k]) for k in range(gan.bins)], 1)
    actual = f(images.flatten(0, 1)).softmax(1)[:, 1].view(len(x), -1)
    far = images[torch.arange(len(x)), torch.where(own < gan.bins // 2, gan.bins - 1, 0)]
    same, back = gan.decode(z, own), gan(far, own)
    errors = [(y - x).abs().flatten(1).mean(1) for y in (same, back)]
    return wanted_output(p[:, None], own[:, None], bins, gan.bins), actual, *errors
