"""Cases of ACE on roads: queries, networks, sizes of the side experiments, and what measures them.

A rendered case has shipped networks: classifier, prior, a second classifier with a shortcut, an
oracle of the factors, and a judge of the same label. An official case reads BDD-OIA, BDD100k or two
classes of ImageNet from a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core.choices import check_choice
from cf_utils.datasets import rendered
from cf_utils.datasets.rendered import Rendered
from cf_utils.evaluation.metrics import perceptual
from cf_utils.evaluation.truth import displacement
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.harness import cases
from cf_utils.harness.cases import Case
from cf_utils.models import checkpoints, classifiers, encoders, oracle_columns
from cf_utils.worlds import Factors

DRAWN = 12  # renders that are drawn beyond the wanted ones, so that every kind of scene occurs


@dataclass(frozen=True)
class Sizes:
    """Numbers of queries and steps of the side experiments."""

    batch: int  # images that are explained at once
    n_noise: int  # queries of the figure of noise levels
    sigmas: tuple[float, ...]  # noise levels, standard deviations of images in [-1, 1]
    n_attacks: int  # queries of the other attacks
    n_dime: int  # queries of DiME
    dime_steps: int  # steps of DiME, n (n + 1) / 2 passes per scale
    n_shortcut: int  # queries of the second classifier
    n_null: int  # fresh renders that pass through another method's chain without an edit
    n_dreamt: int  # roads that the prior draws from noise alone
    n_fresh: int  # fresh renders, which pass through ACE's chain and which KID takes for real


SIZES = {
    "demo": Sizes(8, 6, (0.04, 0.14, 0.27, 0.75), 2, 1, 12, 3, 6, 8, 40),
    "embedded": Sizes(8, 64, (0.04, 0.08, 0.14, 0.27, 0.5, 0.75), 64, 16, 45, 32, 32, 64, 1000),
    "paper": Sizes(1, 32, (0.08, 0.14, 0.27), 2, 64, 45, 3, 6, 8, 40),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class RoadCase(Case):
    """What ACE explains on roads, and with which networks its explanations are measured."""

    label: str
    sizes: Sizes

    @cached_property
    def accuracy(self) -> float:
        """The classifier's accuracy: on its test renders, or else on the queries with a label."""
        if self.card is not None:
            return float(self.card.quality["test_accuracy"])
        right = self.decide(self.data.x).to(self.data.y.device) == self.data.y
        return right[self.data.y >= 0].double().mean().item()

    @property
    def labels(self) -> Tensor:
        """True classes (B,) for the paper's tables. BDD100k has none: its authors use class 1."""
        y = self.data.y
        return y if bool((y >= 0).all()) else torch.ones_like(y)

    @property
    def layer(self) -> nn.Module:
        """The classifier's last dense block, for Grad-CAM. Only of a rendered case."""
        return self.classifier.get_submodule("model.net.features.denseblock3")

    @property
    def causes(self) -> displacement.Uses:
        """What the model card says about the scenes' causes; empty for photographs."""
        if self.truth is None:
            return {}
        return {k: self.truth.uses[k] for k in self.truth.factors.world.role("cause")}

    @property
    def readable(self) -> displacement.Uses:
        """What the model card says about the factors that the oracle reads reliably."""
        if self.truth is None:
            return {}
        names = oracle_columns.readable_factors(self.truth.oracle)
        return {k: self.truth.uses[k] for k in names}

    @cached_property
    def oracle(self) -> Any:
        """The oracle of the world's factors, or None."""
        if self.official:
            return None
        return checkpoints.load("roads_oracle", self.device).model

    @cached_property
    def judge(self) -> nn.Module | None:
        """An independent classifier of the same label, or None."""
        if self.official:
            return None
        reader: Any = checkpoints.load("roads_attributes", self.device).model
        return classifiers.OneOutput(reader, reader.names.index(self.label))

    @cached_property
    def fresh(self) -> Rendered:
        """Validation renders, which no method explains."""
        return rendered.load("roads", "validation", n=self.sizes.n_fresh)

    @cached_property
    def alexnet(self) -> nn.Module:
        """The embedded encoder of KID."""
        return encoders.load("alexnet", self.device)

    @cached_property
    def lpips(self) -> nn.Module:
        """LPIPS on AlexNet."""
        return perceptual.lpips_network("alex").to(self.device)

    @cached_property
    def _nulls(self) -> dict[tuple[str | None, int, int], Tensor]:
        return {}

    def decide(self, x: Tensor) -> Tensor:
        """Return the classifier's decisions on images x (B, C, H, W), int64 (B,)."""
        return classifiers.predict(self.classifier, x, self.sizes.batch).argmax(1)

    def filter(
        self, x: Tensor, ids: core.Ids, chain: tuple[str | None, int], seed: int, stream="look"
    ) -> Tensor:
        """Return F_tau of images x (B, C, H, W) with nothing attacked, each with its own noise.

        Args:
            chain: spacing and steps.
            seed, stream: of the noise.
        """
        return cases.filter_images(self.prior, x, ids, chain, seed, stream, self.sizes.batch)

    def null(self, chain: tuple[str | None, int], seed: int, n: int | None = None) -> Tensor:
        """Return `displacement.null_sd` of the oracle (K,) for F_tau of n fresh renders.

        It is what the oracle reads in images to which `chain` (spacing, steps) did nothing but
        noise and denoise. n: None takes all fresh renders.
        """
        plain = self.fresh.take(range(min(n or len(self.fresh), len(self.fresh))))
        key = (*chain, len(plain))
        if key not in self._nulls:
            unedited = self.filter(plain.x, plain.ids, chain, seed, "null")
            self._nulls[key] = displacement.null_sd(self.oracle, plain.x, unedited)
        return self._nulls[key]

    def noise_levels(self, explain: ACE) -> dict[int, float]:
        """Return steps -> standard deviation for the levels of the figure and for ACE's own."""
        schedule = explain.prior.chain(explain.spacing).schedule
        steps = {explain.steps, *(schedule.steps_for(sd) for sd in self.sizes.sigmas)}
        return {k: schedule.sigma[k - 1].item() for k in sorted(steps)}

    def ace(self, iterations: int, distance: str, seed: int) -> ACE:
        """Return ACE with the preset of the data set.

        A shorter attack has a smaller largest change. The mask's threshold is a share of it, and is
        raised in proportion.

        Args:
            iterations: of the attack; 0: the preset's.
            distance: l1 or l2.
        """
        preset: Any = presets.get("ace", self.dataset).build(prior=self.prior, seed=seed)
        count = iterations or preset.iterations
        threshold = min(preset.threshold * preset.iterations / count, 0.5)
        explain = preset.with_(iterations=count, threshold=threshold)
        return explain.l2() if distance == "l2" else explain

    def other_attacks(self, explain: ACE, seed: int) -> dict[str, ACE]:
        """Return ACE with signed steps and by the authors' script for BDD; none for photographs.

        The script's mask is dilated by 3 pixels, which is its 15 on an image of this size.
        """
        if self.official:
            return {}
        script: Any = presets.get("ace", "bdd", dilation=3).build(prior=self.prior, seed=seed)
        cut = {"iterations": explain.iterations, "threshold": explain.threshold}
        signed = explain.with_(attack="pgd", step=2 / 255)
        return {"signed steps": signed, "BDD's script": script.with_(**cut)}

    def dime(self, seed: int) -> DiME | None:
        """Return DiME with the preset of the data set; None for ImageNet, which has none."""
        if self.dataset == "imagenet":
            return None
        parts = {"prior": self.prior, "seed": seed, "perceptual": self.perceptual}
        preset: Any = presets.get("dime", self.dataset).build(**parts)
        return preset.with_(steps=self.sizes.dime_steps)


