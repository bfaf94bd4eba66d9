"""Arms of progressive exaggeration: each GAN with the classifier of its model card."""

from __future__ import annotations

import pytest
import torch

from cf_utils.harness import exaggeration_arms, exaggeration_cases
from cf_utils.models import checkpoints
from tests.test_exaggeration_cases import case, shipped  # noqa: F401  (a fixture)


@shipped
def test_an_explainer_comes_with_the_classifier_of_its_card(case):  # noqa: F811
    explainer, f = exaggeration_arms.load_explainer("faces_smile_gan", "faces")
    x = case.data.x
    torch.testing.assert_close(f(x), case.classifier(x))
    assert explainer.classifier is f
    torch.testing.assert_close(explainer.gan.encode(x), case.gan.encode(x))


def test_a_missing_network_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="faces_smile_biased_gan"):
        exaggeration_arms.load_explainer("faces_smile_biased_gan", "faces")


@shipped
def test_the_hair_oracle_sees_long_hair(case):  # noqa: F811
    world = case.data.factors.world
    factors = world.sample(100, "test", seed=5)
    seen = exaggeration_arms.hair_oracle(case)(world.render(factors)).argmax(1)
    right = seen == (factors["hair_length"] > 0.5)
    assert right.double().mean() > 0.8


@shipped
def test_the_truth_table_holds_methods_and_baselines_of_the_first_queries(case):  # noqa: F811
    few, tau = slice(0, 3), 0.9
    target = 1 - case.classifier(case.data.x[few]).argmax(1)
    methods = {"exaggeration": case.methods(tau, 0)["exaggeration"]}
    found = {k: m(case.classifier, case.data.x[few], target) for k, m in methods.items()}
    table = exaggeration_arms.prove(case, found, methods, target, tau)
    assert table.index.tolist() == ["exaggeration", "no change", "PGD", "true"]
    assert table.validity["no change"] == 0 and table.unused_factor_moved["no change"] == 0
    assert table.score["exaggeration"] == pytest.approx(found["exaggeration"].score.mean().item())


def test_an_official_case_has_neither_arms_nor_truth():
    empty = object.__new__(exaggeration_cases.ExaggerationCase)
    object.__setattr__(empty, "truth", None)
    assert exaggeration_arms.bias_arms(empty) == {}
    assert exaggeration_arms.prove(empty, {}, {}, torch.zeros(0), 0.9).empty
