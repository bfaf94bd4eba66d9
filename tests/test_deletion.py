"""Deletion curves and relevance maps: loops, closed forms, captum's LRP, completeness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LRP
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cf_utils.core import item_noise
from cf_utils.evaluation import attributions
from cf_utils.evaluation.metrics import deletion, saliency
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet
from tests.conftest import make_net

IDS = torch.tensor([11, 5, 8, 2])


class Corner(nn.Module):
    """Class 1 if the mean of the top left quarter exceeds 0.75."""

    def forward(self, x):
        z = 40 * (x[:, :, :4, :4].mean((1, 2, 3)) - 0.75)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def corner():
    """Four images of 8 x 8 whose top left quarter is 1, and the map of that quarter."""
    x = torch.full((4, 3, 8, 8), 0.2)
    x[:, :, :4, :4] = 1
    relevance = torch.zeros(4, 8, 8)
    relevance[:, :4, :4] = 1
    return x, torch.ones(4, dtype=torch.int64), relevance


def test_the_right_map_breaks_the_decision_at_once_and_the_wrong_one_late(corner):
    x, target, right = corner
    fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
    curves = deletion.compare_maps(
        Corner(), x, target, {"right": right, "wrong": 1 - right, "none": "why"}, IDS,
        fractions=fractions,
    )  # fmt: skip
    assert curves["none"] == "why"
    assert curves["right"].accuracy.mean(0).tolist() == [1, 0, 0, 0, 0]
    assert curves["wrong"].accuracy.mean(0).tolist() == [1, 1, 1, 1, 0]
    assert curves["right"].area().tolist() == [0.125] * 4  # trapezoids: 0.25 * 0.5
    assert curves["wrong"].area().tolist() == [0.875] * 4
    assert (curves["right"].area("probability") < curves["wrong"].area("probability")).all()
    chance = deletion.deletion_curve(Corner(), x, target, torch.zeros(4, 8, 8), IDS, fractions)
    middle = chance.area().mean()  # ties in random order: between the two
    assert 0.2 < middle < 0.8  # measured 0.46


def test_the_curve_equals_a_loop_over_pixels():
    net, gen = make_net((3, 5, 4), 2, dtype=torch.float32).eval(), torch.Generator().manual_seed(0)
    x, relevance = torch.rand(4, 3, 5, 4, generator=gen), torch.rand(4, 5, 4, generator=gen)
    target = torch.tensor([0, 1, 1, 0])
    fractions = (0.0, 0.1, 0.33, 1.0)
    found = deletion.deletion_curve(net, x, target, relevance, IDS, fractions, repeats=2, seed=3)
    for i in range(4):
        order = np.argsort(-relevance[i].flatten().numpy())
        for k, fraction in enumerate(fractions):
            p, hits = [], []
            for repeat in range(2):
                noise = item_noise(3, IDS[i : i + 1], (3, 5, 4), f"deletion {repeat}", "uniform")[0]
                image = x[i].clone()
                for pixel in order[: round(20 * fraction)]:
                    row, column = divmod(int(pixel), 4)
                    image[:, row, column] = noise[:, row, column]
                with torch.no_grad():
                    logits = net(image[None])[0]
                p.append(logits.double().softmax(0)[target[i]].item())
                hits.append(float(logits.argmax() == target[i]))
            assert found.probability[i, k].item() == pytest.approx(np.mean(p), abs=1e-6)
            assert found.accuracy[i, k].item() == np.mean(hits)


def test_a_curve_does_not_depend_on_its_batch(corner):
    x, target, relevance = corner
    relevance = relevance + torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    whole = deletion.deletion_curve(Corner(), x, target, relevance, IDS)
    order = torch.tensor([2, 0])
    some = deletion.deletion_curve(
        Corner(), x[order], target[order], relevance[order], IDS[order], batch_size=1
    )
    torch.testing.assert_close(some.probability, whole.probability[order])
    other = deletion.deletion_curve(Corner(), x, target, relevance, IDS, seed=1)
    assert not torch.equal(other.probability, whole.probability)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(0, 99))
def test_ranks_are_a_permutation_in_descending_order_with_random_ties(values, seed):
    relevance = torch.tensor([values, values]).double().view(2, 2, 3)
    rank = deletion.rank_pixels(relevance, [str(seed), "other"], seed)
    for flat in rank.flatten(1):
        assert sorted(flat.tolist()) == list(range(6))
        in_order = [values[i] for i in flat.argsort().tolist()]
        assert in_order == sorted(values, reverse=True)
    again = deletion.rank_pixels(relevance[:1], [str(seed)], seed)
    assert torch.equal(again[0], rank[0])


def test_ties_have_no_preferred_place():
    rank = deletion.rank_pixels(torch.zeros(600, 4, 4), torch.arange(600)).double()
    assert (rank.mean(0) - 7.5).abs().max() < 0.8  # standard deviation 0.19, measured 0.50


@pytest.mark.parametrize(
    "change,argument",
    [
        ({"relevance": torch.zeros(4, 8, 7)}, "relevance"),
        ({"relevance": torch.full((4, 8, 8), torch.nan)}, "relevance"),
        ({"fractions": (0.1, 0.5)}, "fractions"),
        ({"fractions": (0.0, 0.5, 0.5)}, "fractions"),
        ({"fractions": (0.0, 1.5)}, "fractions"),
        ({"repeats": 0}, "repeats"),
        ({"ids": IDS[:2]}, "ids"),
        ({"target": torch.ones(4)}, "target"),
    ],
)
def test_invalid_input_is_refused_by_name(corner, change, argument):
    x, target, relevance = corner
    given = {"x": x, "target": target, "relevance": relevance, "ids": IDS} | change
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        deletion.deletion_curve(Corner(), **given)


def test_an_unknown_area_is_refused():
    curve = deletion.DeletionCurve(torch.tensor([0.0, 1.0]), torch.ones(2, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"^of: got 'loss'"):
        curve.area("loss")


def test_the_map_of_a_progression_is_the_scaled_change_of_its_ends():
    absent, present = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    present[0, 0, 1, 2], absent[0, 1, 1, 2], absent[0, 2, 3, 3] = 0.4, 0.2, 0.3
    found = attributions.change_map(absent, present)
    assert found[0, 1, 2] == 1 and found[0, 3, 3].item() == pytest.approx(0.5)
    assert found[0].count_nonzero() == 2 and found[1].count_nonzero() == 0
    assert torch.equal(found, attributions.change_map(present, absent))
    with pytest.raises(ValueError, match=r"^absent, present"):
        attributions.change_map(absent, present[:, :1])


def test_normalise_drops_negative_relevance():
    maps = torch.tensor([[[-1.0, 2.0, 4.0]], [[-3.0, -1.0, 0.0]]])
    assert attributions.normalise(maps).tolist() == [[[0, 0.5, 1]], [[0, 0, 0]]]


class Plain(nn.Module):
    """A network that captum's LRP covers."""

    def __init__(self, bias: bool):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, bias=bias),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        first, last = nn.Linear(32, 5, bias=bias), nn.Linear(5, 2, bias=bias)
        self.head = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


