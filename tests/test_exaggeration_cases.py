"""Cases of progressive exaggeration: the right networks, one tau for all methods, clear errors."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from cf_utils.core import files
from cf_utils.datasets import celeba
from cf_utils.evaluation import heart_sizes
from cf_utils.harness import exaggeration_cases
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.image_classifiers import ImageDenseNet, SmallDenseNet
from cf_utils.viz.relevance import map_grid
from cf_utils.worlds import radiographs_ct
from tests.test_chexpert import root  # noqa: F401  (a fixture)
from tests.test_image_sets import faces  # noqa: F401  (a fixture)

NEEDED = ("faces_smile_gan", "faces_vae", "faces_smile_causal", "faces_oracle", "faces_ddpm")
shipped = pytest.mark.skipif(
    not all(map(checkpoints.exists, NEEDED)), reason="no shipped models of faces"
)


@pytest.fixture(scope="module")
def case():
    return exaggeration_cases.rendered_case("faces", "smile", 4, 6)


@shipped
def test_a_rendered_case_judges_by_networks_that_are_not_explained(case):
    assert case.data.x.shape == (4, 3, 64, 64) and case.real.shape == (6, 3, 64, 64)
    judge = case.judges["judge"]
    assert judge.model.names[judge.i] == "smile" and judge.model is not case.classifier.model
    same = (case.real[:, None] - case.data.x).abs().flatten(2).amax(2) == 0
    assert not same.any()  # images that FID takes for real are no queries
    assert not case.official and case.truth.factors is case.data.factors
    assert any(case.layer is module for module in case.classifier.modules())


@shipped
def test_the_oracle_reads_the_label_and_its_tolerance_is_two_null_deviations(case):
    read, tolerance = case.quantities["smile"]
    at = case.oracle.names.index("smile")
    torch.testing.assert_close(read(case.data.x), case.oracle.read(case.data.x)[0][:, at])
    assert tolerance == pytest.approx(2 * float(case.oracle.null[at]))
    low, high = (
        case.data.factors.world.render(case.data.factors.move("smile", v)) for v in (0.0, 1.0)
    )
    assert (read(high) - read(low) > tolerance).all()


@shipped
def test_all_methods_ask_for_the_same_probability(case):
    methods = case.methods(0.8, seed=3, slow=True)
    assert list(methods) == ["exaggeration", "xgem", "latent_shift", "ace", "dime"]
    assert {(m.tau, m.seed) for m in methods.values()} == {(0.8, 3)}
    assert methods["ace"].margin == pytest.approx(math.log(0.8 / 0.2))
    assert list(case.methods(0.8, seed=3)) == ["exaggeration", "xgem", "latent_shift"]


def test_celeba_needs_its_classifier_and_says_how_to_train_it(faces):  # noqa: F811
    with pytest.raises(FileNotFoundError, match="celeba_densenet"):
        exaggeration_cases.celeba_case(str(faces), "smile", 2, 2)
    with pytest.raises(ValueError, match="label: got 'glasses', expected one of"):
        exaggeration_cases.celeba_case(str(faces), "glasses", 2, 2)


def test_an_official_case_explains_the_output_of_its_label(faces, tmp_path, monkeypatch):  # noqa: F811
    """Stored networks of CelebA: the classifier's column is that of the attribute."""
    torch.manual_seed(0)
    classes = celeba.load(str(faces), "test", None).class_names
    net = ImageDenseNet(len(classes)).eval()
    gan = ConditionalGAN(size=128, widths=(4, 4), critic=4)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    for name, model, kind, build in (
        ("celeba_densenet", net, "ImageDenseNet", {"outputs": len(classes)}),
        ("celeba_young_gan", gan, "ConditionalGAN", {"size": 128, "widths": [4, 4], "critic": 4}),
    ):
        card = Card(
            architecture={"class": kind, "arguments": build}, extra={"classes": list(classes)}
        )
        checkpoints.save(name, model, card, tmp_path, half=False)
    found = exaggeration_cases.celeba_case(str(faces), "age", 5, 5)
    x = found.data.x
    assert found.official and found.vae is None and not found.judges and found.truth is None
    expected = net(x)[:, list(classes).index("Young")]
    torch.testing.assert_close(found.classifier(x)[:, 1], expected, rtol=1e-3, atol=1e-4)
    assert x.shape[2:] == (128, 128) and list(found.methods(0.9, 0)) == ["exaggeration"]
    assert files.read_json(tmp_path / "celeba_young_gan.json")["name"] == "celeba_young_gan"


