"""Searches of ACE on roads and of its rivals, and how their answers compare.

Searches are kept in batches by `Run.explain`, which returns None in a job that has a part of the
work. There `run_shard` makes all batches; the job that joins the parts finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics import decision, features, image
from cf_utils.evaluation.truth import displacement, localization
from cf_utils.explainers.ace import ACE
from cf_utils.harness import results
from cf_utils.harness.ace_arms import explain_first
from cf_utils.harness.cases import Case
from cf_utils.harness.results import Run
from cf_utils.harness.road_cases import RoadCase, second_driver
from cf_utils.harness.road_truth import Known, chain_of, is_followed, renders
from cf_utils.models.generators.diffusion import noise_of

OURS = "gradient descent (ours)"
PRINTED = {  # label of an ImageNet case -> the paper's name of the pair in Table 4
    "zebra-sorrel": "ImageNet zebra-sorrel",
    "cheetah-cougar": "ImageNet cheetah-cougar",
    "egyptian-persian": "ImageNet Egyptian-Persian cat",
}
ROADS = {"bdd": "BDD-OIA", "bdd100k": "BDD100k"}  # data set -> the paper's name of it in Table 3
TAGS = {OURS: "descent", "signed steps": "signed", "BDD's script": "script", "DiME": "dime"}


def explain_rivals(run: Run, case: RoadCase, explain: ACE, seed: int) -> dict[str, Counterfactuals]:
    """Return the first queries explained by ACE with other attacks, and by DiME.

    Photographs have no other attacks, and ImageNet has no DiME either.
    """
    sizes, found = case.sizes, {}
    for name, method in case.other_attacks(explain, seed).items():
        batches = f"ace_{name[:3].lower()}"
        found[name] = explain_first(run, batches, method, case, sizes.batch, sizes.n_attacks)
    dime = case.dime(seed)
    if dime is not None:
        found["DiME"] = explain_first(run, "dime", dime, case, sizes.batch, sizes.n_dime)
    return {name: cfs for name, cfs in found.items() if cfs is not None}


def explain_second(
    run: Run, case: RoadCase, explain: ACE, second: Case | None
) -> Counterfactuals | None:
    """Return ACE's explanations of `road_cases.second_driver`; None without one."""
    if second is None:
        return None
    return explain_first(run, "shortcut", explain, second, case.sizes.batch)


def run_shard(run: Run, case: RoadCase, explain: ACE, seed: int) -> None:
    """Make this shard's batches of all searches; do nothing in a run of the whole notebook."""
    if run.shard == (1, 1):
        return
    explain_first(run, "ace", explain, case, case.sizes.batch)
    explain_rivals(run, case, explain, seed)
    explain_second(run, case, explain, second_driver(case, seed))


