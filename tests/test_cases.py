"""Cases: the shipped ones match their model cards; official ones fail with clear errors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cf_utils.explainers import presets
from cf_utils.harness import cases
from cf_utils.models import checkpoints, pretrained

SHIPPED = all(checkpoints.exists(name) for name in ("faces_ddpm", "faces_smile_causal"))
LABELS = {"bdd": "action", "bdd100k": "action", "imagenet": "zebra-sorrel"}  # otherwise smile
LOADERS = {
    "celeba": cases.celeba,
    "celebahq": cases.celebahq,
    "bdd": cases.bdd,
    "bdd100k": cases.bdd,
    "imagenet": cases.imagenet_pairs,
}


@pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")
def test_the_classifier_and_prior_of_a_rendered_case_fit_its_queries():
    case = cases.rendered_case("faces", "smile", n=64)
    assert (case.name, case.dataset, len(case.data)) == ("faces (embedded)", "faces", 64)
    assert case.data.x.shape[1:] == (3, 64, 64) and case.prior.size == (64, 64)
    with torch.no_grad():
        logits = case.classifier(case.data.x)
    assert logits.shape == (64, 2)
    assert (logits.argmax(1) == case.data.y).double().mean() >= 0.93  # 0.98 on 2,000


@pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")
def test_a_rendered_case_holds_its_truth():
    case = cases.rendered_case("faces", "smile", n=2)
    assert case.truth.factors is case.data.factors
    assert next(iter(case.truth.uses)) == "smile"  # sorted by effect on the probability
    assert case.truth.oracle == checkpoints.read_card("faces_oracle")
    assert case.card == checkpoints.read_card("faces_smile_causal")
    assert case.perceptual is None


def test_unknown_names_and_missing_folders_are_errors(tmp_path):
    with pytest.raises(ValueError, match="dataset: got 'ffhq', expected one of"):
        cases.official_case("ffhq", str(tmp_path), "smile", 4)
    with pytest.raises(FileNotFoundError, match="celeba"):
        cases.official_case("celeba", str(tmp_path), "smile", 4)


@pytest.mark.parametrize(
    ("dataset", "label"), [("bdd", "smile"), ("imagenet", "action"), ("celebahq", "Eyeglasses")]
)
def test_an_unknown_label_is_an_error_before_any_image_is_read(dataset, label):
    with pytest.raises(ValueError, match=f"label: got '{label}', expected one of"):
        cases.official_case(dataset, "somewhere", label, 4)


@pytest.mark.parametrize("dataset", LOADERS)
def test_a_missing_network_is_named_with_its_source(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    split = SimpleNamespace(
        class_names=("Male", "Young", "Smiling"), y=torch.eye(3, dtype=torch.int64)
    )
    monkeypatch.setattr(LOADERS[dataset], "load", lambda *args, **settings: split)
    file = pretrained.FILES[f"{dataset.removesuffix('100k')}_classifier"].file
    with pytest.raises(FileNotFoundError, match=f"{file} is missing.*How to get it: https://"):
        cases.official_case(dataset, "somewhere", LABELS.get(dataset, "smile"), 4)


class Outputs(nn.Module):
    """Output k is (k + 1) times the mean of the image."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True) * (torch.arange(self.n) + 1)


class Split(SimpleNamespace):
    """A split of an official data set, three images."""

    def __len__(self):
        return len(self.x)

    def take(self, rows):
        return Split(**{**vars(self), "x": self.x[list(rows)]})

    def in_memory(self):
        return self


FORTY = (*(f"a{k}" for k in range(31)), "Smiling", *(f"a{k}" for k in range(32, 39)), "Young")


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Replace data and networks by small ones; return a function that builds a case, the calls of
    the data set's `load`, and the images."""
    calls, x = [], torch.rand(3, 3, 8, 8)

    def load(root, split, *more, **settings):
        calls.append((split, more, settings))
        return Split(x=x, y=torch.eye(40, dtype=torch.int64), class_names=FORTY)

    def build(dataset, label, outputs, n=2):
        monkeypatch.setattr(LOADERS[dataset], "load", load)
        monkeypatch.setattr(
            cases.image_classifiers, "load_published", lambda *given: Outputs(outputs)
        )
        return cases.official_case(dataset, "somewhere", label, n, broken="skip")

    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setattr(pretrained, "find", lambda name: name)
    monkeypatch.setattr(cases.guided_diffusion, "load", lambda path, name, on: (path, name))
    return build, calls, x


