"""Recipes on official photographs: a tree of six faces in CelebA's layout through the whole way, from JPEG to checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cf_utils.models import checkpoints
from cf_utils.training.recipes import RECIPES, make, photographs
from tests.test_image_sets import NAMES, VALUES, faces  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(photographs, "CLASSIFIER", {"epochs": 1, "batch_size": 32, "lr": 1e-4})
    monkeypatch.setattr(photographs, "PRIOR", photographs.PRIOR | {"epochs": 1})
    monkeypatch.setattr(
        photographs,
        "WIDTHS",
        {
            "widths": (16, 32),
            "blocks": 1,
            "attention": (False, False),
            "head_width": 16,
            "groups": 8,
            "unshuffle": 4,
        },
    )


def test_a_densenet_of_celeba_from_files_to_a_checkpoint_that_loads(faces, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "checkpoints"
    card = make("celeba_densenet", str(faces), 0, tmp_path / "state", out)
    assert card["classes"] == NAMES and card["quality"]["validation_n"] == 1
    assert set(card["quality"]["validation_accuracy"].values()) <= {0.0, 1.0}
    assert card["data"]["split"] == "train (3 images)" and "--data DIR" in card["recipe"]
    model = checkpoints.load("celeba_densenet", folder=out).model
    assert model(torch.rand(2, 3, 128, 128)).shape == (2, 40)


def test_a_prior_of_celeba_from_files_to_a_checkpoint_that_loads(faces, tmp_path, monkeypatch):  # noqa: F811
    out = tmp_path / "checkpoints"
    card = make("celeba_ddpm", str(faces), 0, None, out)
    assert card["training"]["steps"] == 1 and card["quality"]["test_n"] == 1
    model = checkpoints.load("celeba_ddpm", folder=out).model
    assert model.size == (128, 128) and len(model.schedule) == 500


def test_the_loss_is_of_the_labels_of_the_images(monkeypatch):
    """A model that reads the first label off the image's mean: its loss is that of its logits, mirrored or not. One that reads
    it off the left half is wrong about what is mirrored."""
    y = torch.tensor(VALUES[:4, :2] > 0).long()
    x = y[:, :1, None, None].float().expand(-1, 3, 8, 8)

    def model(images):
        z = 20 * images.mean((1, 2, 3)) - 10
        return torch.stack([z, torch.zeros_like(z)], 1)

    for chance in (0.2, 0.8):
        monkeypatch.setattr(torch, "rand", lambda *_, chance=chance: torch.tensor(chance))
        for loss in (photographs.labels_loss, photographs.mirrored_loss):
            got = loss(model, (x, y, list("abcd")))
            torch.testing.assert_close(
                got, torch.tensor((4.5398e-5 + 0.6931472) / 2), rtol=1e-4, atol=1e-6
            )
        sided = torch.cat([x[..., :4], 1 - x[..., :4]], 3)
        of_left = {
            loss: loss(lambda images: model(images[..., :4])[:, :1], (sided, y[:, 0], ())).item()
            for loss in (photographs.labels_loss, photographs.mirrored_loss)
        }
        assert of_left[photographs.labels_loss] < 1e-4
        assert (of_left[photographs.mirrored_loss] > 5) == (chance < 0.5)
    assert (
        photographs.labels_loss(lambda images: model(images)[:, :1], (x, y[:, 0], ())) < 1e-4
    )  # one label, (N,)


def test_roads_are_not_mirrored(monkeypatch):
    """Left is one of BDD-OIA's actions; a mirrored face is a face."""
    monkeypatch.setattr(photographs, "_classifier", lambda *_, mirror=True: mirror)
    for name, module, mirrored in (
        ("bdd_densenet", photographs.bdd, False),
        ("celeba_densenet", photographs.celeba, True),
    ):
        monkeypatch.setattr(module, "load", lambda *_: SimpleNamespace(class_names=()))
        assert RECIPES[name]("", 0, None) is mirrored


def test_what_is_missing_is_said_first(tmp_path):
    for name in ("celeba_densenet", "celebahq_densenet", "bdd_densenet", "celeba_ddpm", "bdd_ddpm"):
        with pytest.raises(FileNotFoundError, match=r"data/README\.md"):
            RECIPES[name](str(tmp_path), 0, None)
    with pytest.raises(ValueError, match="celeba_densenet is made from official files"):
        make("celeba_densenet", "")
