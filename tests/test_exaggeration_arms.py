"""Arms of progressive exaggeration: each GAN with the classifier of its model card."""

from __future__ import annotations

from types import SimpleNamespace

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
    shard = {**found, "xgem": None}  # not all of its batches are there
    assert exaggeration_arms.prove(case, shard, methods, target, tau).empty
    table = exaggeration_arms.prove(case, found, methods, target, tau)
    assert table.index.tolist() == ["exaggeration", "no change", "PGD", "true"]
    assert table.validity["no change"] == 0 and table.unused_factor_moved["no change"] == 0
    assert table.score["exaggeration"] == pytest.approx(found["exaggeration"].score.mean().item())


def test_an_official_case_has_neither_arms_nor_truth():
    empty = object.__new__(exaggeration_cases.ExaggerationCase)
    object.__setattr__(empty, "truth", None)
    assert exaggeration_arms.bias_arms(empty) == {}
    assert exaggeration_arms.prove(empty, {}, {}, torch.zeros(0), 0.9).empty


class Pull(torch.nn.Module):
    """A classifier of images that answers with one attribute of the judge."""

    def __init__(self, judge, name):
        super().__init__()
        self.judge, self.at = judge, judge.names.index(name)

    def forward(self, x):
        logit = self.judge(x)[:, self.at]
        return torch.stack([-logit, logit], 1) / 2


class Swap:
    """An explainer whose ends of the knob are the given images."""

    def __init__(self, low, high):
        self.images = torch.stack([low] + [high] * 9, 1)

    def progress(self, f, x):
        return SimpleNamespace(images=self.images)


@shipped
def test_explanations_of_a_class_that_change_another_one_stand_off_the_diagonal(case):  # noqa: F811
    judge = next(iter(case.judges.values())).model
    factors = case.data.factors
    ends = [factors.world.render(factors.move("smile", v)) for v in (0.02, 0.98)]
    arms = {
        "smile": (Swap(*ends), Pull(judge, "smile")),
        "age": (Swap(case.data.x, case.data.x), Pull(judge, "age")),
        "fringe": (Swap(*ends), Pull(judge, "fringe")),
    }
    table = exaggeration_arms.flip_classes(case, arms)
    assert table.columns.tolist() == ["smile", "age", "fringe", "n"]
    assert table.loc["smile", "smile"] > 0.8 and table.loc["fringe", "fringe"] < 0.3
    assert (table.loc["age", ["smile", "age", "fringe"]] == 0).all()


@shipped
def test_the_renderer_proves_which_classifier_looks_at_the_hair(case):  # noqa: F811
    judge, factors = next(iter(case.judges.values())).model, case.data.factors
    cut = factors.world.render(factors.move("hair_length", 1 - factors["hair_length"]))
    end = Swap(cut, cut)
    arms = {"A": (end, Pull(judge, "long_hair")), "B": (Swap(*[case.data.x] * 2), case.classifier)}
    table, flipped = exaggeration_arms.confound(case, arms)
    assert flipped["A"] > 0.6 and flipped["B"] < 0.2
    assert set(table.arm) == {"A", "B", "A - B"} and set(table.target) == {"absent", "present"}
    assert (table[table.arm == "A"].value > 0.6).all() and (
        table[table.arm == "B"].value == 0
    ).all()
