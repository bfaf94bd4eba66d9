"""An autoencoder of one's own images: any size, its card against known models, and CEM with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cf_utils import cli
from cf_utils.harness import own_case, own_methods, preflight
from cf_utils.models import checkpoints
from cf_utils.models.generators.autoencoder import AutoEncoder
from cf_utils.training import own_autoencoder

SIZE = (10, 14)  # no multiple of 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """150 grey images of 10 x 14: a ramp from one brightness at the left to another one."""
    root, rng = tmp_path_factory.mktemp("ramps"), np.random.default_rng(0)
    for i in range(150):
        pixels = np.linspace(*rng.uniform(20, 235, 2), SIZE[1])[None].repeat(SIZE[0], 0)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i:03d}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    own_autoencoder.train(folder, steps=60, out=out)
    return out


def test_it_is_loaded_in_its_own_size_and_has_learned(trained, folder):
    model, card = checkpoints.load("autoencoder", folder=trained, kind="autoencoder")
    assert (model.size, model.channels, card.settings["n"]) == (SIZE, 1, 135)
    assert card.quality["explained"] > 0.8 and card.quality["noise_ratio"] > 2
    assert len(card.quality["can"]) == 2


def options(folder, trained, **changes):
    given = {"method": "cem", "prior": str(trained / "autoencoder.safetensors"), "n": 2}
    model = "tests.test_own_autoencoder:darker"
    return own_case.Options(model=model, images=str(folder), **(given | changes))


class Darker(nn.Module):
    """Logits proportional to (m, 1 - m) of the mean m: class 1 is a dark image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return self.scale * torch.stack([mean, 1 - mean], 1)


def darker():
    return Darker()


def test_cem_stays_closer_to_the_folder_with_it(folder, trained):
    closeness = {}
    for prior in ("", str(trained / "autoencoder.safetensors")):
        case = own_case.load(options(folder, trained, prior=prior))
        explain = own_methods.build(case)
        assert (explain.gamma > 0) == bool(prior)
        cfs = explain(case.model, case.x, case.find_target())
        assert cfs.reached.all()
        model = checkpoints.load("autoencoder", folder=trained).model
        y = cfs.counterfactual
        closeness[bool(prior)] = (y - model(y)).square().sum((1, 2, 3)).detach()
    assert closeness[True].mean() < 0.8 * closeness[False].mean()


def test_the_preflight_asks_for_the_size_of_the_autoencoder(folder, trained):
    assert preflight._check_prior(own_case.load(options(folder, trained)))[0].level == "ok"
    other = own_case.load(options(folder, trained, size=(12, 12)))
    (found,) = preflight._check_prior(other)
    assert found.level == "fix" and "pass --size 10x14 --channels 1" in found.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": "mnist_aae"}, "a AdversarialAutoencoder, expected an AutoEncoder"),
        ({"prior": "faces_ddpm"}, "expected kind 'autoencoder'"),
        (
            {"prior": "there/mine.safetensors"},
            "--prior: .* there/mine.json is missing: weights need",
        ),
        ({"method": "wachter"}, "--prior: got .* wachter takes none for images"),
    ],
)
def test_another_model_is_refused(folder, trained, changes, message):
    given = options(folder, trained, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own_methods.choose(given)
        own_methods.load_prior(given)


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((9, 9), 3), ((33, 18), 3)])
def test_any_size_and_the_items_are_independent(size, channels):
    torch.manual_seed(0)
    model = AutoEncoder(latent=5, size=size, channels=channels).double()
    x = torch.rand(3, channels, *size, dtype=torch.float64)
    y = model(x)
    assert y.shape == x.shape and model.encode(x).shape == (3, 5)
    torch.testing.assert_close(model(x[1:2]), y[1:2])
    with pytest.raises(ValueError, match="x: got images of shape"):
        model(x[:, :, 1:])


class Known(nn.Module):
    """Reconstructs perfectly, or always returns one image."""

    def __init__(self, image=None):
        super().__init__()
        self.image = image

    def forward(self, x):
        return x if self.image is None else self.image.expand_as(x)


def test_the_card_of_known_models():
    gen = torch.Generator().manual_seed(0)
    train, held_out = torch.rand(40, 1, 8, 8, generator=gen), torch.rand(8, 1, 8, 8, generator=gen)
    mean = own_autoencoder.describe_quality(Known(train.mean(0)), train, held_out, 0)
    assert mean["explained"] == pytest.approx(0, abs=1e-6) and mean["can"] == []
    perfect = own_autoencoder.describe_quality(Known(), train, held_out, 0)
    assert perfect["explained"] == pytest.approx(1)
    assert len(perfect["can"]) == 1  # it reconstructs noise, too, so it tells nothing apart
    assert "reconstruct held-out images" in perfect["can"][0]


def test_the_command_prints_the_card_and_its_path(folder, tmp_path, capsys):
    arguments = ["autoencoder", "--images", str(folder), "--size", "8", "--steps", "1"]
    assert cli.main(["train", *arguments, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("can") or said.startswith("cannot")
    assert str(tmp_path / "autoencoder.safetensors") in said
