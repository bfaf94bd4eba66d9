"""What the renderer proves about explanations of lung CT, and two black boxes side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Counterfactuals, Explainer
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.ct_tables import alignment_table, body_overlap
from cf_utils.evaluation.truth.table import truth_table
from cf_utils.harness.ct_cases import CTCase
from cf_utils.models.classifiers import predict

CAUSES = ("extent", "emphysema", "airway")  # factors that a black box may look at


def prove(
    case: CTCase,
    found: Mapping[str, Counterfactuals],
    methods: Mapping[str, Explainer],
    rows: Tensor,
    tau: float,
) -> pd.DataFrame:
    """Return the truth table of explanations of some patients; empty without known factors.

    `body_overlap` is the mean Dice overlap of the bodies of query and counterfactual.

    Args:
        found: per method, explanations of the patients `rows` of the case. The first one sets the
            score that the true change must reach.
        methods: what explained them, for their zero edits.
        tau: probability that PGD must reach.
    """
    if case.truth is None or case.oracle is None:
        return pd.DataFrame()
    first, data = next(iter(found.values())), case.data.take(rows)
    uses = case.truth.uses
    anchors = baseline_rows(case.classifier, data, first.target, uses, first.score, tau=tau)
    found = {**found, **anchors}
    edits = {k: methods[k].zero_edit(data.x, data.ids) for k in found if k in methods}
    table = truth_table(
        found,
        data.factors,
        case.classifier,
        uses,
        case.oracle,
        readable=case.readable,
        zero_edits=edits,
    )
    overlap = {k: body_overlap(c.query, c.counterfactual).mean().item() for k, c in found.items()}
    return table.assign(body_overlap=pd.Series(overlap))


class Crossed(NamedTuple):
    """Two black boxes, explained for the same patients towards their class 1."""

    table: pd.DataFrame  # one row per black box, see `cross_examine`
    before: Tensor  # reconstruction of the first patient (S, H, W)
    after: dict[str, Tensor]  # black box -> counterfactual of the first patient (S, H, W)


def cross_examine(
    case: CTCase, images: Tensor, n: int, tau: float, seed: int, steps: int
) -> Crossed:
    """Explain the first n patients that both black boxes put into class 0.

    Columns of the table: the mean change of each cause as the oracle reads it, against the
    reconstruction; `reached`, the share of patients that reached tau; n; and `agent_auc`, the
    agent's AUC for the decisions of its black box on `images` (N, S, H, W).

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
    """Return the mean change of each cause, as the oracle reads it, against the reconstruction."""
    assert cfs.path is not None
    change = case.oracle.read(cfs.counterfactual)[0] - case.oracle.read(cfs.path[:, 1])[0]
    at = {name: case.oracle.names.index(name) for name in CAUSES}
    return {name: change[:, k].mean().item() for name, k in at.items()}
