"""The recipes of progressive exaggeration on small trees in the layouts of CelebA and CheXpert."""

from __future__ import annotations

import pytest
import torch

from cf_utils.datasets import celeba, chexpert
from cf_utils.models import checkpoints
from cf_utils.training.exaggeration import Weights
from cf_utils.training.exaggeration_rounds import Round
from cf_utils.training.recipes import exaggeration_official as official
from cf_utils.training.recipes import make, photographs
from cf_utils.training.recipes.base import Trained
from tests.test_chexpert import root  # noqa: F401 (a fixture)
from tests.test_image_sets import faces  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def shorten(monkeypatch, tmp_path):
    for module in (photographs, official):
        monkeypatch.setattr(module, "CLASSIFIER", photographs.CLASSIFIER | {"epochs": 1})
        monkeypatch.setattr(module, "WORKERS", 0)
    monkeypatch.setattr(official, "BATCH", 2)
    monkeypatch.setattr(official, "PER_EPOCH", 4)
    monkeypatch.setattr(official, "ROUNDS", (Round(1, None), Round(1, Weights())))
    network = {"size": 128, "widths": (4, 4, 4), "critic": 2}
    monkeypatch.setattr(official, "NETWORK", network)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "checkpoints")


def check(trained: Trained, channels: int, classifier: str) -> None:
    assert trained.card["settings"]["classifier"] == classifier
    assert trained.card["settings"]["weights_of_the_paper"] == {"cgan": 1, "f": 1, "rec": 100}
    assert trained.log["steps"] == 4 and len(trained.log["losses"]) == 2
    y = trained.model(torch.rand(1, channels, 128, 128), torch.tensor([9]))
    assert y.shape == (1, channels, 128, 128)
    quality = trained.measure(trained.model)
    assert 0 <= quality["response_error"] <= 1 and quality["test_n"] > 0


def test_celeba_from_jpegs_to_a_gan(faces, tmp_path):  # noqa: F811
    make("celeba_densenet", str(faces), 0, None, tmp_path / "checkpoints")
    train, test = (celeba.load(str(faces), split, "Young") for split in ("train", "test"))
    with pytest.raises(ValueError, match="p: got no image in bin"):
        official.train_gan(train, test, "celeba_densenet", "Young", 0, None)
    trained = official.train_gan(train, test, "celeba_densenet", "Young", 0, None, empty="skip")
    check(trained, 3, "celeba_densenet")


def test_chexpert_from_jpegs_to_a_gan(root, tmp_path):  # noqa: F811
    card = make("chexpert_densenet", str(root), 0, None, tmp_path / "checkpoints")
    assert card["classes"] == ["Cardiomegaly"]
    train, test = (chexpert.load(str(root), split) for split in ("train", "test"))
    of = ("chexpert_densenet", "Cardiomegaly", 0, tmp_path / "state")
    check(official.train_gan(train, test, *of, empty="skip"), 1, "chexpert_densenet")
