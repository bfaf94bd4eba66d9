"""Tables of DiffExplainer: reconstruction, agents, manipulation and localisation.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), sections 3.3 to 3.5. Patients are images
(B, S, H, W) in [0, 1] with S slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, device_of
from cf_utils.evaluation.metrics import voxels
from cf_utils.evaluation.metrics.alignment import measure_alignment
from cf_utils.evaluation.metrics.decision import paired_difference
from cf_utils.evaluation.metrics.manipulation import is_observable, measure_manipulation
from cf_utils.evaluation.metrics.reconstruction import measure_reconstruction, psnr
from cf_utils.evaluation.reconstructions import measure_rows
from cf_utils.models.agent import Agent
from cf_utils.models.classifiers import predict
from cf_utils.models.generators.slices import DiffusionCodes

ROWS = {
    "a": "A: own z, inverted x_T",
    "b": "B: own z, x_T as printed",
    "c": "C: own z, random x_T",
    "d": "D: z of another patient, own x_T",
}
MANIPULATION = {  # name of a metric -> its entry in `manipulation_row`
    "moved_as_wanted": "moved",
    "monotone": "monotone",
    "reached": "reached",
    "observable": "observable",
    "undecided_reached": "undecided_reached",
}
BODY = 0.42  # value of -500 HU in the lung window, between air and fat


@torch.no_grad()
def reconstruction_table(
    classifier: nn.Module,
    x: Tensor,
    rows: Mapping[str, Tensor],
    rivals: Mapping[str, Tensor],
    body: Tensor | None = None,
) -> pd.DataFrame:
    """Compare reconstructions of x: one row per way, columns of `measure_reconstruction`.

    Args:
        classifier: maps x to logits (B, K).
        rows: of `reconstructions.reconstruct_patients`.
        rivals: name -> what another generator makes of x, of the shape of x.
        body: bool like x, pixels inside the body.
    """
    found: dict[str, Any] = {
        ROWS[k]: v for k, v in measure_rows(classifier, x, dict(rows), body).items()
    }
    logits = predict(classifier, x)
    for name, y in rivals.items():
        quality = measure_reconstruction(x, y, logits, predict(classifier, y), body)
        found[name] = quality | {"draws": 1}
    table = pd.DataFrame(found).T
    return table.astype({"n": int, "draws": int})


@torch.no_grad()
def alignment_table(
    agents: Mapping[str, Agent], codes: DiffusionCodes, classifier: nn.Module, x: Tensor
) -> pd.DataFrame:
    """Table 1: agreement of each agent with the black box on patients x, one row per objective."""
    q = codes.encode_semantic(x.to(device_of(codes.model, x.device))).to(x.device)
    logits = predict(classifier, x)
    found = {name: measure_alignment(predict(agent, q), logits) for name, agent in agents.items()}
    return pd.DataFrame(found).T.astype({"n": int})


def manipulation_row(
    classifier: nn.Module, cfs: Counterfactuals, noise_sd: Tensor | None = None
) -> dict[str, float | int]:
    """Return `Manipulation.summary`, and the share of changes that can be seen above the noise.

    The change is that from the reconstruction, over the same patients as the other shares.

    cfs: with paths in equal steps of alpha; noise_sd: of the images, (B,), None leaves the share
    out.
    """
    measured = measure_manipulation(classifier, cfs)
    if noise_sd is None or cfs.path is None:
        return measured.summary()
    seen = is_observable(cfs.counterfactual - cfs.path[:, 1], noise_sd)
    searched = ~measured.moved.isnan().cpu()
    return measured.summary() | {"observable": seen[searched].double().mean().item()}


def name_manipulation(row: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return the entries of `manipulation_row` under the names of metrics.json, if it has them."""
    return {name: row[entry] for name, entry in MANIPULATION.items() if entry in row}


def localisation_table(
    maps: Mapping[str, Tensor | str], truth: Tensor, within: Tensor, seed: int = 0
) -> pd.DataFrame:
    """Compare maps of amounts with the true voxels: one row per map, the first one is ours.

    Columns: mean auprc, pointing and mass over patients with a true voxel (`n`), and ours less the
    map's auprc (`ahead`) with its 95 % interval over the same patients (`low`, `high`); `note` says
    why a map is missing.

    Args: maps (B, S, H, W) or a reason; truth, within: bool (B, S, H, W). Raises ValueError if the
    first map is missing.
    """
    first = next(iter(maps))
    if isinstance(maps[first], str):
        raise ValueError(f"maps: got a reason for {first!r}, expected a map, the first is ours")
    found = voxels.compare_maps(maps, truth, within)
    ours = found[first]["auprc"]
    rows: dict[str, dict[str, Any]] = {}
    for name, of in maps.items():
        if isinstance(of, str):
            rows[name] = {"n": 0, "note": of}
            continue
        values = found[name]
        ahead = paired_difference(ours, values["auprc"], seed=seed)
        rows[name] = {metric: value.nanmean().item() for metric, value in values.items()}
        rows[name] |= {"ahead": ahead["mean"], "low": ahead["low"], "high": ahead["high"]}
        rows[name] |= {"n": int((~values["auprc"].isnan()).sum()), "note": ""}
    return pd.DataFrame.from_dict(rows, orient="index")


def chance(truth: Tensor, within: Tensor) -> float:
    """Return the mean AUPRC of a map by chance: the share of true voxels of each patient with one.

    Args: truth, within: bool (B, S, H, W).
    """
    share = (truth & within).flatten(1).sum(1).double() / within.flatten(1).sum(1)
    return share[share > 0].mean().item()


def segment_body(x: Tensor) -> Tensor:
    """Return the body, all that lies inside its skin, bool like x (B, S, H, W)."""
    above = (x > BODY).cpu().numpy()
    filled = [[ndimage.binary_fill_holes(plane) for plane in item] for item in above]
    return torch.from_numpy(np.array(filled)).to(x.device).view(x.shape)


def air_share(x: Tensor) -> Tensor:
    """Return the share of pixels inside the body that hold air, (B,): below -500 HU."""
    body = segment_body(x)
    return (body & (x < BODY)).flatten(1).sum(1).double() / body.flatten(1).sum(1)


def other_less_own(x: Tensor, other_code: Tensor) -> float:
    """Return by how many dB row D is closer to the patient whose code it has than to its own one.

    Args: other_code: row D of `reconstruct_patients` (1, B, S, H, W), with the next patient's code.
    """
    y = other_code[0]
    return (psnr(x.roll(-1, 0), y) - psnr(x, y)).mean().item()


def change_inside(changes: Mapping[str, Tensor], lungs: Tensor) -> dict[str, float]:
    """Return each map's mean signed change in the lungs, in its own units.

    Args: changes (B, S, H, W); lungs bool like them.
    """
    return {name: change[lungs].double().mean().item() for name, change in changes.items()}


def body_overlap(x: Tensor, y: Tensor) -> Tensor:
    """Dice overlap of the bodies in x and y, (B,) in [0, 1]: 1 if the outline has not moved."""
    a, b = (segment_body(image).flatten(1).double() for image in (x, y))
    return 2 * (a * b).sum(1) / (a.sum(1) + b.sum(1))
