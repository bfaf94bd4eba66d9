"""CEM against closed forms on a linear model, brute force in the plane, a plain search over c."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from cf_utils.core import Constraints
from cf_utils.datasets import mnist
from cf_utils.explainers import presets
from cf_utils.explainers.cem import CEM, shrink
from cf_utils.models import checkpoints
from cf_utils.models.generators.autoencoder import AutoEncoder, reconstruction_error
from cf_utils.models.generators.latent import LatentModel
from tests.small import (
    TAU,
    Bent,
    Trap,
    assert_kept,
    assert_rows_are_on_their_own,
    plane,
    table,
    tables,
)

PLAIN = CEM(
    gamma=0.0, bounds=(-5.0, 5.0), tau=TAU, steps=60, tries=6, c=1.0, lr=0.05, threshold="prox"
)
TABLE = presets.get("cem", "table").build()


def linear(rows=6, features=8, classes=2):
    """Logits w_k.x + b_k in float64, class 0 favoured: model, x, target 1."""
    gen = torch.Generator().manual_seed(0)
    model = nn.Linear(features, classes).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, features, generator=gen))
        model.bias.zero_()[0] = 3.0
    x = 0.4 + 0.2 * torch.rand(rows, features, generator=gen).double()
    return model, x, torch.ones(rows, dtype=torch.int64)


def elastic_net(d, beta=0.1):
    return beta * d.abs().sum(1) + d.square().sum(1)


def ones(x):
    return torch.ones(len(x), dtype=torch.int64)


# ---------------------------------------------------------------- the method against other answers


def test_shrinkage_is_the_proximal_step():
    grid = torch.linspace(-3, 3, 600_001, dtype=torch.float64)
    for by in (0.0, 0.3, 1.0):
        for u in (-2.0, -0.3, -0.1, 0.0, 0.2, 1.7):
            brute = grid[(0.5 * (grid - u).square() + by * grid.abs()).argmin()]
            shrunk = shrink(torch.tensor(u, dtype=torch.float64), by)
            assert abs(shrunk - brute) < 2e-5  # the grid's step is 1e-5


def test_the_elastic_net_distance_is_close_to_its_closed_form():
    """min beta |d|_1 + |d|_2^2 with w.d = gap: d_j = sign(w_j) (nu |w_j| - beta)_+ / 2.

    nu is found by bisection.
    """
    model, x, target = linear()
    beta = 1.0  # large, so that the optimum is sparse
    w = (model.weight[1] - model.weight[0]).detach()
    logit = torch.logit(torch.tensor(TAU, dtype=torch.float64))
    gap = logit - (model(x)[:, 1] - model(x)[:, 0]).detach()
    low, high = torch.zeros_like(gap), torch.full_like(gap, 100.0)
    for _ in range(80):
        nu = (low + high) / 2
        d = w.sign() * (nu[:, None] * w.abs() - beta).clamp(min=0) / 2
        low, high = torch.where(d @ w < gap, nu, low), torch.where(d @ w < gap, high, nu)
    cfs = PLAIN.with_(beta=beta, tries=8, steps=100)(model, x, target)
    ours, least = elastic_net(cfs.counterfactual - x, beta), elastic_net(d, beta)
    assert cfs.reached.all() and (ours >= least - 1e-9).all()
    assert (ours <= 1.1 * least).all()  # measured 1.005
    same = (cfs.counterfactual != x) == (d.abs() > 0)  # the same features change
    assert same.double().mean() > 0.95  # measured 47 of 48


def test_the_papers_threshold_is_sparser_than_the_proximal_one():
    model, x, target = linear()
    prox = PLAIN(model, x, target)
    paper = PLAIN.with_(threshold="paper", c=10.0)(model, x, target)
    assert prox.reached.all() and paper.reached.all()
    n_prox, n_paper = ((cfs.counterfactual != x).sum(1).double().mean() for cfs in (prox, paper))
    assert n_paper < n_prox - 1  # measured 4.3 and 7.0 features


def test_the_result_is_close_to_brute_force_in_the_plane():
    x, good = plane()
    d = good[None] - x[:, None]
    least = (0.1 * d.abs().sum(2) + d.square().sum(2)).amin(1)
    cfs = PLAIN.with_(bounds=(0.0, 1.0), lr=0.02)(Bent(), x, ones(x))
    ours = elastic_net(cfs.counterfactual - x)
    assert cfs.reached.all()
    assert (ours >= least - 0.005).all()  # a step of the grid changes the distance by up to 0.004
    assert (ours <= 1.12 * least).all()  # measured 1.104


def search_c(model, x, c):
    """Search over c by hand for one query; return the values of c and the best distance."""
    low, high, best, values = 0.0, float("inf"), float("inf"), []
    for _ in range(5):
        values.append(c)
        one = PLAIN.with_(c=c, tries=1, steps=30)(model, x, ones(x))
        if one.reached:
            high, best = min(high, c), min(best, float(elastic_net(one.counterfactual - x)))
        else:
            low = max(low, c)
        c = (low + high) / 2 if high < float("inf") else 10 * c
    return tuple(values), best


def test_the_search_over_c_is_made_per_item():
    model, x, target = linear()
    w = (model.weight[1] - model.weight[0]).detach()
    x = x - 0.4 * torch.arange(6).double()[:, None] * w  # each is further away than the one before
    cfs = PLAIN.with_(c=0.05, tries=5, steps=30)(model, x, target)
    distance, paths = elastic_net(cfs.counterfactual - x), set()
    for i in range(6):
        values, best = search_c(model, x[i : i + 1], 0.05)
        paths.add(values)
        assert best < float("inf") and abs(float(distance[i]) - best) < 1e-9
    assert len(paths) > 1  # the items tried different values


def test_kappa_and_tau_set_how_far_the_search_goes():
    model, x, target = linear(classes=5)

    for tau in (0.5, 0.9, 0.99):  # kappa None: as far as tau needs
        cfs = PLAIN.with_(tau=tau)(model, x, target)
        assert cfs.reached.all() and (cfs.score < tau + 0.1 * (1 - tau) + 0.02).all(), tau
    wide = PLAIN.with_(kappa=6.0)(model, x, target)  # a number: margin and tau
    logits = model(wide.counterfactual)
    margin = logits[:, 1] - logits[:, [0, 2, 3, 4]].amax(1)
    assert wide.reached.all() and (margin >= 6).all() and (margin < 7).all()


def test_success_and_hinge_by_hand():
    logits, target = torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.0]]), torch.tensor([1])  # p = 0.649
    success = {
        (kappa, tau): bool(PLAIN.with_(kappa=kappa)._success(logits, target, tau))
        for kappa in (1.0, 3.0, None)
        for tau in (0.6, 0.7)
    }
    assert [key for key, ok in success.items() if ok] == [(1.0, 0.6), (None, 0.6)]
    hinge = [float(PLAIN.with_(kappa=k)._hinge(logits, target, 0.6)) for k in (1.0, 3.0)]
    assert hinge == [-1.0, -2.0]
    logits[0, 1] = PLAIN._wanted_margin(5, TAU)  # the least margin that is always enough
    assert abs(float(logits.softmax(1)[0, 1]) - TAU) < 1e-6


def test_only_add_never_lowers_a_value():
    model, x, target = linear()
    free, add = PLAIN(model, x, target), PLAIN.with_(only_add=True)(model, x, target)
    assert (free.counterfactual < x - 0.05).any()
    assert add.reached.all() and (add.counterfactual >= x).all()
    assert (elastic_net(add.counterfactual - x) > elastic_net(free.counterfactual - x)).all()


# ---------------------------------------------------------------- the autoencoder's term


class Pairs(LatentModel):
    """A latent model that reconstructs each pair of features as its mean."""

    def encode(self, x):
        return x.view(len(x), -1, 2).mean(2)

    def decode(self, z):
        return z.repeat_interleave(2, 1)


def test_the_autoencoders_term_pulls_towards_what_it_reconstructs():
    model, x, target = linear()
    x = Pairs()(x)  # queries that it reconstructs exactly

    def error(cfs):
        return (cfs.counterfactual - Pairs()(cfs.counterfactual)).square().sum(1)

    free = PLAIN(model, x, target)
    tied = PLAIN.with_(gamma=5.0, autoencoder=Pairs())(model, x, target)
    assert free.reached.all() and tied.reached.all()
    assert (error(tied) < 0.25 * error(free)).all()  # measured 0.078 to 0.139
    assert (elastic_net(tied.counterfactual - x) > elastic_net(free.counterfactual - x)).all()
    assert tied.n_forward_generator.eq(360).all() and tied.n_backward_generator.eq(360).all()
    assert free.n_forward_generator is None


def test_any_module_that_reconstructs_serves_as_autoencoder():
    model, x, target = linear()
    pairs = Pairs()

    class Reconstructs(nn.Module):
        def forward(self, x):
            return pairs(x)

    explain = PLAIN.with_(gamma=5.0, steps=20, tries=2)
    expected = explain.with_(autoencoder=pairs)(model, x, target)
    cfs = explain.with_(autoencoder=Reconstructs())(model, x, target)
    assert torch.equal(cfs.counterfactual, expected.counterfactual)
    assert torch.equal(cfs.n_forward_generator, expected.n_forward_generator)


def test_the_autoencoder_is_small_and_treats_items_alone():
    torch.manual_seed(0)
    model, x = AutoEncoder().double().eval(), torch.rand(4, 1, 28, 28).double()
    y = model(x)
    assert y.shape == x.shape and y.min() > 0 and y.max() < 1
    assert sum(p.numel() for p in model.parameters()) <= 60_000
    torch.testing.assert_close(model(x[2:3]), y[2:3], atol=1e-12, rtol=0)
    assert model.encode(x).shape == (4, 20)
    assert torch.equal(model.decode(model.encode(x)), y)


def test_the_shipped_autoencoder_rejects_noise():
    model, x = checkpoints.load("mnist_autoencoder").model, mnist.load("", "test").x[:200]
    noise = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    clean, noisy = (reconstruction_error(model, v).mean() for v in (x, noise))
    assert clean < 8 and noisy > 8 * clean  # measured 3.65, 89.7
    with pytest.raises(FileNotFoundError, match="mnist_no_such"):
        checkpoints.load("mnist_no_such")


# ---------------------------------------------------------------- contracts


def test_an_item_depends_neither_on_its_batch_nor_on_the_order():
    model, x, target = linear(rows=9)
    explain = PLAIN.with_(gamma=2.0, autoencoder=Pairs(), steps=30, tries=5)
    assert assert_rows_are_on_their_own(explain, model, x, target).reached.all()


@pytest.mark.parametrize(("edge", "reason"), [(0.0, "classifier returned NaN"), (2.6, "")])
def test_an_item_with_nan_leaves_and_changes_no_other_item(edge, reason):
    model, x, target = linear()
    with torch.no_grad():
        model.weight[:, 0] = 0
        x[2, 0] = 0.95
    explain = PLAIN.with_(steps=60, tries=4, c=10.0, lr=0.01)
    clean, caught = explain(model, x, target), explain(Trap(model, edge), x, target)
    others = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(
        caught.counterfactual[others], clean.counterfactual[others], atol=1e-9, rtol=0
    )
    assert caught.reason[2] == reason
    assert caught.n_forward[2] < clean.n_forward[2]  # it left early
    assert bool(caught.reached[2]) == (reason == "")  # an earlier success is kept
    if reason:
        assert torch.equal(caught.counterfactual[2], x[2])


def test_failures_are_kept_and_flagged():
    model, x, target = linear()
    cfs = PLAIN.with_(steps=3, tries=1, c=0.01)(model, x, target)
    assert not cfs.reached.any() and len(cfs) == 6
    assert all("no success in 1 values" in reason for reason in cfs.reason)


def test_passes_equal_those_that_hooks_count():
    model, x, target = linear()
    ae, classified, generated = Pairs(), [], []
    model.register_forward_hook(lambda m, i, o: classified.append(len(o)))
    ae.register_forward_hook(lambda m, i, o: generated.append(len(o)))
    cfs = PLAIN.with_(gamma=1.0, autoencoder=ae, steps=7, tries=3)(model, x, target)
    assert int(cfs.n_forward.sum()) == sum(classified)
    assert cfs.n_forward.tolist() == [2 + 2 * 21] * 6
    assert int(cfs.n_forward_generator.sum()) == sum(generated) == 6 * 21
    assert cfs.n_backward.tolist() == cfs.n_backward_generator.tolist() == [21] * 6


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gamma": 1.0}, "autoencoder: got None"),
        ({"steps": 0}, "steps"),
        ({"tries": 0}, "tries"),
        ({"c": 0.0}, "c, lr"),
        ({"lr": 0.0}, "lr"),
        ({"beta": -1.0}, "beta"),
        ({"gamma": -1.0}, "gamma"),
        ({"kappa": -1.0}, "kappa"),
        ({"threshold": "l1"}, "threshold"),
        ({"gamma": 1.0, "autoencoder": nn.Linear(8, 3).double()}, "same shape"),
    ],
)
def test_bad_settings_are_refused_by_name(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(PLAIN, **change)(*linear())


def test_a_classifier_without_gradients_is_refused_before_the_search():
    model, x, target = linear()

    class Decides(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(model(x).argmax(1), 2).to(x)

    with pytest.raises(ValueError, match=r"^classifier: its logits have no gradient .* CEM needs"):
        PLAIN(Decides(), x, target)


# ---------------------------------------------------------------- tables


def test_on_a_grid_the_classifier_sees_grid_points_and_the_nearest_is_found():
    free = {"immutable": [], "only_up": [], "only_down": []}
    net, x, target, limits = table(rows=24, step=[0.25] * 6, high=[1] * 6, **free)
    seen = []
    net.register_forward_pre_hook(lambda m, i: seen.append(i[0].detach()))
    cfs = TABLE.with_(tau=0.7, constraints=limits)(net, x, target)
    assert all(torch.equal(y, (y * 4).round() / 4) for y in seen)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 5, dtype=torch.float64)] * 6)
    ratio = []
    for q, t, y, reached in zip(x, target, cfs.counterfactual, cfs.reached, strict=True):
        good = grid[net(grid).softmax(1)[:, t] >= 0.7]
        if reached:
            ratio.append(float(elastic_net((y - q)[None])[0] / elastic_net(good - q).min()))
        else:
            ratio.append(torch.inf if len(good) else 1.0)
    assert min(ratio) > 1 - 1e-9
    assert sum(r < 1 + 1e-9 for r in ratio) >= 15  # measured 19 of 24
    assert max(ratio) < 1.2  # measured 1.11


@settings(max_examples=12, deadline=None, derandomize=True)
@given(tables())
def test_any_constraints_hold_exactly(case):
    net, x, target, limits = case
    assert_kept(TABLE.with_(constraints=limits, steps=15, tries=4)(net, x, target), limits)


def test_items_that_can_flip_inside_their_constraints_do_and_others_say_why():
    net, x, target, limits = table(rows=24)
    cfs = TABLE.with_(constraints=limits)(net, x, target)
    assert_kept(cfs, limits)
    assert cfs.reached.float().mean() > 0.8  # measured 0.958
    assert all("inside the constraints" in reason for reason in cfs.reason if reason)
    immutable = table(immutable=range(6), only_up=[], only_down=[])[3]
    still = TABLE.with_(steps=5, constraints=immutable)(net, x, target)
    assert torch.equal(still.counterfactual, x) and not still.valid.any()
    assert all("constraints" in reason for reason in still.reason)


def test_constraints_without_limits_change_nothing():
    net, x, target, _ = table()
    explain = CEM(tau=0.8, steps=30, tries=4, gamma=1.0, autoencoder=nn.Sigmoid())
    free = explain(net, x, target)
    bound = explain.with_(bounds=None, constraints=Constraints.none(6))(net, x, target)
    torch.testing.assert_close(bound.counterfactual, free.counterfactual, atol=1e-9, rtol=0)


def test_presets_for_tables_use_an_autoencoder_only_if_one_is_given():
    assert TABLE.gamma == 0 and TABLE.bounds is None
    preset = presets.get("cem", "table", "autoencoder")
    assert preset.build(autoencoder=Pairs()).gamma > 0
    with pytest.raises(ValueError, match=r"^autoencoder: missing"):
        preset.build()
