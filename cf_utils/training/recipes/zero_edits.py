"""Zero edits of renders: images that pass through the diffusion prior with nothing to change."""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.core import files
from cf_utils.harness import folders
from cf_utils.models import checkpoints
from cf_utils.training.progress import report
from cf_utils.training.recipes.renders import render_bytes
from cf_utils.worlds import Factors, World

SIGMAS = (0.14, 0.27, 0.5)  # noise levels to which a zero edit noises an image


def find_prior(world: World) -> str | None:
    """Return the name of the world's diffusion prior, or None if it has no checkpoint."""
    name = f"{world.name}_ddpm"
    return name if (checkpoints.FOLDER / f"{name}.safetensors").exists() else None


def render_zero_edits(factors: Factors, seed: int) -> Tensor:
    """Return renders after a zero edit, uint8 (N, 3, H, W): noised to a level, then denoised.

    The images take the levels in `SIGMAS` in turn. They are kept in results/run/cache, under a hash
    of the world's code, the factors, the seed and the prior.
    """
    from cf_utils.models.generators.diffusion import noise_of  # diffusers is slow to import

    name = find_prior(factors.world)
    key = files.sha256(
        factors.world.sha256(),
        factors.values,
        factors.ids,
        str((factors.seed, seed)),
        checkpoints.FOLDER / f"{name}.safetensors",
    )
    path = folders.root() / "cache" / f"{name}-{key[:20]}.safetensors"
    if path.exists():
        return files.read_tensors(path)["x"]
    report(f"passing {len(factors):,} images through {name}")
    chain, x = checkpoints.load(name).model.chain("50"), render_bytes(factors)
    out = torch.empty_like(x)
    for k, sigma in enumerate(SIGMAS):
        batches = torch.arange(k, len(x), len(SIGMAS)).split(50)
        for rows in core.progress(batches, desc=f"prior at {sigma}"):
            images = x[rows].float() / 255
            noise = noise_of(seed, factors.ids[rows], images, "zero edit")
            with torch.no_grad():
                z = chain.filter(images, chain.schedule.steps_for(sigma), noise)
            out[rows] = (z.clamp(0, 1) * 255).round().to(torch.uint8)
    files.write_tensors(path, {"x": out})
    return files.read_tensors(path)["x"]
