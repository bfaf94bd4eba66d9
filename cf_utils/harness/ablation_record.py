"""The ablation of progressive exaggeration (Table 6, Fig. 12), read from its committed record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import files
from cf_utils.harness import results

RECORD = files.ROOT / "results" / "tuning" / "faces_smile_exaggeration_ablation.json"
COLUMNS = {  # of the record -> (column, metric of Table 6, factor of its printed value)
    "fid_embedded": ("FID", "FID_overall", 1.0),
    "lsc_method": ("LSC", "latent_space_closeness", 0.01),
    "fva_embedded": ("FVA", "face_verification_accuracy", 0.01),
}
SYMBOLS = {"cgan": "λ_cGAN", "f": "λ_f", "rec": "λ_rec"}
RESPONSE = {"rank_correlation": "rank correlation, f", "rank_correlation_judge": "judge"}


def read_ablation(path: Path = RECORD) -> dict[str, Any]:
    """Return the record of `cf ablation`. Raises FileNotFoundError that names the command."""
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing; `cf ablation` makes it")
    return files.read_json(path)


def ablation_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Table 6: one row per setting, ours (mean over the seeds) beside the paper's.

    Args:
        record: of `cf ablation`.

    Returns: index "cGAN, f, rec" (the three weights); columns FID, LSC, FVA and the rank
        correlations, ours; seeds, their number; the paper's columns begin with "paper, ". LSC and
        FVA are shares in [0, 1].
    """
    rows = pd.DataFrame(record["rows"])
    names = [",".join(f"{w[k]:g}" for k in ("cgan", "f", "rec")) for w in rows["weights"]]
    wanted = {k: v[0] for k, v in COLUMNS.items()} | RESPONSE
    ours = rows[list(wanted)].astype(float).rename(columns=wanted)
    groups = ours.assign(setting=names).groupby("setting", sort=False)
    table = groups.mean().assign(seeds=groups.size())
    return table.join(_printed()).rename_axis("cGAN, f, rec")


def _printed() -> pd.DataFrame:
    """The paper's values by setting."""
    paper = results.reported("progressive-exaggeration").query("table == 'Table 6'")
    setting = paper["method"].str.rsplit("= ", n=1).str[-1]
    wide = paper.assign(setting=setting).pivot(index="setting", columns="metric", values="value")
    return pd.DataFrame({f"paper, {name}": wide[m] * by for name, m, by in COLUMNS.values()})


def ablation_curves(record: Mapping[str, Any], changed: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Fig. 12: per value of one weight, the mean expected and actual response of each bin.

    Args:
        record: of `cf ablation`.
        changed: cgan, f or rec; the other two weights have the paper's values.

    Returns: curves for `viz.progressions.response_curves`; both tensors are (seeds, K).
    """
    kept = [
        r for r in record["rows"] if r["name"] == "paper" or r["name"].startswith(f"{changed}=")
    ]
    if not kept:
        raise ValueError(f"changed: got {changed!r}, expected cgan, f or rec")
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(kept, key=lambda r: r["weights"][changed]):
        curves.setdefault(f"{SYMBOLS[changed]} = {row['weights'][changed]:g}", []).append(row)
    return {
        name: (
            torch.tensor([row["expected"] for row in rows]),
            torch.tensor([row["actual"] for row in rows]),
        )
        for name, rows in curves.items()
    }
