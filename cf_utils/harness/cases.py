"""Cases: queries, a classifier of two classes, and a diffusion prior if there is one for them.

A rendered case holds renders of a world and the shipped networks. An official case reads images
from a folder, and the published networks from data/weights (`pretrained.FILES` lists the files and
how to get them). A missing file is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import core, worlds
from cf_utils.datasets import bdd, celeba, celebahq, imagenet_pairs, rendered
from cf_utils.datasets.base import InMemory
from cf_utils.evaluation.metrics import perceptual
from cf_utils.evaluation.metrics.attributes import correlations
from cf_utils.models import checkpoints, classifiers, image_classifiers, pretrained
from cf_utils.models.cards import Card
from cf_utils.models.generators import guided_diffusion
from cf_utils.models.generators.diffusion import DDPM, noise_of

ATTRIBUTES = {"smile": "Smiling", "age": "Young"}  # label of a case -> attribute of the data
SPLITS = {  # the splits that ACE's code explains
    "celeba": "validation",
    "celebahq": "test",
    "bdd": "validation",
    "bdd100k": "validation",
    "imagenet": "validation",
}
N_LABELS = 4000  # training rows of a world, from which correlations of its labels are measured


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known about a rendered case."""

    factors: Any  # the queries' factors, as `worlds` sampled them
    uses: Mapping[str, Any]  # per factor, how much it moves the classifier's probability
    oracle: Card  # model card of the world's factor oracle


@dataclass(frozen=True, eq=False)
class Case:
    """What an image method explains, and with which networks."""

    name: str  # to print
    dataset: str  # key of `explainers.presets`
    data: InMemory  # the queries x, with labels y and ids
    classifier: nn.Module  # x (B, C, H, W) in [0, 1] -> logits (B, 2)
    prior: DDPM | None  # None: no diffusion model, as for radiographs
    truth: Truth | None = None  # of a rendered case
    card: Card | None = None  # model card of a shipped classifier
    # For CD: correlations (A,) of the explained attribute with each attribute over the training
    # labels, and its column; None without such labels.
    correlations: Tensor | None = None
    attribute: int | None = None
    perceptual: nn.Module | None = None  # DiME's perceptual term, if its weights are present

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return core.device_of(self.classifier, torch.device("cpu"))

    @property
    def official(self) -> bool:
        """Whether the images are photographs, of which no factor is known."""
        return self.truth is None


@torch.no_grad()
def filter_images(
    prior: DDPM | None,
    x: Tensor,
    ids: core.Ids,
    chain: tuple[str | None, int],
    seed: int,
    stream: str,
    batch: int,
) -> Tensor:
    """Return F_tau of images (B, C, H, W) with nothing attacked, each with its own noise.

    Args:
        chain: spacing and steps.
        seed, stream: of the noise.
        batch: images at once.

    Raises ValueError without a prior.
    """
    if prior is None:
        raise ValueError("case: got one without a prior, expected a diffusion model")
    walk, parts = prior.chain(chain[0]), [x[:0]]
    for at in range(0, len(x), batch):
        part, own = x[at : at + batch], ids[at : at + batch]
        parts.append(walk.filter(part, chain[1], noise_of(seed, own, part, stream)))
    return torch.cat(parts)


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
    """Return the first n renders of a split with one of the world's shipped classifiers.

    Args:
        world: faces, roads or radiographs.
        label: the world's label that the classifier decides.
        kind: how the classifier was trained: causal, shortcut or mixed.
        n, split, variant: number of renders, their split, and the variant of the world.
        seed: seed of the training labels from which correlations are measured.
        device: device of the networks.
    """
    net, card = checkpoints.load(f"{world}_{label}_{kind}", device)
    has_prior = checkpoints.exists(f"{world}_ddpm")
    prior = checkpoints.load(f"{world}_ddpm", device).model if has_prior else None
    labels = worlds.get(world).labels
    sampled = worlds.get(world).sample(N_LABELS, "train", variant, seed)
    values = torch.stack([one(sampled) for one in labels], 1)
    attribute = [one.name for one in labels].index(label)
    data = rendered.load(world, split, n=n, variant=variant, label=label)
    oracle = checkpoints.read_card(f"{world}_oracle")
    return Case(
        f"{world} (embedded)",
        world,
        data,
        classifiers.OneOutput(net).eval(),
        prior,
        truth=Truth(data.factors, card.quality["uses"], oracle),
        card=card,
        correlations=correlations(values, attribute),
        attribute=attribute,
    )


