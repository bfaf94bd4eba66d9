"""What the renderer, the oracle and the judge know about explanations of roads.

For photographs nothing is known: `consult_renderer` returns None, and tables are empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.metrics import perceptual, saliency
from cf_utils.evaluation.truth import (
    displacement,
    localization,
    map_tables,
    true_counterfactuals,
)
from cf_utils.evaluation.truth.true_counterfactuals import TrueSet
from cf_utils.explainers.ace import ACE, pre_explanation
from cf_utils.explainers.shared.inpaint import edit_size
from cf_utils.harness.cases import Case
from cf_utils.harness.road_cases import RoadCase
from cf_utils.models.classifiers import predict

KINDS = ("brake lamps", "traffic light", "pedestrian")  # what decides in scenes 0, 1 and 2
WHERE = {  # rows of the table of maps -> end of the metric's name
    "ACE": "",
    "random mask": "_random",
    "gradient": "_gradient",
    "Grad-CAM": "_gradcam",
    "Grad-CAM, both signs": "_gradcam_both_signs",
    "PGD": "_pgd",
    "ACE, of another query": "_other_query",
    "ACE, unmasked": "_unmasked",
    "ACE, before the threshold": "_before_threshold",
}
MASKS = {  # columns of the table of masks -> metrics of the narrowest mask
    "turned": "flip_rate",
    "area of the mask": "mask_area",
    "share inside": "share_inside",
    "pixel AUROC": "pixel_auroc",
}


class Known(NamedTuple):
    """What the renderer knows about ACE's explanations of B queries."""

    rows: dict[str, Counterfactuals]  # "ACE", and the baselines of the same queries
    members: TrueSet  # M true counterfactuals with ACE's score
    regions: Tensor  # bool (M, 1, H, W), where each differs from its query
    region: Tensor  # bool (B, 1, H, W), the true region of each query

    @property
    def ace(self) -> Counterfactuals:
        """ACE's explanations."""
        return self.rows["ACE"]

    @property
    def change(self) -> Tensor:
        """The renderer's own change of each member's query, (M, C, H, W)."""
        return self.members.image - self.ace.query[self.members.item]


def consult_renderer(case: RoadCase, cfs: Counterfactuals) -> Known | None:
    """Return the true counterfactuals of ACE's explanations `cfs`; None for photographs."""
    if case.truth is None:
        return None
    f, data, causes = case.classifier, renders(case), case.causes
    rows = {"ACE": cfs, **baseline_rows(f, data, cfs.target, causes, scores=cfs.score)}
    members = true_counterfactuals.find(cfs, data.factors, f, causes)
    regions = localization.member_regions(members, data.factors)
    return Known(rows, members, regions, localization.true_region(members, regions))


def collect_maps(case: RoadCase, known: Known | None, explain: ACE, seed: int) -> dict[str, Tensor]:
    """Return maps (B, H, W) >= 0 that may point at the true region; empty for photographs.

    * ACE, PGD, the renderer: the change that each made.
    * ACE, before the threshold: how far the attack went, dilated; the mask is cut from it.
    * ACE, unmasked: |F_tau(x') - F_tau(x)| with the same noise.
    * ACE, of another query: ACE's map of the query before.
    * gradient, Grad-CAM: saliency of the classifier, without an explanation.
    * random mask: a mask with the area of ACE's.
    """
    if known is None:
        return {}
    cfs, f = known.ace, case.classifier
    query, ids, pre, chain = cfs.query, cfs.ids, pre_explanation(cfs), chain_of(explain)
    assert cfs.mask is not None
    through = case.filter(pre, ids, chain, seed) - case.filter(query, ids, chain, seed)
    cam = saliency.grad_cam(f, case.layer, query, cfs.source)
    ace = localization.change_map(cfs)
    return {
        "ACE": ace,
        "ACE, before the threshold": edit_size(query, pre, explain.dilation)[:, 0].double(),
        "ACE, unmasked": through.abs().sum(1).double(),
        "PGD": localization.change_map(known.rows["PGD"]),
        "gradient": saliency.gradient(f, query, cfs.target).abs().sum(1),
        "Grad-CAM": cam.clamp(min=0),
        "Grad-CAM, both signs": cam.abs(),
        "random mask": saliency.random_mask(cfs.mask[:, :1], ids, seed)[:, 0].double(),
        "ACE, of another query": ace.roll(1, 0),
        "the renderer": localization.change_map(known.rows["true"]),
    }