def filter_window(
    pgd: Counterfactuals,
    decide: Callable[[Tensor], Tensor],
    filtered: Callable[[Tensor, Any, int], Tensor],
    levels: Mapping[int, float],
) -> pd.DataFrame:
    """Measure what a filter keeps and what it undoes, one row per noise level.

    Columns: "sd of the noise"; "decisions kept", the share of n queries whose decision survives the
    filter; "PGD undone", the share of n_pgd flipped decisions that the filter turns back.

    Args:
        pgd: explanations by faint noise; those that flip are filtered.
        decide: images (B, C, H, W) -> decisions (B,).
        filtered: (images, ids, steps) -> filtered images.
        levels: steps -> standard deviation of the noise.
    """
    attacked, rows = pgd.select(pgd.valid), {}
    for steps, sd in levels.items():
        kept = decide(filtered(pgd.query, pgd.ids, steps)) == pgd.source
        back = decide(filtered(attacked.counterfactual, attacked.ids, steps)) == attacked.source
        rows[steps] = {
            "sd of the noise": sd,
            "decisions kept": kept.double().mean().item(),
            "PGD undone": back.double().mean().item(),
            "n": len(pgd),
            "n_pgd": len(attacked),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("steps")


def compare_methods(
    case: RoadCase,
    known: Known | None,
    found: Mapping[str, Counterfactuals],
    explain: ACE,
    seed: int,
) -> pd.DataFrame:
    """Compare methods on the first queries of a case, one row each, then the baselines.

    Columns: n, turned, mean change, seconds, UNet passes; of rendered roads also semantic validity,
    unused factors moved (against what the method's own chain does to an unedited road), share
    inside, followed by the judge, pixel AUROC.

    Args:
        found: method -> explanations of the first n queries, with the same n for all.
        explain: ACE, whose chain the baselines are held against.
    """
    n = len(next(iter(found.values())))
    rows = dict(found)
    if known is not None:
        rows |= {k: c.select(range(n)) for k, c in known.rows.items() if k != "ACE"}
    table = {}
    for name, cfs in rows.items():
        table[name] = {
            "n": len(cfs),
            "turned": decision.validity(cfs),
            "mean change": (cfs.counterfactual - cfs.query).abs().mean().item(),
            "seconds": cfs.seconds.mean().item(),
            "UNet passes": _count_passes(cfs),
        }
        if known is not None:
            table[name] |= _prove(case, known, cfs, _find_null(case, cfs, explain, seed))
    return pd.DataFrame.from_dict(table, orient="index")


def _count_passes(cfs: Counterfactuals) -> float:
    passes = cfs.n_forward_generator
    return 0.0 if passes is None else passes.double().mean().item()


def _find_null(case: RoadCase, cfs: Counterfactuals, explain: ACE, seed: int) -> Tensor:
    """Return the null of the chain that made the explanations; ACE's for those without one."""
    own, settings = chain_of(explain), cfs.settings
    chain = (settings["spacing"], settings["steps"]) if "spacing" in settings else own
    return case.null(chain, seed, None if chain == own else case.sizes.n_null)


def _prove(case: RoadCase, known: Known, cfs: Counterfactuals, null: Tensor) -> dict[str, float]:
    """Return what the renderer, the oracle and the judge say about explanations."""
    factors = renders(case).factors.take(range(len(cfs)))
    read = displacement.measure(cfs, case.oracle, null)
    valid = displacement.semantic_validity(cfs, factors, case.classifier, read)
    change, region = localization.change_map(cfs), known.region[: len(cfs)]
    unused = displacement.unused_factor_moved(read, case.readable)
    return {
        "semantic validity": valid.nanmean().item(),
        "unused factors moved": unused.nanmean().item(),
        "share inside": localization.share_inside(change, region).nanmean().item(),
        "followed by the judge": is_followed(case, cfs).double().mean().item(),
        "pixel AUROC": localization.pixel_auroc(change, region).nanmean().item(),
    }


def method_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return what metrics.json holds of `compare_methods`: each column of ACE's rivals and ours."""
    found = {}
    for name, row in table.iterrows():
        if name in TAGS:
            tag = TAGS[str(name)]
            found |= {f"{k.lower().replace(' ', '_')}_{tag}": v for k, v in row.items()}
    return found


@torch.no_grad()
def draw_samples(case: RoadCase, seed: int) -> Tensor:
    """Return roads (N, 3, H, W) that the prior draws from noise alone, in 50 steps."""
    assert case.prior is not None
    chain, like = case.prior.chain("50"), case.data.x[:1]
    parts = torch.arange(case.sizes.n_dreamt).split(16)
    return torch.cat([chain.sample(noise_of(seed, ids, like, "samples")) for ids in parts])


def measure_realism(
    case: RoadCase, dreamt: Tensor, cfs: Counterfactuals
) -> tuple[pd.DataFrame, dict[str, float | int]]:
    """Return the KID of samples against fresh renders beside its floor, and its metrics.

    The floor is the KID of two halves of the fresh renders. The metrics also hold the KID of the
    valid counterfactuals, if there are three of them.
    """
    real, half = features.extract(case.alexnet, case.fresh.x), len(case.fresh) // 2
    first, rest = (real.take(torch.arange(len(case.fresh))[at]) for at in _halves(half))
    rows = {
        "samples": image.kid(real, features.extract(case.alexnet, dreamt)),
        "real against real (floor)": image.kid(first, rest),
    }
    samples, floor = (row["kid_embedded"] for row in rows.values())
    found = {"kid_samples": samples, "kid_floor": floor, "n_dreamt": len(dreamt)}
    if cfs.valid.sum() >= 3:
        answers = features.extract(case.alexnet, cfs.counterfactual[cfs.valid])
        found["kid_embedded"] = image.kid(real, answers)["kid_embedded"]
    return pd.DataFrame(rows).T, found


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, None)


def reported_columns(dataset: str, label: str) -> tuple[str, pd.DataFrame]:
    """Return the name of the paper's table of a data set, "table3" or "table4", and its columns.

    One row per metric, in lower case, and one column per method. Flip rates are in [0, 1].
    """
    if dataset in ROADS:
        table, name = "Table 3", ROADS[dataset]
    else:
        table, name = "Table 4", PRINTED[label]
    paper = results.reported("ace", table)
    paper = paper[paper["dataset"] == name].replace({"metric": {"FR": "fr"}})
    share = paper["value"].where(paper["metric"] != "fr", paper["value"] / 100)
    paper = paper.assign(value=share, metric=paper["metric"].str.lower())
    wide = paper.pivot(index="metric", columns="method", values="value")
    return table.lower().replace(" ", ""), wide.add_prefix(f"paper, {name}: ")
