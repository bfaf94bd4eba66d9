"""Searches of ACE on faces and of its rivals: everything that a job with a part of the work runs.

Each search is kept in batches by `Run.explain`, which returns None in a shard. The functions leave
such searches out, so that one call of `run_shard` in a shard makes all batches, and the same
functions find them in the job that joins the shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils.core import Counterfactuals, Explainer, Ids, describe
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE
from cf_utils.explainers.dime import DiME
from cf_utils.harness import cases
from cf_utils.harness.ace_cases import FaceCase
from cf_utils.harness.cases import Case
from cf_utils.harness.results import Run
from cf_utils.models.classifiers import predict

Found = dict[str, Counterfactuals]
STAGES = {"Pre-CE": "pre", "FR-CE": "fr", "F-CE": "f"}  # of Table 5, besides ACE itself
METHODS = ("ACE", "FastDiME", "DiME")  # whose papers' settings are compared, too
RESPACED = (5, 4, 6, 3, 7)  # steps of the refinement, one per seed


class Search(NamedTuple):
    """A method that explains the first n faces of a case."""

    name: str  # of the stored batches
    method: Explainer
    n: int


def explain_first(
    run: Run, name: str, method: Explainer, case: Case, batch: int, n: int | None = None
) -> Counterfactuals | None:
    """Explain the first n faces of a case (None: all) towards the other class."""
    x, ids = case.data.x[:n], case.data.ids[:n]
    target = 1 - predict(case.classifier, x, batch).argmax(1)
    return run.explain(name, method, case.classifier, x, target, ids, batch_size=batch)


def explain_stages(
    run: Run,
    explain: ACE,
    case: FaceCase,
    ace: Counterfactuals | None,
    of: Case | None = None,
    name: str = "ace",
) -> Found:
    """Return the four stages of Table 5, which share one attack: keys Pre-CE, FR-CE, F-CE, ACE.

    Args:
        ace: the result of `explain`; None (a shard) returns nothing.
        of: the case that was explained; None: `case` itself.
        name: of the stored batches.
    """
    if ace is None:
        return {}
    found, batch = {}, case.sizes.batch
    for key, stage in STAGES.items():
        method = explain.with_(stage=stage, reuse=ace)
        found[key] = explain_first(run, f"{name}_{stage}", method, of or case, batch)
    return _present(found | {"ACE": ace})


def explain_linked(run: Run, explain: ACE, case: FaceCase, stages: Found) -> Found:
    """Return the four stages on faces whose attributes go together.

    An official case has no others than its own: `stages` is returned.
    """
    if case.linked is None:
        return stages
    ace = explain_first(run, "linked", explain, case.linked, case.sizes.batch)
    return explain_stages(run, explain, case, ace, case.linked, "linked")


def explain_shortcut(run: Run, explain: ACE, case: FaceCase) -> Counterfactuals | None:
    """Return ACE's explanations of the classifier with a shortcut, or None without one."""
    if case.shortcut is None:
        return None
    return explain_first(run, "shortcut", explain, case.shortcut, case.sizes.batch)


def explain_variants(run: Run, preset: ACE, case: FaceCase) -> Found:
    """Return ACE with the other distance and the other attacks (sections 4.4 and 4.6)."""
    batch, n = case.sizes.batch, case.sizes.n_variants
    short = preset.with_(iterations=case.sizes.variant_steps)
    kinds = {
        "PGD, l1": short,
        "PGD, l2": short.l2(),
        "GD, l1": short.by("gd", step=0.02),
        "C&W, l1": short.by("cw", step=0.03),
    }
    found = {
        key: explain_first(run, f"variant_{i}", method, case, batch, n)
        for i, (key, method) in enumerate(kinds.items())
    }
    return _present(found)


def respacings(explain: ACE) -> list[tuple[str, int]]:
    """Return spacing and steps of five refinements that start from nearly the same noise level.

    All have the attack's proportion of steps to levels.
    """
    levels = int(explain.spacing) // explain.steps  # per step
    return [(str(levels * k), k) for k in RESPACED]


def name_seeds(explain: ACE, case: FaceCase) -> list[str]:
    """Return a title per seed: the noise level of the shared and of the varied re-spacing."""
    if case.prior is None:
        raise ValueError("case: got one without a prior, expected a diffusion model")
    own = case.prior.chain(explain.spacing).schedule.sigma[explain.steps - 1].item()
    varied = [case.prior.chain(a).schedule.sigma[k - 1].item() for a, k in respacings(explain)]
    seeds = range(case.sizes.n_seeds)
    return [f"seed {s}\nσ {own:.2f}, {varied[s % len(varied)]:.2f}" for s in seeds]