needs_hearts = pytest.mark.skipif(
    not (checkpoints.exists("radiographs_cardiomegaly_gan") and radiographs_ct.exists()),
    reason=f"no shipped models of radiographs, or no scan: run {radiographs_ct.HOW}",
)


@needs_hearts
def test_a_case_of_radiographs_reads_the_heart_by_oracle_judge_and_segmenter():
    case = exaggeration_cases.rendered_case("radiographs", "cardiomegaly", 6, 2)
    assert case.factor == "heart_size" and list(case.quantities) == ["heart_size"]
    read, tolerance = case.quantities["heart_size"]
    factors = case.data.factors
    low, high = (factors.world.render(factors.move("heart_size", v)) for v in (0.1, 0.9))
    assert (read(high) - read(low) > tolerance).all()
    (judge,) = case.judges.values()
    assert (judge(high).argmax(1) == 1).all() and (judge(low).argmax(1) == 0).all()
    assert judge.model is not case.classifier.model
    assert heart_sizes.ratio_error(case.segmenter.segment, case.data.x, factors) < 0.02
    assert not case.missing


def store_chexpert_networks(folder):
    """Write small networks of CheXpert; the classifier's second output is cardiomegaly."""
    torch.manual_seed(0)
    build = {"outputs": 2, "channels": 1, "growth": 4, "blocks": [1, 1], "first": 8, "pool": True}
    gan = {"size": 128, "widths": [4, 4], "critic": 4, "channels": 1}
    net = SmallDenseNet(**build).eval()
    for name, model, arguments in (
        ("chexpert_densenet", net, build),
        ("chexpert_cardiomegaly_gan", ConditionalGAN(**gan), gan),
    ):
        card = Card(
            architecture={"class": type(model).__name__, "arguments": arguments},
            extra={"classes": ["Edema", "Cardiomegaly"]},
        )
        checkpoints.save(name, model, card, folder, half=False)
    return net


def test_chexpert_explains_cardiomegaly_and_names_what_is_missing(root, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(FileNotFoundError, match="chexpert_densenet"):
        exaggeration_cases.chexpert_case(str(root), 2, 2)
    folder = tmp_path / "checkpoints"
    net = store_chexpert_networks(folder)
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    case = exaggeration_cases.chexpert_case(str(root), 9, 4)
    x = case.data.x
    assert x.shape == (2, 1, 128, 128) and case.real.shape[1:] == x.shape[1:]  # frontal ones
    torch.testing.assert_close(case.classifier(x)[:, 1], net(x)[:, 1], rtol=1e-3, atol=1e-4)
    assert case.official and case.truth is None and not case.quantities and not case.judges
    assert case.missing == "chexpert_heart_unet.safetensors is missing"
    assert list(case.methods(0.9, 0)) == ["exaggeration"]


def test_the_grid_shows_each_map_and_names_a_missing_one():
    images = torch.rand(2, 3, 4, 4)
    maps = {"ours": torch.rand(2, 4, 4), "LRP": "classifier: its operation sigmoid has no rule"}
    fig = map_grid(images, maps, first="face")
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["face", "ours", "LRP\n(not available)"]
    for i in range(2):
        (shown,) = axes[i, 1].images
        np.testing.assert_allclose(shown.get_array(), maps["ours"][i].numpy())
        assert shown.get_clim() == (0, 1) and not axes[i, 2].images
        np.testing.assert_allclose(
            axes[i, 0].images[0].get_array(), np.moveaxis(images[i].numpy(), 0, -1)
        )
    plt.close(fig)
