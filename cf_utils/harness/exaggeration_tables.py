"""Tables 1, 2 and 5 of progressive exaggeration: its rivals, and the paper's values beside ours."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.core import Explainer
from cf_utils.evaluation import progressions
from cf_utils.evaluation.metrics import response
from cf_utils.evaluation.progression_rivals import Comparison, compare_methods
from cf_utils.evaluation.truth import true_progressions
from cf_utils.explainers.exaggeration import Progression
from cf_utils.harness import ablation_record, results
from cf_utils.harness.exaggeration_cases import ExaggerationCase
from cf_utils.viz.progressions import progression_grid

RIVALS = ("xgem", "latent_shift")  # they search in the latent space of the case's VAE
TOLD = ("fid_embedded", "fva_embedded", "lsc_method", "lsc_common")  # kept in metrics.json
RESPONSES = (  # of `compare_with_renderer`, kept in metrics.json
    "rank_correlation",
    "response_error",
    "monotone",
    "rank_correlation_judge",
    "rank_correlation_within_judge",
    "response_error_judge",
)


def render_truth(case: ExaggerationCase, shown: Progression) -> dict[str, Tensor]:
    """Return {"renderer": images (B, K, C, H, W)}: the same queries, changed by the renderer.

    It moves the label's factor, and nothing else, to where the classifier gives each output that
    the progression asks for. Photographs have no renderer; the dict is empty.
    """
    if case.truth is None:
        return {}
    found = true_progressions.render_progression(
        case.truth.factors, case.classifier, shown.expected, case.factor
    )
    return {"renderer": found.images}


def compare_with_renderer(
    case: ExaggerationCase, shown: Progression, truth: Mapping[str, Tensor]
) -> pd.DataFrame:
    """Return `progressions.compatibility_table` of a progression.

    Each entry of `truth` (see `render_truth`) adds a column with the values for its images: those
    of an explanation that changes the label's cause exactly as far as the classifier needs.
    """
    table, *ceilings = (
        progressions.compatibility_table(
            (shown.query, images), case.classifier, case.judges, case.quantities
        )
        for images in (shown.images, *truth.values())
    )
    for name, ceiling in zip(truth, ceilings, strict=True):
        table.insert(1, name, ceiling.value)
    return table


def name_responses(table: pd.DataFrame, factor: str) -> dict[str, float]:
    """Return entries of metrics.json from `compare_with_renderer`.

    Those of the renderer end with "_renderer". Rows that were not measured are NaN.

    factor: whose monotone share is kept, too.
    """
    rows = [*RESPONSES, f"{factor}_monotone"]
    found = table.drop(columns=["n", "note"]).reindex(rows)
    return {
        row + ("" if column == "value" else f"_{column}"): value
        for column in found
        for row, value in found[column].items()
    }


def progress_rivals(
    case: ExaggerationCase,
    methods: Mapping[str, Explainer],
    shown: Progression,
    n: int,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Return per method the images (n, K, C, H, W) that were asked for the same outputs.

    Args:
        methods: of `case.methods`; rivals that the case lacks are left out.
        shown: the progression of exaggeration, whose expected outputs the rivals search for.
        n: number of queries, the first ones.
    """
    found = {"exaggeration": shown.images[:n]}
    device = next(case.gan.parameters()).device
    x, wanted = (part[:n].split(batch_size) for part in (shown.query, shown.expected.float()))
    for name in (k for k in RIVALS if k in methods):
        rival = methods[name]
        found[name] = torch.cat(
            [
                rival.progression(case.classifier, some.to(device), outputs).images
                for some, outputs in zip(x, wanted, strict=True)
            ]
        )
    return found


def draw_rivals(
    case: ExaggerationCase, shown: Progression, progressed: Mapping[str, Tensor], row: int = 0
) -> Figure:
    """Draw the progression of one query, one row per method, with the classifier's outputs."""
    images = torch.stack([found[row] for found in progressed.values()])
    outputs = torch.stack([response.respond(case.classifier, strip) for strip in images])
    rows = [row] * len(images)
    return progression_grid(
        shown.query[rows], images, shown.source[rows], outputs, names=list(progressed)
    )


def compare_rivals(
    case: ExaggerationCase,
    methods: Mapping[str, Explainer],
    progressed: Mapping[str, Tensor],
    seed: int = 0,
) -> Comparison:
    """Return `compare_methods` for the images of `progress_rivals`."""
    n = len(progressed["exaggeration"])
    x = case.data.x[:n]
    encoders = {k: case.gan if k == "exaggeration" else case.vae for k in progressed}
    return compare_methods(
        x,
        progressed,
        case.classifier,
        case.real,
        encoders=encoders,
        unchanged={k: methods[k].zero_edit(x) for k in progressed},
        face=case.face,
        seed=seed,
        official=case.official,
        device=next(case.gan.parameters()).device,
    )


def name_metrics(compared: Comparison) -> dict[str, float]:
    """Return the entries of metrics.json: a rival's end with its name; NaN if not measured."""
    methods = compared.values.columns.drop(["n", "note"])
    return {
        row + ("" if k == "exaggeration" else f"_{k}"): value
        for k in methods
        for row, value in compared.values[k].reindex(list(TOLD)).items()
    }


def paper_beside_ours(
    case: ExaggerationCase, compared: Comparison, task: str = "smiling"
) -> pd.DataFrame:
    """Tables 1 and 2 of the paper beside ours: one row per metric, n last; shares in [0, 1]."""
    end = "" if case.official else "_embedded"
    rows = {
        "FID_overall": f"fid{end}",
        "FID_present": f"fid{end}_present",
        "FID_absent": f"fid{end}_absent",
        "latent_space_closeness": "lsc_method",
        "face_verification_accuracy": f"fva{end}",
    }
    paper = results.reported("progressive-exaggeration")
    paper = paper.query("table in ('Table 1', 'Table 2') and task == @task")
    wide = paper.pivot(index="metric", columns="method", values="value").loc[list(rows)]
    wide.loc[["latent_space_closeness", "face_verification_accuracy"]] /= 100  # printed in per cent
    ours = compared.values.reindex(list(rows.values())).set_axis(list(rows))
    methods = ours.drop(columns=["n", "note"])
    return wide.add_prefix("paper, ").join(methods.add_prefix(f"{case.dataset}, ")).assign(n=ours.n)


def read_ablation(changed: str) -> tuple[pd.DataFrame, dict[str, tuple[Tensor, Tensor]]]:
    """Return Table 6 and the curves of Fig. 12 from the committed record of `cf ablation`.

    changed: the weight of Fig. 12, see `ablation_record.ablation_curves`.
    """
    record = ablation_record.read_ablation()
    return ablation_record.ablation_table(record), ablation_record.ablation_curves(record, changed)
