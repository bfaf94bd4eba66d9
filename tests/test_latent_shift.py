"""Latent shift against the closed form of a linear decoder and a linear classifier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cf_utils.explainers import latent_shift
from cf_utils.explainers.latent_shift import LatentShift
from cf_utils.models.generators.latent import LatentModel
from tests.conftest import make_net
from tests.test_latent import LinearClassifier, LinearModel, make_case

TAU = 0.9
SETTINGS = {"bounds": None, "tau": TAU, "halvings": 40, "limit": 1e3}


def linear():
    """Model, classifier, queries on the decoder's plane, their codes, a and m0.

    The log-odds of class 1 at code z are a.z + m0; the queries are of class 0.
    """
    model, classifier, z0, a, m0 = make_case()
    z0 = z0[z0 @ a + m0 < -0.1]
    return model, classifier, model.decode(z0).detach(), z0, a, m0


def log_odds_of(classifier, x):
    logits = classifier(x)
    return (logits[:, 1] - logits[:, 0]).detach()


def ones(x):
    return torch.ones(len(x), dtype=torch.int64)


# ---------------------------------------------------------------- closed forms


def test_the_amount_is_that_of_the_closed_form():
    model, classifier, x, z0, a, m0 = linear()
    cfs = LatentShift(model=model, **SETTINGS)(classifier, x, ones(x))
    amount = (math.log(TAU / (1 - TAU)) - z0 @ a - m0) / a.square().sum()
    expected = model.decode(z0 + amount[:, None] * a)
    assert len(x) >= 4 and cfs.reached.all() and (cfs.score >= TAU).all()
    torch.testing.assert_close(cfs.counterfactual, expected.detach(), atol=1e-9, rtol=0)


def test_a_shift_to_class_0_goes_the_other_way():
    model, classifier, x, z0, a, m0 = linear()
    z1 = z0 + (3 - (z0 @ a + m0))[:, None] * a / a.square().sum()  # log-odds 3
    cfs = LatentShift(model=model, **SETTINGS)(
        classifier, model.decode(z1).detach(), torch.zeros(len(x), dtype=torch.int64)
    )
    amount = (3 + math.log(TAU / (1 - TAU))) / a.square().sum()
    expected = model.decode(z1 - amount * a).detach()
    torch.testing.assert_close(cfs.counterfactual, expected, atol=1e-9, rtol=0)


def test_an_item_beyond_the_limit_fails_at_the_limit():
    model, classifier, x, z0, a, m0 = linear()
    away = (math.log(TAU / (1 - TAU)) - z0 @ a - m0) / a.norm()
    limit = float(away.median()) + 1e-6
    cfs = LatentShift(model=model, **(SETTINGS | {"limit": limit}))(classifier, x, ones(x))
    near = away <= limit
    assert 0 < near.sum() < len(x) and torch.equal(cfs.reached, near)
    at_limit = model.decode(z0 + limit * a / a.norm()).detach()
    torch.testing.assert_close(cfs.counterfactual[~near], at_limit[~near], atol=1e-9, rtol=0)
    for reason, ok in zip(cfs.reason, near.tolist(), strict=True):
        assert (reason == "") == ok and (ok or "up to distance" in reason)


class Curved(nn.Module):
    """Log-odds 4 sin(w.x) + v.x - 3: along a line they rise, fall and rise again."""

    def __init__(self):
        super().__init__()
        gen = torch.Generator().manual_seed(7)
        self.w, self.v = (nn.Parameter(torch.randn(6, generator=gen).double()) for _ in range(2))

    def forward(self, x):
        z = 4 * (2 * x @ self.w).sin() + x @ self.v - 3
        return torch.stack([torch.zeros_like(z), z], 1)


def test_the_direction_is_the_gradient_at_the_query_and_is_kept():
    model, classifier = LinearModel(), Curved()
    z0 = torch.randn(12, 3, generator=torch.Generator().manual_seed(2)).double()
    x = model.decode(z0).detach()
    keep = log_odds_of(classifier, x) < 0
    x, z0 = x[keep], z0[keep]
    cfs = LatentShift(model=model, **(SETTINGS | {"limit": 10.0}))(classifier, x, ones(x))
    z = z0.clone().requires_grad_(True)
    probability = classifier(model.decode(z)).softmax(1)[:, 1]
    (gradient,) = torch.autograd.grad(probability.sum(), z)
    moved = model.encode(cfs.counterfactual) - z0
    alike = torch.cosine_similarity(moved, gradient)[cfs.reached]
    assert cfs.reached.sum() >= 4
    torch.testing.assert_close(alike, torch.ones_like(alike), atol=1e-9, rtol=0)
    assert (cfs.score[cfs.reached] - TAU).abs().max() < 1e-6  # no further than needed


def test_a_failed_item_keeps_the_best_point_that_was_tried():
    """Log-odds along the line fall after a peak below tau, so the last amount is not the best."""

    class Peak(nn.Module):
        def forward(self, x):
            z = -1 - 2 * (x[:, 0] - 1).square()
            return torch.stack([torch.zeros_like(z), z], 1)

    class Identity(LatentModel):
        def encode(self, x):
            return x

        decode = encode

    x = torch.zeros(1, 2).double()
    explain = LatentShift(model=Identity(), **(SETTINGS | {"limit": 100.0}))
    cfs = explain(Peak(), x, ones(x))
    first = (
        math.log(TAU / (1 - TAU)) + 3
    ) / 4  # the linear prediction, 1.30, is near the peak at 1
    torch.testing.assert_close(cfs.counterfactual, torch.tensor([[first, 0.0]]).double())
    assert not cfs.reached.any() and "up to distance 100" in cfs.reason[0]


def test_with_three_classes_the_direction_is_that_of_the_probability():
    model, classifier = LinearModel(), make_net((6,), 3, scale=4.0).eval()
    x = model.decode(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double())
    x, target = x.detach(), classifier(x).argsort(1)[:, 1].detach()
    cfs = LatentShift(model=model, **(SETTINGS | {"tau": 0.6}))(classifier, x, target)
    z = model.encode(x).detach().requires_grad_(True)
    score = classifier(model.decode(z)).softmax(1).gather(1, target[:, None])
    (gradient,) = torch.autograd.grad(score.sum(), z)
    moved = model.encode(cfs.counterfactual) - z
    alike = torch.cosine_similarity(moved, gradient)[cfs.valid]
    assert len(alike) >= 3
    torch.testing.assert_close(alike, torch.ones_like(alike), atol=1e-9, rtol=0)


def test_a_query_whose_reconstruction_is_at_the_target_is_not_shifted():
    model, classifier, x, *_ = linear()
    normal = torch.eye(6).double() - model.decoder.weight @ model.decoder.weight.T
    away = (normal @ classifier.w).detach()
    on_plane = x + 100 * (model.decoder.weight @ model.decoder.weight.T @ classifier.w).detach()
    query = on_plane - 1000 * away  # decided as 0, reconstructed as on_plane, which is decided as 1
    assert (log_odds_of(classifier, query) < 0).all()
    cfs = LatentShift(model=model, **SETTINGS)(classifier, query, ones(x))
    torch.testing.assert_close(cfs.counterfactual, model(query).detach())
    assert cfs.reached.all() and cfs.n_forward_generator.tolist() == [1 + 1 + 9] * len(x)
    assert cfs.n_forward.tolist() == [1 + 1 + 1] * len(x)  # query, reconstruction, result
    by_score = LatentShift(model=model, path_by="score", **SETTINGS)(classifier, query, ones(x))
    assert by_score.n_forward_generator.tolist() == [1 + 1] * len(x)
    assert torch.equal(by_score.path[:, 1:], by_score.counterfactual[:, None].expand(-1, 11, -1))


# ---------------------------------------------------------------- path


@pytest.mark.parametrize("by", ["amount", "score"])
def test_the_path_has_equal_steps(by):
    model, classifier, x, *_ = linear()
    explain = LatentShift(model=model, path_steps=5, path_by=by, **SETTINGS)
    cfs = explain(classifier, x, ones(x))
    n = len(x)
    assert cfs.path.shape[1] == 7 and cfs.path_len.tolist() == [7] * n
    assert torch.equal(cfs.path[:, 0], x) and torch.equal(cfs.path[:, -1], cfs.counterfactual)
    torch.testing.assert_close(cfs.path[:, 1], model(x).detach())
    states = cfs.path[:, 1:]
    odds = log_odds_of(classifier, states.flatten(0, 1)).unflatten(0, (n, 6))
    steps = (odds if by == "amount" else odds.sigmoid()).diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand(n, 5), atol=1e-8, rtol=0)
    assert (steps > 0.01).all()


def test_a_path_of_one_step_is_reconstruction_and_result():
    model, classifier, x, *_ = linear()
    cfs = LatentShift(model=model, path_steps=1, **SETTINGS)(classifier, x, ones(x))
    assert cfs.path.shape[1] == 3 and torch.equal(cfs.path[:, 2], cfs.counterfactual)


# ---------------------------------------------------------------- contract


def test_an_item_does_not_depend_on_its_batch():
    model, classifier = LinearModel(), Curved()
    x = model.decode(torch.randn(9, 3, generator=torch.Generator().manual_seed(4)).double())
    x = x.detach()
    target = 1 - classifier(x).argmax(1)
    explain = LatentShift(model=model, **(SETTINGS | {"limit": 4.0}))
    together = explain(classifier, x, target)
    assert together.reached.any() and not together.reached.all()
    for rows in ([4], [7, 0, 2]):
        alone = explain(classifier, x[rows], target[rows])
        part = together.select(rows)
        torch.testing.assert_close(alone.counterfactual, part.counterfactual, atol=1e-10, rtol=0)
        torch.testing.assert_close(alone.path, part.path, atol=1e-9, rtol=0)
        assert alone.reason == part.reason
        for name in ("n_forward", "n_backward", "n_forward_generator", "n_backward_generator"):
            assert torch.equal(getattr(alone, name), getattr(part, name))


@pytest.mark.parametrize("by", ["amount", "score"])
def test_passes_are_counted_and_there_is_one_gradient(by):
    model, classifier = LinearModel(), Curved()
    x = model.decode(torch.randn(9, 3, generator=torch.Generator().manual_seed(4)).double())
    x = x.detach()
    target, n = 1 - classifier(x).argmax(1), dict.fromkeys(("encoder", "decoder", "f", "back"), 0)

    def count(name):
        def hook(module, given, output):
            n[name] += len(output)

        return hook

    model.encoder.register_forward_hook(count("encoder"))
    model.decoder.register_forward_hook(count("decoder"))
    classifier.register_forward_hook(count("f"))
    classifier.register_full_backward_hook(lambda m, i, o: n.update(back=n["back"] + len(o[0])))
    explain = LatentShift(model=model, path_by=by, **(SETTINGS | {"halvings": 5}))
    cfs = explain(classifier, x, target)
    assert int(cfs.n_forward.sum()) == n["f"]
    assert int(cfs.n_forward_generator.sum()) == n["encoder"] + n["decoder"]
    assert cfs.n_backward.tolist() == cfs.n_backward_generator.tolist() == [1] * 9
    assert n["back"] == 9


def test_zero_edit_is_the_reconstruction():
    model, _, x, *_ = linear()
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(LatentShift(model=model).zero_edit(x), model(x))
    assert torch.equal(
        LatentShift(model=model).zero_edit(x.float()), model(x.float().double()).float()
    )


def test_modules_are_left_as_they_were():
    model, classifier, x, *_ = linear()
    model.train()
    with torch.no_grad():
        LatentShift(model=model, **SETTINGS)(classifier, x, ones(x))
    parameters = [*model.parameters(), *classifier.parameters()]
    assert model.training and classifier.training
    assert all(p.grad is None and p.requires_grad for p in parameters)


class Broken(nn.Module):
    """NaN for reconstructions of items with a mark in the last feature, which decoding doubles."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return torch.where(x[:, -1:] > 1.5, torch.nan, self.classifier(x[:, :-1]))


