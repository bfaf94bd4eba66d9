"""Cases of progressive exaggeration: queries, classifier, GAN, and everything that measures them.

A rendered case has shipped networks: the GAN, the VAE of the rival methods, and an independent
judge, an identity encoder, a factor oracle and a segmenter where the world has them. An official
case reads images from a folder and explains our classifier of CelebA (`cf train celeba_densenet`)
or CheXpert (`cf train chexpert_densenet`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.core import Explainer
from cf_utils.datasets import celeba, chexpert, rendered
from cf_utils.explainers import presets
from cf_utils.harness import cases
from cf_utils.harness.cases import ATTRIBUTES, Case
from cf_utils.models import checkpoints, oracle_columns
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.generators.latent import LatentModel

CARDIOMEGALY = "Cardiomegaly"  # an observation of CheXpert
HEARTS = "chexpert_heart_unet"


@dataclass(frozen=True, eq=False, kw_only=True)
class ExaggerationCase(Case):
    """What the notebooks of progressive exaggeration explain, and with which networks."""

    gan: ConditionalGAN  # trained for the classifier
    layer: nn.Module  # of the classifier, for Grad-CAM: the last dense block
    real: Tensor  # (N, C, H, W), fresh real images for FID
    vae: LatentModel | None = None  # of xGEM and latent shift
    judges: dict[str, nn.Module] = field(default_factory=dict)  # independent, of the same label
    face: nn.Module | None = None  # embedded identity encoder with a threshold
    oracle: Any = None  # of the world's factors
    label: str = ""
    factor: str = ""  # of the world, that the label depends on
    segmenter: Any = None  # of heart and lungs
    official: bool = False

    @property
    def readable(self) -> tuple[str, ...]:
        """Factors that the oracle reads reliably."""
        return oracle_columns.readable_factors(self.truth.oracle) if self.truth else ()

    @property
    def missing(self) -> str:
        """Why hearts cannot be measured; empty with a segmenter."""
        return "" if self.segmenter is not None else f"{HEARTS}.safetensors is missing"

    @property
    def quantities(self) -> dict[str, Any]:
        """The oracle's reading of the label's factor, and the change that it cannot tell from 0.

        The key is the factor. In the form of the argument of `progressions.compatibility_table`;
        empty without an oracle.
        """
        if self.oracle is None:
            return {}
        at = self.oracle.names.index(self.factor)

        def read(images: Tensor) -> Tensor:
            return torch.cat([self.oracle.read(part)[0][:, at].cpu() for part in images.split(200)])

        return {self.factor: (read, 2 * float(self.oracle.null[at]))}

    def methods(self, tau: float, seed: int, slow: bool = False) -> dict[str, Explainer]:
        """Return the methods that can explain this case, with the presets of its data set.

        All stop at probability tau of the target. `slow` adds the methods that search with the
        diffusion prior.
        """
        parts: dict[str, dict[str, Any]] = {
            "exaggeration": {"gan": self.gan, "classifier": self.classifier}
        }
        if self.vae is not None:
            parts |= {name: {"model": self.vae} for name in ("xgem", "latent_shift")}
        if slow and self.prior is not None:
            margin = float(torch.logit(torch.tensor(tau)))
            parts |= {"ace": {"prior": self.prior, "margin": margin}, "dime": {"prior": self.prior}}
        return {
            name: presets.get(name, self.dataset).build(tau=tau, seed=seed, **own)
            for name, own in parts.items()
        }


def rendered_case(
    world: str,
    label: str,
    n: int,
    n_real: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    kind: str = "causal",
) -> ExaggerationCase:
    """Return n test renders of a world with the GAN of one of its shipped classifiers.

    Args:
        world: faces or radiographs.
        label: the world's label that the classifier decides.
        n, n_real: number of queries, and of fresh renders.
        device: of the networks.
        kind: how the classifier was trained.
    """
    base = cases.rendered_case(world, label, kind, n, seed=seed, device=device)

    def find(name: str) -> nn.Module | None:
        name = f"{world}_{name}"
        return checkpoints.load(name, device).model if checkpoints.exists(name) else None

    gan = f"{world}_{label}_gan" if kind == "causal" else f"{world}_{kind}_gan"
    attributes: Any = find("attributes") or find("judge")
    known = attributes is not None and label in attributes.names
    factor = worlds.get(world).label(label).factor
    return ExaggerationCase(
        **_content(base),
        gan=checkpoints.load(gan, device, kind="gan").model,
        layer=base.classifier.model.net.features[-2],
        real=rendered.load(world, "validation", n=n_real, label=label, seed=seed).x,
        vae=find("vae"),
        judges={"judge": OneOutput(attributes, attributes.names.index(label))} if known else {},
        face=find("identity"),
        oracle=find("oracle"),
        label=label,
        factor=factor or label,
        segmenter=find("heart_unet"),
    )


def load_faces(
    root: str,
    label: str,
    n: int,
    n_real: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ExaggerationCase:
    """Return `celeba_case` of the official files in `root`, or rendered faces if it is empty."""
    if root:
        return celeba_case(root, label, n, n_real, device=device)
    return rendered_case("faces", label, n, n_real, seed=seed, device=device)


def celeba_case(
    root: str, label: str, n: int, n_real: int, device: torch.device | str = "cpu"
) -> ExaggerationCase:
    """Return the first n test photographs of CelebA, cropped as in the paper.

    Args:
        root: folder of the official files.
        label: smile or age, the paper's "smiling" and "young".
        n, n_real: number of queries, and of validation photographs for FID.

    Raises FileNotFoundError that names a missing checkpoint and the command that trains it.
    """
    if label not in ATTRIBUTES:
        raise ValueError(f"label: got {label!r}, expected one of {tuple(ATTRIBUTES)}")
    attribute = ATTRIBUTES[label]
    data, more = (celeba.load(root, s, attribute, crop=150) for s in ("test", "validation"))
    net, card = checkpoints.load("celeba_densenet", device)
    has_vae = checkpoints.exists("celeba_vae")
    return ExaggerationCase(
        name="celeba (official)",
        dataset="celeba",
        data=data.take(range(min(n, len(data)))).in_memory(),
        classifier=OneOutput(net, card.extra["classes"].index(attribute)).eval(),
        prior=None,
        gan=checkpoints.load(f"celeba_{attribute.lower()}_gan", device, kind="gan").model,
        layer=net.net.features[-2],
        real=more.take(range(min(n_real, len(more)))).in_memory().x,
        vae=checkpoints.load("celeba_vae", device).model if has_vae else None,
        label=label,
        official=True,
    )


def chexpert_case(
    root: str, n: int, n_real: int, device: torch.device | str = "cpu"
) -> ExaggerationCase:
    """Return the first n frontal test radiographs of CheXpert; the label is cardiomegaly.

    Args:
        root: folder of the official files.
        n, n_real: number of queries, and of validation radiographs for FID.

    Radiographs with an uncertain label are left out. The heart's size needs `chexpert_heart_unet`,
    a U-Net trained on masks of genuine radiographs, which no recipe makes.
    Raises FileNotFoundError that names a missing checkpoint and the command that trains it.
    """
    data, more = (chexpert.load(root, split, CARDIOMEGALY) for split in ("test", "validation"))
    net, card = checkpoints.load("chexpert_densenet", device)
    has_masks = checkpoints.exists(HEARTS)
    return ExaggerationCase(
        name="chexpert (official)",
        dataset="chexpert",
        data=data.take(range(min(n, len(data)))).in_memory(),
        classifier=OneOutput(net, card.extra["classes"].index(CARDIOMEGALY)).eval(),
        prior=None,
        gan=checkpoints.load("chexpert_cardiomegaly_gan", device, kind="gan").model,
        layer=net.net.features[-2],
        real=more.take(range(min(n_real, len(more)))).in_memory().x,
        label=CARDIOMEGALY.lower(),
        segmenter=checkpoints.load(HEARTS, device, kind="segmenter").model if has_masks else None,
        official=True,
    )


def _content(case: Case) -> dict[str, Any]:
    """Return the fields of a case by name; its parts are not copied."""
    return {f.name: getattr(case, f.name) for f in fields(case)}
