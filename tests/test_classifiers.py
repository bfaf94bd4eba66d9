"""Classifiers: layers of the papers, LRP, wrappers, majority votes, and the networks that ship."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LRP
from torch import nn

from cf_utils import core
from cf_utils.datasets import mnist
from cf_utils.explainers.shared.prototypes import mean_logits
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.classifiers import HogSVM, JudgeCNN, MnistCNN, OneOutput, majority, predict

SHIPPED = (
    "mnist_cnn",
    "mnist_cnn_984",
    "mnist_judge_augmented",
    "mnist_judge_adversarial",
    "mnist_judge_svm",
)


@pytest.mark.parametrize(
    "model", [MnistCNN(), MnistCNN(3, 5, 20), JudgeCNN(8), HogSVM()], ids=lambda m: type(m).__name__
)
def test_digit_classifiers_give_logits_of_ten_classes(model):
    assert model.eval()(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(ValueError, match=r"x: got shape \(3, 1, 27, 28\), expected digits"):
        model(torch.rand(3, 1, 27, 28))


def test_mnist_cnn_has_the_layers_of_the_paper():
    counted = (nn.Conv2d, nn.MaxPool2d, nn.Linear)
    kinds = [type(m).__name__ for m in MnistCNN().modules() if isinstance(m, counted)]
    assert kinds == ["Conv2d", "Conv2d", "MaxPool2d"] * 2 + ["Linear"] * 3


def test_lrp_conserves_relevance():
    """captum's LRP: the relevances sum to the logit, in a network whose biases are zero."""
    torch.manual_seed(0)
    model = MnistCNN().eval()
    with torch.no_grad():
        for m in model.modules():
            if getattr(m, "bias", None) is not None:
                m.bias.zero_()
    x = torch.rand(2, 1, 28, 28)
    relevance, delta = LRP(model).attribute(
        x, target=torch.tensor([3, 5]), return_convergence_delta=True
    )
    logits = model(x)[[0, 1], [3, 5]]
    assert relevance.shape == x.shape
    assert (delta.abs() < 0.02 * logits.abs()).all()  # measured 2e-7 of a logit near 1
    torch.testing.assert_close(relevance.flatten(1).sum(1), logits - delta, rtol=1e-3, atol=1e-5)
    wrong = LRP(model).attribute(x, target=torch.tensor([4, 6]))
    assert not torch.allclose(relevance, wrong)


def test_hog_features_are_per_item_and_clamp_their_input():
    x = torch.rand(4, 1, 28, 28)
    features = HogSVM.features(x)
    assert features.shape == (4, 7 * 7 * 9)  # 7 x 7 cells of 9 orientations
    torch.testing.assert_close(HogSVM.features(x[1:3]), features[1:3])
    torch.testing.assert_close(HogSVM.features(x * 9), HogSVM.features((x * 9).clamp(0, 1)))


def test_one_output_of_a_model_becomes_two_logits():
    linear, squeezed = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    x = torch.rand(5, 3)
    for model, i, z in ((linear, 1, linear(x)[:, 1]), (squeezed, 0, squeezed(x))):
        logits = OneOutput(model, i)(x)
        assert logits.shape == (5, 2)
        torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())


def test_a_majority_has_more_than_half_of_the_votes():
    votes = torch.tensor([[1, 1, 0, 2], [1, 0, 1, 2], [2, 1, 2, 2]])
    assert majority(votes).tolist() == [1, 1, -1, 2]
    assert majority(votes[:2]).tolist() == [1, -1, -1, 2]


def test_predict_uses_eval_mode_and_restores_the_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    x = torch.rand(7, 4)
    out = predict(model, x, batch_size=3)
    assert model.training
    torch.testing.assert_close(out, model.eval()(x))
    assert not out.requires_grad
    assert classifiers.accuracy(model, x, out.argmax(1)) == 1.0


def test_predict_restores_the_mode_of_every_submodule():
    """A wrapper is in training mode when it is made; its network must not follow it."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()
    net[2].train()
    wrapper, x = OneOutput(net), torch.rand(9, 3)
    modes = [m.training for m in wrapper.modules()]
    mean = net[1].running_mean.clone()
    first = predict(wrapper, x)
    assert [m.training for m in wrapper.modules()] == modes and wrapper.training
    net(x)  # running statistics move only in training mode
    assert torch.equal(net[1].running_mean, mean)
    assert torch.equal(predict(wrapper, x), first)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_classifier_is_as_accurate_as_its_card_says(name):
    model, card = checkpoints.load(name)
    data = [mnist.load("", s) for s in mnist.SPLITS]
    x, y = torch.cat([d.x for d in data]), torch.cat([d.y for d in data])
    stride = {"mnist_judge_svm": 40}.get(name, 20 if "judge" in name else 1)  # judges are slow
    got, n = classifiers.accuracy(model, x[::stride], y[::stride]), len(y[::stride])
    said = card.quality["embedded_accuracy"]
    bound = 0.0021 if n == 5000 else 4 * (said * (1 - said) / n) ** 0.5
    assert abs(got - said) <= bound  # float16 weights; measured 0
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert card.quality["test_n"] == 10_000
    keys = {"recipe", "data", "settings", "seed", "training", "architecture"}
    assert keys <= card.to_json().keys()
    assert not model.training
    assert (checkpoints.FOLDER / f"{name}.safetensors").stat().st_size <= 12e6


def test_accuracies_reach_those_of_the_paper():
    quality = {n: checkpoints.read_card(n).quality["test_accuracy"] for n in SHIPPED}
    assert quality["mnist_cnn"] >= 0.990  # measured 0.9942
    assert abs(quality["mnist_cnn_984"] - 0.984) <= 0.002  # measured 0.9833


def test_prototypes_of_the_explained_classifier_score_above_tau():
    """The search is pulled to the mean logits of 80 digits per class; tau is 0.9."""
    classifier, validation = checkpoints.load("mnist_cnn").model, mnist.load("", "validation")
    prototypes = mean_logits(classifier, validation.x, 80)
    assert prototypes.softmax(1).diagonal().min() >= 0.999  # measured 0.99999


def test_an_unknown_checkpoint_names_the_nearest_and_lists_a_few(tmp_path):
    message = (
        r"mnist_cnm.*did you mean 'mnist_cnn'.*`cf train --list` names all.*cf train mnist_cnm"
    )
    with pytest.raises(FileNotFoundError, match=message):
        checkpoints.load("mnist_cnm")
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"Checkpoints there: \['mine'\]"):
        checkpoints.load("other", folder=tmp_path)


def test_lrp_on_the_shipped_network_has_a_small_delta():
    """Biases take a share of the relevance; captum's delta stays a small part of the logit."""
    model, x = checkpoints.load("mnist_cnn").model, mnist.load("", "test").x[:8]
    with core.frozen(model):
        logits = model(x)
        _, delta = LRP(model).attribute(x, target=logits.argmax(1), return_convergence_delta=True)
        assert (delta.abs() / logits.max(1).values).median() < 0.5
