"""What the renderer proves about ACE's explanations of faces, and about a classifier's shortcut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.datasets import rendered
from cf_utils.evaluation.baselines import PGD, baseline_rows
from cf_utils.evaluation.metrics.decision import validity
from cf_utils.evaluation.truth import displacement
from cf_utils.explainers.ace import ACE
from cf_utils.harness.ace_arms import filter_images
from cf_utils.harness.ace_cases import FaceCase
from cf_utils.models import classifiers
from cf_utils.models.classifiers import predict

N_PROOF = 64  # fresh renders, of which no explanation was made
PROBED = ("smile", "background", "glasses")  # factors that the proof moves
WALL = "background"  # the shortcut


@dataclass(frozen=True, eq=False)
class Ruler:
    """Measures what explanations of a case moved, beyond what the same chain moves without an edit.

    A method that starts from more noise must move a factor further to count.
    """

    case: FaceCase
    explain: ACE
    seed: int
    nulls: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def unedited(self) -> Tensor:
        """The case's fresh faces after the filter of `explain`, (N, 3, H, W)."""
        chain, fresh = (self.explain.spacing, self.explain.steps), self.case.fresh
        return filter_images(self.case, fresh.x, fresh.ids, chain, self.seed, "null")

    @cached_property
    def null(self) -> Tensor:
        """Standard deviation (K,) of the oracle's readings after the filter of `explain`."""
        return displacement.null_sd(self.case.oracle, self.case.fresh.x, self.unedited)

    def null_of(self, cfs: Counterfactuals) -> Tensor:
        """Return the null (K,) of the chain that a result's method walks."""
        walk = tuple(cfs.settings.get(key) for key in ("spacing", "steps"))
        if walk[0] is None or walk == (self.explain.spacing, self.explain.steps):
            return self.null
        if walk not in self.nulls:
            fresh = self.case.fresh
            few = fresh.take(range(min(self.case.sizes.n_null, len(fresh))))
            same = filter_images(self.case, few.x, few.ids, walk, self.seed, "null")
            self.nulls[walk] = displacement.null_sd(self.case.oracle, few.x, same)
        return self.nulls[walk]

    def measure(self, cfs: Counterfactuals) -> displacement.Displacement:
        """Return what the oracle reads as moved, against the method's own null."""
        return displacement.measure(cfs, self.case.oracle, self.null_of(cfs))

    @property
    def quiet(self) -> displacement.Uses:
        """The model card's `uses` of the factors that the oracle reads reliably."""
        assert self.case.truth is not None
        return {key: self.case.truth.uses[key] for key in self.case.readable}

    def check_filter(self, pgd: Counterfactuals) -> dict[str, float]:
        """Return what the filter does to clean faces and to PGD's adversarial ones.

        `sigma` is the standard deviation of the filter's noise, in units of [-1, 1];
        `filter_keeps_decision` is the share of clean fresh faces whose decision survives;
        `pgd_undone_by_filter` is the share of flipped decisions that come back.

        Args: pgd: adversarial queries; a rendered case attacks its fresh faces instead.
        """
        case, f, fresh = self.case, self.case.classifier, self.case.fresh
        before = predict(f, fresh.x, case.sizes.batch).argmax(1)
        after = predict(f, self.unedited, case.sizes.batch).argmax(1)
        fooled = pgd if case.official else PGD(eps=2 / 255)(f, fresh.x, 1 - before, fresh.ids)
        fooled = fooled.select(fooled.valid)
        chain = (self.explain.spacing, self.explain.steps)
        x = filter_images(case, fooled.counterfactual, fooled.ids, chain, self.seed, "look")
        back = predict(f, x, case.sizes.batch).argmax(1) == fooled.source
        levels = case.prior.chain(self.explain.spacing).schedule if case.prior else None
        assert levels is not None
        return {
            "sigma": levels.sigma[self.explain.steps - 1].item(),
            "pgd_undone_by_filter": back.double().mean().item(),
            "filter_keeps_decision": (before == after).double().mean().item(),
        }


def truth_rows(ruler: Ruler, found: Mapping[str, Counterfactuals]) -> pd.DataFrame:
    """Compare explanations of the case's faces with what the renderer knows; empty without truth.

    Columns: `turned` (flip rate), `semantic validity`, `used factor moved`, `unused factors moved`
    (shares, see `evaluation.truth.displacement`), `readings without a verdict`, and n.
    """
    truth, rows = ruler.case.truth, {}
    if truth is None:
        return pd.DataFrame()
    for key, cfs in found.items():
        read = ruler.measure(cfs)
        solid = displacement.semantic_validity(cfs, truth.factors, ruler.case.classifier, read)
        used = displacement.used_factor_moved(read, truth.uses)
        rows[key] = {
            "turned": validity(cfs),
            "semantic validity": solid.nanmean().item(),
            "used factor moved": used.nanmean().item(),
            "unused factors moved": _mean(displacement.unused_factor_moved(read, ruler.quiet)),
            "readings without a verdict": _mean(displacement.unreadable_share(read)),
        }
    return pd.DataFrame(rows).T.assign(n=len(ruler.case.data))


