"""Notebook 07 on official data: its cells, with the paper's profile cut down, on a tiny tree in CelebA's layout.

The networks are small and untrained (reading the published files is tested where they are read), so no figure means anything;
what is tested is that each column of the paper's tables is there, with its value or with the file that it lacks.
"""

from __future__ import annotations

import json
import warnings

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from cf_utils import cases, io, weights
from cf_utils.generators import ddpm
from tests.test_image_sets import faces  # noqa: F401  (a fixture)

TINY = {"size": (128, 128), "steps": 500, "unshuffle": 4, "widths": (16, 16), "attention": (False, False), "blocks": 1,
        "head_width": 16, "groups": 4}
CUT = {"n_images": 4, "iterations": 2, "dime_steps": 3, "n_variants": 1, "n_steps": 1, "n_dime": 1, "n_fast": 1, "n_diverse": 1,
       "n_seeds": 2, "batch": 4, "device": "cpu"}


class Many(nn.Module):
    """Forty outputs from the mean colours of the four quarters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, 40)
        with torch.no_grad():
            self.head.weight.mul_(200)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(x - 0.5, 2).flatten(1))


def executed(name: str, **parameters) -> dict:
    """The names that a notebook leaves behind when its cells run one after the other."""
    space: dict = {}
    for cell in nbformat.read(io.ROOT / "notebooks" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}:{cell.get('id')}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                assert not (unknown := parameters.keys() - space.keys()), unknown
                space |= parameters
    return space


@pytest.fixture
def celeba_with_small_networks(faces, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("CF_HEADLESS", "1")
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")           # nobody's own files
    find = weights.find
    monkeypatch.setattr(weights, "find", lambda name: None if name in ("celeba_classifier", "celeba_ddpm") else find(name))
    monkeypatch.setattr(cases.image_classifiers, "load_published", lambda path, kind, device: Many().to(device))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("".join(f"{k:06d}.jpg {int(k > 2)}\n" for k in range(1, 7)))
    torch.manual_seed(0)
    prior = ddpm.build(**TINY).eval()
    monkeypatch.setattr(cases.guided, "load", lambda path, kind, device: prior.to(device))
    yield str(faces)
    plt.close("all")


def test_every_column_of_the_papers_table_has_its_value_or_the_file_that_it_lacks(celeba_with_small_networks, tmp_path):
    asked = yaml.safe_load((io.ROOT / "notebooks" / "profiles" / "paper.yaml").read_text())["07_ace_faces"]
    parameters = {k: v for k, v in asked.items() if k != "shards"} | CUT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executed("07_ace_faces", profile="paper", data_root=celeba_with_small_networks, **parameters)
    found = next((tmp_path / "results").rglob("metrics.json")).parent
    metrics, one = json.loads((found / "metrics.json").read_text()), pd.read_csv(found / "tables" / "table1.csv", index_col=0)
    assert metrics["data"] == "official" and metrics["n"] == 4 and metrics["flip_rate"] > 0
    asked_for = {"fid": "inception", "sfid": "inception", "fva": "vggface2", "fs": "vggface2", "mnac": "celeba_oracle",
                 "cd": "celeba_oracle"}
    assert {"cout", "fr", *asked_for} <= set(one.index) and one.loc[["cout", "fr"], "value"].notna().all()
    for column, needs in asked_for.items():
        assert pd.isna(one.value[column]) and weights.FILES[needs].file in one.note[column], one.note[column]
        assert "How to get it" in one.note[column]
    assert one.loc["fid", "paper, ACE l1"] == 1.27 and one.loc["cd", "paper, ACE l1"] > 0
    stages = pd.read_csv(found / "tables" / "table5_stages.csv", index_col=0)
    assert {"FR", "FID, embedded", "MNAC", "CD", "paper's FID"} <= set(stages.columns)       # no embedded one by an official name