@pytest.mark.parametrize(
    ("dataset", "label", "outputs", "picked", "attribute", "key"),
    [
        ("celeba", "smile", 40, (31,), 31, "celeba"),
        ("celeba", "age", 40, (39,), 39, "celeba"),
        ("celebahq", "smile", 3, (1,), 31, "celebahq"),
        ("celebahq", "age", 3, (2,), 39, "celebahq"),
        ("bdd", "action", 4, (0,), None, "bdd"),
        ("bdd100k", "action", 4, (0,), None, "bdd"),
        ("imagenet", "zebra-sorrel", 1000, (340, 339), None, "imagenet"),
        ("imagenet", "cheetah-cougar", 1000, (293, 286), None, "imagenet"),
    ],
)
def test_an_official_case_picks_the_right_outputs(
    official, dataset, label, outputs, picked, attribute, key
):
    build, calls, x = official
    case = build(dataset, label, outputs)
    assert calls[0][0] == cases.SPLITS[dataset] and all(s["broken"] == "skip" for *_, s in calls)
    assert calls[0][2].get("crop") == (178 if dataset == "celeba" else None)
    assert len(case.data) == 2 and case.truth is None and case.perceptual is None
    logits, mean = case.classifier(x), x.flatten(1).mean(1)
    if len(picked) == 1:
        torch.testing.assert_close(logits[:, 1] - logits[:, 0], mean * (picked[0] + 1))
    else:
        torch.testing.assert_close(logits, mean[:, None] * (torch.tensor(picked) + 1))
    assert (case.dataset, case.prior) == (key, (f"{key}_ddpm", key))
    assert case.attribute == attribute and (case.correlations is None) == (attribute is None)


@pytest.mark.parametrize("dataset", LOADERS)
def test_every_official_case_has_a_preset_of_ace(official, dataset):
    build, _, _ = official
    case = build(dataset, LABELS.get(dataset, "smile"), 1000)
    ace = presets.get("ace", case.dataset).build(prior=case.prior, seed=3)
    assert ace.seed == 3 and ace.prior == case.prior
    if dataset == "imagenet":  # DiME has none: an error, not another data set's settings
        with pytest.raises(ValueError, match="expected one of"):
            presets.get("dime", case.dataset)
    else:
        steps = presets.get("dime", case.dataset).build(prior=None).steps
        assert steps == (45 if case.dataset == "bdd" else 60)
        assert presets.get("fastdime", case.dataset).build(prior=None).fast


def test_the_perceptual_term_is_there_if_its_weights_are(official, tmp_path, monkeypatch):
    build, _, _ = official
    monkeypatch.setattr(cases.perceptual, "VGG19", nn.Identity)
    assert build("bdd", "action", 4).perceptual is None
    (tmp_path / pretrained.FILES["vgg19"].file).touch()
    assert isinstance(build("bdd", "action", 4).perceptual, nn.Identity)


def test_correlations_are_measured_over_the_training_labels():
    y = torch.tensor([[0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1]])

    def load(root, split, attribute):
        assert (root, split, attribute) == ("somewhere", "train", None)
        return SimpleNamespace(y=y, class_names=("Male", "Young", "Smiling"))

    def fail(*_):
        raise FileNotFoundError("no images")

    column, linked = cases.attribute_correlations(load, "somewhere", "Smiling")
    assert column == 2
    torch.testing.assert_close(linked, torch.tensor(np.corrcoef(y.T.numpy())[2]))
    assert cases.attribute_correlations(fail, "somewhere", "Smiling") == (None, None)


@pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")
def test_correlations_of_a_rendered_case_are_those_of_its_variant():
    tied, free = (
        cases.rendered_case("faces", "smile", n=2, variant=v) for v in ("correlated", "independent")
    )
    assert tied.correlations[tied.attribute] == 1.0
    assert tied.data.label_names[tied.attribute] == "smile"
    others = torch.arange(len(tied.correlations)) != tied.attribute
    assert tied.correlations[others].abs().max() > 0.15
    assert free.correlations[others].abs().max() < 0.06


def test_a_pair_returns_two_outputs_in_their_order():
    net = nn.Linear(4, 6)
    x = torch.randn(3, 4)
    assert torch.equal(cases.Pair(net, 5, 2)(x), net(x)[:, [5, 2]])
