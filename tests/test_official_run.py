"""Notebooks 04 to 08 on official data: a reduced paper profile on tiny official folders.

The networks are small and untrained, so no figure means anything. The tests check that each column
of the paper's tables is there, with its value or with the name of the file that it lacks.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from cf_utils.core import files
from cf_utils.harness import ace_cases, cases, road_cases
from cf_utils.models import checkpoints, image_classifiers, pretrained
from cf_utils.models.cards import Card
from cf_utils.models.generators import diffusion
from cf_utils.models.generators.cgan import ConditionalGAN
from tests.test_chexpert import SMALL, VALID, write_csv
from tests.test_chexpert import root as radiographs  # noqa: F401  (a fixture)
from tests.test_exaggeration_cases import store_chexpert_networks
from tests.test_image_sets import VALUES, attribute_text, faces, hq, pairs, picture, scenes  # noqa: F401  (fixtures)

TINY = {
    "unshuffle": 4,
    "widths": (16, 16),
    "attention": (False, False),
    "blocks": 1,
    "head_width": 16,
    "groups": 4,
}
CUT = {
    "04_exaggeration_faces": {
        "n_images": 6,
        "n_rivals": 6,
        "n_truth": 4,
        "n_real": 24,
        "device": "cpu",
    },
    "05_exaggeration_radiographs": {
        "n_images": 6,
        "n_registered": 2,
        "n_rivals": 2,
        "n_real": 12,
        "device": "cpu",
    },
    "07_ace_faces": {
        "n_images": 4,
        "iterations": 2,
        "device": "cpu",
    },
    "08_ace_roads": {
        "n_images": 4,
        "iterations": 2,
        "device": "cpu",
    },
    "09_diffexplainer_ct": {
        "n_patients": 4,
        "n_undecided": 2,
        "n_rivals": 2,
        "steps": 2,
        "device": "cpu",
    },
    "06_diffusion_prior": {
        "n_samples": 8,
        "sampling": "10",
        "few": "5",
        "n_short": 8,
        "n_real": 24,
        "n_filter": 6,
    },
}


class Many(nn.Module):
    """A classifier of the mean colours of the four quarters of an image."""

    def __init__(self, outputs):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(12, outputs)
        with torch.no_grad():
            self.head.weight.mul_(200)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(x - 0.5, 2).flatten(1))


def execute(name: str, **parameters) -> dict:
    """Run the cells of a notebook one after the other; return its variables."""
    space: dict = {}
    for cell in nbformat.read(files.ROOT / "notebooks" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}:{cell.get('id')}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                assert not (unknown := parameters.keys() - space.keys()), unknown
                space |= parameters
    return space


TINY_SIZES = ace_cases.Sizes(
    batch=4,
    n_linked=1,
    n_shortcut=1,
    n_variants=1,
    variant_steps=1,
    n_dime=1,
    dime_steps=3,
    n_fastdime=1,
    n_null=1,
    n_diverse=1,
    n_seeds=2,
    n_fresh=4,
)
SIZES = {"celeba": (128, 128), "celebahq": (256, 256), "bdd": (256, 512), "imagenet": (256, 256)}


@pytest.fixture
def small_networks(tmp_path, monkeypatch):
    """Replace the published networks by small ones; the user's own files are not read."""
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("CF_HEADLESS", "1")
    find, own = pretrained.find, pretrained.FOLDER / pretrained.FILES["alexnet"].file
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    if own.exists():  # from `make weights`; notebook 06 needs it for KID
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights" / own.name).symlink_to(own)
    monkeypatch.setattr(
        pretrained,
        "find",
        lambda name: None if name.endswith(("_classifier", "_ddpm")) else find(name),
    )
    kinds = image_classifiers.PUBLISHED

    def classifier(path, kind, device):
        return Many(kinds[kind] if isinstance(kinds[kind], int) else len(kinds[kind])).to(device)

    def prior(path, kind, device):
        torch.manual_seed(0)
        return (
            diffusion.build(
                **TINY, size=SIZES[kind], steps=500 if kind.startswith("celeba") else 1000
            )
            .eval()
            .to(device)
        )

    monkeypatch.setattr(cases.image_classifiers, "load_published", classifier)
    monkeypatch.setattr(cases.guided_diffusion, "load", prior)
    yield
    plt.close("all")


