"""Small classifiers and queries in float64, so that a whole search takes milliseconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cf_utils.explainers.gradual import GradualConstruction
from tests.workplace import project  # noqa: F401 (a fixture for all tests)

torch.set_num_threads(1)  # many tiny operations: a second thread costs more than it saves


def make_net(
    shape=(1, 6, 6), classes=3, hidden=8, seed=0, scale=2.0, dtype=torch.float64
) -> nn.Module:
    """Return a smooth random classifier that decides for each class about equally often.

    Tanh has no kinks, so two correct implementations of a search agree up to rounding. The network
    is in training mode on purpose: a method must restore that.
    """
    gen = torch.Generator().manual_seed(seed)
    features = int(torch.tensor(shape).prod())
    first, last = nn.Linear(features, hidden), nn.Linear(hidden, classes)
    net = nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=gen))
        first.weight.mul_(2 / features**0.5)
        first.bias.copy_(-first.weight.sum(1) / 2)  # centres [0, 1], so that tanh is not saturated
        net = net.to(dtype)
        z = net(torch.rand((256, *shape), generator=gen).to(dtype))
        last.weight.mul_((scale / z.std(0))[:, None])
        last.bias.copy_(-(scale / z.std(0)) * (z.mean(0) - last.bias))
    return net.train()


def make_queries(
    net: nn.Module, n=8, shape=(1, 6, 6), seed=1, dtype=torch.float64
) -> tuple[Tensor, Tensor]:
    """Return x in [0, 1], and targets that cycle through the classes other than the decision."""
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed)).to(dtype)
    with torch.no_grad():
        order = net(x).argsort(dim=1, descending=True)
    return x, order[torch.arange(n), 1 + torch.arange(n) % (order.shape[1] - 1)]


def make_explainer(classes=3, **changes) -> GradualConstruction:
    """Return a quick gradual construction; its prototypes score 0.97 or more, above tau."""
    prototypes = 5.0 * torch.eye(classes, dtype=torch.float64)
    settings = {"steps": 20, "block": (2, 2), "eta": 0.05, "lam": 0.1}
    return GradualConstruction(prototypes, **(settings | changes))


@pytest.fixture
def net():
    """A classifier of images 1 x 6 x 6 with three classes."""
    return make_net()


@pytest.fixture
def queries(net):
    """Eight images and their targets."""
    return make_queries(net)
