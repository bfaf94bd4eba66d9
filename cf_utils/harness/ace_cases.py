"""Cases of ACE on faces: queries, networks, sizes of the side experiments, and what measures them.

A rendered case has shipped networks: classifier, prior, a second classifier with a shortcut, an
oracle of the factors, and embedded encoders. An official case reads CelebA or CelebAMask-HQ from a
folder; only the published networks measure it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from cf_utils.core.choices import check_choice
from cf_utils.datasets import celeba, rendered
from cf_utils.datasets.base import InMemory
from cf_utils.evaluation.metrics import features, perceptual
from cf_utils.harness import cases
from cf_utils.harness.cases import ATTRIBUTES, SPLITS, Case
from cf_utils.models import checkpoints, classifiers, encoders, oracle_columns

SHORTCUT = "smile"  # label of the classifier with a shortcut


@dataclass(frozen=True)
class Sizes:
    """Numbers of queries and steps of the side experiments."""

    batch: int  # images that are explained at once
    n_linked: int  # faces whose attributes go together, for MNAC and CD
    n_shortcut: int  # queries of the classifier with a shortcut
    n_variants: int  # queries of the other distances and attacks
    variant_steps: int  # iterations of these; GD and C&W take twice as many
    n_dime: int  # queries of DiME, on which all methods are compared
    dime_steps: int  # steps of DiME, n (n + 1) / 2 passes per scale; 0: the preset's
    n_fastdime: int  # queries of FastDiME
    n_null: int  # fresh renders that pass through a rival's chain without an edit
    n_diverse: int  # queries that are explained with several seeds
    n_seeds: int  # number of seeds
    n_fresh: int  # fresh renders, which pass through the filter and which KID takes for real


SIZES = {
    "demo": Sizes(8, 3, 3, 1, 5, 1, 14, 2, 5, 1, 2, 32),
    "embedded": Sizes(8, 64, 64, 4, 50, 64, 0, 64, 64, 4, 5, 1000),
    "paper": Sizes(16, 3, 3, 1000, 50, 1000, 60, 1000, 5, 100, 5, 32),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceCase(Case):
    """What ACE explains on faces, and with which networks its explanations are measured."""

    label: str
    sizes: Sizes
    fresh: InMemory  # validation renders; an official case has its queries here
    linked: Case | None = None  # faces whose attributes go together; None: an official case
    shortcut: Case | None = None  # the same faces' classifier that relies on a shortcut
    face: nn.Module | None = None  # identity encoder with a threshold
    attributes: Any = None  # independent reader of all labels, with `names`
    oracle: Any = None  # of the world's factors

    @property
    def of_attributes(self) -> Case:
        """The case whose explanations MNAC and CD measure."""
        return self.linked or self

    @property
    def accuracy(self) -> float:
        """The classifier's accuracy on the test set of its model card, or else on the queries."""
        if self.card is not None:
            return float(self.card.quality["test_accuracy"])
        return classifiers.accuracy(self.classifier, self.data.x, self.data.y)

    @property
    def judge(self) -> nn.Module | None:
        """Independent classifier of the same label, or None."""
        if self.attributes is None:
            return None
        return classifiers.OneOutput(self.attributes, self.attributes.names.index(self.label))

    @property
    def readable(self) -> tuple[str, ...]:
        """Factors that the oracle reads reliably."""
        return oracle_columns.readable_factors(self.truth.oracle) if self.truth else ()

    @property
    def reads(self) -> float:
        """R^2 of the oracle's reading of the label's factor; NaN without an oracle."""
        if self.truth is None:
            return float("nan")
        return float(self.truth.oracle.quality["columns"][self.label]["r2"])

    @cached_property
    def lpips(self) -> nn.Module | None:
        """LPIPS, on AlexNet for renders and on VGG for photographs.

        None, with a warning that says how to get them, where its weights are missing: one missing
        column must not end a run of many hours.
        """
        try:
            net = perceptual.lpips_network("vgg" if self.official else "alex")
        except FileNotFoundError as e:
            warnings.warn(f"no LPIPS: {e}", stacklevel=2)
            return None
        return net.to(self.device)

    @cached_property
    def fresh_features(self) -> features.Features:
        """AlexNet's features of the fresh renders, the real images of KID."""
        return features.extract(self.alexnet, self.fresh.x)

    @cached_property
    def alexnet(self) -> nn.Module:
        """The embedded encoder of FID, KID and S3."""
        return encoders.load("alexnet", self.device)


def rendered_case(
    label: str, n: int, sizes: str, seed: int = 0, device: torch.device | str = "cpu"
) -> FaceCase:
    """Return n test renders of faces with the shipped networks.

    Args:
        label: smile or age.
        sizes: key of SIZES.
        seed: of the training labels from which correlations are measured.
        device: of the networks.
    """
    check_choice("sizes", sizes, list(SIZES))
    wanted = SIZES[sizes]
    build = partial(cases.rendered_case, "faces", seed=seed, device=device)
    nets = {k: checkpoints.load(f"faces_{k}", device).model for k in ("attributes", "oracle")}
    return FaceCase(
        **_content(build(label, "causal", n)),
        label=label,
        sizes=wanted,
        fresh=rendered.load("faces", "validation", n=wanted.n_fresh),
        linked=build(label, "causal", wanted.n_linked, variant="correlated"),
        shortcut=build(SHORTCUT, "shortcut", wanted.n_shortcut),
        face=checkpoints.load("faces_identity", device).model,
        **nets,
    )


def official_case(
    dataset: str,
    root: str,
    label: str,
    n: int,
    sizes: str,
    device: torch.device | str = "cpu",
    broken: str = "error",
) -> FaceCase:
    """Return the first n faces that ACE's code explains, with the published networks.

    Args:
        dataset: celeba or celebahq.
        sizes: key of SIZES.
        root, label, device, broken: as in `cases.official_case`.
    """
    check_choice("sizes", sizes, list(SIZES))
    base = cases.official_case(dataset, root, label, n, device=device, broken=broken)
    return FaceCase(**_content(base), label=label, sizes=SIZES[sizes], fresh=base.data)


def compare_crops(case: FaceCase, root: str, broken: str = "error") -> dict[int, float]:
    """Return the accuracy on CelebA's queries for each way in which papers crop them.

    The keys are sides in pixels. A classifier is right only on the crop that it was trained with.
    Empty for other data.
    """
    found = {}
    for crop in celeba.CROPS if case.official and case.dataset == "celeba" else ():
        attribute = ATTRIBUTES.get(case.label, case.label)
        cut = celeba.load(root, SPLITS["celeba"], attribute, crop=crop, broken=broken)
        cut = cut.take(range(len(case.data))).in_memory()
        found[crop] = round(classifiers.accuracy(case.classifier, cut.x, cut.y), 3)
    return found


def _content(case: Case) -> dict[str, Any]:
    """Return the fields of a case by name; its parts are not copied."""
    return {f.name: getattr(case, f.name) for f in fields(case)}
