"""What the two parts of a diffusion autoencoder's code hold: four ways to reconstruct a patient.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), sections 2.1 and 2.4. A deterministic
decoder can carry the whole image in x_T, and ignore z; then moving z explains nothing. Compare:

    A  z and the inverted x_T, as the explainer uses them
    B  z and x_T = sqrt(alpha_T) x_0 + sqrt(1 - alpha_T) eps, as printed below Eq. 1
    C  z and random x_T: what z alone holds, for several draws
    D  the z of another patient and the own inverted x_T: what x_T alone holds
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.core import Ids, check_query, device_of, frozen, to_list
from cf_utils.evaluation.metrics.reconstruction import measure_reconstruction
from cf_utils.models.classifiers import predict
from cf_utils.models.generators import diffae_rows
from cf_utils.models.generators.diffae import ITERATIONS, STEPS, DiffusionAutoencoder
from cf_utils.models.generators.slices import SLICES_PER_BATCH, split_slices


def reconstruct_patients(
    model: DiffusionAutoencoder,
    x: Tensor,
    ids: Ids,
    seed: int = 0,
    steps: int = STEPS,
    iterations: int = ITERATIONS,
    draws: int = 4,
    bfloat16: bool = False,
) -> dict[str, Tensor]:
    """Reconstruct patients x (B, S, H, W) in [0, 1] in each of the four ways, slice by slice.

    In row D, the other patient is the next one in the batch, and the last one's is the first.

    Args:
        model: autoencoder of single slices.
        ids: of the patients; noise depends on (seed, id, slice).
        steps, iterations, draws: as for `diffae_rows.reconstruct_rows`.
        bfloat16: run the networks in bfloat16, as `DiffusionCodes` does.

    Returns: `a` to `d`, each (R, B, S, H, W), where R is `draws` for `c` and else 1. Raises
    ValueError for a single patient.
    """
    ids = check_query(x, torch.zeros(len(x), dtype=torch.int64), ids)
    if x.ndim != 4 or len(x) < 2:
        raise ValueError(f"x: got {tuple(x.shape)}, expected at least 2 patients (B, S, H, W)")
    place, parts = device_of(model, x.device), []
    own, other = split_slices(x), split_slices(x.roll(-1, 0))
    names = [f"{i}:{s}" for i in to_list(ids) for s in range(x.shape[1])]
    with frozen(model), torch.autocast(place.type, torch.bfloat16, enabled=bfloat16):
        for start in range(0, len(own), SLICES_PER_BATCH):
            at = slice(start, start + SLICES_PER_BATCH)
            pair = own[at].to(place), other[at].to(place)
            settings = seed, steps, iterations, draws
            rows = diffae_rows.reconstruct_rows(model, *pair, names[at], *settings)
            parts.append([row.to(x).view(-1, *pair[0].shape) for row in rows])
    joined = (torch.cat(row, 1).view(-1, *x.shape) for row in zip(*parts, strict=True))
    return dict(zip("abcd", joined, strict=True))


def measure_rows(
    classifier: nn.Module, x: Tensor, rows: dict[str, Tensor], body: Tensor | None = None
) -> dict[str, dict[str, float | int]]:
    """Return `measure_reconstruction` of each row, averaged over its draws.

    Args: classifier maps x (B, S, H, W) to logits (B, K); rows are those of `reconstruct_patients`;
    body, bool like x, holds the pixels inside the body.
    """
    logits, found = predict(classifier, x), {}
    for name, draws in rows.items():
        every = [measure_reconstruction(x, y, logits, predict(classifier, y), body) for y in draws]
        means = {k: sum(row[k] for row in every) / len(every) for k in every[0] if k != "n"}
        found[name] = {"n": len(x), "draws": len(every), **means}
    return found
