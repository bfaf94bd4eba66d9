"""Cases of DiffExplainer: patients of four CT slices, black boxes, and all that explains them.

A rendered case holds patients of the world `lung_ct` and the shipped networks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.core import Explainer
from cf_utils.datasets import rendered
from cf_utils.explainers import presets
from cf_utils.explainers.diffexplainer import DIRECTIONS
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.harness.cases import Case, Truth
from cf_utils.models import checkpoints, oracle_columns
from cf_utils.models.agent import OBJECTIVES, Agent
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import predict
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.generators.diffae import DiffusionAutoencoder
from cf_utils.models.generators.latent import LatentModel
from cf_utils.models.generators.slices import DiffusionCodes, SlicedModel
from cf_utils.models.teacher import Teacher
from cf_utils.worlds import lung_ct

WORLD = "lung_ct"
SITES = ("site_a", "site_b")
UNDECIDED = 0.1  # largest |p - 0.5| of an undecided patient


@dataclass(frozen=True, eq=False, kw_only=True)
class CTCase(Case):
    """What notebook 09 explains, and with which networks."""

    classifier: Teacher  # the black box: patients (B, S, H, W) in [0, 1] -> logits (B, 2)
    autoencoder: DiffusionAutoencoder  # of single slices
    agents: dict[str, Agent]  # objective -> agent of the classifier; the paper's is "l1"
    vae: LatentModel | None = None  # of single slices
    gan: ConditionalGAN | None = None  # of patients, trained for the classifier
    second: CTCase | None = None  # another black box for the same patients and autoencoder
    oracle: Any = None  # of the world's factors
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # disease, lungs, body; bool like x
    noise: Tensor | None = None  # (B,) standard deviation of the image noise

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a slice."""
        height, width = self.data.x.shape[2:]
        return height, width

    @property
    def readable(self) -> tuple[str, ...]:
        """Factors that the oracle reads reliably."""
        if self.truth is None or self.oracle is None:
            return ()
        return oracle_columns.readable_factors(self.truth.oracle)

    def codes(self, steps: int) -> DiffusionCodes:
        """Return the autoencoder as a latent model of patients, with x_T as a part of the code."""
        return DiffusionCodes(self.autoencoder, self.size, steps, bfloat16=True)

    def methods(self, tau: float, seed: int, steps: int, **own: Any) -> dict[str, Explainer]:
        """Return the methods that can explain this case, with the presets of its data set.

        "gradient" is DiffExplainer as in the paper, "pattern" follows the agent's pattern instead.
        Latent shift follows the black box's own gradient through the decoder: with the codes of the
        diffusion autoencoder, and with those of the variational one. ACE attacks a patient through
        the diffusion prior, if there is one.

        Args:
            tau: probability of the target at which all of them stop.
            steps: of inversion and decoding of the diffusion autoencoder.
            own: further settings of DiffExplainer.
        """
        networks = {"autoencoder": self.autoencoder, "agent": self.agents["l1"]}
        explain = presets.get("diffexplainer", self.dataset)
        shift = presets.get("latent_shift", self.dataset)
        common = {"tau": tau, "seed": seed}
        own = {**common, **networks, "steps": steps, "bfloat16": True, **own}
        found: dict[str, Explainer] = {k: explain.build(**own, direction=k) for k in DIRECTIONS}
        found["latent_shift"] = shift.build(**common, model=self.codes(steps))
        if self.vae is not None:
            found["latent_shift_vae"] = shift.build(**common, model=SlicedModel(self.vae))
        if self.prior is not None:
            margin = math.log(tau / (1 - tau))  # lead of the target's logit at p = tau
            ace = presets.get("ace", self.dataset)
            found["ace"] = ace.build(**common, prior=self.prior, margin=margin, bfloat16=True)
        return found

    @torch.no_grad()
    def reconstruct_rivals(self) -> dict[str, Tensor]:
        """Return the patients as the VAE and the GAN reconstruct them, without any noise."""
        x, found = self.data.x, {}
        if self.vae is not None:
            place = next(self.vae.parameters()).device
            model = SlicedModel(self.vae)
            found["VAE"] = torch.cat([model(part.to(place)).to(x) for part in x.split(64)])
        if self.gan is not None:
            found["GAN"] = Exaggeration(gan=self.gan, classifier=self.classifier).zero_edit(x)
        return found


