"""Cascading randomisation: which layers change, and that similarity falls as it should."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

from cf_utils.evaluation.metrics import saliency, sanity
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(4 * 64, 6), nn.Tanh(), nn.Linear(6, 2))
    net[1].running_mean += 1
    return net.eval()


@pytest.mark.parametrize("how", ["initial", "permuted"])
def test_layers_become_random_from_the_top_and_the_classifier_stays(net, how):
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    copies = list(sanity.randomise_cascading(net, how=how))
    assert [name for name, _ in copies] == ["6", "4", "1", "0"]
    done = []
    for name, model in copies:
        done.append(name)
        for key, value in model.state_dict().items():
            if key.endswith("weight") and key != "1.weight":  # batch norm begins at 1 as well
                assert torch.equal(value, before[key]) == (key.split(".")[0] not in done), key
        assert model is not net and not model.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    again = list(sanity.randomise_cascading(net, how=how))[-1][1]
    assert torch.equal(again[0].weight, copies[-1][1][0].weight)
    other = list(sanity.randomise_cascading(net, seed=99, how=how))[-1][1]
    assert not torch.equal(other[0].weight, copies[-1][1][0].weight)
    # a copy's upper layers are those of the copy before it: one cascade, not four draws
    assert torch.equal(copies[-1][1][6].weight, copies[0][1][6].weight)


def test_permuted_weights_keep_their_values_and_initial_ones_reset_the_statistics(net):
    permuted = list(sanity.randomise_cascading(net, how="permuted"))[-1][1]
    for a, b in zip(net.parameters(), permuted.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert torch.equal(permuted[1].running_mean, net[1].running_mean)
    initial = list(sanity.randomise_cascading(net))[-1][1]
    assert (initial[1].running_mean == 0).all() and (net[1].running_mean == 1).all()


class Scale(nn.Module):
    """A layer that cannot reset itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(5.0))

    def forward(self, x):
        return x * self.scale


def test_a_layer_without_reset_is_named():
    net = nn.Sequential(nn.Linear(5, 5), Scale())
    with pytest.raises(ValueError, match=r"^classifier: layer '1', a Scale"):
        list(sanity.randomise_cascading(net))
    assert len(list(sanity.randomise_cascading(net, how="permuted"))) == 2
    with pytest.raises(ValueError, match=r"^how: got 'zero'"):
        list(sanity.randomise_cascading(net, how="zero"))


def test_similarity_of_maps_equals_scipy_and_scikit_image():
    gen = torch.Generator().manual_seed(0)
    a = torch.rand(4, 9, 8, generator=gen)
    b = (a + 0.5 * torch.rand(4, 9, 8, generator=gen)).pow(3)
    b[3] = 0.7
    found = sanity.map_similarity(a, b)
    for i in range(3):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        assert abs(found["rank_correlation"][i] - spearmanr(x.ravel(), y.ravel()).statistic) < 1e-9
        scaled = [(m - m.min()) / (m.max() - m.min()) for m in (x, y)]
        expected = structural_similarity(*scaled, data_range=1.0)
        assert found["ssim"][i].item() == pytest.approx(expected)
    assert found["ssim"].isnan().tolist() == [False] * 3 + [True]  # a constant map
    same = sanity.map_similarity(a, 3 * a + 1)  # units do not matter
    for value in same.values():
        torch.testing.assert_close(value, torch.ones(4).double())
    for other in (a[:2], a[:, :, :5]):
        with pytest.raises(ValueError, match=r"^a, b: got"):
            sanity.map_similarity(other, a if other.shape[0] == 2 else other)


def test_gradients_change_with_the_weights_and_an_edge_detector_does_not():
    torch.manual_seed(1)
    f = OneOutput(SmallDenseNet(growth=4, blocks=(1, 2), first=6)).eval()
    x = torch.rand(3, 3, 16, 16)
    target = torch.ones(3, dtype=torch.int64)
    edges = sanity.sanity_check(lambda _: x.mean(1).diff(dim=1), f)
    assert edges.columns.tolist() == ["layer", "rank_correlation", "ssim", "n"]
    assert (edges[["rank_correlation", "ssim"]] > 0.999).all(axis=None) and (edges["n"] == 3).all()
    maps = sanity.sanity_check(lambda m: saliency.gradient(m, x, target).abs().amax(1), f)
    assert maps["layer"].tolist() == ["none", *sanity.layers_from_top(f)]
    assert maps["rank_correlation"][0] == pytest.approx(1)
    assert maps["rank_correlation"].iloc[-1] < 0.6  # measured 0.13
    assert maps["rank_correlation"].iloc[-1] < maps["rank_correlation"][1]
