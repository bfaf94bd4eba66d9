"""Recipes and model cards: what `make` trains, measures and writes."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cf_utils.datasets.base import InMemory
from cf_utils.models import checkpoints
from cf_utils.training import loop
from cf_utils.training.recipes import RECIPES, Trained, base, digits, make


class Tiny(nn.Module):
    """One weight that float16 cannot represent, a buffer and a counter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.1, 1 / 3]))
        self.register_buffer("scale", torch.tensor(1.2345678))
        self.register_buffer("count", torch.tensor(70_001))


@pytest.fixture
def fake(monkeypatch):
    """A recipe whose quality is the sum of its weights."""

    def train(root, seed, folder):
        """Fake: two weights."""
        card = {"data": {"name": "none"}, "settings": {"n": 2}}
        return Trained(Tiny(), card, {"seconds": 0.0}, measure)

    def measure(model):
        return {"sum": (model.weight.double().sum() * model.scale.double()).item()}

    monkeypatch.setitem(RECIPES, "fake", train)
    monkeypatch.setattr(base, "EMBEDDED", {"fake"})
    return measure


def test_the_quality_is_that_of_the_stored_weights(fake, tmp_path):
    card = make("fake", "", seed=3, out=tmp_path)
    stored = Tiny()
    checkpoints.load_weights("fake", stored, tmp_path)
    assert card["quality"] == fake(stored)
    assert card["quality"] != fake(Tiny())  # float32 differs
    assert stored.count == 70_001 and stored.weight.dtype == torch.float32
    written = checkpoints.read_card("fake", tmp_path)
    assert written.quality == card["quality"] and written.recipe == "cf train fake --seed 3"
    assert written.about == "Fake: two weights." and written.architecture == {"class": "Tiny"}
    assert written.settings == {"n": 2} and written.training == {"seconds": 0.0}


def test_an_unknown_recipe_and_missing_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recipe: got 'mnist_cn', .*mnist_cnn"):
        make("mnist_cn", "", out=tmp_path)
    with pytest.raises(ValueError, match="--data: got none, but mnist_cnn is made from official"):
        make("mnist_cnn", "", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_steps_of_a_recipe_are_reported_without_a_terminal(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("CF_HEADLESS", raising=False)
    make("fake", "", out=tmp_path)
    assert capsys.readouterr().err.splitlines() == ["fake: training", "fake: measuring"]


@pytest.mark.parametrize(
    "name",
    [
        "mnist_cnn",
        "mnist_cnn_984",
        "mnist_judge_augmented",
        "mnist_judge_adversarial",
        "mnist_autoencoder",
        "mnist_aae",
        "german_credit_mlp",
    ],
)
def test_the_card_of_a_shipped_model_states_its_recipe(name, monkeypatch):
    """The settings are also passed to the state, because losses use them."""
    x = torch.rand(20, 1, 28, 28)
    split = InMemory(x, torch.arange(20) % 10, torch.arange(20), tuple("0123456789"), "official")
    monkeypatch.setattr(digits.mnist, "load", lambda root, split_name: split)
    seen = {}
    monkeypatch.setattr(loop, "fit", lambda *args, **settings: seen.update(settings) or {})
    trained, card = RECIPES[name]("data", 0, None), checkpoints.read_card(name)
    assert trained.card["settings"] == card.settings == seen["settings"]
    assert {"class": type(trained.model).__name__} | trained.card.get("architecture", {}) == (
        card.architecture
    )
    assert seen["batch_size"] == card.settings["batch_size"]
    assert seen["epochs"] == card.settings.get("epochs", 10)
    if name == "german_credit_mlp":
        assert trained.card["data"] == card.data


def test_every_recipe_passes_its_settings_to_the_state():
    calls = [
        node
        for path in Path(base.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "loop.fit"
    ]
    assert len(calls) >= 10
    for call in calls:
        assert {"settings", "seed", "folder"} <= {keyword.arg for keyword in call.keywords}