def official_case(
    dataset: str,
    root: str,
    label: str,
    n: int,
    device: torch.device | str = "cpu",
    crop: int = 178,
    broken: str = "error",
) -> Case:
    """Return the first n images that ACE's code explains, with the published networks.

    Args:
        dataset: celeba, celebahq, bdd (BDD-OIA), bdd100k (no labels, so y is -1) or imagenet.
        root: folder of the data set.
        label: smile or age for faces, action for roads, a key of `imagenet_pairs.PAIRS`.
        n: number of queries.
        device: device of the networks.
        crop: side of CelebA's crop in pixels, 178 or 150.
        broken: "error" names an image file that is cut off, "skip" leaves it out.

    Raises FileNotFoundError that says how to get a missing file, and ValueError on unknown names.
    """
    if dataset not in SPLITS:
        raise ValueError(f"dataset: got {dataset!r}, expected one of {tuple(SPLITS)}")
    read = {"bdd": _read_roads, "bdd100k": _read_roads, "imagenet": _read_pairs}
    queries = read.get(dataset, _read_faces)(dataset, root, label, crop, broken)
    key = dataset.removesuffix("100k")
    net = image_classifiers.load_published(pretrained.find(f"{key}_classifier"), key, device)
    prior = guided_diffusion.load(pretrained.find(f"{key}_ddpm"), key, device)
    one_output = len(queries.outputs) == 1
    net = (classifiers.OneOutput if one_output else Pair)(net, *queries.outputs)
    vgg19 = pretrained.FOLDER / pretrained.FILES["vgg19"].file
    return Case(
        dataset,
        key,
        queries.data.take(range(min(n, len(queries.data)))).in_memory(),
        net.eval(),
        prior,
        correlations=queries.correlations,
        attribute=queries.attribute,
        perceptual=perceptual.VGG19().to(device) if vgg19.exists() else None,
    )


@dataclass(frozen=True)
class _Queries:
    """A split of an official data set, and the outputs of the classifier that the case uses."""

    data: Any
    outputs: tuple[int, ...]  # one sigmoid output, or two outputs that compete
    attribute: int | None = None
    correlations: Tensor | None = None


def _read_faces(dataset: str, root: str, label: str, crop: int, broken: str) -> _Queries:
    if dataset == "celeba":
        load = partial(celeba.load, crop=crop, broken=broken)
    else:
        load = partial(celebahq.load, broken=broken)
        _check_label(label, (*ATTRIBUTES, *image_classifiers.PUBLISHED["celebahq"]), dataset)
    name, split = ATTRIBUTES.get(label, label), SPLITS[dataset]
    data = load(root, split, name)
    column, linked = attribute_correlations(load, root, name)
    if dataset == "celeba":
        outputs = load(root, split, None).class_names
    else:
        outputs = image_classifiers.PUBLISHED["celebahq"]
    return _Queries(data, (outputs.index(name),), column, linked)


def _read_roads(dataset: str, root: str, label: str, crop: int, broken: str) -> _Queries:
    _check_label(label, ("action",), dataset)
    part = "oia" if dataset == "bdd" else "100k"
    return _Queries(bdd.load(root, SPLITS[dataset], part, broken=broken), (0,))


def _read_pairs(dataset: str, root: str, label: str, crop: int, broken: str) -> _Queries:
    _check_label(label, tuple(imagenet_pairs.PAIRS), dataset)
    pair = tuple(imagenet_pairs.IMAGENET[c][1] for c in imagenet_pairs.PAIRS[label])
    return _Queries(imagenet_pairs.load(root, SPLITS[dataset], label, broken=broken), pair)


def _check_label(label: str, known: tuple[str, ...], dataset: str) -> None:
    if label not in known:
        raise ValueError(f"label: got {label!r}, expected one of {known} for {dataset}")


def attribute_correlations(
    load: Callable[..., Any], root: str, attribute: str
) -> tuple[int | None, Tensor | None]:
    """Return an attribute's column, and its correlations (A,) over the training labels.

    `load(root, split, attribute)` reads the data set. Returns (None, None) if the training images
    are missing: only the metric CD needs them.
    """
    try:
        train = load(root, "train", None)
    except (FileNotFoundError, ValueError):
        return None, None
    column = train.class_names.index(attribute)
    return column, correlations(train.y, column)


class Pair(nn.Module):
    """Two outputs of a classifier of many classes, as a classifier of two classes."""

    def __init__(self, model: nn.Module, first: int, second: int):
        super().__init__()
        self.model, self.of = model, (first, second)

    def forward(self, x: Tensor) -> Tensor:
        """Return the two logits, (B, 2)."""
        return self.model(x)[:, self.of]
