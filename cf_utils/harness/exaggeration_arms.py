"""Arms of progressive exaggeration: several trained GANs, each with the classifier it explains."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, Explainer
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.metrics import response
from cf_utils.evaluation.progression_effects import confounding_table, flip_matrix_table
from cf_utils.evaluation.truth.table import truth_table
from cf_utils.explainers import presets
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.harness.exaggeration_cases import ExaggerationCase
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput, predict

BIAS = {  # arm of Table 3 -> checkpoint
    "biased": "faces_smile_biased_gan",
    "unbiased": "faces_smile_gan",
    "unbiased, biased images": "faces_smile_gan_biased_images",
}
CLASSES = ("smile", "age", "fringe")  # outputs of faces_labels_causal, one GAN each (Fig. 7)
Arms = Mapping[str, tuple[Exaggeration, nn.Module]]


def load_explainer(
    name: str, dataset: str, device: torch.device | str = "cpu"
) -> tuple[Exaggeration, nn.Module]:
    """Return an explainer with a shipped GAN, and the classifier that the GAN was trained for.

    Args:
        name: checkpoint of the GAN; its model card names the classifier and its output.
        dataset: key of the presets.

    Raises FileNotFoundError that names a missing checkpoint and the command that trains it.
    """
    gan, card = checkpoints.load(name, device, kind="gan")
    settings = card.settings
    model = checkpoints.load(settings["classifier"], device).model
    classifier = OneOutput(model, settings["output"]).eval()
    explainer = presets.get("exaggeration", dataset).build(gan=gan, classifier=classifier)
    return explainer, classifier


def bias_arms(case: ExaggerationCase) -> dict[str, tuple[Exaggeration, nn.Module]]:
    """Return the arms of Table 3 for rendered smiles; empty for a case without such networks."""
    if case.truth is None or (case.dataset, case.label) != ("faces", "smile"):
        return {}
    device = next(case.gan.parameters()).device
    return {arm: load_explainer(name, case.dataset, device) for arm, name in BIAS.items()}


def confound(case: ExaggerationCase, arms: Arms) -> tuple[pd.DataFrame, pd.Series]:
    """Table 3 of the arms for hair length, and its proof by the renderer.

    Returns:
        The rows of `confounding_table` whose figure is `confounding`.
        Per arm, the share of queries whose decision flips when the renderer changes the hair alone.
    """
    x, factors = case.data.x, case.data.factors
    told = {arm: ((x, method.progress(f, x).images), f) for arm, (method, f) in arms.items()}
    long = (factors["hair_length"] > 0.5).long()
    table = confounding_table(told, hair_oracle(case), long, ("short", "long"))
    cut = factors.world.render(factors.move("hair_length", 1 - factors["hair_length"]))
    flipped = {
        arm: (response.respond(f, cut) > 0.5)
        .ne(response.respond(f, x) > 0.5)
        .double()
        .mean()
        .item()
        for arm, (_, f) in arms.items()
    }
    rows = table[table["figure"] == "confounding"].drop(columns="figure")
    return rows.reset_index(drop=True), pd.Series(flipped, name="flipped by hair alone")


def class_arms(case: ExaggerationCase) -> dict[str, tuple[Exaggeration, nn.Module]]:
    """Return the arms of Fig. 7, one per output of a multi-label classifier of rendered faces."""
    if case.truth is None or case.dataset != "faces":
        return {}
    device = next(case.gan.parameters()).device
    return {k: load_explainer(f"faces_labels_{k}_gan", case.dataset, device) for k in CLASSES}


def flip_classes(case: ExaggerationCase, arms: Arms) -> pd.DataFrame:
    """Fig. 7: which attributes flip when one class is explained?

    Each query is changed to the other end of the knob. The independent judge reads all attributes.

    Returns: `flip_matrix_table` with the columns of the explained classes and n.
    """
    x, oracle = case.data.x, next(iter(case.judges.values())).model
    pairs = {}
    for label, (method, f) in arms.items():
        images = method.progress(f, x).images
        to_present = predict(f, x).argmax(1).cpu() == 0
        pairs[label] = (
            x,
            torch.where(to_present[:, None, None, None], images[:, -1], images[:, 0]),
        )
    return flip_matrix_table(pairs, oracle, oracle.names)[[*arms, "n"]]


def hair_oracle(case: ExaggerationCase) -> nn.Module:
    """Return g of Table 3: does the independent judge see long hair? Logits (B, 2)."""
    model = next(iter(case.judges.values())).model
    return OneOutput(model, model.names.index("long_hair"))


def prove(
    case: ExaggerationCase,
    found: Mapping[str, Counterfactuals | None],
    methods: Mapping[str, Explainer],
    target: Tensor,
    tau: float,
) -> pd.DataFrame:
    """Return the truth table of explanations of the first queries; empty without known factors.

    Args:
        found: per method, explanations of the case's first queries. "exaggeration" sets the score
            that the true change must reach. None, in a shard, makes the table empty.
        methods: what explained them, for their zero edits.
        target: (B,) int64; tau: probability that PGD must reach.
    """
    whole = {name: cfs for name, cfs in found.items() if cfs is not None}
    if case.truth is None or len(whole) < len(found):
        return pd.DataFrame()
    few = case.data.take(range(len(target)))
    anchors = baseline_rows(
        case.classifier, few, target, case.truth.uses, whole["exaggeration"].score, tau=tau
    )
    return truth_table(
        {**whole, **anchors},
        few.factors,
        case.classifier,
        case.truth.uses,
        case.oracle,
        readable=case.readable,
        zero_edits={k: method.zero_edit(few.x, few.ids) for k, method in methods.items()},
    )
