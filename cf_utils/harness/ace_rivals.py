"""ACE beside DiME, FastDiME and DiME with ACE's mask: a row per method, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.evaluation import tables
from cf_utils.evaluation.metrics import decision, features, image, perceptual
from cf_utils.evaluation.truth import displacement, localization, true_counterfactuals
from cf_utils.evaluation.truth.displacement import Displacement
from cf_utils.evaluation.truth.true_counterfactuals import TrueSet
from cf_utils.explainers import presets
from cf_utils.harness.ace_cases import FaceCase
from cf_utils.harness.ace_tables import mean_change
from cf_utils.harness.ace_truth import Ruler

FLOOR = 0.9  # flip rate below which a rival is not compared
FEWEST = 3  # valid explanations below which there is no KID
PASTED = "DiME, pasted"  # costs DiME's passes and the paste's
COMPARED = ("semantic validity", "change", "unused factors moved")
INTERVAL = {
    "mean": "",
    "low": "_low",
    "high": "_high",
}  # entry of a difference -> end of its metric


class Comparison(NamedTuple):
    """ACE and its rivals; rows are methods unless stated otherwise."""

    whole: pd.DataFrame  # each method on all of its queries
    paired: pd.DataFrame  # all methods, and the anchors of a rendered case, on DiME's queries
    able: tuple[str, ...]  # rivals that flip enough decisions to be compared
    differences: pd.DataFrame  # (rival, quantity): ACE minus rival, 95 % interval over queries

    @property
    def both(self) -> pd.DataFrame:
        """Both tables of methods, one above the other."""
        return pd.concat({"all its queries": self.whole, "the same queries": self.paired})

    def metrics(self) -> dict[str, float]:
        """Return the whole table and the differences in semantic validity as metrics."""
        found = {
            f"{column}{_tag(key)}": row[column]
            for key, row in self.whole.iterrows()
            for column in self.whole.columns
            if " " not in column
        }
        for key in self.able if len(self.differences) else ():
            row = self.differences.loc[(key, COMPARED[0])]
            name = f"semantic_validity_less{_tag(key)}"
            found |= {f"{name}{end}": row[entry] for entry, end in INTERVAL.items()}
        return found


def _tag(key: object) -> str:
    """Return the end of a method's metric names: '' for ACE, "_ace_paper" is "_paper"."""
    words = str(key).replace("'s", "").split(", ")
    return "".join(f"_{word.lower()}" for word in words if word != "ACE")


def compare(
    ruler: Ruler,
    ace: Counterfactuals,
    rivals: Mapping[str, Counterfactuals],
    anchors: Mapping[str, Counterfactuals],
) -> Comparison:
    """Compare ACE with its rivals.

    Args:
        ruler: of the case, which measures displacements.
        ace: explanations of all queries.
        rivals: method -> explanations of the first queries; DiME's set which queries are paired.
        anchors: no change, PGD and the true change of all queries.
    """
    n, found = len(rivals["DiME"]), {"ACE": ace, **rivals}
    before = {PASTED: [rivals["DiME"]]}
    few = {key: cfs.select(range(n)) for key, cfs in found.items()}
    whole = {key: measure_row(ruler, cfs, *before.get(key, [])) for key, cfs in found.items()}
    paired = {
        key: whole[key] if len(found[key]) == n else measure_row(ruler, cfs, *before.get(key, []))
        for key, cfs in few.items()
    }
    for key, cfs in {} if ruler.case.official else anchors.items():
        paired[key] = measure_row(ruler, cfs.select(range(n)))
    able = tuple(key for key in rivals if paired[key]["flip_rate"] >= FLOOR)
    lines = {}
    if able and not ruler.case.official:
        ours = measure_items(ruler, few["ACE"])
        for key in able:
            theirs = measure_items(ruler, few[key])
            lines |= {(key, k): decision.paired_difference(ours[k], theirs[k]) for k in COMPARED}
    differences = pd.DataFrame(lines).T.rename_axis(["ACE less", "of"]) if lines else pd.DataFrame()
    return Comparison(pd.DataFrame(whole).T, pd.DataFrame(paired).T, able, differences)


