"""Regions of true counterfactuals and maps beside them: by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from cf_utils.evaluation.truth import localization
from cf_utils.evaluation.truth.true_counterfactuals import TrueSet


def test_share_inside_and_area_of_simple_maps():
    region = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    region[:2, :, :2] = True
    maps = torch.ones(3, 4, 4)
    maps[1, :2] = 3.0
    share, area = localization.share_inside(maps, region), localization.area(region)
    torch.testing.assert_close(share[:2], torch.tensor([0.5, 0.75], dtype=torch.float64))
    assert share[2].isnan() and area[2].isnan() and area[0] == 0.5
    assert localization.share_inside(torch.zeros(3, 4, 4), region).isnan().all()
    with pytest.raises(ValueError, match="maps: got negative values"):
        localization.share_inside(-maps, region)


def draw_maps(n, seed):
    """Random maps with ties."""
    gen = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 8, 8, generator=gen) * 3).round(), gen


def test_pixel_auroc_with_ties_equals_that_of_scikit_learn():
    maps, gen = draw_maps(6, seed=0)
    share = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.0, 1.0])[:, None, None, None]
    region = torch.rand(6, 1, 8, 8, generator=gen) < share
    found = localization.pixel_auroc(maps, region)
    for i in range(4):
        expected = roc_auc_score(region[i].flatten().numpy(), maps[i].flatten().numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert found[4:].isnan().all()  # empty, and everything
    assert np.allclose(localization.pixel_auroc(torch.ones(6, 8, 8), region)[:4], 0.5)


def test_ignored_pixels_count_on_neither_side():
    maps, gen = draw_maps(5, seed=1)
    region, ignore = (torch.rand(5, 1, 8, 8, generator=gen) < 0.3 for _ in range(2))
    ignore[4] = True  # nothing is left outside
    found = localization.pixel_auroc(maps, region, ignore)
    for i in range(4):
        kept = region[i] | ~ignore[i]
        expected = roc_auc_score(region[i][kept].numpy(), maps[i][kept[0]].numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert found[4].isnan()
    inside_counts = localization.pixel_auroc(maps, region, region)
    torch.testing.assert_close(inside_counts, localization.pixel_auroc(maps, region))


class Weighted(nn.Module):
    """Logits (0, sum of weight x image - 1)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        z = (x[:, 0] * self.weight).flatten(1).sum(1) - 1
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), z], 1)


SPOTS = {  # part -> its pixels: connected by a corner, by an edge, by both
    "a": ([0, 1], [0, 1]),
    "b": ([0, 0], [4, 5]),
    "c": ([4, 5, 4], [6, 7, 8]),
}


def constant_images(values):
    return torch.ones(len(values), 1, 6, 9) * torch.tensor(values)[:, None, None, None]


def test_decisive_regions_flip_the_decision_with_the_strongest_parts_first():
    """Parts weigh 0.3, 0.4 and 0.5; the classifier flips where their sum times the value is 1."""
    regions = torch.zeros(5, 1, 6, 9, dtype=torch.bool)
    for spot in SPOTS.values():
        regions[:, 0, spot[0], spot[1]] = True
    regions[3] = False
    weight = torch.zeros(6, 9)
    for name, share in (("a", 0.3), ("b", 0.4), ("c", 0.5)):
        weight[SPOTS[name]] = share / len(SPOTS[name][0])
    members = TrueSet(
        item=torch.tensor([2, 0, 1, 0, 0]),
        factor=("k",) * 5,
        value=torch.zeros(5),
        image=constant_images([0.7, 2.2, 1.3, 1.0, 0.7]),
        score=torch.zeros(5),
        reached=torch.ones(5, dtype=torch.bool),
        n=3,
    )
    query, target = constant_images([0.0, 0.05, 1.0]), torch.tensor([1, 1, 0])
    found = localization.decisive_regions(members, regions, query, target, Weighted(weight))
    for m, names in enumerate(
        (
            "cb",  # towards class 0: from 1.2 to 1.05 with c, to 0.93 with b as well
            "c",  # 2.2 x 0.5 > 1
            "cb",  # 0.06 + 1.25 x 0.5 < 1, with b as well > 1
            "",  # an empty region
            "abc",  # 0.7 x 1.2 < 1: even all parts do not flip
        )
    ):
        expected = torch.zeros(6, 9, dtype=torch.bool)
        for name in names:
            expected[SPOTS[name]] = True
        assert torch.equal(found[m, 0], expected), m
