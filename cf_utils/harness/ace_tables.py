"""Tables 1, 2, 5 and 6 of ACE beside ours, its variants, and diversity over seeds.

A column has its official name only with the published network behind it; otherwise its name ends
in "embedded". Columns that begin with "paper" hold the printed values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.evaluation import tables
from cf_utils.evaluation.baselines import NoChange, baseline_rows
from cf_utils.evaluation.metrics import identity, perceptual
from cf_utils.evaluation.metrics.decision import validity
from cf_utils.explainers.ace import pre_explanation
from cf_utils.harness.ace_arms import STAGES
from cf_utils.harness.ace_cases import FaceCase
from cf_utils.harness.cases import Case
from cf_utils.harness.results import reported
from cf_utils.models import encoders

TABLE_5 = ("FR", "FID", "sFID", "MNAC", "CD")
NAN = float("nan")


def mean_change(cfs: Counterfactuals) -> Tensor:
    """Mean absolute change of a pixel's value per item, in [0, 1]. (B,), lower is closer."""
    return (cfs.counterfactual - cfs.query).abs().flatten(1).mean(1)


def mask_area(cfs: Counterfactuals) -> Tensor:
    """Share of each image that its mask lets change. (B,) in [0, 1], NaN without masks."""
    if cfs.mask is None:
        return torch.full((len(cfs),), torch.nan)
    return cfs.mask[:, :1].float().mean((1, 2, 3))


def find_anchors(
    case: Case, cfs: Counterfactuals, pgd: Counterfactuals
) -> dict[str, Counterfactuals]:
    """Return what every method stands between: no change, PGD and, on renders, the true change.

    Args:
        cfs: explanations of the case's faces; the true change must reach their scores.
        pgd: PGD of the same faces, for photographs.
    """
    if case.truth is None:
        same = NoChange()(case.classifier, case.data.x, cfs.target, case.data.ids)
        return {"no change": same, "PGD": pgd}
    uses = case.truth.uses
    return baseline_rows(case.classifier, case.data, cfs.target, uses, scores=cfs.score)


def measure_columns(
    case: FaceCase,
    cfs: Counterfactuals,
    linked: Counterfactuals,
    columns: Sequence[str] = ("fid", "sfid", "fr"),
    **more: Any,
) -> pd.DataFrame:
    """Return rows of `tables.ace_table`: `columns` of `cfs`, and MNAC and CD of `linked`.

    Args:
        linked: answers of the same method on faces whose attributes go together. Where attributes
            are independent, CD is the noise of its oracle.
        more: arguments of `tables.ace_table`.
    """
    f, on, of = case.classifier, case.device, case.of_attributes
    theirs = {"training": of.correlations, "attribute": of.attribute, "embedded": False}
    theirs["oracle"] = case.dataset if case.official else case.attributes
    return pd.concat(
        [
            tables.ace_table(cfs, f, tuple(columns), device=on, **more),
            tables.ace_table(linked, f, ("mnac", "cd"), device=on, **theirs),
        ]
    )


def stage_table(
    case: FaceCase,
    stages: Mapping[str, Counterfactuals],
    linked: Mapping[str, Counterfactuals],
) -> pd.DataFrame:
    """Return Table 5: stages and anchors, each metric with the printed value beside it.

    Args:
        stages: row -> explanations; rows without a printed value have none in the paper.
        linked: the same rows on faces whose attributes go together.

    Returns: also `mean change`, n, and "n, attributes" (of MNAC and CD).
    """
    printed = reported("ace", "Table 5").query("task == @case.label")
    printed = printed.assign(method=printed.method.str.lower())
    printed = printed.pivot_table(index="method", columns="metric", values="value")
    printed["FR"] /= 100  # printed in per cent
    if case.dataset == "celebahq":  # Table 5 is CelebA's
        printed[:] = NAN
    rows = {}
    for key, cfs in stages.items():
        found = measure_columns(case, cfs, linked[key])
        rows[key] = {"mean change": mean_change(cfs).mean().item()}
        for metric in TABLE_5:
            rows[key] |= _official_or_embedded(found, metric, case.official)
            if key in (*STAGES, "ACE"):
                rows[key][f"paper's {metric}"] = printed.loc[key.lower(), metric]
    n = len(next(iter(stages.values())))
    n_linked = len(next(iter(linked.values())))
    return pd.DataFrame(rows).T.assign(n=n, **{"n, attributes": n_linked})


def _official_or_embedded(found: pd.DataFrame, name: str, official: bool) -> dict[str, float]:
    """Return a metric by the published network, or else by the embedded one under its name."""
    ours, value = f"{name.lower()}_embedded", found.value[name.lower()]
    if pd.isna(value) and (not official or ours in found.index):
        return {f"{name}, embedded": found.value.get(ours, value)}
    return {name: value}