def explain_seeds(run: Run, explain: ACE, case: FaceCase) -> dict[str, list[Counterfactuals]]:
    """Return answers to the same faces with several seeds, without the mask (section 4.3).

    The varied answers reuse the attacks, and refine each seed's by another re-spacing.
    """
    batch, n, seeds = case.sizes.batch, case.sizes.n_diverse, range(case.sizes.n_seeds)
    others, same, varied = respacings(explain), [], []
    for s in seeds:
        method = explain.with_(seed=explain.seed + s, stage="fr")
        answer = explain_first(run, f"seed_{s}", method, case, batch, n)
        if answer is None:
            continue
        same.append(answer)
        method = method.with_(reuse=answer, refine=others[s % len(others)])
        answer = explain_first(run, f"seed_{s}_respaced", method, case, batch, n)
        varied += [] if answer is None else [answer]
    return {"same re-spacing": same, "varied re-spacing": varied}


def build_rivals(case: FaceCase, seed: int) -> dict[str, DiME]:
    """Return FastDiME and DiME with the presets of the data set; DiME takes the case's steps."""
    parts = {"prior": case.prior, "seed": seed, "perceptual": case.perceptual}
    fast, dime = (presets.get(k, case.dataset).build(**parts) for k in ("fastdime", "dime"))
    return {"FastDiME": fast, "DiME": dime.with_(steps=case.sizes.dime_steps or dime.steps)}


def list_searches(
    case: FaceCase, explain: ACE, papers: Mapping[str, Explainer], seed: int
) -> dict[str, Search]:
    """Return what is compared with ACE: FastDiME, DiME, and all methods with the papers' settings.

    Args:
        papers: ACE, FastDiME and DiME with the settings of the authors' scripts. Those that equal
            ours after the same cuts (iterations, steps, dilation) are left out.
    """
    sizes, ours = case.sizes, {"ACE": explain, **build_rivals(case, seed)}
    found = {
        "FastDiME": Search("fastdime", ours["FastDiME"], sizes.n_fastdime),
        "DiME": Search("dime", ours["DiME"], sizes.n_dime),
    }
    cuts = {"ACE": {"iterations": explain.iterations}, "DiME": {"dilation": ours["DiME"].dilation}}
    if sizes.dime_steps:
        cuts["DiME"]["steps"] = sizes.dime_steps
    for key, method in papers.items():
        method = method.with_(**cuts.get(key, {}))
        if describe(method) != describe(ours[key]):
            found[f"{key}, paper's"] = Search(f"{key.lower()}_paper", method, sizes.n_dime)
    return found


def explain_rivals(
    run: Run, case: FaceCase, explain: ACE, papers: Mapping[str, Explainer], seed: int
) -> Found:
    """Return explanations by `list_searches`, and DiME's pasted by ACE's mask and refinement."""
    found: dict[str, Counterfactuals | None] = {}
    for key, (name, method, n) in list_searches(case, explain, papers, seed).items():
        found[key] = explain_first(run, name, method, case, case.sizes.batch, n)
        if key == "DiME" and found[key] is not None:
            pasted = method.with_(pasted=True, reuse=found[key])
            pasted = explain_first(run, "dime_pasted", pasted, case, case.sizes.batch, n)
            found["DiME, pasted"] = pasted
    return _present(found)


def run_shard(
    run: Run, case: FaceCase, explain: ACE, preset: ACE, papers: Mapping[str, Explainer], seed: int
) -> None:
    """Make this shard's batches of all searches; do nothing in a run of the whole notebook."""
    if run.shard == (1, 1):
        return
    explain_first(run, "ace", explain, case, case.sizes.batch)
    explain_linked(run, explain, case, {})
    explain_shortcut(run, explain, case)
    explain_variants(run, preset, case)
    explain_rivals(run, case, explain, papers, seed)
    explain_seeds(run, explain, case)


@torch.no_grad()
def filter_images(
    case: FaceCase,
    x: Tensor,
    ids: Ids,
    chain: tuple[str | None, int],
    seed: int,
    stream: str,
) -> Tensor:
    """Return F_tau of images (B, C, H, W) with nothing attacked, each with its own noise.

    Args:
        chain: spacing and steps.
        stream: of the noise.
    """
    return cases.filter_images(case.prior, x, ids, chain, seed, stream, case.sizes.batch)


def _present(found: Mapping[str, Counterfactuals | None]) -> Found:
    """Leave out what a shard has not got."""
    return {key: cfs for key, cfs in found.items() if cfs is not None}
