"""Conditional GANs that explain the classifiers of the worlds by progressive exaggeration.

Deviations from the paper's training, each also in the model card:

* Encoder and generator first learn to reconstruct; with the paper's weights and a cold start, the
  reconstruction terms drown the classifier's.
* Half of the training images have the label's factor moved near its threshold, because the
  classifiers are seldom undecided and the bins must be equally frequent.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cf_utils import worlds
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.weights import channels_last
from cf_utils.training import exaggeration, loop
from cf_utils.training.exaggeration import BalancedImages, Objective, Weights
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import render_bytes
from cf_utils.worlds import Factors, World

BATCH, PER_EPOCH = 16, 6400  # images of a step, and of an epoch of balanced draws


class Round(NamedTuple):
    """One stage of the training: its epochs, and the weights of Eq. 9; None: reconstruction."""

    epochs: int
    weights: Weights | None = Weights()


def sample_ambiguous(world: World, label: str, n: int, variant: str, seed: int) -> Factors:
    """Sample training images; the second half has the label's factor moved near its threshold."""
    factors = world.sample(n, "train", variant, seed)
    one = world.label(label)
    if one.factor is None:
        raise ValueError(f"label: got {label!r}, which has no factor of its own")
    generator = torch.Generator().manual_seed(seed)
    near = one.threshold + 0.3 * (torch.rand(n, generator=generator) - 0.5)
    value = torch.where(torch.arange(n) < n // 2, factors[one.factor], near.clamp(0, 1))
    return factors.move(one.factor, value)


def train_gan(
    world_name: str,
    label: str,
    classifier: str,
    seed: int,
    folder: Path | None,
    rounds: tuple[Round, ...],
    n: int = 24_000,
    variant: str = "independent",
    start: str | None = None,
    **build: Any,
) -> Trained:
    """Train the GAN that explains a shipped classifier of a world.

    Args:
        classifier: name of its checkpoint.
        n: renders, from which balanced batches are drawn.
        variant: of the world, for the training images.
        start: checkpoint of another GAN whose weights are the first ones; None: random.
        build: arguments of `ConditionalGAN`.
    """
    world = worlds.get(world_name)
    f = OneOutput(checkpoints.load(classifier).model)
    build = {"channels": getattr(world, "channels", 3), "size": world.size[0], **build}
    gan = ConditionalGAN(**build)
    if start:
        checkpoints.load_weights(start, gan)
    settings = {
        "n": n,
        "variant": variant,
        "classifier": classifier,
        "rounds": [r.epochs for r in rounds],
        "weights": [r.weights and asdict(r.weights) for r in rounds],
        "weights_of_the_paper": asdict(Weights()),
        "start": start,
        "ema": 0.999,
        "low_precision": "bfloat16",
        **build,
    }
    x = render_bytes(sample_ambiguous(world, label, n, variant, seed))
    p = exaggeration.classifier_outputs(f, x)
    data = BalancedImages(x, p, gan.bins, PER_EPOCH)
    model, logs = channels_last(gan), []
    for k, stage in enumerate(rounds):
        objective = Objective(model, f, stage.weights or Weights())
        log = loop.fit(
            objective,
            data,
            exaggeration.joint_parts() if stage.weights else exaggeration.warm_up_parts(),
            epochs=stage.epochs,
            batch_size=BATCH,
            seed=seed + 50 * k,
            ema=settings["ema"],
            folder=folder and folder / str(k),
            settings={
                "weights": stage.weights and asdict(stage.weights),
                **{key: settings[key] for key in ("classifier", "variant", "start")},
            },
        )
        logs.append(log)
    total = {key: sum(log[key] for log in logs) for key in ("seconds", "steps", "epochs")}
    card = {
        "data": {
            "name": f"{world_name} (embedded)",
            "split": f"train ({n:,} renders, {variant}; half of them near the threshold)",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "ConditionalGAN", "arguments": build},
        "classes": world.label(label).classes,
        "settings": settings,
    }
    log = total | {"losses": [log["losses"] for log in logs]}
    return Trained(model.cpu(), card, log, lambda gan: measure_quality(gan, f, world, seed))


@torch.no_grad()
def measure_quality(
    gan: ConditionalGAN, f: nn.Module, world: World, seed: int, n: int = 128
) -> dict[str, Any]:
    """Measure response, reconstruction and cycle of a GAN on test renders."""
    x = render_bytes(world.sample(n, "test", seed=seed)).float() / 255
    p = f(x).softmax(1)[:, 1]
    own = gan.bin_of(p)
    bins = torch.arange(gan.bins).expand(n, -1)
    z = gan.encode(x)
    images = torch.stack([gan.decode(z, bins[:, k]) for k in range(gan.bins)], 1)  # (n, K, C, H, W)
    actual = f(images.flatten(0, 1)).softmax(1)[:, 1].view(n, -1)
    expected = exaggeration.wanted_output(p[:, None], own[:, None], bins, gan.bins)
    back = gan(images[:, -1], own)
    return {
        "test_n": n,
        "correlation": torch.corrcoef(torch.stack([expected.flatten(), actual.flatten()]))[
            0, 1
        ].item(),
        "response_error": (expected - actual).abs().mean().item(),
        "reconstruction_error": (gan.decode(z, own) - x).abs().mean().item(),
        "cycle_error": (back - x).abs().mean().item(),
    }


@recipe("faces_smile_gan", embedded=True)
def faces_smile_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The conditional GAN that explains faces_smile_causal, 64 x 64 pixels."""
    rounds = (Round(6, None), Round(15))
    return train_gan("faces", "smile", "faces_smile_causal", seed, folder, rounds)
