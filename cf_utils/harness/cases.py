"""What the notebooks on images explain: queries, a classifier of two classes, its prior, and the presets of the methods for them.

The embedded cases are renders with the shipped networks. The official ones read the data from a folder and the published weights
from data/weights (`weights.FILES` says which file, and how to get it); nothing stands in for a file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.datasets import bdd, celeba, celebahq, imagenet_pairs, rendered
from cf_utils.datasets.base import InMemory
from cf_utils.evaluation.metrics import perceptual
from cf_utils.evaluation.metrics.attributes import correlations
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.models import checkpoints, classifiers, image_classifiers, pretrained
from cf_utils.models.cards import Card
from cf_utils.models.generators import guided_diffusion
from cf_utils.models.generators.diffusion import DDPM

ATTRIBUTES = {"smile": "Smiling", "age": "Young"}  # ours -> CelebA's
LABELS = 4000  # rows of a world's training labels, for their correlations
SPLITS = {
    "celeba": "validation",
    "celebahq": "test",
    "bdd": "validation",
    "bdd100k": "validation",
    "imagenet": "validation",
}  # as ACE's code


@dataclass(frozen=True, eq=False)
class Case:
    """`data`: the queries with their labels y; `dime`, `fastdime`: ACE's rivals; `uses`: of an embedded classifier, what it uses
    (its card), None otherwise. `training` (A,): how the attribute asked for goes with each one among the data's training labels
    (`metrics.attributes.correlations`, for CD), `attribute` its column; None where there are no such labels."""

    name: str
    data: InMemory
    classifier: nn.Module  # x (B, 3, H, W) in [0, 1] -> two logits
    prior: DDPM
    ace: ACE
    dime: DiME
    fastdime: DiME
    uses: Mapping | None = None
    training: Tensor | None = None
    attribute: int | None = None
    card: Card | None = None  # of an embedded classifier


def rendered_case(
    world: str,
    label: str,
    kind: str = "causal",
    n: int = 8,
    split: str = "test",
    seed: int = 0,
    device: torch.device | str = "cpu",
    variant: str = "independent",
) -> Case:
    """The first n renders of a split (of a variant of the world) with the classifier `<world>_<label>_<kind>` (causal, shortcut,
    mixed)."""
    net, card = checkpoints.load(f"{world}_{label}_{kind}", device)
    prior = checkpoints.load(f"{world}_ddpm", device).model
    ace, dime = (ACE.faces, DiME.faces) if world == "faces" else (ACE.roads, DiME.roads)
    labels, made = (
        [one.name for one in worlds.get(world).labels],
        worlds.get(world).sample(LABELS, "train", variant, seed),
    )
    values = torch.stack([one(made) for one in worlds.get(world).labels], 1)
    data = rendered.load(world, split, n=n, variant=variant, label=label)
    return Case(
        f"{world} (embedded)",
        data,
        classifiers.OneOutput(net).eval(),
        prior,
        ace(prior, seed=seed),
        dime(prior, seed=seed),
        dime(prior, seed=seed, fast=True),
        card.quality["uses"],
        correlations(values, labels.index(label)),
        labels.index(label),
        card,
    )


def official_case(
    dataset: str,
    root: str,
    label: str,
    n: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    crop: int = 178,
    broken: str = "error",
) -> Case:
    """The first n images of the split that ACE's code takes, with the published classifier and prior.

    `dataset`: celeba, celebahq (label smile or age), bdd (BDD-OIA), bdd100k (the same networks on images without labels, y -1;
    both label action), imagenet (label: a key of `imagenet_pairs.PAIRS`). `crop`: of CelebA, 178 or 150; `broken`: "skip" leaves
    out images that are cut off, "error" says which one is. Raises FileNotFoundError that names the missing file
    and says how to get it, ValueError on what does not fit. DiME has its perceptual term where VGG19's file lies in data/weights.
    """
    if dataset not in SPLITS:
        raise ValueError(f"dataset: got {dataset!r}, expected one of {tuple(SPLITS)}")
    known = {
        "imagenet": tuple(imagenet_pairs.PAIRS),
        "bdd": ("action",),
        "bdd100k": ("action",),
        "celebahq": (*ATTRIBUTES, *image_classifiers.PUBLISHED["celebahq"]),
    }.get(dataset, (label,))
    if label not in known:
        raise ValueError(f"label: got {label!r}, expected one of {known} for {dataset}")
    split, called, training, attribute = SPLITS[dataset], dataset, None, None
    if dataset in ("celeba", "celebahq"):
        name, source = (
            ATTRIBUTES.get(label, label),
            partial(celeba.load, crop=crop) if dataset == "celeba" else celebahq.load,
        )
        source = partial(source, broken=broken)
        data = source(root, split, name)
        attribute, training = together(source, root, name)
        columns = (
            source(root, split, None).class_names
            if dataset == "celeba"
            else image_classifiers.PUBLISHED["celebahq"]
        )
        output = columns.index(name)
    elif dataset in ("bdd", "bdd100k"):
        data, output = (
            bdd.load(root, split, "oia" if dataset == "bdd" else "100k", broken=broken),
            0,
        )
        dataset = "bdd"
    else:
        data, output = imagenet_pairs.load(root, split, label, broken=broken), None
    net = image_classifiers.load_published(
        pretrained.find(f"{dataset}_classifier"), dataset, device
    )
    prior = guided_diffusion.load(pretrained.find(f"{dataset}_ddpm"), dataset, device)
    if output is None:
        of = [imagenet_pairs.IMAGENET[c][1] for c in imagenet_pairs.PAIRS[label]]
        net = Pair(net, *of)
    else:
        net = classifiers.OneOutput(net, output)
    dime, term = {"bdd": DiME.bdd, "celebahq": DiME.celebahq}.get(dataset, DiME.celeba), {}
    if (pretrained.FOLDER / pretrained.FILES["vgg19"].file).exists():
        term = {"perceptual": perceptual.VGG19().to(device)}
    return Case(
        called,
        data.take(range(min(n, len(data)))).in_memory(),
        net.eval(),
        prior,
        getattr(ACE, dataset)(prior, seed=seed),
        dime(prior, seed=seed, **term),
        DiME.fastdime(prior, seed=seed, **term),
        training=training,
        attribute=attribute,
    )


def together(source: Callable, root: str, name: str) -> tuple[int | None, Tensor | None]:
    """(column of an attribute, its correlation with each over the training labels): CD alone needs them, so where the training
    images are not there the rest goes on without."""
    try:
        seen = source(root, "train", None)
    except (FileNotFoundError, ValueError):
        return None, None
    return (column := seen.class_names.index(name)), correlations(seen.y, column)


class Pair(nn.Module):
    """Two outputs of a classifier of many classes as a classifier of two: the question is which of these it is."""

    def __init__(self, model: nn.Module, first: int, second: int):
        super().__init__()
        self.model, self.of = model, (first, second)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, self.of]