def rendered_case(
    n: int,
    site: str = "site_a",
    seed: int = 0,
    device: torch.device | str = "cpu",
    undecided: bool = False,
) -> CTCase:
    """Return n test patients of a site with the shipped networks.

    Args:
        site: "site_a", where the networks were trained, or "site_b".
        seed: of the patients.
        undecided: take only patients on whom the mortality classifier is undecided.

    Raises FileNotFoundError that names a missing checkpoint and the command that trains it.
    """
    data = rendered.load(WORLD, "test", n=n, variant=site, seed=seed)
    mortality = _build(data, "mortality", "lung_ct_agent", device)
    if undecided:
        data = take_undecided(mortality.classifier, n, site, seed)
        truth = dataclasses.replace(mortality.truth, factors=data.factors)
        mortality = dataclasses.replace(mortality, **_describe(data), truth=truth)
    if not checkpoints.exists(f"{WORLD}_emphysema"):
        return mortality
    second = _build(data, "emphysema", "lung_ct_emphysema_agent", device)
    return dataclasses.replace(mortality, second=second)


def load_cohorts(case: CTCase, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Return test patients x (N, S, H, W) per site: n of each for a rendered case."""
    if case.truth is None:
        return {case.name: case.data.x}
    return {site: rendered.load(WORLD, "test", n, site, seed=seed).x for site in SITES}


def take_undecided(classifier: nn.Module, n: int, site: str, seed: int = 0) -> rendered.Rendered:
    """Return the first n test patients of a site with |p - 0.5| <= 0.1.

    Raises ValueError if there are fewer among the first 24 n + 100.
    """
    data = rendered.load(WORLD, "test", n=24 * n + 100, variant=site, seed=seed)
    p = predict(classifier, data.x).softmax(1)[:, 1]
    rows = ((p - 0.5).abs() <= UNDECIDED).nonzero()[:n, 0]
    if len(rows) < n:
        raise ValueError(f"n: got {n}, expected at most {len(rows)}, the undecided patients")
    return data.take(rows)


def render_atlas(n: int, seed: int = 0) -> Tensor:
    """Return the masks of the disease of n training patients, bool (n, S, H, W)."""
    factors = worlds.get(WORLD).sample(n, "train", "site_a", seed)
    return lung_ct.render_masks(factors)["disease"]


def _build(data: rendered.Rendered, label: str, agent: str, device: torch.device | str) -> CTCase:
    """Return the case of one black box; the mortality classifier has an agent per objective."""
    net, card = checkpoints.load(f"{WORLD}_{label}", device)
    names = {"l1": agent}
    if label == "mortality":
        names |= {k: f"{agent}_{k}" for k in OBJECTIVES if k != "l1"}

    def find(name: str) -> Any:
        name = f"{WORLD}_{name}"
        return checkpoints.load(name, device).model if checkpoints.exists(name) else None

    oracle = checkpoints.exists(f"{WORLD}_oracle")
    known = checkpoints.read_card(f"{WORLD}_oracle") if oracle else Card()
    return CTCase(
        f"{WORLD} (embedded)",
        WORLD,
        classifier=net.eval(),
        prior=find("ddpm"),
        card=card,
        autoencoder=checkpoints.load(f"{WORLD}_diffae", device).model,
        agents={k: checkpoints.load(v, device, kind="agent").model for k, v in names.items()},
        vae=find("vae"),
        gan=find("gan") if label == "mortality" else None,
        oracle=find("oracle"),
        **_describe(data),
        truth=Truth(data.factors, card.quality["uses"], known),
    )


def _describe(data: rendered.Rendered) -> dict[str, Any]:
    """Return the fields of a case that hold patients."""
    factors = data.factors
    masks = lung_ct.render_masks(factors)
    return {"data": data, "masks": masks, "noise": factors.world.noise_sd(factors)}
