"""Checkpoints: weights and model card as a pair, the registry, data hashes, and what ships."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.datasets import german_credit
from cf_utils.models import cards, checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import MnistCNN, TabularMLP

SHIPPED = checkpoints.names()


def net(hidden=4):
    torch.manual_seed(hidden)
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden))


# ---------------------------------------------------------------- weights and card


@pytest.mark.parametrize(("half", "error"), [(True, 2e-3), (False, 0.0)])
def test_weights_survive_a_round_trip(tmp_path, half, error):
    model = net().train()
    checkpoints.save("m", model, Card(about="x"), tmp_path, half=half)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    card = checkpoints.load_weights("m", other, tmp_path)
    assert card.about == "x" and card.name == "m"
    assert card.parameters == 24
    assert not other.training
    assert other[0].weight.dtype == torch.float32
    assert (other[0].weight - model[0].weight).abs().max() <= error  # float16: 2^-11 of the value
    assert other[1].num_batches_tracked.dtype == torch.int64


def test_weights_that_do_not_fit_are_refused(tmp_path):
    checkpoints.save("m", net(4), Card(), tmp_path)
    with pytest.raises(
        ValueError,
        match=r"fit Sequential: 0\.bias: file \(4,\), model \(5,\); 0\.weight: file \(4, 3\)",
    ):
        checkpoints.load_weights("m", net(5), tmp_path)
    with pytest.raises(ValueError, match=r"1\.bias: file \(4,\), model absent"):
        checkpoints.load_weights("m", nn.Sequential(nn.Linear(3, 4)), tmp_path)
    with pytest.raises(ValueError, match=r"2\.weight: file absent, model \(2, 4\)"):
        checkpoints.load_weights("m", nn.Sequential(*net(4), nn.Linear(4, 2)), tmp_path)
    before = net(5)
    kept = before[0].weight.clone()
    with pytest.raises(ValueError, match="fit"):
        checkpoints.load_weights("m", before, tmp_path)
    assert torch.equal(before[0].weight, kept)  # refused before anything was written into it


def test_a_checkpoint_missing_or_of_another_training_is_refused(tmp_path):
    missing = r"name: got 'm', but .*m\.json is missing; .*`cf train m`"
    with pytest.raises(FileNotFoundError, match=missing):
        checkpoints.load_weights("m", net(), tmp_path)
    path = checkpoints.save("m", net(), Card(), tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + b"\x01\x02")
    with pytest.raises(ValueError, match=r"sha256 .* as in its card"):
        checkpoints.load_weights("m", net(), tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.safetensors is missing; run `cf train m`"):
        checkpoints.load_weights("m", net(), tmp_path)
    path.write_bytes(raw)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.json"):
        checkpoints.load_weights("m", net(), tmp_path)


def test_loaded_convolutions_are_channels_last_and_compute_the_same(tmp_path):
    def convolutions():
        layers = (nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 1))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 2)).double()

    torch.manual_seed(0)
    model, other = convolutions(), convolutions()
    checkpoints.save("c", model, Card(), tmp_path)
    checkpoints.load_weights("c", other, tmp_path)
    kernels = [p for p in other.parameters() if p.ndim == 4]
    assert len(kernels) == 2
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert not kernels[0].is_contiguous()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    stored = model.half().double()  # checkpoints hold float16
    torch.testing.assert_close(other(x), stored(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_survives_a_round_trip(name):
    content = files.read_json(checkpoints.FOLDER / f"{name}.json")
    card = checkpoints.read_card(name)
    assert card.to_json() == content
    assert card.recipe.startswith(f"cf train {name} ")


def test_unknown_keys_of_a_card_are_kept(tmp_path):
    content = {"name": "m", "classes": ["a", "b"], "note": None, "quality": {"n": 1}, "seed": 0}
    card = Card.from_json(content)
    assert card.extra == {"classes": ["a", "b"], "note": None} and card.to_json() == content
    checkpoints.save("m", net(), card, tmp_path)
    assert checkpoints.read_card("m", tmp_path).extra == card.extra


# ---------------------------------------------------------------- names and kinds


def save_cnn(name, folder, **card):
    torch.manual_seed(0)
    architecture = {"class": "MnistCNN", "arguments": {"a": 2, "b": 3, "hidden": 8}}
    model = MnistCNN(2, 3, 8).train()
    checkpoints.save(name, model, Card(architecture=architecture, **card), folder, half=False)
    return model


def test_a_card_names_the_class_and_its_arguments(tmp_path):
    model, x = save_cnn("small", tmp_path), torch.rand(2, 1, 28, 28)
    loaded, card = checkpoints.load("small", folder=tmp_path)
    assert not loaded.training and card.architecture["class"] == "MnistCNN"
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-6, atol=1e-6)
    assert checkpoints.exists("small", tmp_path) and not checkpoints.exists("large", tmp_path)


def test_a_misspelt_name_gets_a_suggestion(tmp_path):
    save_cnn("digits_small", tmp_path)
    with pytest.raises(FileNotFoundError) as e:
        checkpoints.load("digits_smal", folder=tmp_path)
    assert "name: got 'digits_smal'" in str(e.value)
    assert "did you mean 'digits_small'?" in str(e.value)
    assert "`cf train digits_smal`" in str(e.value)
    with pytest.raises(FileNotFoundError) as e:
        checkpoints.read_card("nothing_like_it", tmp_path)
    assert "did you mean" not in str(e.value) and "['digits_small']" in str(e.value)


def test_names_are_listed_by_kind():
    assert set(checkpoints.names("diffusion")) == {"faces_ddpm", "roads_ddpm", "lung_ct_ddpm"}
    assert set(checkpoints.names("autoencoder")) >= {"mnist_aae", "mnist_autoencoder"}
    assert checkpoints.names("segmenter") == ["radiographs_heart_unet"]
    assert checkpoints.names("encoder") == ["faces_identity"]
    listed = [name for kind in checkpoints.KINDS for name in checkpoints.names(kind)]
    assert sorted(listed) == SHIPPED and len(SHIPPED) >= 24
    with pytest.raises(ValueError, match="kind: got 'gen', expected one of classifier, oracle"):
        checkpoints.names("gen")


def test_a_model_of_another_kind_is_refused(tmp_path):
    save_cnn("small", tmp_path)
    assert checkpoints.load("small", kind="classifier", folder=tmp_path).card.name == "small"
    with pytest.raises(ValueError, match=r"MnistCNN of kind 'classifier', expected kind 'oracle'"):
        checkpoints.load("small", kind="oracle", folder=tmp_path)


def test_an_unregistered_class_is_refused(tmp_path):
    checkpoints.save("m", net(), Card(architecture={"class": "Transformer"}), tmp_path)
    with pytest.raises(ValueError, match=r"m: .* class 'Transformer', expected one of \['MnistCNN"):
        checkpoints.load("m", folder=tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_checkpoint_loads_in_eval_mode(name):
    model, card = checkpoints.load(name)
    assert card.name == name and not any(m.training for m in model.modules())
    assert type(model).__name__ == card.architecture["class"]
    assert sum(p.numel() for p in model.parameters()) == card.parameters


def test_the_identity_encoder_gets_the_threshold_of_its_card():
    encoder, card = checkpoints.load("faces_identity")
    assert encoder.threshold == card.quality["threshold"]


def test_slow_libraries_are_imported_only_for_the_models_that_need_them():
    code = (
        "import sys; from cf_utils.models import checkpoints; checkpoints.load('mnist_aae'); "
        "assert not {'diffusers', 'torchvision'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- the training data


def test_training_data_other_than_the_cards_is_refused(tmp_path):
    x = torch.rand(6, 4)
    card = Card(
        architecture={"class": "TabularMLP", "arguments": {"n_features": 4}},
        data={"name": "toy", "split": "train (6 rows)", "sha256": files.sha256(x)[:16]},
    )
    checkpoints.save("toy", TabularMLP(4), card, tmp_path)
    assert checkpoints.load("toy", data=x, folder=tmp_path).card.name == "toy"
    for other in (
        x[:3],
        x[torch.tensor([1, 0, 2, 3, 4, 5])],
        x + 1e-6,
    ):  # halved, shuffled, changed
        with pytest.raises(ValueError, match=r"data: got .* toy was trained on toy, train \(6 row"):
            checkpoints.load("toy", data=other, folder=tmp_path)
    checkpoints.load("toy", folder=tmp_path)  # without data, nothing is compared


def test_a_card_without_a_data_hash_cannot_be_compared(tmp_path):
    save_cnn("small", tmp_path, data={"name": "toy"})
    with pytest.raises(ValueError, match="data: the card of small holds no sha256"):
        checkpoints.load("small", data=torch.zeros(2), folder=tmp_path)


def test_texts_and_worlds_are_hashed_like_their_recipes_do():
    texts = ["a film", "another"]
    assert cards.hash_data(texts) == files.sha256(*texts)
    assert cards.hash_data(worlds.get("roads")) == worlds.get("roads").sha256()
    other = Card(name="r", data={"world_sha256": "0" * 64})
    with pytest.raises(ValueError, match="data: got training data with sha256"):
        other.check_data(worlds.get("roads"))


def test_the_shipped_credit_classifier_accepts_its_own_data_only():
    train = german_credit.load("", "train")
    checkpoints.load("german_credit_mlp", data=train.x)
    with pytest.raises(ValueError, match="its training rows may be among your test rows"):
        checkpoints.load("german_credit_mlp", data=train.x.flip(0))
