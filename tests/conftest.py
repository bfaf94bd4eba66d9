"""Classifiers and queries so small that a test of a whole search takes milliseconds, in float64 where equality is asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cf_utils.explainers.gradual import GradualConstruction
from tests.workplace import project  # noqa: F401 (a fixture for all tests)

torch.set_num_threads(1)  # many tiny operations: a second thread costs more than it brings


def make_net(
    shape=(1, 6, 6), classes=3, hidden=8, seed=0, scale=2.0, dtype=torch.float64
) -> nn.Module:
    """A smooth random classifier (tanh: no kinks, so two correct implementations agree to rounding)."""
    gen = torch.Generator().manual_seed(seed)
    features = int(torch.tensor(shape).prod())
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=gen))
        net[1].weight.mul_(2 / features**0.5)
        net[1].bias.copy_(
            -net[1].weight.sum(1) / 2
        )  # [0, 1] is centred, so that tanh bends, not saturates
        net = net.to(dtype)
        z = net(torch.rand((256, *shape), generator=gen).to(dtype))
        net[3].weight.mul_(
            (scale / z.std(0))[:, None]
        )  # every class is decided for about equally often
        net[3].bias.copy_(-(scale / z.std(0)) * (z.mean(0) - net[3].bias))
    return net.train()  # left in training mode on purpose: a method must put it back


def make_queries(net: nn.Module, n=8, shape=(1, 6, 6), seed=1, dtype=torch.float64):
    """x in [0, 1] and another class than the decision as target, in turn, so that no row is there already."""
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed)).to(dtype)
    with torch.no_grad():
        order = net(x).argsort(dim=1, descending=True)
    return x, order[torch.arange(n), 1 + torch.arange(n) % (order.shape[1] - 1)]


def make_explainer(classes=3, **changes) -> GradualConstruction:
    """Prototypes whose own score is 0.97 or more: the search is pulled past tau."""
    prototypes = 5.0 * torch.eye(classes, dtype=torch.float64)
    return GradualConstruction(
        prototypes, **({"steps": 20, "block": (2, 2), "eta": 0.05, "lam": 0.1} | changes)
    )


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def queries(net):
    return make_queries(net)
