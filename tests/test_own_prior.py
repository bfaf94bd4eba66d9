"""A prior of one's own images: a short training end to end, and its card against known models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cf_utils import cli
from cf_utils.explainers import presets
from cf_utils.harness import own_case, preflight
from cf_utils.models import checkpoints
from cf_utils.training import own_prior
from cf_utils.training.recipes.diffusion import measure_denoising
from tests.conftest import make_net


@pytest.fixture(scope="module", autouse=True)
def few_sampling_steps():
    """Sample in 10 passes instead of 50; the known models here are exact at any number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_prior, "SAMPLING", "10")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 grey images of 8 x 8: a bright bar at one of eight places."""
    root = tmp_path_factory.mktemp("bars")
    for i in range(40):
        pixels = np.full((8, 8), 30, dtype=np.uint8)
        pixels[:, i % 8] = 220
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    arguments = ["prior", "--images", str(folder), "--size", "8", "--steps", "30"]
    assert cli.main(["train", *arguments, "--out", str(out)]) == 0
    return out


def test_the_prior_is_loaded_and_serves_ace(trained, folder):
    model, card = checkpoints.load("prior", folder=trained, kind="diffusion")
    assert (model.channels, model.size, model.prediction) == (1, (8, 8), "v")
    assert card.quality["can"] + card.quality["cannot"]
    assert card.data["name"] == folder.name and card.settings["n"] == 32
    x = torch.rand(2, 1, 8, 8)
    net = make_net((1, 8, 8)).float()
    ace = presets.get("ace", "images", iterations=2).build(prior=model)
    cfs = ace(net, x, 1 - net(x).argmax(1).clamp(max=1))
    assert cfs.counterfactual.isfinite().all()
    options = own_case.Options(
        model="tests.own_models:small_network", images=str(folder), method="ace",
        prior=str(trained / "prior.safetensors"), size=(12, 12),
    )  # fmt: skip
    found = preflight._check_prior(own_case.load(options))
    assert found[0].level == "fix" and "pass --size 8 --channels 1" in found[0].text


def test_training_lowers_the_error(trained, folder):
    model = checkpoints.load("prior", folder=trained).model
    x = torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in sorted(folder.iterdir())]))
    x = x[:, None].float() / 255
    new = own_prior.diffusion.build(size=(8, 8), channels=1, blocks=1)
    assert measure_denoising(model, x)["rmse_0.9"] < 0.9 * measure_denoising(new, x)["rmse_0.9"]


class Known(torch.nn.Module):
    """A diffusion model that knows the clean image: of each item, or always the first one."""

    def __init__(self, x, first=False):
        super().__init__()
        self.model = own_prior.diffusion.build(size=(8, 8), channels=1, blocks=1)
        self.x, self.first = own_prior.diffusion.to_model(x), first
        self.schedule, self.channels = self.model.schedule, 1

    def forward(self, z, t):
        k = int(t.flatten()[0])
        clean = self.x[:1].expand(len(z), -1, -1, -1) if self.first else self.x[: len(z)]
        abar = self.schedule.abar[k].to(z)
        eps = (z - abar.sqrt() * clean) / (1 - abar).sqrt()
        return torch.cat([eps, torch.zeros_like(eps)], 1)

    chain = own_prior.diffusion.DDPM.chain


def test_the_card_of_a_perfect_denoiser_and_of_a_copy():
    gen = torch.Generator().manual_seed(0)
    train, held_out = torch.rand(40, 1, 8, 8, generator=gen), torch.rand(8, 1, 8, 8, generator=gen)
    perfect = own_prior.describe_quality(Known(held_out.repeat(2, 1, 1, 1)), train, held_out)
    assert max(v for k, v in perfect.items() if k.startswith("share_left")) < 0.05
    assert perfect["filter_change"] < 0.02
    assert perfect["sample_distance"] == pytest.approx(1, abs=0.05)  # samples: held-out images
    assert any("sample new images" in s for s in perfect["can"])
    copies = own_prior.describe_quality(Known(train, first=True), train, held_out)
    assert copies["sample_distance"] < 0.1
    assert any("sample new images" in s for s in copies["cannot"])
    assert any("filter as ACE" in s for s in copies["cannot"])


def test_an_untrained_model_can_do_nothing():
    """Its prediction is zero noise, so all of the noise is left."""
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(24, 1, 8, 8, generator=gen)
    model = own_prior.diffusion.build(size=(8, 8), channels=1, blocks=1)
    quality = own_prior.describe_quality(model, x, x[:8])
    assert quality["share_left_0.14"] == pytest.approx(1, abs=0.1)
    assert quality["can"] == [] and len(quality["cannot"]) >= 3


def test_rounds_add_up():
    rounds = own_prior._plan_rounds(450, 3000)
    assert sum(r.epochs * (450 // r.batch_size) for r in rounds) == pytest.approx(3000, rel=0.02)
    assert [r.prediction for r in rounds] == ["epsilon", "v"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prior"], "--images: expected with exactly"),
        (["mnist_cnn", "--images", "x"], "--images: expected with exactly"),
        (["prior", "--images", "missing-folder", "--size", "8"], "is no folder"),
        (["prior", "--images", "x", "--size", "30"], "--size: got 30, expected a multiple of 4"),
    ],
)
def test_wrong_options_are_named(arguments, message, capsys):
    assert cli.main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_too_few_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="--images: got 1 images, expected at least 32"):
        own_prior.train(tmp_path, 8)
