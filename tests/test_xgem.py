"""xGEM against closed forms of a linear decoder and a linear classifier, and brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cf_utils.explainers import presets
from cf_utils.explainers.xgem import XGEM, measure_distance
from cf_utils.models.generators.latent import LatentModel
from tests.conftest import make_net
from tests.small import Trap
from tests.test_latent import LinearModel, make_case

SETTINGS = {"bounds": None, "lr": 0.02, "steps": 800, "distance": "squared"}


def linear():
    """Model, classifier, queries on the decoder's plane, their codes, a and m0.

    The log-odds of class 1 at code z are a.z + m0; the queries are of class 0.
    """
    model, classifier, z0, a, m0 = make_case()
    z0 = z0[z0 @ a + m0 < -0.1]
    return model, classifier, model.decode(z0).detach(), z0, a, m0


def ones(x):
    return torch.ones(len(x), dtype=torch.int64)


def solve(slope, low, high):
    """Return the root of a falling function of s (B,) by bisection."""
    low, high = torch.as_tensor(low).double(), torch.as_tensor(high).double()
    for _ in range(100):
        middle = (low + high) / 2
        up = slope(middle) > 0
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return low


# ---------------------------------------------------------------- the optimum


@pytest.mark.parametrize("lam", [0.05, 0.2])
def test_the_optimum_with_the_squared_distance(lam):
    """z = z0 + s a, where the derivative sigmoid(-(m + s |a|^2)) |a|^2 - 2 lam s |a|^2 is 0."""
    model, classifier, x, z0, a, m0 = linear()
    square, m = a.square().sum(), z0 @ a + m0
    explain = XGEM(model=model, lam=lam, stop=False, **SETTINGS)
    cfs = explain(classifier, x, ones(x))
    s = solve(lambda s: torch.sigmoid(-(m + s * square)) - 2 * lam * s, 0 * m, 100 + 0 * m)
    expected = model.decode(z0 + s[:, None] * a).detach()
    torch.testing.assert_close(cfs.counterfactual, expected, atol=1e-3, rtol=0)  # measured 3e-5
    assert not cfs.valid.any()  # with these lambdas, the optimum lies before the boundary


def test_the_optimum_with_the_l2_norm():
    """The derivative |a| sigmoid(-log-odds) - lam is 0 at log-odds logit(1 - lam / |a|)."""
    model, classifier, x, z0, a, m0 = linear()
    lam, length, m = 0.1, a.norm(), z0 @ a + m0
    explain = XGEM(model=model, lam=lam, stop=False, **(SETTINGS | {"distance": "l2", "lr": 0.1}))
    cfs = explain(classifier, x, ones(x))
    odds = torch.logit(1 - lam / length)
    s = (odds - m).clamp(min=0) / length.square()
    expected = model.decode(z0 + s[:, None] * a).detach()
    assert (s > 0).all()
    torch.testing.assert_close(cfs.counterfactual, expected, atol=5e-3, rtol=0)


def test_the_optimum_with_the_l1_norm_equals_brute_force():
    model, classifier = LinearModel(n_latent=1), make_net((6,), 2, seed=3).eval()
    z0 = torch.tensor([[-0.4], [0.1], [0.6]]).double()
    x = model.decode(z0) + 0.1 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    x = x.detach()
    target = 1 - classifier(x).argmax(1)
    grid = torch.linspace(-8, 8, 160_001).double()[:, None]
    points = model.decode(grid).detach()
    nll = -classifier(points).log_softmax(1).detach()
    explain = XGEM(model=model, lam=0.3, stop=False, **(SETTINGS | {"distance": "l1", "lr": 0.01}))
    cfs = explain(classifier, x, target)
    for i in range(3):
        loss = nll[:, target[i]] + 0.3 * (points - x[i]).abs().sum(1)
        found = cfs.counterfactual[i]
        mine = -classifier(found[None]).log_softmax(1)[0, target[i]]
        mine = mine + 0.3 * (found - x[i]).abs().sum()
        assert mine.item() == pytest.approx(loss.min().item(), abs=2e-3)


def test_a_larger_lambda_stays_nearer_and_zero_ignores_the_query():
    model, classifier, x, *_ = linear()
    distance = []
    for lam in (0.0, 0.01, 0.1, 10.0):
        settings = SETTINGS | {"steps": 200, "lr": 0.05}
        cfs = XGEM(model=model, lam=lam, stop=False, **settings)(classifier, x, ones(x))
        distance.append((cfs.counterfactual - x).norm(dim=1))
    for nearer, further in zip(distance[1:], distance, strict=False):
        assert (nearer < further).all()
    assert not cfs.valid.any()  # of the largest lambda
    assert set(cfs.reason) == {"decision is not the target"}


# ---------------------------------------------------------------- the stop


def test_the_search_stops_at_the_first_state_that_reaches_tau():
    """A step of Adam is at most about lr per latent dimension, so the overshoot is bounded."""
    model, classifier, x, _, a, _ = linear()
    explain = XGEM(model=model, lam=0.0, tau=0.9, **SETTINGS)
    cfs = explain(classifier, x, ones(x))
    per_step = 1.01 * 0.02 * a.abs().sum()
    odds = torch.tensor(0.9).double().logit()
    assert cfs.reached.all()
    reached = (cfs.score.logit() - odds).abs()
    assert (reached <= per_step).all() and (cfs.score >= 0.9).all()
    longer = XGEM(model=model, lam=0.0, tau=0.9, stop=False, **SETTINGS)(classifier, x, ones(x))
    assert (longer.score > cfs.score).all() and (longer.n_forward == 1 + 801 + 1).all()


def test_a_query_whose_reconstruction_is_at_the_target_is_its_reconstruction():
    model, classifier, x, *_ = linear()
    plane = model.decoder.weight @ model.decoder.weight.T
    inside, outside = plane @ classifier.w, classifier.w - plane @ classifier.w
    query = (x + 100 * inside - 1000 * outside).detach()
    assert (classifier(query).argmax(1) == 0).all()
    cfs = XGEM(model=model, **SETTINGS)(classifier, query, ones(x))
    torch.testing.assert_close(cfs.counterfactual, model(query).detach())
    assert cfs.n_backward.tolist() == [1] * len(x) and cfs.reached.all()


def test_too_few_steps_fail_and_keep_the_last_state():
    model, classifier, x, z0, a, _ = linear()
    cfs = XGEM(model=model, lam=0.0, **(SETTINGS | {"steps": 1}))(classifier, x, ones(x))
    one_step = model.decode(z0 + 0.02 * a.sign()).detach()
    failed = ~cfs.reached
    assert failed.any()
    torch.testing.assert_close(cfs.counterfactual[failed], one_step[failed], atol=1e-6, rtol=0)


# ---------------------------------------------------------------- contract


def make_curved(n=9):
    """Model, smooth classifier, queries off the plane, targets that differ from the decisions."""
    model, classifier = LinearModel(), make_net((6,), 2, seed=5, scale=3.0).eval()
    gen = torch.Generator().manual_seed(4)
    x = torch.rand(n, 6, generator=gen).double()
    return model, classifier, x, 1 - classifier(x).argmax(1)


def test_an_item_does_not_depend_on_its_batch():
    model, classifier, x, target = make_curved()
    explain = XGEM(model=model, tau=0.95, lam=0.3, lr=0.05, steps=8, distance="l1", path_steps=3)
    together = explain(classifier, x, target)
    assert together.reached.any() and not together.reached.all()
    for rows in ([4], [7, 0, 2]):
        alone, part = explain(classifier, x[rows], target[rows]), together.select(rows)
        torch.testing.assert_close(alone.counterfactual, part.counterfactual, atol=1e-10, rtol=0)
        torch.testing.assert_close(alone.path, part.path, atol=1e-10, rtol=0)
        for name in ("n_forward", "n_backward", "n_forward_generator", "n_backward_generator"):
            assert torch.equal(getattr(alone, name), getattr(part, name))


def test_each_distance_is_to_the_items_own_query():
    """Items leave at different steps; a penalty by position would then use other queries."""
    model, classifier, x, target = make_curved()
    explain = XGEM(model=model, tau=0.9, lam=1.0, lr=0.05, steps=60, distance="squared")
    cfs = explain(classifier, x, target)
    counts = cfs.n_backward.unique()
    assert len(counts) > 2
    for i in range(len(x)):
        alone = explain(classifier, x[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(
            alone.counterfactual[0], cfs.counterfactual[i], atol=1e-10, rtol=0
        )


def test_passes_are_counted():
    model, classifier, x, target = make_curved()
    n = dict.fromkeys(("encoder", "decoder", "f"), 0)

    def count(name):
        def hook(module, given, output):
            n[name] += len(output)

        return hook

    model.encoder.register_forward_hook(count("encoder"))
    model.decoder.register_forward_hook(count("decoder"))
    classifier.register_forward_hook(count("f"))
    cfs = XGEM(model=model, tau=0.9, lr=0.05, steps=30, path_steps=4)(classifier, x, target)
    assert int(cfs.n_forward.sum()) == n["f"]
    assert int(cfs.n_forward_generator.sum()) == n["encoder"] + n["decoder"]
    assert torch.equal(cfs.n_backward, cfs.n_backward_generator)
    assert (cfs.n_forward_generator == 1 + (cfs.n_forward - 2) + 4).all()


def test_the_path_is_the_line_between_the_codes():
    model, classifier, x, z0, *_ = linear()
    cfs = XGEM(model=model, path_steps=4, tau=0.9, **SETTINGS)(classifier, x, ones(x))
    assert cfs.path.shape == (len(x), 6, 6) and cfs.path_len.tolist() == [6] * len(x)
    assert torch.equal(cfs.path[:, 0], x) and torch.equal(cfs.path[:, -1], cfs.counterfactual)
    end = model.encode(cfs.counterfactual).detach()
    for k in range(5):
        state = model.decode(z0 + k / 4 * (end - z0)).detach()
        torch.testing.assert_close(cfs.path[:, 1 + k], state, atol=1e-10, rtol=0)
    assert XGEM(model=model, **SETTINGS)(classifier, x, ones(x)).path is None


def test_zero_edit_is_the_reconstruction():
    model, _, x, _ = make_curved()
    assert torch.equal(XGEM(model=model).zero_edit(x), model(x))
    assert not torch.equal(model(x), x)


def test_modules_are_left_as_they_were():
    model, classifier, x, target = make_curved()
    model.train()
    with torch.no_grad():
        XGEM(model=model, steps=3)(classifier, x, target)
    assert model.training and not classifier.training
    for p in [*model.parameters(), *classifier.parameters()]:
        assert p.grad is None and p.requires_grad


def test_nan_during_the_search_is_flagged_with_the_last_finite_state():
    model, classifier, x, z0, a, m0 = linear()

    class Unmarked(nn.Module):
        def forward(self, x):
            return classifier(x[:, 1:])

    class Marked(LatentModel):
        def encode(self, x):
            return torch.cat([x[:, :1], model.encode(x[:, 1:])], 1)

        def decode(self, z):
            return torch.cat([z[:, :1], model.decode(z[:, 1:])], 1)

    marks = torch.zeros(len(x), 1).double()
    marks[1] = 1
    edge = float(z0[1] @ a + m0 + 2.5 * 0.02 * a.abs().sum())
    explain = XGEM(model=Marked(), lam=0.0, **SETTINGS)
    cfs = explain(Trap(Unmarked(), edge), torch.cat([marks, x], 1), ones(x))
    others = [i for i in range(len(x)) if i != 1]
    assert cfs.reached[others].all() and not cfs.reached[1]
    two_steps = model.decode(z0[1] + 2 * 0.02 * a.sign()).detach()
    torch.testing.assert_close(cfs.counterfactual[1, 1:], two_steps, atol=1e-6, rtol=0)
    assert cfs.reason[1] != ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distance": "linf"}, "distance: got 'linf', expected one of"),
        ({"lam": -0.1}, "lam, lr: got -0.1"),
        ({"lr": 0.0}, "lam, lr: got"),
        ({"steps": 0}, "steps: got 0"),
        ({"path_steps": -1}, "path_steps: got -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, says):
    model, classifier, x, target = make_curved()
    with pytest.raises(ValueError, match=says):
        XGEM(model=model, **changes)(classifier, x, target)


def test_a_model_of_another_shape_is_refused():
    _, classifier, x, target = make_curved()

    class Cut(LinearModel):
        def decode(self, z):
            return super().decode(z)[:, :5]

    class First5(nn.Module):
        def forward(self, x):
            return classifier(torch.cat([x[:, :5], x[:, :1]], 1))

    explain = XGEM(model=Cut(), steps=1)
    with pytest.raises(ValueError, match=r"model: decodes items of shape \(5,\)"):
        explain(First5(), x, target)
    with pytest.raises(ValueError, match="model: decodes"):
        explain.progression(First5(), x, torch.rand(9, 2))
    with pytest.raises(ValueError, match="model: decodes"):
        explain.zero_edit(x)


# ---------------------------------------------------------------- distance


@pytest.mark.parametrize(("kind", "p"), [("l1", 1), ("l2", 2)])
def test_distances_equal_torch(kind, p):
    gen = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 5, 3, 4, 4, generator=gen).double()
    norm = torch.linalg.vector_norm((x - y).flatten(1), p, dim=1)
    torch.testing.assert_close(measure_distance(x, y, kind), norm)
    torch.testing.assert_close(
        measure_distance(x, y, "squared"), (x - y).flatten(1).norm(dim=1) ** 2
    )


def test_the_l2_norm_has_a_finite_gradient_where_both_are_equal():
    x = torch.rand(2, 6)
    y = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(measure_distance(x, y, "l2").sum(), y)
    assert torch.equal(gradient, torch.zeros(2, 6))


# ---------------------------------------------------------------- progression and presets


def test_a_progression_has_the_wanted_probabilities():
    model, classifier, x, *_ = linear()
    levels = torch.tensor([0.02, 0.05, 0.5, 0.9, 0.999]).expand(len(x), 5)
    settings = SETTINGS | {"distance": "l1", "lr": 0.1}
    found = XGEM(model=model, lam=0.001, **settings).progression(classifier, x, levels, end=0.99)
    assert found.reached[:, :4].all()
    torch.testing.assert_close(found.actual[:, :4], levels[:, :4].double(), atol=2e-3, rtol=0)
    short = ~found.reached[:, 4]  # beyond `end`: the result of the search, which overshoots
    assert short.any() and (found.actual[:, 4][short] >= 0.99).all()
    again = classifier(found.images.flatten(0, 1)).softmax(1)[:, 1].view(-1, 5)
    torch.testing.assert_close(found.actual, again.detach(), atol=1e-12, rtol=0)


def test_a_progression_does_not_depend_on_the_batch():
    model, classifier, x, _ = make_curved()
    explain, levels = XGEM(model=model, lam=0.1, lr=0.05, steps=40), torch.rand(9, 4)
    found = explain.progression(classifier, x, levels)
    one = explain.progression(classifier, x[2:3], levels[2:3])
    torch.testing.assert_close(one.images[0], found.images[2], atol=1e-9, rtol=0)
    assert torch.equal(one.reached[0], found.reached[2])


def test_a_bad_progression_is_refused():
    model, classifier, x, _ = make_curved()
    with pytest.raises(ValueError, match="expected: got"):
        XGEM(model=model).progression(classifier, x, torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"end: got 1\.0"):
        XGEM(model=model).progression(classifier, x, torch.rand(9, 2), end=1.0)


@pytest.mark.parametrize("dataset", ["faces", "radiographs", "celeba"])
def test_the_surveys_equation_is_the_same_search_to_its_end(dataset):
    model = LinearModel()
    own = presets.get("xgem", dataset).build(model=model)
    survey = presets.get("xgem", dataset, "survey").build(model=model)
    assert isinstance(own, XGEM) and own.stop and not survey.stop and own.lam != survey.lam
    with pytest.raises(ValueError, match="model: missing"):
        presets.get("xgem", dataset).build()
