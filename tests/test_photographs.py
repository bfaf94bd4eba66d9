"""Recipes on official photographs, on six images in CelebA's layout: from JPEGs to a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils.datasets import celeba
from cf_utils.models import checkpoints
from cf_utils.training.recipes import RECIPES, make, photographs
from tests.test_image_sets import NAMES, VALUES, faces  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def shorten(monkeypatch):
    widths = {
        "widths": (16, 32),
        "blocks": 1,
        "attention": (False, False),
        "head_width": 16,
        "groups": 8,
        "unshuffle": 4,
    }
    monkeypatch.setattr(photographs, "CLASSIFIER", photographs.CLASSIFIER | {"epochs": 1})
    monkeypatch.setattr(photographs, "PRIOR", photographs.PRIOR | {"epochs": 1})
    monkeypatch.setattr(photographs, "WIDTHS", widths)


def test_the_densenet_recipe_makes_a_checkpoint_that_loads(faces, tmp_path):  # noqa: F811
    out = tmp_path / "checkpoints"
    card = make("celeba_densenet", str(faces), 0, tmp_path / "state", out)
    assert card["classes"] == NAMES and card["quality"]["validation_n"] == 1
    assert set(card["quality"]["validation_accuracy"].values()) <= {0.0, 1.0}
    assert card["data"]["split"] == "train (3 images)" and "--data DIR" in card["recipe"]
    model = checkpoints.load("celeba_densenet", folder=out).model
    assert model(torch.rand(2, 3, 128, 128)).shape == (2, 40)


def test_each_accuracy_stands_beside_the_majority_rate(faces):  # noqa: F811
    """A model that ignores the image: its accuracy is the share of the label it always gives."""
    train = celeba.load(str(faces), "train", None)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 40)

    quality = photographs.measure_labels(Constant(), train, train.class_names)
    accuracy, majority = quality["validation_accuracy"], quality["validation_majority_rate"]
    assert list(accuracy) == list(majority) == NAMES
    for k, name in enumerate(NAMES):
        share = (train.y[:, k] > 0).double().mean().item()
        assert accuracy[name] == pytest.approx(share)
        assert majority[name] == pytest.approx(max(share, 1 - share))
    assert any(accuracy[name] < majority[name] for name in NAMES)


def test_the_prior_recipe_makes_a_checkpoint_that_loads(faces, tmp_path):  # noqa: F811
    out = tmp_path / "checkpoints"
    card = make("celeba_ddpm", str(faces), 0, None, out)
    assert card["training"]["steps"] == 1 and card["quality"]["test_n"] == 1
    model = checkpoints.load("celeba_ddpm", folder=out).model
    assert model.size == (128, 128) and len(model.schedule) == 500


def test_the_loss_compares_logits_with_labels_and_mirrors_half_of_the_batches(monkeypatch):
    """One model reads the first label from the image's mean, which mirroring does not change.

    Another reads it from the left half, and is wrong about mirrored images.
    """
    y = torch.tensor(VALUES[:4, :2] > 0).long()
    x = y[:, :1, None, None].float().expand(-1, 3, 8, 8)

    def model(images):
        z = 20 * images.mean((1, 2, 3)) - 10
        return torch.stack([z, torch.zeros_like(z)], 1)

    for chance in (0.2, 0.8):
        monkeypatch.setattr(torch, "rand", lambda *_, chance=chance: torch.tensor(chance))
        for loss in (photographs.labels_loss, photographs.mirrored_loss):
            got = loss(model, (x, y, list("abcd")))
            expected = torch.tensor((4.5398e-5 + 0.6931472) / 2)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        sided = torch.cat([x[..., :4], 1 - x[..., :4]], 3)

        def read_left(images):
            return model(images[..., :4])[:, :1]

        plain = photographs.labels_loss(read_left, (sided, y[:, 0], ())).item()
        mirrored = photographs.mirrored_loss(read_left, (sided, y[:, 0], ())).item()
        assert plain < 1e-4 and (mirrored > 5) == (chance < 0.5)
    one_label = photographs.labels_loss(lambda images: model(images)[:, :1], (x, y[:, 0], ()))
    assert one_label < 1e-4


def test_roads_are_not_mirrored(monkeypatch):
    """Left is one of BDD-OIA's actions, whereas a mirrored face is a face."""
    monkeypatch.setattr(photographs, "train_classifier", lambda *_, mirror=True: mirror)
    for name, module, mirrored in (
        ("bdd_densenet", photographs.bdd, False),
        ("celeba_densenet", photographs.celeba, True),
    ):
        monkeypatch.setattr(module, "load", lambda *_: SimpleNamespace(class_names=()))
        assert RECIPES[name]("", 0, None) is mirrored


def test_missing_data_are_named_before_any_work(tmp_path):
    for name in ("celeba_densenet", "celebahq_densenet", "bdd_densenet", "celeba_ddpm", "bdd_ddpm"):
        with pytest.raises(FileNotFoundError, match=r"data/README\.md"):
            RECIPES[name](str(tmp_path), 0, None)
    with pytest.raises(ValueError, match="celeba_densenet is made from official files; pass"):
        make("celeba_densenet", "")
