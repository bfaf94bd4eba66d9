"""Conditional GANs that explain the classifiers of the worlds by progressive exaggeration.

Deviations from the paper's training, each also in the model card:

* Encoder and generator first learn to reconstruct; with the paper's weights and a cold start, the
  reconstruction terms drown the classifier's.
* The classifier's term has up to twenty times the paper's weight, the adversarial term 0.5 to 5
  times, and reconstruction at the end twice. The classifier sees randomly shifted images with
  noise, so that adversarial noise does not satisfy it.
* For the shortcut classifier of radiographs, the discriminator sees shifted images with noise, too.
  Without them it tells generated images apart by their finest detail, and does not punish a
  texture.
* The learning rate rises to at most five times the paper's and falls to 0, because these trainings
  are short.
* Half of the training images have the label's factor moved near its threshold, because the
  classifiers are seldom undecided and the bins must be equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cf_utils import worlds
from cf_utils.models import checkpoints
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.weights import channels_last
from cf_utils.training.balanced import BalancedImages, classifier_outputs
from cf_utils.training.exaggeration import Disturbance, Weights
from cf_utils.training.exaggeration_quality import measure_quality
from cf_utils.training.exaggeration_rounds import Round, describe_rounds, fit_rounds
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.multi_label import LABELS, SHORT_HAIR_SMILES
from cf_utils.training.recipes.renders import Renders, describe_data, render_bytes
from cf_utils.training.recipes.zero_edits import load_two_classes
from cf_utils.worlds import Factors, Graph, World

BATCH, PER_EPOCH = 16, 6400  # images of a step, and of an epoch of balanced draws
DISTURB = Disturbance(shift=3, noise=0.1)
FOLLOW = Round(10, Weights(f=20.0), 1e-3, disturb=DISTURB, decay=True)
BALANCE = Round(10, Weights(cgan=5.0, f=10.0), 6e-4, disturb=DISTURB, decay=True)
FINISH = Round(4, Weights(0.5, 20.0, 200.0), 4e-4, disturb=DISTURB, decay=True)
COARSE = Disturbance(shift=3, noise=0.2)  # hides the finest detail from the discriminator
NATURAL = Round(
    4, Weights(2.0, 20.0, 150.0), 4e-4, disturb=DISTURB, decay=True, disturb_critic=COARSE
)
FIRST = (Round(5, None), FOLLOW, FINISH)  # of a network with random weights
RADIOGRAPHS = (Round(5, None), BALANCE, FINISH)
NEXT = (FINISH,)  # of one that starts from another's weights
SHORT = (Round(8, None), Round(2, Weights(0.5, 20.0, 200.0), 6e-4, disturb=DISTURB, decay=True))
PACEMAKER = ("pacemaker", 0.5)  # what the shortcut classifier of radiographs looks at
HEART = ("heart_size", 0.5)  # factor of radiographs, and its value at the label's threshold


def sample_near(
    world: World, factor: str, middle: float, n: int, variant: str | Graph, seed: int
) -> Factors:
    """Sample training images; the second half has a factor moved to within 0.15 of `middle`."""
    factors = world.sample(n, "train", variant, seed)
    generator = torch.Generator().manual_seed(seed)
    near = middle + 0.3 * (torch.rand(n, generator=generator) - 0.5)
    value = torch.where(torch.arange(n) < n // 2, factors[factor], near.clamp(0, 1))
    return factors.move(factor, value)


def train_gan(
    classifier: str,
    label: str,
    seed: int,
    folder: Path | None,
    *,
    output: int = 0,
    n: int = 24_000,
    variant: str | Graph = "independent",
    start: str | None = None,
    near: tuple[str, float] | None = None,
    rounds: Sequence[Round] | None = None,
    empty: str = "error",
    per_epoch: int = PER_EPOCH,
    **build: Any,
) -> Trained:
    """Train the GAN that explains one output of a world's shipped classifier.

    Args:
        classifier: name of its checkpoint, which begins with the name of the world.
        label: the label that the output decides.
        output: of a multi-label classifier.
        n: renders, from which balanced batches are drawn.
        variant: of the world, for the training images.
        start: checkpoint of another GAN whose weights are the first ones; None: random.
        near: (factor, value) near which half of the images lie; None: the label's own threshold, if
            it has one.
        rounds: of the training; None: `NEXT` with a `start`, otherwise `FIRST`.
        empty: what to do about bins without images, see `BalancedImages`.
        per_epoch: images of an epoch.
        build: arguments of `ConditionalGAN`.
    """
    world = worlds.of_checkpoint(classifier)
    one, f = world.label(label), load_two_classes(classifier, output)
    build = {"channels": world.channels, "size": world.size[0], **build}
    gan, rounds = channels_last(ConditionalGAN(**build)), rounds or (NEXT if start else FIRST)
    if start:
        checkpoints.load_weights(start, gan)
    near = near or ((one.factor, one.threshold) if one.factor else None)
    factors = world.sample(n, "train", variant, seed)
    if near:
        factors = sample_near(world, *near, n, variant, seed)
    p = classifier_outputs(f, render_bytes(factors))
    data = BalancedImages(Renders(factors), p, gan.bins, per_epoch, empty)
    source = {"classifier": classifier, "output": output, "n": n, "start": start}
    source["near"] = near[0] if near else None
    middle = f"; half of them with {near[0]} near {near[1]}" if near else ""
    log = fit_rounds(
        gan, f, data, rounds, batch_size=BATCH, seed=seed, folder=folder, settings=source
    )
    card = {
        "data": describe_data(world, f"train ({n:,} renders, {variant}{middle})"),
        "architecture": {"class": "ConditionalGAN", "arguments": build},
        "classes": one.classes,
        "settings": source | {"batch_size": BATCH, **describe_rounds(rounds)},
    }
    x = render_bytes(world.sample(128, "test", seed=seed)).float() / 255
    return Trained(gan.cpu(), card, log, lambda gan: measure_quality(gan, f, x))


@recipe("faces_smile_gan", embedded=True)
def faces_smile_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The conditional GAN that explains faces_smile_causal, 64 x 64 pixels."""
    return train_gan("faces_smile_causal", "smile", seed, folder)


