"""Arms of progressive exaggeration: several trained GANs, each with the classifier it explains."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, Explainer
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.truth.table import truth_table
from cf_utils.explainers import presets
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.harness.exaggeration_cases import ExaggerationCase
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput

BIAS = {  # arm of Table 3 -> checkpoint
    "biased": "faces_smile_biased_gan",
    "unbiased": "faces_smile_gan",
    "unbiased, biased images": "faces_smile_gan_biased_images",
}


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


def hair_oracle(case: ExaggerationCase) -> nn.Module:
    """Return g of Table 3: does the independent judge see long hair? Logits (B, 2)."""
    model = next(iter(case.judges.values())).model
    return OneOutput(model, model.names.index("long_hair"))


def prove(
    case: ExaggerationCase,
    found: Mapping[str, Counterfactuals],
    methods: Mapping[str, Explainer],
    target: Tensor,
    tau: float,
) -> pd.DataFrame:
    """Return the truth table of explanations of the first queries; empty without known factors.

    Args:
        found: per method, explanations of the case's first queries. "exaggeration" sets the score
            that the true change must reach.
        methods: what explained them, for their zero edits.
        target: (B,) int64; tau: probability that PGD must reach.
    """
    if case.truth is None:
        return pd.DataFrame()
    few = case.data.take(range(len(target)))
    anchors = baseline_rows(
        case.classifier, few, target, case.truth.uses, found["exaggeration"].score, tau=tau
    )
    return truth_table(
        {**found, **anchors},
        few.factors,
        case.classifier,
        case.truth.uses,
        case.oracle,
        readable=case.readable,
        zero_edits={k: method.zero_edit(few.x, few.ids) for k, method in methods.items()},
    )