def run_paper_profile(name: str, folder, **changes) -> tuple[dict, Path]:
    """Run a notebook with the reduced paper profile; return its metrics and results folder."""
    section = yaml.safe_load((files.ROOT / "notebooks" / "profiles" / "paper.yaml").read_text())[
        name
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        execute(
            name,
            profile="paper",
            **{k: v for k, v in section.items() if k != "shards"} | CUT[name] | changes,
        )
    found = next((folder / "results").rglob("metrics.json")).parent
    return json.loads((found / "metrics.json").read_text()), found


@pytest.mark.parametrize(
    ("dataset", "which", "n"), [("celeba", "table1", 4), ("celebahq", "table2", 2)]
)
def test_each_column_of_the_papers_tables_has_its_value_or_names_a_missing_file(
    request, small_networks, tmp_path, monkeypatch, dataset, which, n
):
    monkeypatch.setitem(ace_cases.SIZES, "paper", TINY_SIZES)
    root = request.getfixturevalue({"celeba": "faces", "celebahq": "hq"}[dataset])
    if dataset == "celeba":
        (root / "celeba" / "list_eval_partition.txt").write_text(
            "".join(f"{k:06d}.jpg {int(k > 2)}\n" for k in range(1, 7))
        )
    metrics, found = run_paper_profile(
        "07_ace_faces", tmp_path, data_root=str(root), dataset=dataset
    )
    one = pd.read_csv(found / "tables" / f"{which}.csv", index_col=0)
    assert (
        metrics["data"] == "official" and metrics["n"] == n and (metrics["flip_rate"] > 0 or n == 2)
    )
    needed_files = {
        "fid": "inception",
        "sfid": "inception",
        "fva": "vggface2",
        "fs": "vggface2",
        "mnac": f"{dataset}_oracle",
        "cd": f"{dataset}_oracle",
    }
    assert {"cout", "fr", *needed_files} <= set(one.index) and one.loc[
        ["cout", "fr"], "value"
    ].notna().all()
    for column, needs in needed_files.items():
        assert pd.isna(one.value[column]) and pretrained.FILES[needs].file in one.note[column], (
            one.note[column]
        )
        assert "How to get it" in one.note[column]
    assert (
        one.loc["fid", "paper, ACE l1"] == {"celeba": 1.27, "celebahq": 3.21}[dataset]
        and one.loc["cd", "paper, ACE l1"] > 0
    )
    stages = pd.read_csv(found / "tables" / "table5_stages.csv", index_col=0)
    assert {"FR", "FID, embedded", "MNAC", "CD", "paper's FID"} <= set(
        stages.columns
    )  # an embedded metric has no official name


@pytest.mark.parametrize(
    ("dataset", "label", "which", "n"),
    [
        ("bdd", "action", "table3", 3),
        ("bdd100k", "action", "table3", 2),
        ("imagenet", "zebra-sorrel", "table4", 3),
    ],
)
def test_notebook_08_runs_on_each_official_data_set(
    request, small_networks, tmp_path, monkeypatch, dataset, label, which, n
):
    tiny = {"n_noise": 2, "n_dime": 1, "dime_steps": 2}
    small = dataclasses.replace(road_cases.SIZES["paper"], **tiny)
    monkeypatch.setitem(road_cases.SIZES, "paper", small)
    root = request.getfixturevalue("pairs" if dataset == "imagenet" else "scenes")
    metrics, found = run_paper_profile(
        "08_ace_roads", tmp_path, data_root=str(root), dataset=dataset, label=label
    )
    table = pd.read_csv(found / "tables" / f"{which}.csv", index_col=0)
    assert (
        metrics["data"] == "official"
        and metrics["n"] == n
        and {"fr", "cout", "fid", "sfid", "s3"} <= set(table.index)
    )
    assert table.loc["fr", "value"] == metrics["flip_rate"] and any(
        c.startswith("paper") for c in table.columns
    )


@pytest.mark.skipif(
    not pretrained.FOLDER.joinpath(pretrained.FILES["alexnet"].file).exists(),
    reason="needs `make weights`",
)
def test_notebook_06_runs_with_the_prior_of_celeba(faces, small_networks, tmp_path):  # noqa: F811
    names = [f"{k:06d}.jpg" for k in range(1, 25)]
    for k, name in enumerate(names):
        picture(faces / "celeba" / "img_align_celeba" / name, seed=k)
    (faces / "celeba" / "list_attr_celeba.txt").write_text(
        attribute_text(names, np.tile(VALUES, (4, 1)))
    )
    (faces / "celeba" / "list_eval_partition.txt").write_text(
        "".join(f"{name} 1\n" for name in names)
    )
    metrics, found = run_paper_profile("06_diffusion_prior", tmp_path, data_root=str(faces))
    assert metrics["data"] == "official" and metrics["n"] == 6
    assert len(pd.read_csv(found / "tables" / "filtered.csv")) == 4


def store_celeba_networks(folder, names) -> None:
    """Write a small classifier of all attributes and a small GAN as checkpoints."""
    torch.manual_seed(0)
    net = image_classifiers.SmallDenseNet(len(names), growth=4, blocks=(1, 1), first=8, pool=True)
    gan = ConditionalGAN(size=128, widths=(4, 4), critic=4)
    builds = {
        "celeba_densenet": (net, {"outputs": len(names), "growth": 4, "blocks": [1, 1]}),
        "celeba_smiling_gan": (gan, {"size": 128, "widths": [4, 4], "critic": 4}),
    }
    builds["celeba_densenet"][1].update({"first": 8, "pool": True})
    for name, (model, build) in builds.items():
        architecture = {"class": type(model).__name__, "arguments": build}
        card = Card(architecture=architecture, extra={"classes": list(names)})
        checkpoints.save(name, model, card, folder)


def test_notebook_04_fills_its_tables_on_celeba_or_names_the_missing_file(
    faces,  # noqa: F811
    small_networks,
    tmp_path,
    monkeypatch,
):
    names = [f"{k:06d}.jpg" for k in range(1, 25)]
    for k, name in enumerate(names):
        picture(faces / "celeba" / "img_align_celeba" / name, seed=k)
    (faces / "celeba" / "list_attr_celeba.txt").write_text(
        attribute_text(names, np.tile(VALUES, (4, 1)))
    )
    (faces / "celeba" / "list_eval_partition.txt").write_text(
        "".join(f"{name} {1 + k % 2}\n" for k, name in enumerate(names))
    )
    classes = cases.celeba.load(str(faces), "test", None).class_names
    store_celeba_networks(tmp_path / "checkpoints", classes)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "checkpoints")
    metrics, found = run_paper_profile("04_exaggeration_faces", tmp_path, data_root=str(faces))
    assert metrics["data"] == "official" and metrics["n"] == 6
    assert metrics["rank_correlation"] is not None and metrics["fva_embedded"] is None
    table = pd.read_csv(found / "tables" / "tables_1_2_5.csv", index_col=0)
    for column, needs in {
        "fid": "inception",
        "fid_present": "inception",
        "fva": "vggface2",
    }.items():
        assert pd.isna(table.exaggeration[column])
        assert pretrained.FILES[needs].file in table.note[column], table.note[column]
    assert table.exaggeration[["lsc_method", "identity_error"]].notna().all()
    beside = pd.read_csv(found / "tables" / "paper_beside_ours.csv", index_col=0)
    assert beside.loc["FID_overall", "paper, exaggeration"] == 35.8
    assert beside.loc["latent_space_closeness", "celeba, exaggeration"] >= 0


