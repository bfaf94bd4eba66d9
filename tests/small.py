"""Small models with known answers, and checks that the tests of several methods share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from cf_utils.core import Constraints, Counterfactuals
from tests.conftest import make_net

TAU = 0.9


class Bent(nn.Module):
    """Two features and a curved boundary: z_1 - z_0 = 6 (y - 0.35 - 0.3 sin 6x)."""

    def forward(self, x: Tensor) -> Tensor:
        z = 6 * (x[:, 1] - 0.35 - 0.3 * torch.sin(6 * x[:, 0]))
        return torch.stack([torch.zeros_like(z), z], 1)


def plane() -> tuple[Tensor, Tensor]:
    """Return five queries of class 0 under `Bent`, and all grid points of class 1 at TAU.

    The grid has 801 x 801 points of [0, 1]^2.
    """
    side = torch.linspace(0, 1, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    queries = [[0.2, 0.1], [0.35, 0.05], [0.55, 0.3], [0.75, 0.05], [0.9, 0.02]]
    return torch.tensor(queries, dtype=torch.float64), grid[Bent()(grid).softmax(1)[:, 1] >= TAU]


class Trap(nn.Module):
    """A model that gives NaN for a marked item (feature 0 over 0.9) whose margin exceeds `edge`."""

    def __init__(self, model: nn.Module, edge: float):
        super().__init__()
        self.model, self.edge = model, edge

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        caught = (x[:, 0] > 0.9) & (z[:, 1] - z[:, 0] > self.edge)
        return torch.where(caught[:, None], torch.nan, z)


def table(net_seed=3, seed=0, rows=8, **limits) -> tuple[nn.Module, Tensor, Tensor, Constraints]:
    """Return a smooth classifier of six features in [0, 1], rows, targets and all kinds of limits.

    Features 0 and 1 are free (1 up to 0.8), 2 only rises, 3 only falls on a grid of 0.1, 4 lies on
    a grid of 0.25, 5 is immutable. `limits` replaces some of this.
    """
    net = make_net((6,), 2, seed=net_seed).eval()
    own = {"immutable": [5], "only_up": [2], "only_down": [3]}
    own |= {"step": [0, 0, 0, 0.1, 0.25, 0], "high": [1, 0.8, 1, 1, 1, 1]}
    own |= limits
    step = torch.tensor(own["step"], dtype=torch.float64)
    flags = {
        name: torch.tensor([i in own[name] for i in range(6)])
        for name in ("immutable", "only_up", "only_down")
    }
    high = torch.tensor(own["high"], dtype=torch.float64)
    constraints = Constraints(low=torch.zeros(6).double(), high=high, step=step, **flags)
    x = torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = torch.where(step > 0, step, 1)
    x = torch.where(step > 0, (x / size).round() * size, x)
    with torch.no_grad():
        return net, x, 1 - net(x).argmax(1), constraints


@st.composite
def tables(draw):
    """Any `table`: features free, rising, falling or immutable, continuous or on a grid."""
    kinds = [draw(st.sampled_from(["free", "only_up", "only_down", "immutable"])) for _ in range(6)]
    limits = {
        name: [i for i in range(6) if kinds[i] == name]
        for name in ("only_up", "only_down", "immutable")
    }
    return table(
        draw(st.integers(0, 5)),
        draw(st.integers(0, 99)),
        rows=5,
        **limits,
        step=[draw(st.sampled_from([0, 0, 0.05, 0.1, 0.25])) for _ in range(6)],
        high=[draw(st.sampled_from([1.0, 0.8, 0.35])) for _ in range(6)],
    )


def assert_kept(cfs: Counterfactuals, limits: Constraints) -> None:
    """Check every changed value against `limits` without its methods, and that failures say why."""
    for x, y, why in zip(cfs.query.tolist(), cfs.counterfactual.tolist(), cfs.reason, strict=True):
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            if a == b:
                continue
            assert not limits.immutable[i], why
            assert b > a if limits.only_up[i] else b < a if limits.only_down[i] else True
            assert float(limits.low[i]) <= b <= float(limits.high[i]) + 1e-9
            step = float(limits.step[i])
            assert step == 0 or abs(b / step - round(b / step)) < 1e-6
    assert all(r or why for r, why in zip(cfs.reached.tolist(), cfs.reason, strict=True))


def explain_in_other_batches(
    explain, model: nn.Module, x: Tensor, target: Tensor
) -> Iterator[Counterfactuals]:
    """Explain items in one batch, permuted, and in chunks of 1, 3, 7; yield all in one order."""
    ids = torch.arange(100, 100 + len(x))
    yield explain(model, x, target, ids)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    yield explain(model, x[order], target[order], ids[order]).select(order.argsort())
    for chunk in (1, 3, 7):
        parts = [
            explain(model, x[i : i + chunk], target[i : i + chunk], ids[i : i + chunk])
            for i in range(0, len(x), chunk)
        ]
        yield Counterfactuals.join(parts)


def assert_rows_are_on_their_own(explain, model, x, target) -> Counterfactuals:
    """Check that no item depends on its batch; return the result of the one batch.

    Values agree to 1e-9; masks, counts and reasons are equal.
    """
    whole, *others = explain_in_other_batches(explain, model, x, target)
    assert len(x) > 7  # so that a chunk of 7 is not the whole
    for other in others:
        torch.testing.assert_close(other.counterfactual, whole.counterfactual, atol=1e-9, rtol=0)
        torch.testing.assert_close(other.score, whole.score, atol=1e-9, rtol=0)
        assert other.reason == whole.reason
        for name in ("mask", "path_len", "n_forward", "n_backward"):
            a, b = getattr(other, name), getattr(whole, name)
            assert (a is None and b is None) or torch.equal(a, b), name
    return whole