def measure_row(ruler: Ruler, cfs: Counterfactuals, *before: Counterfactuals) -> dict[str, float]:
    """Return one method's row: rates, cost, and what the case can measure.

    Args:
        cfs: explanations of the case's first queries.
        before: earlier searches that `cfs` reuses; their cost is added.
    """
    case, first, every = ruler.case, slice(0, len(cfs)), (cfs, *before)
    counts = [c.n_forward_generator for c in every if c.n_forward_generator is not None]
    of = case.of_attributes
    published = {"oracle": case.dataset, "training": of.correlations, "attribute": of.attribute}
    mine = published if case.official else {"face": case.face, "judge": case.judge}
    rows = tables.ace_table(
        cfs,
        case.classifier,
        tables.FACES if case.official else ("cout", "fr"),
        labels=case.data.y[first],
        embedded=False,
        device=case.device,
        official_cout=case.official,
        **mine,
    ).value
    found = {"n": len(cfs), "flip_rate": rows["fr"], "cout": rows["cout"]}
    found["seconds_per_image"] = sum(c.seconds[first].mean().item() for c in every)
    if case.official:
        found |= rows.drop(["fr", "cout"]).to_dict()
    else:
        found |= {key: rows.get(key) for key in ("cout_judge", "fs_embedded")}
        found |= _truth_columns(ruler, cfs)
    found["mean change"] = mean_change(cfs).mean().item()
    return found | {"UNet passes": sum(c[first].double().mean().item() for c in counts)}


def _truth_columns(ruler: Ruler, cfs: Counterfactuals) -> dict[str, float]:
    """Return semantic validity, factors moved, true gains and KID of explained renders."""
    truth, case = ruler.case.truth, ruler.case
    assert truth is not None
    read, at = ruler.measure(cfs), truth.factors.take(range(len(cfs)))
    items = measure_items(ruler, cfs, read)
    members = true_counterfactuals.find(cfs, at, case.classifier, truth.uses)
    found = {
        "semantic_validity": items["semantic validity"].nanmean().item(),
        "used_factor_moved": displacement.used_factor_moved(read, truth.uses).nanmean().item(),
        "unused_factor_moved": items["unused factors moved"].nanmean().item(),
        "unread": displacement.unreadable_share(read).mean().item(),
    }
    found |= measure_gains(case, cfs, members, localization.member_regions(members, at))
    valid = cfs.select(cfs.valid)
    if len(valid) < FEWEST:
        return found | {"kid_embedded": float("nan")}
    made = features.extract(case.alexnet, valid.counterfactual)
    return found | {"kid_embedded": image.kid(case.fresh_features, made)["kid_embedded"]}


def measure_items(
    ruler: Ruler, cfs: Counterfactuals, read: Displacement | None = None
) -> dict[str, Tensor]:
    """Return the compared quantities per item, (B,) each; the change is NaN for failed items.

    Args: read: `ruler.measure(cfs)`, if it is known.
    """
    truth = ruler.case.truth
    assert truth is not None
    read, at = read or ruler.measure(cfs), truth.factors.take(range(len(cfs)))
    solid = displacement.semantic_validity(cfs, at, ruler.case.classifier, read)
    change = decision.mask_failed(mean_change(cfs), cfs.valid)
    unused = displacement.unused_factor_moved(read, ruler.quiet)
    return dict(zip(COMPARED, (solid, change, unused), strict=True))


def measure_gains(
    case: FaceCase, cfs: Counterfactuals, members: TrueSet, regions: Tensor
) -> dict[str, float]:
    """Return mean true gains over all pixels and inside the true regions, by pixels and by LPIPS.

    Args: members, regions: true counterfactuals of the queries, and where they differ from them.
    """
    ways = {"true_gain": {}, "true_gain_inside": {"regions": regions}}
    if (net := case.lpips) is not None:
        by = {"distance": lambda a, b: perceptual.lpips_distance(net, a, b)}
        ways |= {"true_gain_lpips": by, "true_gain_lpips_inside": {"regions": regions, **by}}
    return {
        key: true_counterfactuals.true_gain(cfs, members, **way).nanmean().item()
        for key, way in ways.items()
    }


def relative_seconds(comparison: Comparison, case: FaceCase, iterations: tuple[int, int]) -> float:
    """Return DiME's seconds over ACE's on the same queries, each for a whole search.

    A search that was cut short is scaled up by its share of the passes.

    Args: iterations: ACE's, those made and those of a whole search.
    """
    whole = presets.get("dime", case.dataset).build(prior=case.prior).steps
    made = case.sizes.dime_steps or whole
    dime, ace = (comparison.paired.loc[key, "seconds_per_image"] for key in ("DiME", "ACE"))
    dime = dime * whole * (whole + 1) / (made * (made + 1))
    return dime / (ace * iterations[1] / iterations[0])
