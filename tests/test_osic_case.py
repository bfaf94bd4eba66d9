"""Notebook 09's case on an OSIC tree: its recipes, its networks, and an explanation."""

from __future__ import annotations

import functools
import hashlib
import itertools

import pandas as pd
import pytest
import torch

from cf_utils.core import files
from cf_utils.datasets import osic
from cf_utils.explainers.diffexplainer import DiffExplainer
from cf_utils.harness.osic_case import ct_case, osic_case
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.training.recipes import RECIPES
from cf_utils.training.recipes import osic as recipes
from cf_utils.training.recipes.renders import predict_bytes
from tests.ct_files import write_chest
from tests.test_official_run import run_paper_profile

SMALL = {"network": "small", "growth": 4, "blocks": (1, 1), "first": 8}
CODES = {"latent": 3, "widths": (16, 16), "encoder_widths": (16, 16), "blocks": 1}
WEEKS = (0, 12, 26, 39, 52)


def tenth(patient):
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 10


def choose(part, n):
    """The first n names whose split is `part`: 0 for test, 1 for train."""
    names = (f"ID{i:05d}" for i in itertools.count())
    return list(itertools.islice((p for p in names if (tenth(p) > 2) == part and tenth(p) != 2), n))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten training patients, five of whom decline, and four test patients, as Kaggle's tree.

    There are two series: the same chest, and one that is denser by 40 HU.
    """
    folder = tmp_path_factory.mktemp("data") / "osic-pulmonary-fibrosis-progression"
    phantoms = [write_chest(folder / f"p{b}", RescaleIntercept=b) for b in (-1024, -984)]
    rows = [",".join(osic.COLUMNS)]
    for i, patient in enumerate([*choose(1, 10), *choose(0, 4)]):
        (folder / "train").mkdir(exist_ok=True)
        (folder / "train" / patient).symlink_to(phantoms[i % 2])
        fall = 0.14 if i % 2 else 0.02
        rows += [f"{patient},{w},{3000 * (1 - fall * w / 52)},80,70,Male,Ex-smoker" for w in WEEKS]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return str(folder.parent)


@pytest.fixture(scope="module")
def networks(root, tmp_path_factory):
    """A folder with checkpoints that the recipes made, at 48 pixels, in one epoch."""
    folder, patch = tmp_path_factory.mktemp("checkpoints"), pytest.MonkeyPatch()
    patch.setattr(checkpoints, "FOLDER", folder)
    patch.setattr(recipes, "read_split", functools.cache(recipes.read_split))
    for settings in (recipes.BLACK_BOX, recipes.AGENT):
        patch.setitem(settings, "epochs", 1)
    made = {}

    def keep(name, trained):
        card = Card.from_json({**trained.card, "quality": trained.measure(trained.model)})
        checkpoints.save(name, trained.model, card, folder, half=False)
        made[name] = card

    keep("osic_diffae", recipes.train_autoencoder(root, 0, None, 1, size=(48, 48), **CODES))
    trained = recipes.train_teacher("decline", root, 0, None, 48, **SMALL)
    x, _ = recipes.read_split(root, "train", "decline", 48)
    margin = predict_bytes(trained.model, x) @ torch.tensor([-1.0, 1.0])
    with torch.no_grad():  # both classes are decided, as the agent's folds need
        trained.model.head.bias[1] -= (margin.max() + margin.min()) / 2
    keep("osic_decline", trained)
    keep("osic_decline_agent", recipes.train_agent("decline", root, 0, None))
    yield made
    patch.undo()


def test_the_recipes_train_on_training_patients_and_measure_test_patients(root, networks):
    assert {card.data["split"] for card in networks.values()} == {"train (10 patients)"}
    assert networks["osic_diffae"].quality["n"] == 12  # slices of three test patients
    assert networks["osic_decline"].quality["test_n"] == 4
    assert networks["osic_decline"].extra["classes"] == ["stable", "decline"]
    agent, card = checkpoints.load("osic_decline_agent", kind="agent")
    head = checkpoints.load("osic_decline").model.head
    assert agent.latent == 3 and torch.equal(agent.head.weight, head.weight)
    assert card.settings["teacher"] == "osic_decline" and card.settings["folds"] == 5
    assert set(networks) <= set(RECIPES) and {"osic_mortality", "osic_mortality_agent"} <= set(
        RECIPES
    )
    x, y = recipes.read_split(root, "train", "decline", 48)
    data = osic.load(root, "train", size=48)
    assert torch.equal(y, data.y) and y.sum() == 5
    torch.testing.assert_close(x[3].float() / 255, data[3][0], atol=0.501 / 255, rtol=0)


def test_a_case_holds_test_patients_at_the_size_of_the_autoencoder(root, networks):
    case = ct_case("osic", root, n=3)
    expected = osic.load(root, "test", size=48).take(range(3)).in_memory()
    assert case.data.ids == expected.ids and torch.equal(case.data.x, expected.x)
    assert torch.equal(case.data.y, expected.y) and case.size == (48, 48)
    assert case.dataset == "osic" and case.name == "osic (official)"
    assert case.truth is None and case.noise is None and not case.masks and case.second is None
    assert list(case.agents) == ["l1"] and not case.readable
    assert len(osic_case(root, 99).data) == 4
    methods = case.methods(0.9, 0, steps=2)
    assert {m.tau for m in methods.values()} == {0.9} and "latent_shift" in methods
    explain = next(m for m in methods.values() if isinstance(m, DiffExplainer))
    y = case.classifier(case.data.x).argmax(1)
    cfs = explain(case.classifier, case.data.x[:2], 1 - y[:2], case.data.ids[:2])
    assert cfs.counterfactual.shape == (2, 4, 48, 48) and list(cfs.ids) == list(case.data.ids[:2])


def test_undecided_patients_are_those_near_one_half(root, networks, monkeypatch):
    data = osic_case(root, 4).data
    p = checkpoints.load("osic_decline").model(data.x).softmax(1)[:, 1]
    near = (p - 0.5).abs() <= 0.1
    assert near.any()  # one epoch leaves the classifier undecided
    found = ct_case("osic", root, n=2, undecided=True).data.ids
    assert found == tuple(i for i, take in zip(data.ids, near, strict=True) if take)[:2]
    monkeypatch.setattr("cf_utils.harness.osic_case.UNDECIDED", -1.0)
    with pytest.raises(ValueError, match=r"undecided: got none of 4 test patients"):
        osic_case(root, 2, undecided=True)


def test_what_is_missing_or_unknown_is_named(root, networks, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="dataset: got 'oasis', expected one of"):
        ct_case("oasis", root)
    with pytest.raises(ValueError, match="label: got 'death', expected one of"):
        osic_case(root, 2, "death")
    with pytest.raises(ValueError, match="n: got 0"):
        osic_case(root, 0)
    with pytest.raises(FileNotFoundError, match="`cf train osic_mortality` makes"):
        osic_case(root, 2, "mortality")
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    files.write_json(tmp_path / "other.json", {"name": "other"})
    with pytest.raises(FileNotFoundError, match="`cf train osic_diffae` makes"):
        osic_case(root, 2)


def test_notebook_09_runs_on_an_osic_tree(root, networks, tmp_path, monkeypatch):
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("CF_HEADLESS", "1")
    metrics, found = run_paper_profile("09_diffexplainer_ct", tmp_path, data_root=root)
    assert metrics["data"] == "official" and metrics["n"] == 4
    assert {"agent_auc", "moved_as_wanted", "undecided_reached"} <= set(metrics)
    assert not {"observable", "localisation_auprc"} & set(metrics)  # noise and truth are unknown
    tables = {path.stem: path for path in (found / "tables").glob("*.csv")}
    moved = pd.read_csv(tables["manipulation"], index_col=0)
    assert moved.n_undecided.tolist() == [2, 2] and moved.moved.notna().all()
    beside = pd.read_csv(tables["paper_beside_ours"], index_col=0)
    assert beside.loc["PSNR", "paper, diffusion autoencoder"] == 35.28 and (beside.n == 4).all()
