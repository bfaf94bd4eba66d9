"""PGD and the true change as explainers, in a world with closed forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cf_utils.evaluation import baselines
from tests.stripes import Stripe, data


@pytest.fixture(scope="module")
def toy():
    rows, f = data(), Stripe()
    return rows, f, 1 - f(rows.x).argmax(1)


def test_true_change_reaches_the_wanted_scores_and_finds_images_by_id(toy):
    rows, f, target = toy
    scores = torch.linspace(0.6, 0.95, 24)
    renderer = baselines.Renderer(rows.factors)
    explain = baselines.TrueChange(renderer=renderer, names=("left",), scores=scores, tau=0.55)
    cfs = explain(f, rows.x, target, rows.ids)
    assert cfs.reached.all()
    assert (cfs.score >= scores - 1e-4).all() and (cfs.score < scores + 0.05).all()
    order = torch.tensor([7, 2])
    again = explain(f, rows.x[order], target[order], rows.ids[order])
    assert torch.equal(again.counterfactual, cfs.counterfactual[order])
    with pytest.raises(ValueError, match="ids"):
        explain(f, rows.x, target, torch.arange(24))


def test_true_change_without_a_flipping_factor_fails_with_a_reason(toy):
    rows, f, target = toy
    renderer = baselines.Renderer(rows.factors)
    explain = baselines.TrueChange(renderer=renderer, names=("shade",))
    cfs = explain(f, rows.x, target, rows.ids)
    assert not cfs.valid.any() and set(cfs.reason) == {"no factor alone flips this image"}
    with pytest.raises(ValueError, match="names"):
        dataclasses.replace(explain, names=())(f, rows.x, target, rows.ids)


def test_true_change_is_the_smallest_of_several():
    rows, f = data(40), Stripe(also=True)
    rows = rows.take((f(rows.x).argmax(1) == 0).nonzero().flatten())
    renderer = baselines.Renderer(rows.factors)
    explain = baselines.TrueChange(renderer=renderer, names=("left", "right"))
    cfs = explain(f, rows.x, torch.ones(len(rows), dtype=torch.int64), rows.ids)
    change = (cfs.counterfactual - rows.x).abs().sum((1, 2))  # (B, columns)
    left_is_nearer = rows.factors["left"] > rows.factors["right"]
    assert cfs.reached.all() and left_is_nearer.any() and not left_is_nearer.all()
    assert torch.equal(change[:, 0] > 0, left_is_nearer)
    assert torch.equal(change[:, 8] > 0, ~left_is_nearer)


def test_pgd_of_a_linear_model_ends_in_the_corner_of_its_ball(toy):
    rows, f, target = toy
    eps = 0.05
    cfs = baselines.PGD(eps=eps)(f, rows.x, target, rows.ids)
    sign = (2 * target - 1).float()[:, None, None, None]
    corner = (rows.x + eps * sign)[..., :6]
    torch.testing.assert_close(cfs.counterfactual[..., :6], corner, atol=1e-6, rtol=0)
    assert torch.equal(cfs.counterfactual[..., 6:], rows.x[..., 6:])  # no gradient there
    assert (cfs.n_forward == 22).all() and (cfs.n_backward == 20).all()
    with pytest.raises(ValueError, match="eps"):
        baselines.PGD(eps=0.0)(f, rows.x, target)


def test_pgd_refuses_a_classifier_without_gradients(toy):
    rows, f, target = toy

    class NoGradient(torch.nn.Module):
        def forward(self, x):
            return f(x.detach())

    with pytest.raises(ValueError, match="gradient"):
        baselines.PGD()(NoGradient(), rows.x, target)


def test_no_change_returns_the_query_and_fails(toy):
    rows, f, target = toy
    cfs = baselines.NoChange()(f, rows.x, target, rows.ids)
    assert torch.equal(cfs.counterfactual, rows.x) and not cfs.valid.any()