@pytest.mark.parametrize("bias", [False, True])
def test_lrp_equals_captums_epsilon_rule(bias):
    net = Plain(bias).double()
    x = torch.rand(6, 3, 14, 14, generator=torch.Generator().manual_seed(1)).double()
    target = torch.tensor([0, 1, 1, 0, 1, 0])
    found = attributions.lrp(net, x, target, baseline=0.0, epsilon=1e-9, batch_size=4)
    second = LRP(net)  # relevance of a margin of two classes: that of one logit minus the other
    expected = second.attribute(x, target=target) - second.attribute(x, target=1 - target)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected.detach(), atol=1e-7, rtol=1e-5)


@pytest.fixture
def dense():
    """The project's DenseNet with SiLU, concatenation and batch normalisation, on 16 x 16."""
    net = SmallDenseNet(growth=4, blocks=(1, 2), first=6)
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen))
    x = torch.rand(4, 3, 16, 16, generator=gen, dtype=torch.float64)
    return OneOutput(net).double().train(), x, torch.tensor([0, 1, 1, 0])


def test_lrp_conserves_relevance_through_a_dense_net_without_offsets(dense):
    """Without any offset, the relevance of an image sums to its margin."""
    f, x, target = dense
    with torch.no_grad():
        for m in f.modules():
            if getattr(m, "bias", None) is not None:
                m.bias.zero_()
    found = attributions.lrp(f, x, target)
    margin = saliency.logit_margin(f.eval()(x), target).detach()
    assert margin.abs().min() > 1e-3
    torch.testing.assert_close(found.sum((1, 2, 3)), margin, rtol=1e-3, atol=1e-5)
    # the gradient itself does not conserve: SiLU is not linear
    plain_gradient = ((x - 0.5) * saliency.gradient(f, x, target)).sum((1, 2, 3))
    assert ((plain_gradient - margin).abs() > 0.05 * margin.abs()).any()


