"""Methods that differentiate the classifier refuse one without gradients, in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cf_utils.explainers.cem import CEM
from cf_utils.explainers.gradual import GradualConstruction
from cf_utils.explainers.gradual_words import GradualWords
from cf_utils.explainers.wachter import Wachter
from tests.conftest import make_net, make_queries

SHAPE = (5, 4)
PROTOTYPES = 5.0 * torch.eye(3, dtype=torch.float64)
METHODS = {
    "gradual": GradualConstruction(PROTOTYPES, steps=3, block=(1, -1), max_blocks=2),
    "gradual_words": GradualWords(PROTOTYPES, vectors=torch.rand(9, 4), shortlist=3, max_blocks=1),
    "wachter": Wachter(steps=3, rounds=2),
    "cem": CEM(steps=3, tries=1, gamma=0.0),
}


class WithoutGradient(nn.Module):
    """A classifier in numpy."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.n_passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_passes += 1
        return torch.from_numpy(np.asarray(self.net(x).detach()))


class PreparedInNumpy(nn.Module):
    """A network behind a step that cannot be differentiated."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.n_passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_passes += 1
        return self.net(torch.from_numpy(np.clip(x.detach().numpy(), 0.1, 0.9)))


class WithSideBranch(nn.Module):
    """A network that adds features which cannot be differentiated: the rest can."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        brightness = torch.from_numpy(x.detach().numpy().mean((1, 2)))
        return self.net(x) + 0.1 * brightness[:, None]


@pytest.fixture
def case():
    net = make_net(SHAPE)
    return net, *make_queries(net, 4, SHAPE)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("wrap", [WithoutGradient, PreparedInNumpy])
def test_a_classifier_without_gradients_is_refused_before_the_search(case, name, wrap):
    net, x, target = case
    classifier = wrap(net)
    expected = f"classifier: its logits have no gradient .*{type(METHODS[name]).__name__} needs"
    with pytest.raises(ValueError, match=expected):
        METHODS[name](classifier, x, target)
    assert classifier.n_passes == 1
    assert net.training  # restored
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_classifier_that_is_differentiable_in_part_is_explained(case, name):
    net, x, target = case
    cfs = METHODS[name](WithSideBranch(net), x, target)
    assert cfs.n_backward.min() > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_no_grad_changes_nothing(case, name):
    net, x, target = case
    with torch.no_grad():
        silent = METHODS[name](net, x, target)
    assert torch.equal(silent.counterfactual, METHODS[name](net, x, target).counterfactual)
