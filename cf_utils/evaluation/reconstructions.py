"""What the two parts of a diffusion autoencoder's code hold: four ways to reconstruct a patient.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), sections 2.1 and 2.4. A deterministic
decoder can carry the whole image in x_T, and ignore z; then moving z explains nothing. Compare:

    A  z and the inverted x_T, as the explainer uses them
    B  z and x_T = sqrt(alpha_T) x_0 + sqrt(1 - alpha_T) eps, as printed below Eq. 1
    C  z and random x_T: what z alone holds, for several draws
    D  the z of another patient and the own inverted x_T: what x_T alone holds
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import Ids, check_query, device_of, frozen, item_noise
from cf_utils.evaluation.metrics.reconstruction import measure_reconstruction
from cf_utils.models.classifiers import predict
from cf_utils.models.generators.slices import SLICES_PER_BATCH, split_slices

ROWS = ("a", "b", "c", "d")


@torch.no_grad()
def reconstruct_rows(
    model: nn.Module, x: Tensor, ids: Ids, steps: int, seed: int = 0, draws: int = 4
) -> dict[str, Tensor]:
    """Reconstruct patients x (B, S, H, W) in each of the four ways.

    Args:
        model: autoencoder of single slices with `encode(x) -> q`, `invert(x, q, steps) -> x_T`,
            `add_noise(x, noise) -> x_T` and `decode(q, x_T, steps)`.
        ids: of the patients; the noise depends on (seed, id).
        steps: of the inversion and the decoding.
        draws: of row C.

    Returns: per row the reconstructions (R, B, S, H, W), where R is `draws` for C and else 1. In
    row D, the other patient is the next one in the batch. Raises ValueError for a single patient.
    """
    check_query(x, torch.zeros(len(x), dtype=torch.int64), ids)
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected at least 2 patients (B, S, H, W)"
        )
    net: Any = model
    device, shape = device_of(model, x.device), x.shape
    slices = split_slices(x.to(device))

    def draw(stream: str) -> Tensor:
        return split_slices(item_noise(seed, ids, shape[1:], stream)).to(slices)

    with frozen(model):
        q = torch.cat([net.encode(part) for part in slices.split(SLICES_PER_BATCH)])
        pairs = zip(slices.split(SLICES_PER_BATCH), q.split(SLICES_PER_BATCH), strict=True)
        noise = torch.cat([net.invert(part, code, steps) for part, code in pairs])

        def decode(code: Tensor, x_T: Tensor) -> Tensor:
            pairs = zip(code.split(SLICES_PER_BATCH), x_T.split(SLICES_PER_BATCH), strict=True)
            return torch.cat([net.decode(*pair, steps) for pair in pairs]).view(shape).to(x.device)

        other = q.view(shape[0], shape[1], -1).roll(-1, 0).flatten(0, 1)
        return {
            "a": decode(q, noise)[None],
            "b": decode(q, net.add_noise(slices, draw("printed x_T")))[None],
            "c": torch.stack([decode(q, draw(f"random x_T {k}")) for k in range(draws)]),
            "d": decode(other, noise)[None],
        }


def measure_rows(
    classifier: nn.Module, x: Tensor, rows: dict[str, Tensor], body: Tensor | None = None
) -> dict[str, dict[str, float | int]]:
    """Return `measure_reconstruction` of each row, averaged over its draws.

    Args: classifier maps x (B, S, H, W) to logits (B, K); rows, from `reconstruct_rows`; body: bool
    like x, pixels inside the body.
    """
    logits, found = predict(classifier, x), {}
    for name, draws in rows.items():
        every = [measure_reconstruction(x, y, logits, predict(classifier, y), body) for y in draws]
        means = {k: sum(row[k] for row in every) / len(every) for k in every[0] if k != "n"}
        found[name] = {"n": len(x), "draws": len(every), **means}
    return found
