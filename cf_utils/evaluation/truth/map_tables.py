"""Tables of where explanations of renders change an image, and of whether that is the cause."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics.decision import validity
from cf_utils.evaluation.truth import displacement as moves
from cf_utils.evaluation.truth import localization
from cf_utils.evaluation.truth.displacement import Displacement, Uses
from cf_utils.models.classifiers import predict
from cf_utils.worlds import Factors

INSIDE, AUROC = "share inside", "pixel AUROC"


def compare_maps(maps: Mapping[str, Tensor], region: Tensor) -> pd.DataFrame:
    """Compare how well maps point at the true region of each item.

    Args:
        maps: name -> (B, H, W) >= 0, on any scale.
        region: (B, 1, H, W) bool.

    Returns one row per map: `share inside` and `pixel AUROC` (see `localization`), with the n of
    each, because a map that is empty has no share; and the region's mean `area`, which is the
    share inside of a uniform map.
    """
    inside = {k: localization.share_inside(m, region) for k, m in maps.items()}
    score = {k: localization.pixel_auroc(m, region) for k, m in maps.items()}
    return pd.DataFrame(
        {
            INSIDE: {k: v.nanmean().item() for k, v in inside.items()},
            "area": localization.area(region).nanmean().item(),
            AUROC: {k: v.nanmean().item() for k, v in score.items()},
            "n": {k: int(v.isfinite().sum()) for k, v in score.items()},
            "n, share": {k: int(v.isfinite().sum()) for k, v in inside.items()},
        }
    )


def compare_masks(found: Mapping[str, Counterfactuals], region: Tensor) -> pd.DataFrame:
    """Compare explanations of the same queries whose masks differ, one row each.

    Columns: share of decisions turned, mean area of the mask, share inside, pixel AUROC, n.
    """
    rows = {}
    for name, cfs in found.items():
        assert cfs.mask is not None
        change = localization.change_map(cfs)
        rows[name] = {
            "turned": validity(cfs),
            "area of the mask": cfs.mask[:, 0].double().mean().item(),
            INSIDE: localization.share_inside(change, region).nanmean().item(),
            AUROC: localization.pixel_auroc(change, region).nanmean().item(),
            "n": len(cfs),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def read_items(
    cfs: Counterfactuals,
    read: Displacement,
    factors: Factors,
    classifier: nn.Module,
    causes: Uses,
    readable: Uses,
) -> pd.DataFrame:
    """Return what moved in each explanation, one row per item; NaN where undefined.

    Args:
        read: `displacement.measure` of `cfs`.
        factors: rows that rendered the queries.
        causes, readable: of the classifier's model card, the scenes' causes, and the factors that
            the oracle reads reliably.
    """
    valid = moves.semantic_validity(cfs, factors, classifier, read)
    columns = {
        "turned": cfs.valid.double(),
        "semantic validity": valid,
        "used factor moved": moves.used_factor_moved(read, causes, min_flips=0.05),
        "unused factors moved": moves.unused_factor_moved(read, readable),
        "readings without a verdict": moves.unreadable_share(read),
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def scene_table(
    items: pd.DataFrame, scenes: pd.Series, ceiling: pd.Series, largest: pd.Series
) -> pd.DataFrame:
    """Average values per item over each kind of scene.

    Args:
        items: values per item, one row each, with a column "pixel AUROC".
        scenes: kind of scene per item.
        ceiling: semantic validity per item of the renderer's own change.
        largest: largest true change of a value, per member; its index holds the member's scene.

    Returns one row per kind: the means, `ceiling`, n, "n, region" (items with a true region), and
    "largest true change" (median).
    """
    return (
        items.groupby(scenes)
        .mean()
        .assign(
            ceiling=ceiling.groupby(scenes).mean(),
            n=scenes.value_counts(),
            **{
                "n, region": items[AUROC].groupby(scenes).count(),
                "largest true change": largest.groupby(level=0).median(),
            },
        )
    )


def decisive_parts(maps: Mapping[str, Tensor], region: Tensor, needed: Tensor) -> pd.DataFrame:
    """Compare maps with the decisive part of each region, one row per item.

    Args:
        maps: "ACE" and "the renderer", (B, H, W).
        region: (B, 1, H, W) bool.
        needed: (B, 1, H, W) bool, of `localization.decisive_regions`. The rest of the region counts
            on neither side.
    """
    columns = {
        "area": localization.area(region),
        "area, decisive part": localization.area(needed),
        AUROC: localization.pixel_auroc(maps["ACE"], region),
        "of the decisive part": localization.pixel_auroc(maps["ACE"], needed, region),
        "the renderer's": localization.pixel_auroc(maps["the renderer"], needed, region),
    }
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def follow_table(
    follows: Mapping[str, Tensor], target: Tensor, names: tuple[str, ...]
) -> pd.DataFrame:
    """Share of explanations that another reader follows: over all, per target, and n.

    Args:
        follows: method -> (B,) bool, whether the reader decides for the target.
        target: (B,) int64; names: of the classes.
    """
    rows = {}
    for method, hit in follows.items():
        hit = hit.double().cpu()
        per_class = {f"to {k}": hit[target.cpu() == c] for c, k in enumerate(names)}
        means = {k: v.mean().item() if len(v) else float("nan") for k, v in per_class.items()}
        rows[method] = {"all": hit.mean().item(), **means, "n": len(hit)}
    return pd.DataFrame.from_dict(rows, orient="index")


def share_moved(read: Displacement, valid: Tensor, names: list[str]) -> pd.Series:
    """Per factor, the share of valid explanations in which the oracle sees it move.

    Args: valid (B,) bool; names: of the factors.
    """
    n = max(int(valid.sum()), 1)
    hits = {k: read.read_factor(k)[0] & valid.to(read.moved.device) for k in names}
    return pd.Series({k: hit.double().sum().item() / n for k, hit in hits.items()})


def flip_alone(
    classifiers: Mapping[str, nn.Module], factors: Factors, moved: Mapping[str, tuple[str, ...]]
) -> pd.DataFrame:
    """Share of scenes whose decision flips if the renderer moves some factors from 0 to 1.

    Everything else is held still.

    Args:
        classifiers: name -> classifier of renders.
        factors: N scenes.
        moved: name of the row -> factors to move together.

    Returns one row per entry of `moved`, one column per classifier, and n.
    """
    rows = {}
    for row, names in moved.items():
        ends = []
        for value in (0.0, 1.0):
            there = factors
            for name in names:
                there = there.move(name, value)
            ends.append(there.world.render(there))
        flips = {}
        for who, f in classifiers.items():
            low, high = (predict(f, x).argmax(1) for x in ends)
            flips[who] = (low != high).double().mean().item()
        rows[row] = flips | {"n": len(factors)}
    return pd.DataFrame.from_dict(rows, orient="index")
