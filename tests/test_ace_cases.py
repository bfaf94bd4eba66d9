"""Cases of ACE on faces: sizes, rendered and official parts, and what is missing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from cf_utils.evaluation.metrics import perceptual
from cf_utils.harness import ace_cases, parameters
from cf_utils.harness.cases import Case
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from tests import stripes
from tests.ace_stripes import make_case

SHIPPED = all(
    checkpoints.exists(f"faces_{name}") for name in ("ddpm", "smile_shortcut", "attributes")
)
shipped = pytest.mark.skipif(not SHIPPED, reason="no shipped models of faces")


@pytest.mark.parametrize("profile", ["embedded", "paper"])
def test_profiles_choose_known_sizes(profile):
    given, _ = parameters.profile_parameters("07_ace_faces", profile)
    assert given["sizes"] in ace_cases.SIZES


def test_unknown_sizes_are_an_error_before_any_work():
    for build in (
        lambda: ace_cases.rendered_case("smile", 2, "huge"),
        lambda: ace_cases.official_case("celeba", "nowhere", "smile", 2, "huge"),
    ):
        with pytest.raises(ValueError, match="sizes: got 'huge', expected one of demo, embedded"):
            build()


@shipped
def test_a_rendered_case_has_linked_faces_a_shortcut_and_a_judge():
    case = ace_cases.rendered_case("smile", 40, "demo")
    assert not case.official and case.of_attributes is case.linked
    assert (len(case.data), len(case.fresh)) == (40, case.sizes.n_fresh)
    assert len(case.linked.data) == case.sizes.n_linked
    assert len(case.shortcut.data) == case.sizes.n_shortcut
    assert case.judge.model is case.attributes and case.shortcut.classifier is not case.classifier
    assert case.accuracy == case.card.quality["test_accuracy"]
    assert not torch.equal(case.linked.correlations, case.correlations)


def test_an_official_case_has_the_published_networks_alone(monkeypatch):
    rows, f, seen = stripes.data(4), stripes.Stripe(), {}

    def load(dataset, root, label, n, **more):
        seen.update(more, n=n)
        return Case("celeba", "celeba", rows, f, None)

    monkeypatch.setattr(ace_cases.cases, "official_case", load)
    case = ace_cases.official_case("celeba", "root", "smile", 4, "paper", broken="skip")
    assert seen == {"n": 4, "device": "cpu", "broken": "skip"}
    assert case.official and case.fresh is rows and case.of_attributes is case
    assert case.judge is None and case.readable == () and case.reads != case.reads
    assert case.accuracy == (f(rows.x).argmax(1) == rows.y).double().mean()
    assert case.sizes == ace_cases.SIZES["paper"]


def test_the_accuracy_is_that_of_the_card_if_there_is_one():
    case = make_case()
    assert case.accuracy == 1.0
    card = Card(quality={"test_accuracy": 0.75})
    assert dataclasses.replace(case, card=card).accuracy == 0.75


def test_a_classifier_is_right_on_the_crop_that_it_knows(monkeypatch):
    case, rows = make_case(truth=False), stripes.data(4)

    def load(root, split, attribute, crop, broken):
        assert (root, split, attribute) == ("root", "validation", "Smiling")
        y = rows.y if crop == 178 else 1 - rows.y
        part = SimpleNamespace(x=rows.x, y=y)
        part.take = lambda at: SimpleNamespace(in_memory=lambda: part)
        return part

    monkeypatch.setattr(ace_cases.celeba, "load", load)
    photographs = dataclasses.replace(case, dataset="celeba")
    assert ace_cases.compare_crops(photographs, "root") == {150: 0.0, 178: 1.0}
    assert ace_cases.compare_crops(dataclasses.replace(case, dataset="celebahq"), "root") == {}
    assert ace_cases.compare_crops(make_case(), "") == {}


def test_a_missing_lpips_is_a_warning_and_costs_its_columns_alone(monkeypatch):
    wanted = []

    def missing(net):
        wanted.append(net)
        raise FileNotFoundError("vgg.pth is missing. How to get it: ...")

    monkeypatch.setattr(perceptual, "lpips_network", missing)
    for case, net in ((make_case(), "alex"), (make_case(truth=False), "vgg")):
        with pytest.warns(UserWarning, match="no LPIPS: vgg.pth is missing. How to get it"):
            assert case.lpips is None
        assert wanted[-1] == net


def test_the_networks_device_is_that_of_the_classifier():
    assert make_case().device == torch.device("cpu")