class Marked(LatentModel):
    """`LinearModel` with one more feature; decoding doubles it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def encode(self, x):
        return torch.cat([self.model.encode(x[:, :-1]), x[:, -1:]], 1)

    def decode(self, z):
        return torch.cat([self.model.decode(z[:, :-1]), 2 * z[:, -1:]], 1)


def test_nan_at_the_reconstruction_is_flagged_and_changes_no_other_item():
    model, classifier, x, *_ = linear()
    marks = torch.zeros(len(x), 1).double()
    explain = LatentShift(model=Marked(model), **SETTINGS)
    clean = explain(Broken(classifier), torch.cat([x, marks], 1), ones(x))
    marks[2] = 1
    caught = explain(Broken(classifier), torch.cat([x, marks], 1), ones(x))
    others = [i for i in range(len(x)) if i != 2]
    assert clean.reached.all() and caught.reached[others].all() and not caught.reached[2]
    assert caught.reason[2] == "classifier returned NaN" and caught.source[2] == 0
    torch.testing.assert_close(
        caught.counterfactual[others], clean.counterfactual[others], atol=1e-10, rtol=0
    )


def test_a_flat_score_is_flagged():
    model, classifier, x, *_ = linear()
    with torch.no_grad():
        model.decoder.weight.zero_()  # every code is decoded as the bias
    cfs = LatentShift(model=model, **SETTINGS)(classifier, x, ones(x))
    wrong = [r for r, ok in zip(cfs.reason, cfs.reached.tolist(), strict=True) if not ok]
    assert len(wrong) == len(x) and set(wrong) == {latent_shift.FLAT}
    torch.testing.assert_close(cfs.counterfactual, model(x).detach())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limit": 0.0}, "limit: got 0.0"),
        ({"limit": math.nan}, "limit: got nan"),
        ({"halvings": -1}, "halvings: got -1"),
        ({"path_steps": 0}, "path_steps: got 0"),
        ({"path_by": "steps"}, "path_by: got 'steps', expected one of"),
    ],
)
def test_settings_out_of_range_are_refused(changes, says):
    model, classifier, x, *_ = linear()
    with pytest.raises(ValueError, match=says):
        LatentShift(model=model, **(SETTINGS | changes))(classifier, x, ones(x))


def test_a_model_of_another_shape_is_refused():
    _, classifier, x, *_ = linear()

    class Cut(LinearModel):
        def decode(self, z):
            return super().decode(z)[:, :5]

    with pytest.raises(ValueError, match=r"model: decodes items of shape \(5,\)"):
        LatentShift(model=Cut(), **SETTINGS)(classifier, x, ones(x))
    with pytest.raises(ValueError, match="model: decodes"):
        LatentShift(model=Cut()).zero_edit(x)


# ---------------------------------------------------------------- progression


def test_a_progression_has_the_wanted_probabilities_and_the_closed_form():
    model, classifier, x, z0, a, m0 = linear()
    levels = torch.tensor([0.005, 0.3, 0.5, 0.9, 0.95]).expand(len(x), 5)
    found = LatentShift(model=model, **SETTINGS).progression(classifier, x, levels)
    assert found.reached.all() and found.images.shape == (len(x), 5, 6)
    torch.testing.assert_close(found.actual, levels.double(), atol=1e-6, rtol=0)
    assert (classifier(x).softmax(1)[:, 1] > 0.005).all()  # the first level lies on the other side
    for k in range(5):
        amount = (levels[:, k].double().logit() - z0 @ a - m0) / a.square().sum()
        expected = model.decode(z0 + amount[:, None] * a).detach()
        torch.testing.assert_close(found.images[:, k], expected, atol=1e-5, rtol=0)


def test_wanted_probabilities_beyond_the_limit_are_not_reached():
    model, classifier, x, z0, a, m0 = linear()
    levels = torch.tensor([0.001, 0.5, 0.999]).expand(len(x), 3)
    explain = LatentShift(model=model, **(SETTINGS | {"limit": 0.5}))
    found = explain.progression(classifier, x, levels)
    now = z0 @ a + m0
    distance = (levels.double().logit() - now[:, None]).abs() / a.norm()
    assert torch.equal(found.reached, distance <= 0.5)
    furthest = model.encode(found.images.flatten(0, 1)) - z0.repeat_interleave(3, 0)
    assert furthest.norm(dim=1).max() <= 0.5 + 1e-9
    high = (now + 0.5 * a.norm()).sigmoid()
    torch.testing.assert_close(found.actual[:, 2], high, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        (torch.tensor([0.5]), "expected: got"),
        (torch.ones(3, 2), "expected: got"),
        (torch.ones(1, 2).long(), "expected: got torch.int64"),
        (torch.tensor([[0.5, 1.2]]), "expected: got values from 0.5 to 1.2"),
        (torch.tensor([[0.5, torch.nan]]), "expected: got values"),
    ],
)
def test_bad_wanted_probabilities_are_refused(expected, says):
    model = LinearModel()
    with pytest.raises(ValueError, match=says):
        LatentShift(model=model).progression(
            LinearClassifier(), torch.rand(1, 6).double(), expected
        )
