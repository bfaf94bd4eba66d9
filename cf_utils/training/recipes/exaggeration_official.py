"""Progressive exaggeration of official images, with the paper's settings; takes hours on a GPU.

None of these checkpoints ships. First train the classifier that is explained:
`cf train celeba_densenet --data DIR` or `cf train chexpert_densenet --data DIR`.

Settings: 128 x 128 pixels, ten bins, batches of 32 and 20,000 updates of the generator (Singla et
al. and their script). Deviations: one update of the discriminator per update of the generator (the
script makes five; the paper gives no number), and a warm-up on reconstruction alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cf_utils.datasets import celeba, chexpert
from cf_utils.datasets.base import OnDisk
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput, predict
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.image_classifiers import ImageDenseNet
from cf_utils.training import loop
from cf_utils.training.balanced import BalancedImages
from cf_utils.training.exaggeration_quality import measure_quality
from cf_utils.training.exaggeration_rounds import Round, describe_rounds, fit_rounds
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.photographs import (
    CLASSIFIER,
    WORKERS,
    labels_loss,
    measure_labels,
    read_batches,
)

BATCH, PER_EPOCH = 32, 16_000
ROUNDS = (Round(4, None), Round(40))  # 500 updates per epoch
NETWORK: dict[str, Any] = {"size": 128, "widths": (64, 128, 256, 512, 512), "critic": 64}


def train_gan(
    train: OnDisk,
    test: OnDisk,
    classifier: str,
    label: str,
    seed: int,
    folder: Path | None,
    empty: str = "error",
) -> Trained:
    """Train the GAN that explains one output of a multi-label DenseNet-121.

    Args:
        train, test: splits of the same data set.
        classifier: name of its checkpoint, whose card lists the outputs under `classes`.
        label: the output to explain.
        empty: what to do about bins without images, "error" or "skip".
    """
    net, card = checkpoints.load(classifier, kind="classifier")
    classes = list(card.extra["classes"])
    f = OneOutput(net, classes.index(label))
    batches = [predict(f, x).softmax(1)[:, 1] for x, _ in read_batches(train, 256)]
    arguments = {"channels": train[0][0].shape[0], **NETWORK}
    gan = ConditionalGAN(**arguments)
    data = BalancedImages(train, torch.cat(batches), gan.bins, PER_EPOCH, empty)
    source = {"classifier": classifier, "label": label, "batch_size": BATCH}
    log = fit_rounds(
        gan,
        f,
        data,
        ROUNDS,
        batch_size=BATCH,
        seed=seed,
        folder=folder,
        workers=WORKERS,
        settings=source,
    )
    entries = {
        "data": {"name": f"{train.source} (official)", "split": f"train ({len(train):,} images)"},
        "architecture": {"class": "ConditionalGAN", "arguments": arguments},
        "classes": [f"not {label}", label],
        "settings": source | describe_rounds(ROUNDS),
    }

    def measure(gan: ConditionalGAN) -> dict[str, Any]:
        few = test.take(range(min(256, len(test)))).in_memory().x
        return measure_quality(gan, f, few)

    return Trained(gan.cpu(), entries, log, measure)


@recipe("celeba_smiling_gan")
def celeba_smiling_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "Smiling" of celeba_densenet; crop of 150 pixels."""
    return train_celeba_gan("Smiling", root, seed, folder)


@recipe("celeba_young_gan")
def celeba_young_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "Young" of celeba_densenet; crop of 150 pixels."""
    return train_celeba_gan("Young", root, seed, folder)


def train_celeba_gan(label: str, root: str, seed: int, folder: Path | None) -> Trained:
    """Train the GAN that explains one output of celeba_densenet."""
    train, test = (celeba.load(root, split, label, crop=150) for split in ("train", "test"))
    return train_gan(train, test, "celeba_densenet", label, seed, folder)


@recipe("chexpert_cardiomegaly_gan")
def chexpert_cardiomegaly_gan(root: str, seed: int, folder: Path | None) -> Trained:
    """The GAN that explains the output "Cardiomegaly" of chexpert_densenet."""
    label = "Cardiomegaly"
    train, test = (chexpert.load(root, split, label) for split in ("train", "test"))
    return train_gan(train, test, "chexpert_densenet", label, seed, folder)


@recipe("chexpert_densenet")
def chexpert_densenet(root: str, seed: int, folder: Path | None) -> Trained:
    """DenseNet-121 of CheXpert's observation Cardiomegaly, 128 pixels, one channel.

    Radiographs with an uncertain label are left out.
    """
    train, validation = (chexpert.load(root, split) for split in ("train", "validation"))
    model = ImageDenseNet(1, channels=1)
    log = loop.fit(
        model,
        train,
        [loop.Part(labels_loss, lr=CLASSIFIER["lr"])],
        epochs=CLASSIFIER["epochs"],
        batch_size=min(CLASSIFIER["batch_size"], len(train)),
        seed=seed,
        workers=WORKERS,
        folder=folder,
        settings=CLASSIFIER,
    )
    card = {
        "data": {"name": "chexpert (official)", "split": f"train ({len(train):,} images)"},
        "architecture": {"class": "ImageDenseNet", "arguments": {"outputs": 1, "channels": 1}},
        "classes": ["Cardiomegaly"],
        "settings": CLASSIFIER,
    }

    def measure(model: torch.nn.Module) -> dict[str, Any]:
        return measure_labels(model, validation, ("Cardiomegaly",))

    return Trained(model.cpu(), card, log, measure)
