"""What the renderer proves about explanations of lung CT, and two black boxes side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Counterfactuals, Explainer
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.ct_tables import (
    alignment_table,
    body_overlap,
    chance,
    change_inside,
    localisation_table,
)
from cf_utils.evaluation.metrics import voxels
from cf_utils.evaluation.slice_attributions import attribution_maps
from cf_utils.evaluation.truth.table import compare_validity, truth_table
from cf_utils.explainers.diffexplainer import DIRECTIONS, difference_maps
from cf_utils.harness.ct_cases import CTCase, render_atlas
from cf_utils.harness.results import Run
from cf_utils.models.classifiers import predict

REFERENCES = ("random", "edges", "atlas")  # maps that know nothing of the black box
UNDRAWN = REFERENCES[:2]  # in Fig. 3
PGD_EPS = 6 / 255  # 28 HU: noise of 2/255 flips only a third of the decisions, this nine in ten
CAUSES = ("extent", "emphysema", "airway")  # factors that a black box may look at


def prove(
    case: CTCase,
    found: Mapping[str, Counterfactuals],
    methods: Mapping[str, Explainer],
    rows: Tensor,
    tau: float,
    seed: int,
) -> pd.DataFrame:
    """Return the truth table of explanations of some patients; empty without known factors.

    Further columns: `reached`, the share whose score is at least tau; `ahead`, `low` and `high`,
    see `compare_validity`; and `body_overlap`, the mean Dice overlap of the bodies of query and
    counterfactual. The radius of PGD is `PGD_EPS`.

    Args:
        found: per method, explanations of the patients `rows` of the case. The first one sets the
            score that the true change must reach.
        methods: what explained them, for their zero edits.
        tau: wanted probability of the true change, see `baselines.baseline_rows`.
        seed: of the bootstrap.
    """
    if case.truth is None or case.oracle is None:
        return pd.DataFrame()
    first, data = next(iter(found.values())), case.data.take(rows)
    uses = case.truth.uses
    anchors = baseline_rows(
        case.classifier, data, first.target, uses, first.score, eps=PGD_EPS, tau=tau
    )
    found = {**found, **anchors}
    edits = {k: methods[k].zero_edit(data.x, data.ids) for k in found if k in methods}
    known = data.factors, case.classifier, uses, case.oracle
    table = truth_table(found, *known, readable=case.readable, zero_edits=edits)
    overlap = {k: body_overlap(c.query, c.counterfactual).mean().item() for k, c in found.items()}
    reached = {k: (c.score >= tau).double().mean().item() for k, c in found.items()}
    table = table.assign(reached=pd.Series(reached), body_overlap=pd.Series(overlap))
    return table.join(compare_validity(found, *known, zero_edits=edits, seed=seed))


def explain_undecided(
    run: Run, case: CTCase, hard: CTCase, tau: float, seed: int, steps: int
) -> dict[str, float]:
    """Return per direction the share of undecided patients that reach tau for both classes.

    A direction whose explanations this shard computes only in part is left out.
    """
    methods = case.methods(tau, seed, steps, path_by="amount", path_steps=1)
    x, ids, found = hard.data.x, hard.data.ids, {}
    for name in DIRECTIONS:
        ways = [
            run.explain(
                f"undecided_{name}_{c}",
                methods[name],
                case.classifier,
                x,
                torch.full((len(x),), c),
                ids,
            )
            for c in (0, 1)
        ]
        reached = [way.reached for way in ways if way is not None]
        if len(reached) == len(ways):
            found[name] = torch.stack(reached).all(0).double().mean().item()
    return found


class Maps(NamedTuple):
    """Maps of patients judged "class 1", whose explanations are towards class 0."""

    rows: Tensor  # (B,) int64, of the case's patients
    found: dict[str, Counterfactuals]  # method -> explanations
    changes: dict[str, Tensor]  # method -> difference map in HU, signed (B, S, H, W)
    amounts: dict[str, Tensor | str]  # method -> map (B, S, H, W) >= 0, or why there is none
    disease: Tensor  # bool (B, S, H, W), true voxels; none for an official case

    def panels(self, n: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return images, truth and maps (n, H, W): the slice of each patient with most disease."""
        level = self.disease.flatten(2).sum(2).argmax(1)[:n]
        at = torch.arange(len(level))
        maps = {k: self.changes.get(k, m) for k, m in self.amounts.items() if k not in UNDRAWN}
        drawn = {k: m[at, level] for k, m in maps.items() if isinstance(m, Tensor)}
        image = next(iter(self.found.values())).query
        return image[at, level], self.disease[at, level], drawn


def collect_maps(
    run: Run,
    case: CTCase,
    methods: Mapping[str, Explainer],
    both: Mapping[str, Counterfactuals],
    n: int,
    n_atlas: int,
    seed: int,
) -> Maps:
    """Return the maps of all methods for the first n patients that are judged "class 1".

    Args:
        methods: of `CTCase.methods`; those without a result in `both` are run here.
        both: explanations of all patients towards the other class, by the agent's two directions.
        n_atlas: training patients whose disease gives the atlas.
    """
    rows = (next(iter(both.values())).source == 1).nonzero()[:n, 0]
    data, f = case.data.take(rows), case.classifier
    target = torch.zeros(len(rows), dtype=torch.int64)
    found = {k: cfs.select(rows) for k, cfs in both.items()}
    for name, method in methods.items():
        if name not in found:
            cfs = run.explain(name, method, f, data.x, target, data.ids)
            found |= {name: cfs} if cfs is not None else {}
    edits = {"ace": methods["ace"].zero_edit(data.x, data.ids)} if "ace" in found else {}
    changes = {k: difference_maps(cfs, zero_edit=edits.get(k)) for k, cfs in found.items()}
    amounts: dict[str, Tensor | str] = {k: change.abs() for k, change in changes.items()}
    amounts |= attribution_maps(f, f.layer, data.x, 1 - target)
    disease = torch.zeros_like(data.x, dtype=torch.bool)
    if case.truth is not None:
        disease = case.masks["disease"][rows]
        amounts |= voxels.reference_maps(data.x, data.ids, render_atlas(n_atlas, seed), seed)
    return Maps(rows, found, changes, amounts, disease)