def chain_of(explain: Any) -> tuple[str | None, int]:
    """Return spacing and steps of the chain through which ACE or DiME sends an image."""
    return explain.spacing, explain.steps


def locate(
    maps: Mapping[str, Tensor], known: Known | None
) -> tuple[pd.DataFrame, dict[str, float | int]]:
    """Return `map_tables.compare_maps`, and its metrics; both are empty for photographs."""
    if known is None:
        return pd.DataFrame(), {}
    where = map_tables.compare_maps(maps, known.region)
    found = {f"pixel_auroc{end}": where["pixel AUROC"][name] for name, end in WHERE.items()}
    ace = where.loc["ACE"]
    found |= {"share_inside": ace["share inside"], "region_area": ace["area"]}
    return where, found | {"n_region": int(ace["n"])}


def compare_masks(
    found: Mapping[str, Counterfactuals], known: Known | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return `map_tables.compare_masks`, and the metrics of the first, narrowest mask."""
    if known is None:
        return pd.DataFrame(), {}
    table = map_tables.compare_masks(found, known.region)
    first = table.iloc[0]
    return table, {f"{metric}_dilation_3": first[name] for name, metric in MASKS.items()}


class Items(NamedTuple):
    """What the oracle reads in explanations, one row per query and one table per method."""

    tables: dict[str, pd.DataFrame]  # of `map_tables.read_items`

    def average(self) -> pd.DataFrame:
        """Return the truth table: means over the queries, one row per method, and n."""
        means = pd.DataFrame({k: one.mean() for k, one in self.tables.items()}).T
        return means.assign(n=[len(one) for one in self.tables.values()])


def read_factors(case: RoadCase, known: Known, explain: ACE, seed: int) -> Items:
    """Read what moved in ACE's explanations and in the baselines."""
    null = case.null(chain_of(explain), seed)
    return Items({k: _read_items(case, cfs, null) for k, cfs in known.rows.items()})


def _read_items(case: RoadCase, cfs: Counterfactuals, null: Tensor) -> pd.DataFrame:
    """Return `map_tables.read_items` of the first len(cfs) queries."""
    factors = renders(case).factors.take(range(len(cfs)))
    read = displacement.measure(cfs, case.oracle, null)
    uses = (case.causes, case.readable)
    return map_tables.read_items(cfs, read, factors, case.classifier, *uses)


def measure_gains(case: RoadCase, known: Known) -> dict[str, float]:
    """Return the mean true gain of ACE's explanations.

    Keys: true_gain (Euclidean), true_gain_lpips; each with `_inside` for the true region alone.
    """

    def lpips(a: Tensor, b: Tensor) -> Tensor:
        return perceptual.lpips_distance(case.lpips, a, b)

    gain = partial(true_counterfactuals.true_gain, known.ace, known.members)
    found = {}
    for name, way in (("true_gain", {}), ("true_gain_lpips", {"distance": lpips})):
        found[name] = gain(**way).nanmean().item()
        found[f"{name}_inside"] = gain(regions=known.regions, **way).nanmean().item()
    return found


def truth_metrics(
    case: RoadCase, known: Known, truth: pd.DataFrame, judged: pd.DataFrame
) -> dict[str, float]:
    """Return what metrics.json holds of the truth table and of the judge's table."""
    found = measure_gains(case, known)
    for row, end in (("ACE", ""), ("PGD", "_pgd"), ("true", "_ceiling")):
        found[f"semantic_validity{end}"] = truth["semantic validity"][row]
        found[f"followed_by_judge{end}"] = judged["all"][row]
    ace, columns = truth.loc["ACE"], _truth(case).oracle.quality["columns"]
    found |= {f"oracle_r2_{k}": columns[k]["r2"] for k in case.causes}
    found["used_factor_moved"] = ace["used factor moved"]
    return found | {"unused_factor_moved": ace["unused factors moved"]}


def ask_judge(case: RoadCase, known: Known) -> pd.DataFrame:
    """Return `map_tables.follow_table` of the judge for ACE and the baselines."""
    seen = {k: is_followed(case, cfs) for k, cfs in known.rows.items()}
    return map_tables.follow_table(seen, known.ace.target, case.data.class_names)


def is_followed(case: RoadCase, cfs: Counterfactuals) -> Tensor:
    """Whether the judge decides for the target, bool (B,)."""
    assert case.judge is not None
    read = predict(case.judge, cfs.counterfactual, case.sizes.batch).argmax(1)
    return read == cfs.target.to(read.device)


def split_by_scene(
    case: RoadCase, known: Known, items: Items, maps: Mapping[str, Tensor]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return `map_tables.scene_table` of ACE, and the reach of its attack as metrics.

    `furthest`: median over queries of the attack's largest change of a value; and
    `largest_true_change`: the same of the true counterfactuals.
    """
    scenes, region = _scenes(case), known.region
    values = {
        "share inside": localization.share_inside(maps["ACE"], region),
        "area": localization.area(region),
        "pixel AUROC": localization.pixel_auroc(maps["ACE"], region),
        "unmasked": localization.pixel_auroc(maps["ACE, unmasked"], region),
    }
    whole = items.tables["ACE"].assign(**{k: v.cpu().numpy() for k, v in values.items()})
    largest = known.change.abs().flatten(1).amax(1).cpu()
    of_member = pd.Series(largest.numpy(), index=scenes[known.members.item.numpy()].to_numpy())
    ceiling = items.tables["true"]["semantic validity"]
    table = map_tables.scene_table(whole, scenes, ceiling, of_member)
    reach = (pre_explanation(known.ace) - known.ace.query).abs().flatten(1).amax(1)
    found = {"furthest": reach.median().item(), "largest_true_change": largest.median().item()}
    return table, found


def split_by_target(
    case: RoadCase, known: Known, maps: Mapping[str, Tensor]
) -> tuple[pd.DataFrame, dict[str, float | None]]:
    """Return `map_tables.decisive_parts` per kind of scene and target, and its metrics."""
    cfs = known.ace
    needed = localization.true_region(
        known.members,
        localization.decisive_regions(
            known.members, known.regions, cfs.query, cfs.target, case.classifier
        ),
    )
    names = case.data.class_names
    aim = pd.Series([names[t] for t in cfs.target.tolist()], name="asked for")
    parts = map_tables.decisive_parts(maps, known.region, needed)
    groups = parts.groupby([_scenes(case), aim])
    table = groups.mean().assign(n=groups["pixel AUROC"].count())
    by_aim = parts["pixel AUROC"].groupby(aim).mean()
    found = {
        "decisive_area": parts["area, decisive part"].mean(),
        "pixel_auroc_decisive": parts["of the decisive part"].mean(),
        "pixel_auroc_to_go": by_aim.get(names[0]),
        "pixel_auroc_to_slow_down": by_aim.get(names[1]),
    }
    return table, found


def _scenes(case: RoadCase) -> pd.Series:
    kinds = [KINDS[int(k)] for k in renders(case).factors["scene"]]
    return pd.Series(kinds, name="scene")


def renders(case: Case) -> Any:
    """Return the queries of a rendered case, which know their factors."""
    return case.data


def _truth(case: Case) -> Any:
    """Return what is known about a rendered case."""
    return case.truth
