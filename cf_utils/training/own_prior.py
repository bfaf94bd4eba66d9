"""A diffusion prior of your own images, for ACE, DiME and FastDiME, with a card of its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card, hash_data
from cf_utils.models.generators import diffusion
from cf_utils.training.own_split import split_images
from cf_utils.training.recipes.base import round_weights
from cf_utils.training.recipes.diffusion import Round, fit_rounds, measure_denoising
from cf_utils.training.recipes.renders import StoredImages

NAME = "prior"
BATCH = 16
N_SAMPLES, SAMPLING = 16, "50"  # drawn for the card, in that many passes
FILTER, FILTER_STEPS = "33", 5  # of ACE's settings for images
HALF = 0.5  # share of the noise that may be left where the prior counts as able to remove it
UNLIKE, COPIES = 1.3, 0.5  # bounds of the ratio of distances, see `measure_samples`


def train(
    images: str | Path,
    size: int,
    channels: int | None = None,
    steps: int = 3000,
    seed: int = 0,
    resume: Path | None = None,
    out: Path | None = None,
) -> Card:
    """Train a diffusion model on a folder of images; with `out`, write it and its card.

    Args:
        images, size, channels: as in `own_images.load`; `size` is a multiple of 4.
        steps: training steps of 16 images, two thirds predicting the noise, one third v.
        resume: folder of the training state.

    A tenth of the images is held out for the card. Raises ValueError for a size that does not fit,
    or too few images.
    """
    core.check_count("steps", steps)
    if size % 4:
        raise ValueError(
            f"--size: got {size}, expected a multiple of 4 such as {size // 4 * 4 + 4}"
        )
    core.seed_everything(seed)
    x, held_out = split_images(images, size, channels, seed)
    unshuffle = 2 if size % 8 == 0 else 1
    changes = {"size": (size, size), "channels": x.shape[1], "unshuffle": unshuffle, "blocks": 1}
    model = diffusion.build(prediction="v", **changes)
    stored = StoredImages((255 * x).round().to(torch.uint8))
    settings, log = fit_rounds(model, stored, _plan_rounds(len(x), steps), seed, resume)
    model.cpu()
    round_weights(model)
    card = Card(
        recipe=f"cf train prior --images DIR --size {size} --steps {steps} --seed {seed}",
        about="A diffusion prior of one's own images.",
        seed=seed,
        data={"name": Path(images).resolve().name, "split": "train", "sha256": hash_data(x)},
        architecture=diffusion.describe_architecture(model),
        settings=settings,
        quality=describe_quality(model, x, held_out, seed),
        training=log,
        torch=torch.__version__,
    )
    if out is not None:
        checkpoints.save(NAME, model, card, out)
    return card


def _plan_rounds(n: int, steps: int) -> tuple[Round, ...]:
    """Return a round that predicts the noise and one that predicts v, of `steps` steps in all."""
    batch = min(BATCH, n)
    epochs = max(2, round(steps / (n // batch)))
    last = max(1, epochs // 3)
    return Round(epochs - last, batch), Round(last, batch, "v", low=0.4)


def describe_quality(
    model: diffusion.DDPM, train: Tensor, held_out: Tensor, seed: int = 0
) -> dict[str, Any]:
    """Measure a prior on held-out images, and say what it can and cannot do.

    Returns a card's quality: `share_left_*` by noise level, `filter_change`, `sample_distance`,
    and the sentences `can` and `cannot`.
    """
    errors = measure_denoising(model, held_out, seed)
    left = {
        name.removeprefix("rmse_"): error / noise_error(float(name.removeprefix("rmse_")), held_out)
        for name, error in errors.items()
        if name.startswith("rmse_")
    }
    change, level = measure_filter(model, held_out, seed)
    distance = measure_samples(model, train, held_out, seed)
    can, cannot = _judge(left, change, level, distance, len(train))
    shares = {f"share_left_{sigma}": share for sigma, share in left.items()}
    measured = {"filter_change": change, "filter_noise": level, "sample_distance": distance}
    return errors | shares | measured | {"can": can, "cannot": cannot}


def noise_error(sigma: float, x: Tensor) -> float:
    """Return the error of images x in [0, 1] if no noise is removed, or that of their mean image.

    The smaller of the two: at high noise a model that ignores its input does better.

    sigma: standard deviation of the noise in z = sqrt(1 - sigma^2) z_0 + sigma e, z_0 in [-1, 1].
    """
    spread = (x - x.mean(0)).square().mean().sqrt().item()
    return min(sigma / (1 - sigma**2) ** 0.5 / 2, max(spread, 1e-6))


@torch.no_grad()
def measure_filter(model: diffusion.DDPM, x: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return how much ACE's filter changes an image without an edit, and its noise level.

    The change is the mean absolute difference per pixel, in [0, 1].
    """
    chain = model.chain(FILTER)
    noise = diffusion.noise_of(seed, torch.arange(len(x)), x, "filter")
    filtered = chain.filter(x, FILTER_STEPS, noise)
    sigma = (1 - chain.schedule.abar[FILTER_STEPS - 1]) ** 0.5
    return (filtered - x).abs().mean().item(), float(sigma)


@torch.no_grad()
def measure_samples(model: diffusion.DDPM, train: Tensor, held_out: Tensor, seed: int = 0) -> float:
    """Return how far samples lie from the training images, compared with held-out images.

    It is the median distance to the nearest training image (root mean square) of `N_SAMPLES`
    samples, divided by that of the held-out images. Near 1 is right, far below 1 means copies, far
    above 1 means images unlike those of the folder.
    """
    like = train[:1].expand(N_SAMPLES, -1, -1, -1)
    noise = diffusion.noise_of(seed, torch.arange(N_SAMPLES), like, "sample")
    samples = model.chain(SAMPLING).sample(noise)
    near, usual = (
        torch.cdist(x.flatten(1), train.flatten(1)).min(1).values.median()
        for x in (samples, held_out)
    )
    return (near / usual.clamp(min=1e-6)).item()


def _judge(
    left: dict[str, float], change: float, level: float, distance: float, n: int
) -> tuple[list[str], list[str]]:
    """Return sentences on what the prior can and cannot do."""
    able = [sigma for sigma, share in left.items() if share <= HALF]
    unable = [sigma for sigma, share in left.items() if share > HALF]
    can, cannot = [], []
    if able:
        can.append(f"remove at least half of the noise at standard deviations {', '.join(able)}")
    if unable:
        cannot.append(f"remove half of the noise at standard deviations {', '.join(unable)}")
    filters = (
        f"filter as ACE does (noise {level:.2f}): without an edit it changes {change:.3f} of 1"
    )
    (can if min(left.values()) <= HALF and change < 0.05 else cannot).append(filters)
    samples = f"sample new images: their distance to the folder's is {distance:.2f} x the usual one"
    (can if COPIES <= distance <= UNLIKE else cannot).append(samples)
    cannot.append(f"show what is not among its {n} images; edits towards that will look wrong")
    return can, cannot
