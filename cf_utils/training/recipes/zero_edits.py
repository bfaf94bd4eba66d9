"""Zero edits of renders: images that pass through a shipped generator with nothing to change.

The generators of a world are its diffusion prior, and the GANs and autoencoders that explain its
classifiers. A zero edit is what the explainer with that generator returns as `zero_edit`. Patients
of several slices pass through an autoencoder of single slices one slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.explainers.xgem import XGEM
from cf_utils.harness import folders
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.generators.diffae import ITERATIONS, STEPS, DiffusionAutoencoder
from cf_utils.models.generators.slices import DiffusionCodes, SlicedModel
from cf_utils.models.teacher import Teacher
from cf_utils.training.progress import report
from cf_utils.training.recipes.renders import render_bytes
from cf_utils.worlds import Factors, World

SIGMAS = (0.14, 0.27, 0.5)  # noise levels to which the prior's zero edit noises an image
BATCH = 50  # images that pass through a generator at once


def find_prior(world: World) -> str | None:
    """Return the name of the world's diffusion prior, or None if it has no checkpoint."""
    name = f"{world.name}_ddpm"
    return name if (checkpoints.FOLDER / f"{name}.safetensors").exists() else None


def list_generators(world: World) -> list[str]:
    """List the shipped generators of a world: its prior, then its GANs, then its autoencoders.

    GANs and autoencoders of another size than the world's default are left out, because no oracle
    reads their images.
    """
    prior = find_prior(world)
    names = [name for kind in ("gan", "autoencoder") for name in list_kind(kind, world)]
    return [prior, *names] if prior else names


def list_kind(kind: str, world: World) -> list[str]:
    """List the shipped GANs or autoencoders of a world, at its default size."""
    return [
        name
        for name in checkpoints.names(kind)
        if name.startswith(f"{world.name}_") and checkpoints.exists(name) and _fits(name, world)
    ]


def _fits(name: str, world: World) -> bool:
    """Whether a generator's images have the world's default size."""
    size = checkpoints.read_card(name).architecture.get("arguments", {}).get("size")
    return (tuple(size) if isinstance(size, list | tuple) else (size, size)) == tuple(world.size)


def list_stale(card: Card, world: World) -> list[str]:
    """List the shipped generators whose null the card of an oracle does not hold.

    Either the card knows no such generator, or another checkpoint of it ships now.
    """
    quality = card.quality
    known = {quality.get("null_by"): quality.get("null_by_sha256")}
    known |= {name: row["sha256"] for name, row in quality.get("null_per_generator", {}).items()}
    return [name for name in list_generators(world) if known.get(name) != hash_of(name)]


def is_slow(name: str) -> bool:
    """Whether a generator needs many passes per image: a diffusion autoencoder, which inverts."""
    if not checkpoints.exists(name):
        return False
    return checkpoints.read_card(name).architecture["class"] == "DiffusionAutoencoder"


def hash_of(name: str) -> str:
    """Return the sha256 of the weights file of a shipped checkpoint."""
    return files.sha256(checkpoints.FOLDER / f"{name}.safetensors")


def render_zero_edits(
    factors: Factors, seed: int, name: str | None = None, x: Tensor | None = None
) -> Tensor:
    """Return renders after a zero edit by a generator, uint8 (N, C, H, W).

    The prior noises an image to a level and denoises it; the images take the levels in `SIGMAS` in
    turn. A GAN generates the image's own bin, by the classifier that the GAN explains. An
    autoencoder reconstructs the image.

    The images are kept in results/run/cache, under a hash of the world's code, the factors, the
    seed, the generator and a GAN's classifier.

    Args:
        seed: of the prior's noise.
        name: of the generator; None: the world's prior.
        x: `render_bytes(factors)`, if the caller has it; None: rendered here.
    """
    prior = find_prior(factors.world)
    name = name or prior or f"{factors.world.name}_ddpm"
    used = [name] if name == prior else [name, *_explained(checkpoints.read_card(name))]
    key = files.sha256(
        factors.world.sha256(),
        factors.values,
        factors.ids,
        str((factors.seed, seed, *((STEPS, ITERATIONS) if is_slow(name) else ()))),
        *(checkpoints.FOLDER / f"{checkpoint}.safetensors" for checkpoint in used),
    )
    path = folders.root() / "cache" / f"{name}-{key[:20]}.safetensors"
    if path.exists():
        return files.read_tensors(path)["x"]
    report(f"passing {len(factors):,} images through {name}")
    x = render_bytes(factors) if x is None else x
    if name == prior:
        out = _pass_through_prior(name, factors, x, seed)
    else:
        edit = load_zero_edit(name)
        batches = core.progress(x.split(BATCH), desc=name)
        out = torch.cat([_to_bytes(edit(batch.float() / 255)) for batch in batches])
    files.write_tensors(path, {"x": out})
    return files.read_tensors(path)["x"]


def load_zero_edit(name: str) -> Callable[[Tensor], Tensor]:
    """Load a GAN or an autoencoder; return its zero edit of images x (B, C, H, W) in [0, 1].

    It is that of `Exaggeration` or of `XGEM`, or, with a diffusion autoencoder, of `DiffExplainer`.
    Raises FileNotFoundError if the classifier that a GAN explains is missing.
    """
    model, card = checkpoints.load(name)
    if isinstance(model, ConditionalGAN):
        explained = load_two_classes(card.settings["classifier"], card.settings.get("output", 0))
        return Exaggeration(gan=model, classifier=explained).zero_edit
    if isinstance(model, DiffusionAutoencoder):
        model = DiffusionCodes(model, model.size, STEPS)
    elif getattr(model, "channels", 3) == 1:
        model = SlicedModel(model)
    return XGEM(model=model).zero_edit


def load_two_classes(name: str, output: int = 0) -> nn.Module:
    """Load a shipped classifier as one of two classes; of independent outputs, it keeps one."""
    model = checkpoints.load(name, kind="classifier").model
    return model if isinstance(model, Teacher) else OneOutput(model, output)


def _explained(card: Card) -> list[str]:
    """Return the name of the classifier that a GAN explains, as a list; empty for no GAN."""
    classifier = card.settings.get("classifier")
    return [classifier] if classifier else []


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _pass_through_prior(name: str, factors: Factors, x: Tensor, seed: int) -> Tensor:
    """Noise images x uint8 (N, C, H, W) to the levels in `SIGMAS` in turn, and denoise them."""
    from cf_utils.models.generators.diffusion import noise_of  # diffusers is slow to import

    chain, out = checkpoints.load(name).model.chain("50"), torch.empty_like(x)
    for k, sigma in enumerate(SIGMAS):
        batches = torch.arange(k, len(x), len(SIGMAS)).split(BATCH)
        for rows in core.progress(batches, desc=f"prior at {sigma}"):
            images = x[rows].float() / 255
            noise = noise_of(seed, factors.ids[rows], images, "zero edit")
            with torch.no_grad():
                z = chain.filter(images, chain.schedule.steps_for(sigma), noise)
            out[rows] = _to_bytes(z)
    return out