def test_notebook_05_fills_its_tables_on_chexpert_or_names_the_missing_file(
    radiographs,  # noqa: F811
    small_networks,
    tmp_path,
    monkeypatch,
):
    folder = radiographs / SMALL
    rows = [[f"valid/patient{i}/study1/view1_frontal.jpg", *VALID[i % 2 * 2][1:]] for i in range(8)]
    for seed, (path, *_) in enumerate(rows):
        picture(folder / path, (39, 32), seed=seed)
    write_csv(folder / "valid.csv", rows)
    store_chexpert_networks(tmp_path / "checkpoints")
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "checkpoints")
    metrics, found = run_paper_profile(
        "05_exaggeration_radiographs", tmp_path, data_root=str(radiographs)
    )
    assert metrics["data"] == "official" and metrics["n"] == 6
    assert metrics["rank_correlation"] is not None and metrics["heart_rank_correlation"] is None
    hearts = pd.read_csv(found / "tables" / "fig4a_heart_size.csv", index_col=0)
    assert set(hearts.note) == {"chexpert_heart_unet.safetensors is missing"}
    criteria = pd.read_csv(found / "tables" / "tables_1_2.csv", index_col=0)
    (column,) = criteria.columns.drop(["n", "note"])
    assert criteria[column][["lsc_method"]].notna().all() and pd.isna(criteria[column]["fid"])
    assert pretrained.FILES["inception"].file in criteria.note["fid"]
    beside = pd.read_csv(found / "tables" / "paper_beside_ours.csv", index_col=0)
    assert beside.loc["FID_overall", "paper, exaggeration"] == 58.1
    assert beside.loc["latent_space_closeness", "paper, exaggeration"] == pytest.approx(0.279)
