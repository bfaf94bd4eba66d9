"""Zero edits of patients of several slices, by networks of single slices and of whole patients."""

from __future__ import annotations

import pytest
import torch

from cf_utils import worlds
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.generators.diffae import DiffusionAutoencoder
from cf_utils.models.generators.vae import VAE
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.oracle_columns import list_columns, true_readings
from cf_utils.models.teacher import Teacher
from cf_utils.training.recipes import calibration, oracle_stages, zero_edits

NET = {"growth": 4, "blocks": [1, 1], "first": 8, "pool": True}
BUILDS = {
    "lung_ct_vae": (VAE, {"size": [96, 96], "channels": 1, "widths": [2, 2, 2, 2, 2]}),
    "lung_ct_diffae": (
        DiffusionAutoencoder,
        {"size": [96, 96], "latent": 3, "widths": [16, 16], "encoder_widths": [16, 16]},
    ),
    "lung_ct_mortality": (Teacher, NET),
    "lung_ct_one": (SmallDenseNet, NET | {"outputs": 3}),
}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Networks with random weights in a folder of shipped checkpoints."""
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    monkeypatch.setattr(zero_edits, "STEPS", 3)
    for name, (kind, arguments) in BUILDS.items():
        torch.manual_seed(0)
        build = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        card = Card(architecture={"class": kind.__name__, "arguments": arguments})
        checkpoints.save(name, kind(**build), card, tmp_path, half=False)
    return tmp_path


def test_patients_pass_slice_by_slice(shipped):
    x = torch.rand(2, 4, 96, 96)
    for name in ("lung_ct_vae", "lung_ct_diffae"):
        model, found = checkpoints.load(name).model, zero_edits.load_zero_edit(name)(x)
        with torch.no_grad():
            for b, s in ((0, 1), (1, 3)):
                one = x[b, s][None, None]
                q = model.encode(one)
                rest = (model.invert(one, q, 3), 3) if name == "lung_ct_diffae" else ()
                expected = model.decode(q, *rest)[0, 0]
                torch.testing.assert_close(found[b, s], expected, atol=1e-4, rtol=1e-4)


def test_classifiers_of_two_classes_stay_and_of_independent_outputs_keep_one(shipped):
    assert isinstance(zero_edits.load_two_classes("lung_ct_mortality"), Teacher)
    one = zero_edits.load_two_classes("lung_ct_one", 2)
    x = torch.rand(2, 3, 96, 96)
    assert isinstance(one, OneOutput) and one(x).shape == (2, 2)
    torch.testing.assert_close(one(x)[:, 1], checkpoints.load("lung_ct_one").model(x)[:, 2])


def test_a_diffusion_autoencoder_is_calibrated_on_few_images_and_not_learnt(shipped, monkeypatch):
    world, passed = worlds.get("lung_ct"), {}
    assert zero_edits.list_generators(world) == ["lung_ct_diffae", "lung_ct_vae"]
    assert list(oracle_stages.describe_third_stage(world)["generators"]) == ["lung_ct_vae"]
    (shipped / "lung_ct_vae.json").unlink()
    assert oracle_stages.describe_third_stage(world) is None

    def edit(factors, seed, name):
        passed[name] = len(factors)
        return torch.zeros(len(factors), 4, 96, 96, dtype=torch.uint8)

    class Reader:
        names, sd = ("extent",), torch.tensor([0.1])

        def read(self, x):
            return x.mean((1, 2, 3))[:, None], torch.zeros(len(x), 1)

    monkeypatch.setattr(calibration, "render_zero_edits", edit)
    x = torch.full((60, 4, 96, 96), 0.5)
    x[calibration.N_SLOW :] = 0  # would pull the null down
    found = calibration.measure_nulls(Reader(), world.sample(60, "test"), x, 0)
    row = found["lung_ct_diffae"]
    assert passed == {"lung_ct_diffae": calibration.N_SLOW} and row["n"] == calibration.N_SLOW
    assert row["null"] == {"extent": 0.5}


def test_the_world_of_a_checkpoint_is_the_one_that_its_name_begins_with():
    for name in ("lung_ct_oracle", "faces_smile_gan", "radiographs_judge"):
        assert name.startswith(f"{worlds.of_checkpoint(name).name}_")
    with pytest.raises(ValueError, match="world: got 'mnist'"):
        worlds.of_checkpoint("mnist_cnn")


def test_bfloat16_reads_nearly_the_same_loss_in_float32():
    world = worlds.get("lung_ct")
    names = list_columns(world)
    value, shown = true_readings(world.sample(8), names)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 64, len(names)))
    losses = []
    for low in (False, True):
        plain, _ = oracle_stages.make_losses(world, names, value, shown, low)
        torch.manual_seed(1)
        losses.append(plain(net, (torch.full((8, 4, 8, 8), 0.5), value, shown)))
    assert losses[1].dtype == torch.float32 and losses[0] != losses[1]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