def stage_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return FID and CD of Table 5's stages as metrics, such as `fid_embedded_pre`."""
    return {
        f"{column.lower().replace(', ', '_')}_{key.split('-')[0].lower()}": table.loc[key, column]
        for column in table.columns
        if column.startswith(("FID", "CD"))
        for key in (*STAGES, "ACE")
    }


def faces_table(
    case: FaceCase,
    cfs: Counterfactuals,
    linked: Counterfactuals,
    distance: str,
    seed: int,
) -> pd.DataFrame:
    """Return the columns of Table 1 (of Table 2 for CelebA-HQ), one per row, ours and the paper's.

    Args:
        linked: as in `measure_columns`.
        distance: l1 or l2, which names the paper's row.
        seed: of random pairs and splits.
    """
    name = "ace " + distance
    paper = reported("ace", paper_table(case)).query("task == @case.label")
    paper = paper[paper.method.str.lower() == name].set_index("metric").value
    paper["FVA"] /= 100  # printed in per cent
    chosen = tuple(k for k in tables.FACES if k not in ("mnac", "cd"))
    more = {"labels": case.data.y, "seed": seed, "official_cout": case.official}
    ours = measure_columns(case, cfs, linked, chosen, face=case.face, judge=case.judge, **more)
    values = [paper.get({"sfid": "sFID"}.get(k, k.upper()), NAN) for k in ours.index]
    ours.insert(1, f"paper, ACE {distance}", values)
    return ours


def paper_table(case: FaceCase) -> str:
    """Return which of the paper's tables has the case's columns."""
    return "Table 2" if case.dataset == "celebahq" else "Table 1"


def similarity_table(
    case: FaceCase, found: Mapping[str, Counterfactuals], seed: int
) -> pd.DataFrame:
    """Return Table 6: similarity of query and answer as a face (FS) and as a scene (S3).

    Rows with fewer than two valid explanations are left out. The row "random" compares two queries
    of the first method. Empty, with columns FS, S3 and n, where a published network is missing.

    Args: found: row -> explanations; ACE, pre-CE and DiME have printed values.
    """
    columns = ["FS", "S3", "n"]
    try:
        nets = [encoders.load(k, case.device) for k in ("vggface2", "simsiam") if case.official]
    except FileNotFoundError:
        return pd.DataFrame(columns=columns, dtype=float)
    person, scene = nets or (case.face, case.alexnet)
    end = "" if case.official else "_embedded"
    rows: dict[str, list[float]] = {}
    random: list[float] = []
    for key, cfs in found.items():
        cfs = cfs.select(cfs.valid)
        if len(cfs) < 2:
            continue
        pair = (cfs.query, cfs.counterfactual)
        values = identity.fva_fs(person, *pair, seed=seed) | identity.s3(scene, *pair, seed)
        rows[key] = [values[f"fs{end}"], values[f"s3{end}"], len(cfs)]
        random = random or [values[f"fs{end}_random"], values[f"s3{end}_random"], len(cfs)]
    rows |= {"random": random} if random else {}
    printed = reported("ace", "Table 6").query("task == @case.label")
    printed = printed.replace({"ace": "ACE", "dime": "DiME"})
    printed = printed.pivot_table(index="method", columns="metric", values="value")
    ours = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return ours.join(printed.add_prefix("paper's "))


def variant_table(
    found: Mapping[str, Counterfactuals], anchors: Mapping[str, Counterfactuals]
) -> pd.DataFrame:
    """Return flip rate, change, mask and passes of ACE's variants, and of anchors on those faces.

    Args: anchors: explanations of at least the same first faces.
    """
    rows, n = {}, len(next(iter(found.values())))
    for key, cfs in found.items():
        rows[key] = {
            "FR": validity(cfs),
            "mean change": mean_change(cfs).mean().item(),
            "of the pre-explanation": (pre_explanation(cfs) - cfs.query).abs().mean().item(),
            "mask": mask_area(cfs).mean().item(),
            "UNet passes": cfs.n_forward_generator.double().mean().item(),
        }
    for key, cfs in anchors.items():
        few = cfs.select(range(n))
        rows[key] = {"FR": validity(few), "mean change": mean_change(few).mean().item()}
    return pd.DataFrame(rows).T.assign(n=n)


def measure_diversity(
    case: FaceCase, answers: Mapping[str, Sequence[Counterfactuals]]
) -> pd.Series:
    """Return sigma_L per way of answering: mean LPIPS over pairs of seeds, mean over faces.

    NaN without LPIPS's weights.

    Args: answers: way -> one result per seed, all of the same faces.
    """
    found = {}
    for way, results in answers.items():
        if case.lpips is None:
            found[way] = NAN
            continue
        runs = torch.stack([cfs.counterfactual for cfs in results])
        valid = torch.stack([cfs.valid for cfs in results])
        found[way] = perceptual.diversity(case.lpips, runs, valid).nanmean().item()
    return pd.Series(found)