def test_lrp_leaves_the_classifier_as_it_was_and_items_alone(dense):
    f, x, target = dense
    whole = attributions.lrp(f, x, target)
    some = attributions.lrp(f, x[[2, 0]], target[[2, 0]], batch_size=1)
    torch.testing.assert_close(some, whole[[2, 0]], atol=1e-12, rtol=1e-9)
    assert f.training and all(p.requires_grad and p.grad is None for p in f.parameters())
    torch.testing.assert_close(attributions.lrp(f, x, 1 - target), -whole)


@pytest.mark.parametrize(
    "layer,name",
    [(nn.Sigmoid(), "sigmoid"), (nn.GroupNorm(1, 6), "group_norm"), (nn.Softmax(1), "softmax")],
)
def test_lrp_names_the_operation_that_it_does_not_cover(layer, name):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.Flatten(), nn.Linear(6 * 36, 2))
    x, target = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=f"operation {name} has no epsilon rule"):
        attributions.lrp(net, x, target)
    maps = attributions.rival_maps(net, net[0], x, target, torch.arange(2))
    assert name in maps["LRP"] and isinstance(maps["gradient"], torch.Tensor)
    with pytest.raises(ValueError, match=r"^epsilon: got 0"):
        attributions.lrp(net, x, target, epsilon=0)


class Gated(nn.Module):
    """Multiplies two linear functions of the image."""

    def forward(self, x):
        z = x.flatten(1).sum(1) * x.flatten(1)[:, 0]
        return torch.stack([-z, z], 1)


def test_lrp_refuses_a_product_of_two_activations():
    with pytest.raises(ValueError, match="operation mul has no epsilon rule"):
        attributions.lrp(Gated(), torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))


def test_integrated_gradients_are_complete_and_equal_a_riemann_sum(dense):
    f, x, target = dense
    found = attributions.integrated_gradients(f, x, target, baseline=0.25, steps=64, batch_size=3)
    f.eval()
    ends = (saliency.logit_margin(f(v), target) for v in (x, torch.full_like(x, 0.25)))
    first, last = (v.detach() for v in ends)
    torch.testing.assert_close(found.sum((1, 2, 3)), first - last, atol=1e-3, rtol=1e-3)
    total = torch.zeros_like(x)
    for k in range(50):
        point = 0.25 + (k + 0.5) / 50 * (x - 0.25)
        total += saliency.gradient(f, point, target) / 50
    torch.testing.assert_close(found, (x - 0.25) * total, atol=2e-4, rtol=1e-2)


def test_rival_maps_are_those_of_the_methods_scaled_to_one(dense):
    f, x, target = dense
    layer = f.model.net.features.denseblock2
    maps = attributions.rival_maps(f, layer, x, target, IDS)
    assert list(maps) == ["gradient", "integrated gradients", "Grad-CAM", "LRP", "random"]
    for found in maps.values():
        assert found.shape == (4, 16, 16) and found.min() >= 0
        assert (found.flatten(1).amax(1) == 1).all() or found is maps["Grad-CAM"]
    size = saliency.gradient(f, x, target).abs().amax(1)
    torch.testing.assert_close(maps["gradient"], size / size.flatten(1).amax(1)[:, None, None])
    cam = saliency.grad_cam(f, layer, x, target).clamp(min=0)
    largest = cam.flatten(1).amax(1)[:, None, None]
    torch.testing.assert_close(maps["Grad-CAM"], torch.where(largest > 0, cam / largest, 0))
    again = attributions.rival_maps(f, layer, x[[3]], target[[3]], IDS[[3]])
    torch.testing.assert_close(again["random"], maps["random"][[3]])