@recipe("faces_smile_biased_gan", embedded=True)
def faces_smile_biased_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the biased classifier faces_smile_biased, on unbiased renders."""
    return train_gan("faces_smile_biased", "smile", seed, folder, start="faces_smile_gan")


@recipe("faces_smile_gan_biased_images", embedded=True)
def faces_smile_gan_biased_images(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the unbiased classifier, but sees only the biased images."""
    return train_gan(
        "faces_smile_causal",
        "smile",
        seed,
        folder,
        variant=SHORT_HAIR_SMILES,
        start="faces_smile_gan",
    )


@recipe("faces_labels_smile_gan", embedded=True)
def faces_labels_smile_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "smile" of faces_labels_causal."""
    return train_output_gan("smile", seed, folder)


@recipe("faces_labels_age_gan", embedded=True)
def faces_labels_age_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "age" of faces_labels_causal."""
    return train_output_gan("age", seed, folder)


@recipe("faces_labels_fringe_gan", embedded=True)
def faces_labels_fringe_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "fringe" of faces_labels_causal."""
    return train_output_gan("fringe", seed, folder)


def train_output_gan(label: str, seed: int, folder: Path | None) -> Trained:
    """Train the GAN that explains one output of faces_labels_causal."""
    return train_gan(
        "faces_labels_causal",
        label,
        seed,
        folder,
        output=LABELS.index(label),
        start="faces_smile_gan",
    )


@recipe("radiographs_cardiomegaly_gan", embedded=True)
def radiographs_cardiomegaly_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains radiographs_cardiomegaly_causal, 64 x 64 pixels, one channel."""
    return train_gan(
        "radiographs_cardiomegaly_causal",
        "cardiomegaly",
        seed,
        folder,
        near=HEART,
        rounds=RADIOGRAPHS,
    )


@recipe("radiographs_shortcut_gan", embedded=True)
def radiographs_shortcut_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the classifier of radiographs that relies on the pacemaker."""
    return train_gan(
        "radiographs_cardiomegaly_shortcut",
        "cardiomegaly",
        seed,
        folder,
        near=PACEMAKER,
        empty="skip",  # the classifier is never sure that the label is absent
        start="radiographs_cardiomegaly_gan",
        rounds=(NATURAL,),
    )


@recipe("lung_ct_gan", embedded=True)
def lung_ct_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains lung_ct_mortality: four slices of 96 x 96 pixels, a code of 252."""
    return train_gan(
        "lung_ct_mortality",
        "mortality",
        seed,
        folder,
        n=8000,
        rounds=SHORT,
        per_epoch=1600,
        widths=(16, 32, 48, 64, 7),
        critic=8,
    )