def locate(case: CTCase, seen: Maps, seed: int) -> pd.DataFrame:
    """Return `localisation_table` inside the body; empty without a truth.

    The first map is the gradient's. `HU in lungs` is the mean signed change of difference maps, and
    the row "by chance" the AUPRC of a map that knows nothing.
    """
    if case.truth is None:
        return pd.DataFrame()
    body, lungs = (case.masks[name][seen.rows] for name in ("body", "lungs"))
    table = localisation_table(seen.amounts, seen.disease, body, seed)
    table["HU in lungs"] = pd.Series(change_inside(seen.changes, lungs))
    n = int(seen.disease.flatten(1).any(1).sum())
    by_chance = {"auprc": chance(seen.disease, body), "n": n, "note": ""}
    return pd.concat([table, pd.DataFrame([by_chance], index=["by chance"])])


def best_maps(located: pd.DataFrame) -> dict[str, float]:
    """Return the AUPRCs of `locate` that metrics.json holds; empty for an empty table."""
    if located.empty:
        return {}
    rivals = located.auprc.drop([*DIRECTIONS, *REFERENCES, "by chance"])
    named = {"_pattern": "pattern", "_atlas": "atlas", "": "gradient"}
    found = {f"localisation_auprc{end}": located.auprc[name] for end, name in named.items()}
    return found | {"localisation_auprc_best_rival": rivals.max()}


def compare_directions(
    methods: Mapping[str, Any], x: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the gradient and the pattern of each patient towards class 1, (B, S * d), and cosines.

    Cosines: the least of two patients' gradients, and the mean of gradient and pattern.
    """
    target = torch.ones(len(x), dtype=torch.int64)
    filters, patterns = (methods[name].directions(x, target) for name in DIRECTIONS)
    same = torch.cosine_similarity(filters, filters[:1]).min().item()
    between = torch.cosine_similarity(filters, patterns).mean().item()
    return filters, patterns, {"cosine_patients": same, "cosine_pattern": between}


class Crossed(NamedTuple):
    """Two black boxes, explained for the same patients towards their class 1."""

    table: pd.DataFrame  # one row per black box, see `cross_examine`
    before: Tensor  # reconstruction of the first patient (S, H, W)
    after: dict[str, Tensor]  # black box -> counterfactual of the first patient (S, H, W)


def cross_examine(
    case: CTCase, images: Tensor, n: int, tau: float, seed: int, steps: int
) -> Crossed:
    """Explain the first n patients that both black boxes put into class 0.

    Columns of the table: mean changes against the reconstruction, of each cause that the oracle
    reads reliably, and of the probability that either black box gives to its class 1; `reached`,
    the share of patients that reached tau; n; and `agent_auc`, the agent's AUC for the decisions of
    its black box on `images` (N, S, H, W).

    Raises ValueError for a case without a second black box or an oracle, or without such patients.
    """
    if case.second is None or case.oracle is None:
        raise ValueError("case: got no second black box or no oracle, expected both")
    boxes = {"mortality": case, "emphysema": case.second}
    calm = torch.stack([predict(c.classifier, case.data.x).argmax(1) == 0 for c in boxes.values()])
    rows = calm.all(0).nonzero()[:n, 0]
    if not len(rows):
        raise ValueError("case: got no patient that both black boxes put into class 0")
    x, ids = case.data.x[rows], case.data.take(rows).ids
    target, table, after = torch.ones(len(rows), dtype=torch.int64), {}, {}
    before = x[0]
    for name, box in boxes.items():
        explain = box.methods(tau, seed, steps, path_by="amount")["pattern"]
        cfs = explain(box.classifier, x, target, ids)
        assert cfs.path is not None
        before, after[f"→ {name}"] = cfs.path[0, 1], cfs.counterfactual[0]
        agents = {"l1": box.agents["l1"]}
        agreement = alignment_table(agents, case.codes(steps), box.classifier, images)
        table[name] = _moves(case, cfs) | {"reached": cfs.reached.double().mean().item()}
        table[name] |= {"n": len(rows), "agent_auc": agreement.auc["l1"]}
    return Crossed(pd.DataFrame(table).T.astype({"n": int}), before, after)


def _moves(case: CTCase, cfs: Counterfactuals) -> dict[str, float]:
    """Return the mean change of the reliably read causes and of both scores."""
    assert cfs.path is not None and case.second is not None
    before, after = cfs.path[:, 1], cfs.counterfactual
    change = case.oracle.read(after)[0] - case.oracle.read(before)[0]
    at = {name: case.oracle.names.index(name) for name in CAUSES if name in case.readable}
    found = {name: change[:, k].mean().item() for name, k in at.items()}
    for name, f in (("p mortality", case.classifier), ("p emphysema", case.second.classifier)):
        p = [predict(f, x).softmax(1)[:, 1] for x in (before, after)]
        found[name] = (p[1] - p[0]).double().mean().item()
    return found