def truth_metrics(case: FaceCase, table: pd.DataFrame) -> dict[str, float]:
    """Return ACE's row of `truth_rows` and its anchors as metrics; empty for an empty table.

    `semantic_validity_ceiling` is that of the true change, `oracle_r2` the oracle's R^2 for the
    label's factor.
    """
    if not len(table):
        return {}
    solid, own = table["semantic validity"], table.loc["ACE"]
    return {
        "oracle_r2": case.reads,
        "semantic_validity": solid["ACE"],
        "semantic_validity_ceiling": solid["true"],
        "semantic_validity_pgd": solid["PGD"],
        "used_factor_moved": own["used factor moved"],
        "unused_factor_moved": own["unused factors moved"],
    }


def _mean(values: Tensor) -> float:
    return values.nanmean().item()


def moved_table(ruler: Ruler, found: Mapping[str, Counterfactuals]) -> pd.DataFrame:
    """In which share of the valid explanations does each factor move? One row per factor.

    Args: found: classifier -> explanations.
    Returns: a column per classifier, and its "n, <classifier>": explanations in which the oracle
        reads the factor. Only factors that the oracle reads reliably.
    """
    shares, numbers = {}, {}
    for who, cfs in found.items():
        read = displacement.measure(cfs, ruler.case.oracle, ruler.null)
        both = {
            key: [(part & cfs.valid).double().sum().item() for part in read.read_factor(key)]
            for key in ruler.case.readable
        }
        shares[who] = {key: a / b if b else float("nan") for key, (a, b) in both.items()}
        numbers[f"n, {who}"] = {key: b for key, (_, b) in both.items()}
    return pd.DataFrame(shares | numbers)


class Proof(NamedTuple):
    """The renderer's experiment on fresh faces."""

    table: pd.DataFrame  # factor x classifier: share of decisions that the factor alone flips
    towards: int  # +1 if the classifier with the shortcut says class 1 at the wall's upper end
    at_home: float  # that classifier's accuracy on faces like those that it learnt from


def prove_shortcut(case: FaceCase, n: int = N_PROOF) -> Proof:
    """Let the renderer move one factor alone to either end of its scale, on n fresh faces."""
    assert case.shortcut is not None
    boxes = {"causal": case.classifier, "shortcut": case.shortcut.classifier}
    fresh = rendered.load("faces", "validation", n=n)
    ends: dict[str, dict[str, Tensor]] = {}
    for key in PROBED:
        both = [fresh.factors.world.render(fresh.factors.move(key, end)) for end in (0, 1)]
        ends[key] = {who: _decide(f, both) for who, f in boxes.items()}  # each (2, n)
    flips = {
        key: {who: (e[0] != e[1]).double().mean().item() for who, e in row.items()}
        for key, row in ends.items()
    }
    own = rendered.load("faces", "validation", n=n, variant="confounded")
    rise = ends[WALL]["shortcut"].diff(dim=0).double().mean()
    at_home = classifiers.accuracy(case.shortcut.classifier, own.x, own.y)
    return Proof(pd.DataFrame(flips).T, int(torch.sign(rise).item()), at_home)


def _decide(f: nn.Module, images: list[Tensor]) -> Tensor:
    """Return decisions (len(images), n)."""
    return torch.stack([predict(f, x).argmax(1) for x in images])


def judge_shortcut(
    ruler: Ruler, cfs: Counterfactuals, moved: pd.DataFrame, proof: Proof
) -> dict[str, float]:
    """Return as metrics how well explanations name the shortcut: does the wall move, and how?

    `wall_moved_shortcut` is the share of explanations that move the wall, among those in which the
    oracle reads it; `wall_moved_right_way_shortcut` is the share of these that go the right way.
    Semantic validity is that of the explanations, of PGD and of the true change.

    Args:
        cfs: explanations of the classifier with the shortcut.
        moved: `moved_table` with the column "shortcut classifier".
        proof: `prove_shortcut` of the same case.
    """
    other = ruler.case.shortcut
    assert other is not None and other.truth is not None
    f, truth, score = other.classifier, other.truth, cfs.score
    anchors = baseline_rows(f, other.data, cfs.target, truth.uses, scores=score)
    solid, reads = {}, {}
    for key, result in {"ACE": cfs, **anchors}.items():
        reads[key] = displacement.measure(result, ruler.case.oracle, ruler.null)
        valid = displacement.semantic_validity(result, truth.factors, f, reads[key])
        solid[key] = valid.nanmean().item()
    read = reads["ACE"]
    change = read.value[:, read.names.index(WALL)]
    right = change * (2 * cfs.target - 1) * proof.towards > 0
    at = read.read_factor(WALL)[0] & cfs.valid
    used = displacement.used_factor_moved(read, truth.uses)[cfs.valid]
    return {
        "semantic_validity_shortcut": solid["ACE"],
        "semantic_validity_shortcut_ceiling": solid["true"],
        "semantic_validity_shortcut_pgd": solid["PGD"],
        "wall_moved_shortcut": float(moved.loc[WALL, "shortcut classifier"]),
        "wall_moved_right_way_shortcut": right[at].double().mean().item(),
        "n_wall_read_shortcut": float(moved.loc[WALL, "n, shortcut classifier"]),
        "used_factor_moved_shortcut": used.nanmean().item(),
        "flip_rate_shortcut": validity(cfs),
        "shortcut_accuracy_at_home": proof.at_home,
        "shortcut_flips_background": float(proof.table.loc[WALL, "shortcut"]),
    }
