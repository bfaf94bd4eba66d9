"""Common mistakes of a first user each get a sentence that says what to do."""

from __future__ import annotations

import time

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from cf_utils.core import explain_in_batches, runtime
from cf_utils.core.checks import are_probabilities
from cf_utils.explainers import presets
from cf_utils.explainers.growing_spheres import GrowingSpheres
from cf_utils.explainers.wachter import Wachter
from cf_utils.models import own
from tests.conftest import make_net, make_queries
from tests.own_models import ends_in_softmax, small_network
from tests.small import Bent

WACHTER = Wachter(steps=3, rounds=2)
SPHERES = presets.get("growing_spheres", "table").build(n=50)


@pytest.fixture
def images():
    x = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return x, (small_network()(x).argmax(1) + 1) % 3


# ---------------------------------------------------------------- a softmax at the end


def test_a_softmax_at_the_end_is_refused_and_wrapping_it_helps(images):
    x, target = images
    expected = "classifier: its outputs are in .* after a softmax, expected logits; leave out"
    with pytest.raises(ValueError, match=expected):
        WACHTER(ends_in_softmax(), x, target)
    wrapped = WACHTER(own.OwnModel(ends_in_softmax(), output="probabilities"), x, target)
    plain = WACHTER(small_network(), x, target)
    torch.testing.assert_close(wrapped.counterfactual, plain.counterfactual, atol=1e-4, rtol=0)


def test_logits_are_not_taken_for_probabilities():
    assert are_probabilities(torch.tensor([[0.2, 0.8], [1.0, 0.0]]))
    assert not are_probabilities(torch.tensor([[0.2, 0.8], [0.5, 0.4]]))  # a sum below 1
    assert not are_probabilities(torch.tensor([[1.5, -0.5], [0.5, 0.5]]))  # outside
    assert not are_probabilities(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # votes


# ---------------------------------------------------------------- no gradient


def test_a_scikit_learn_model_is_refused_and_wrapping_it_helps():
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(60, 2, generator=gen)
    estimator = LogisticRegression(C=100).fit(x.numpy(), (x[:, 1] > 0.5).numpy())
    expected = "classifier: got a LogisticRegression, expected an nn.Module .*wrap_estimator"
    with pytest.raises(ValueError, match=expected):
        SPHERES(estimator, x[:3], torch.ones(3, dtype=torch.int64))
    wrapped = own.wrap_estimator(estimator)
    cfs = SPHERES(wrapped, x[:3], 1 - wrapped(x[:3]).argmax(1))
    assert cfs.valid.all()
    with pytest.raises(ValueError, match="its logits have no gradient"):
        WACHTER(wrapped, x[:3], torch.ones(3, dtype=torch.int64))


# ---------------------------------------------------------------- one item


def test_one_image_without_a_batch_dimension_is_recognised(images):
    x, target = images
    expected = r"x one item of shape \(1, 12, 12\)\? Then pass x\[None\]"
    with pytest.raises(ValueError, match=expected):
        WACHTER(small_network(), x[0], target[:1])
    colour = torch.rand(3, 12, 12)
    with pytest.raises(ValueError, match=r"target: got .* expected int64 \(3,\); is x one item"):
        WACHTER(small_network(), colour, target[:1])
    with pytest.raises(ValueError, match=r"x: got shape \(2,\).* for a single item pass x\[None\]"):
        WACHTER(Bent(), torch.rand(2), target[:1])


# ---------------------------------------------------------------- units


def test_growing_spheres_refuses_unscaled_features():
    x = torch.tensor([[30.0, 52_000.0], [41.0, 38_000.0], [0.5, 0.5]])
    expected = "x: feature 1 has values about 3.8e.04, but 200 layers .* reach only 20.1"
    target = torch.ones(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=expected):
        SPHERES(Bent(), x, target)
    SPHERES(Bent(), x[2:], target[2:])  # scaled
    with pytest.raises(ValueError, match="with Table"):
        GrowingSpheres(bounds=None, eta=1.0)(Bent(), x, target)
    GrowingSpheres(bounds=None, eta=3e4, n=2, layers=2)(Bent(), x, target)  # fits these units


# ---------------------------------------------------------------- silence


class Slow(nn.Module):
    """A network that needs 20 ms per pass."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        time.sleep(0.02)
        return self.net(x)


@pytest.fixture
def long_search(monkeypatch):
    """A search of at least 0.4 s, in a process that shows progress bars."""
    monkeypatch.setattr(runtime, "headless", lambda: False)
    net = make_net((5, 4))
    x, target = make_queries(net, 4, (5, 4))
    return lambda: Wachter(steps=20, rounds=1)(Slow(net), x, target)


def test_a_long_search_shows_a_progress_bar(long_search, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "BAR_DELAY", 0.1)
    long_search()
    shown = capsys.readouterr().err
    assert "Wachter: " in shown and "passes" in shown and "4 of 4 items left" in shown


def test_a_short_search_is_silent(long_search, capsys):
    long_search()
    assert capsys.readouterr().err == ""


def test_the_bar_does_not_change_the_result(long_search, monkeypatch):
    with_bar = long_search()
    monkeypatch.setattr(runtime, "headless", lambda: True)
    assert torch.equal(long_search().counterfactual, with_bar.counterfactual)


def test_batches_of_a_wrapped_estimator_are_stored(tmp_path):
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    found = []
    for threshold in (0.4, 0.6):
        fitted = LogisticRegression(C=100).fit(x.numpy(), (x[:, 1] > threshold).numpy())
        model = own.wrap_estimator(fitted)
        target = torch.ones(6, dtype=torch.int64)
        found.append(explain_in_batches(SPHERES, model, x[:6], target, None, folder=tmp_path))
    assert not torch.equal(found[0].counterfactual, found[1].counterfactual)
    assert len(list(tmp_path.iterdir())) == 2
