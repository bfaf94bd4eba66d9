"""Diffusion models of the rendered worlds: the priors of ACE and DiME on the embedded data.

A search goes no further than a standard deviation of some 0.5 of noise, so a share of each batch is drawn from the levels below
that. The exponential average of the weights is what is kept.

The last round of each prior says v where the first ones say the noise. Where there is little noise both are nearly the same, so
it goes on from their weights; where there is much, their samples were tinted, with a pattern of the folded pixels (`ddpm.py`).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils import core, worlds
from cf_utils.models.generators import diffusion
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe
from cf_utils.training.recipes.renders import Renders


class Round(NamedTuple):
    """A training, in which the rate rises and falls. Small batches are more steps at little more cost."""

    epochs: int
    batch_size: int
    prediction: str = "epsilon"
    low: float = 0.6  # share of the rows that draw from the low levels


def _prior(name: str, seed: int, folder: Path | None, n: int, rounds: tuple[Round, ...], **build):
    world = worlds.get(name)
    model = diffusion.build(size=world.size, prediction=rounds[-1].prediction, **build)
    settings = {
        "n": n,
        "stages": [one._asdict() for one in rounds],
        "lr": 8e-4,
        "ema": 0.999,
        "low_steps": model.schedule.steps_for(0.55),
        "clip": 1.0,
    }
    data, logs = Renders(world.sample(n, "train", seed=seed)), []
    for k, one in enumerate(rounds):
        model.prediction = one.prediction
        loss = functools.partial(diffusion.loss, low=one.low, low_steps=settings["low_steps"])
        logs.append(
            loop.fit(
                model,
                data,
                [loop.Part(loss, lr=settings["lr"])],
                epochs=one.epochs,
                batch_size=one.batch_size,
                seed=seed + 50 * k,
                ema=settings["ema"],
                clip=settings["clip"],
                folder=folder and (folder / f"again{k}" if k else folder),
            )
        )
    log = {k: sum(one[k] for one in logs) for k in ("seconds", "steps", "epochs")} | {
        "losses": [one["losses"] for one in logs]
    }
    card = {
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, independent)",
            "world_sha256": world.sha256(),
        },
        "architecture": diffusion.card_of(model),
        "settings": settings,
    }
    return (
        model.cpu(),
        card,
        log
        | {
            "quality": denoising(
                model.cpu(), world.render(world.sample(256, "test", seed=seed)), seed
            )
        },
    )


@torch.no_grad()
def denoising(model: diffusion.DDPM, x: Tensor, seed: int = 0) -> dict:
    """Root mean square error, in units of [0, 1], of the clean image guessed in one step from noise of standard deviation sigma
    (of images in [-1, 1]); noise of 0.27 itself is an error of 0.135."""
    out: dict = {"test_n": len(x)}
    noise = core.item_noise(seed, torch.arange(len(x)), x.shape[1:], "denoising")
    for sigma in (0.14, 0.27, 0.5, 0.9, 0.99):
        k = model.schedule.steps_for(sigma) - 1
        errors = []
        for z0, e in zip(diffusion.to_model(x).split(64), noise.split(64), strict=True):
            z = model.schedule.noised(z0, k, e)
            guess = model.schedule.clean(
                z, k, model(z, torch.full((len(z),), k))[:, : z.shape[1]], clip=True
            )
            errors.append((guess - z0).square().flatten(1).mean(1) / 4)
        out[f"rmse_{sigma}"] = torch.cat(errors).mean().sqrt().item()
    return out


@recipe("faces_ddpm", embedded=True)
def faces_ddpm(root, seed, folder):
    """The diffusion prior of rendered faces, 64 x 64 pixels."""
    return _prior(
        "faces", seed, folder, n=14_000, rounds=(Round(6, 16), Round(5, 16, "v", low=0.4)), blocks=1
    )


@recipe("roads_ddpm", embedded=True)
def roads_ddpm(root, seed, folder):
    """The diffusion prior of rendered roads, 64 x 128 pixels."""
    return _prior(
        "roads",
        seed,
        folder,
        n=6_000,
        rounds=(Round(4, 32), Round(5, 16), Round(5, 16, "v", low=0.4)),
        blocks=1,
    )