def load_case(
    dataset: str,
    root: str,
    label: str,
    n: int,
    sizes: str,
    seed: int = 0,
    device: torch.device | str = "cpu",
    broken: str = "error",
) -> RoadCase:
    """Return the queries, with the networks that explain and measure them.

    Args:
        dataset: bdd, bdd100k or imagenet, if `root` is one.
        root: folder of the data set; "": rendered roads.
        label: action, or a key of `imagenet_pairs.PAIRS`.
        n: number of queries. Renders show the three scenes with both answers in turn.
        sizes: key of SIZES.
        seed, device, broken: as in `cases.rendered_case` and `cases.official_case`.
    """
    check_choice("sizes", sizes, list(SIZES))
    if root:
        base = cases.official_case(dataset, root, label, n, device=device, broken=broken)
    else:
        drawn = 2 * n + DRAWN
        base = cases.rendered_case("roads", label, "causal", drawn, seed=seed, device=device)
        base = _with_data(base, balance_scenes(base.data, n))
    content = {f.name: getattr(base, f.name) for f in fields(base)}
    return RoadCase(**content, label=label, sizes=SIZES[sizes])


def second_driver(case: RoadCase, seed: int) -> Case | None:
    """Return a classifier with a shortcut, and renders with a car in the right lane.

    The scenes are of lights and pedestrians: in scenes about the car ahead, even a good driver
    looks at lamps. None for photographs.
    """
    if case.official:
        return None
    n, device = case.sizes.n_shortcut, case.device
    drawn = 8 * n + DRAWN
    other = cases.rendered_case("roads", "action", "shortcut", drawn, seed=seed, device=device)
    data: Any = other.data
    return _with_data(other, balance_scenes(data.take(beside_a_car(data.factors)), n))


def beside_a_car(factors: Factors) -> Tensor:
    """Return rows (N,) of lights and pedestrians with a car in the right lane."""
    return ((factors["scene"] > 0) & (factors["right_car"] >= 0.5)).nonzero().flatten()


def balance_scenes(data: Any, n: int) -> Any:
    """Return n renders: each of the three scenes with each of the two answers in turn."""
    kind = pd.Series(2 * data.factors["scene"].int().numpy() + data.y.numpy())
    turn = pd.DataFrame({"turn": kind.groupby(kind).cumcount(), "kind": kind})
    return data.take(turn.sort_values(["turn", "kind"]).index[:n].tolist())


def _with_data(case: Case, data: Any) -> Case:
    """Return the case with other renders as its queries."""
    assert case.truth is not None
    return replace(case, data=data, truth=replace(case.truth, factors=data.factors))
