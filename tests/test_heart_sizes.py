"""Hearts along progressions, true progressions, and the factor that a shortcut moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cf_utils import worlds
from cf_utils.evaluation import heart_sizes
from cf_utils.evaluation.metrics.segmentation import cardiothoracic_ratio, register_mask
from cf_utils.evaluation.truth import shortcuts, true_progressions
from cf_utils.worlds import radiographs, radiographs_ct

needs_scan = pytest.mark.skipif(not radiographs_ct.exists(), reason=f"run {radiographs_ct.HOW}")


# ---------------------------------------------------------------- hearts along a progression


def discs(radii, side=48):
    """Grey images (N, 1, side, side): a bright disc, the heart, on a grey box, the chest."""
    at = torch.arange(side) - side / 2 + 0.5
    distance = (at[:, None].square() + at.square()).sqrt()
    chest = ((at.abs() < 20)[:, None] & (at.abs() < 20)).float()
    heart = (torch.as_tensor(radii)[:, None, None] - distance + 0.5).clamp(0, 1)
    return (0.3 * chest + 0.6 * heart)[:, None]


def by_grey(x):
    """A perfect segmenter of `discs`; it also finds a speck, which is no organ."""
    heart = (x > 0.6).float()
    heart[:, :, 0, 0] = 1
    return {"heart": heart, "lungs": (x > 0.15).float()}


QUERY, RADII = discs([8.0, 11.0]), torch.tensor([[8.0, 9.0, 10.0], [9.0, 10.0, 11.0]])
PROGRESSION = discs(RADII.flatten()).unflatten(0, (2, 3))


def test_each_image_is_segmented_by_itself_without_specks():
    found = heart_sizes.segment_hearts(by_grey, QUERY, PROGRESSION)
    diameters = 2 * torch.cat([torch.tensor([[8.0], [11.0]]), RADII], 1).double()
    torch.testing.assert_close(found.ratio, diameters / 40)
    assert found.masks.shape == (2, 4, 48, 48) and not found.masks[:, :, 0, 0].any()
    area = torch.pi * (diameters / 2).square() / 48**2
    torch.testing.assert_close(found.size, area, rtol=0.05, atol=0)
    assert found.change(torch.tensor([3, 1])).tolist() == pytest.approx([0.1, -0.1])
    flipped = heart_sizes.segment_hearts(by_grey, QUERY.flip(0), PROGRESSION.flip(0))
    assert torch.equal(flipped.ratio, found.ratio.flip(0))


def test_registration_warps_the_querys_mask_to_each_of_its_own_explanations():
    at = torch.arange(48) - 23.5
    squared = at[:, None].square() + at.square()

    def blobs(radii):  # smooth, because a flow needs gradients
        return 0.9 * (-squared / radii.flatten()[:, None, None].square()).exp()[:, None]

    asked = []

    def segment(x):
        asked.append(len(x))
        return {"heart": (x > 0.9 / torch.e).float(), "lungs": torch.ones_like(x)}

    query, images = blobs(torch.tensor([8.0, 11.0])), blobs(RADII).unflatten(0, (2, 3))
    found = heart_sizes.register_hearts(segment, query, images)
    assert asked == [2]  # explanations are not segmented
    expected = heart_sizes.segment_hearts(segment, query, images)
    torch.testing.assert_close(found.ratio, expected.ratio, rtol=0, atol=0.03)
    assert (found.ratio[:, 1:].diff() > 0.02).all()  # grows from bin to bin
    own = (query[1:] > 0.9 / torch.e).float()
    alone = register_mask(query[1:], images[1:, 0], own)
    assert torch.equal(found.masks[1, 1], alone[0, 0] >= 0.5)


def test_without_a_segmenter_sizes_are_unknown():
    for read in (heart_sizes.segment_hearts, heart_sizes.register_hearts):
        found = read(None, QUERY, PROGRESSION)
        assert found.ratio.isnan().all() and found.size.isnan().all()
        assert found.ratio.shape == (2, 4) and not found.masks.any()
    table = heart_sizes.heart_table({"UNet": found}, RADII / 20, "no weights")
    assert table.n["UNet"] == 0 and table.note["UNet"] == "no weights"


def test_the_table_correlates_within_each_query():
    found = heart_sizes.segment_hearts(by_grey, QUERY, PROGRESSION)
    expected = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9]])
    row = heart_sizes.heart_table({"grey": found}, expected).loc["grey"]
    assert (row.rank_correlation, row.of_size, row.n, row.note) == (1, 1, 2, "")
    assert row.change == pytest.approx(0.1)
    first = heart_sizes.Hearts(found.masks[:1], found.size[:1], found.ratio[:1])
    assert heart_sizes.heart_table({"first": first}, expected).n["first"] == 1
    row = heart_sizes.heart_table({"grey": found}, torch.stack([expected[0], expected[1].flip(0)]))
    assert row.rank_correlation["grey"] == 0  # one query rises, one falls


def test_a_share_of_the_true_change_needs_a_true_change():
    change, truth = torch.tensor([-0.1, 0.1, -0.2]), torch.tensor([-0.2, 0.08, -0.029])
    share = heart_sizes.change_share(change, truth, truth)
    assert share[:2].tolist() == pytest.approx([0.5, 1.25]) and share[2].isnan()
    biased = heart_sizes.change_share(0.8 * truth, 0.8 * truth, truth)  # a short measure cancels
    assert biased[:2].tolist() == pytest.approx([1, 1])


@needs_scan
def test_the_true_ratio_is_that_of_the_renderers_masks():
    factors = worlds.get("radiographs").sample(24, "test", seed=1)
    ratio = cardiothoracic_ratio(**radiographs.render_masks(factors, (128, 128)))
    error = heart_sizes.true_ratio(factors) - ratio
    assert error.abs().max() < 0.02 and error.mean().abs() < 0.004  # a pixel is 0.01


# ---------------------------------------------------------------- true progressions


class Table(SimpleNamespace):
    """Factors of a world of one grey pixel per image, whose level is the factor."""

    def __len__(self):
        return len(self.level)

    def __getitem__(self, name):
        return self.level

    def take(self, rows):
        return Table(level=self.level[rows], world=self.world)

    def move(self, name, value):
        value = torch.as_tensor(value).expand(len(self))
        return Table(level=value.clone(), world=self.world)


WORLD = SimpleNamespace(render=lambda table: table.level[:, None, None, None].float())


class Curve(nn.Module):
    """Logits (0, g(level)) of images with one pixel."""

    def __init__(self, g):
        super().__init__()
        self.g = g

    def forward(self, x):
        logit = self.g(x[:, 0, 0, 0])
        return torch.stack([torch.zeros_like(logit), logit], 1)


def test_a_linear_logit_is_inverted_exactly():
    levels = torch.tensor([0.03, 0.62])
    f = Curve(lambda v: 12 * (v - 0.5))
    wanted = torch.tensor([[0.2, 0.5, 0.95], [0.01, 0.3, 0.7]]).double()
    found = true_progressions.find_values(Table(level=levels, world=WORLD), f, wanted, "level")
    torch.testing.assert_close(found, 0.5 + torch.logit(wanted) / 12, rtol=0, atol=1e-5)


def test_of_several_solutions_the_nearest_to_the_query_is_taken():
    table = Table(level=torch.tensor([0.1, 0.9, 0.5]), world=WORLD)
    f = Curve(lambda v: 8 * (v - 0.5).abs() - 2)  # 1/2 at 0.25 and at 0.75
    found = true_progressions.find_values(table, f, torch.full((3, 1), 0.5), "level", grid=33)
    assert found[:2, 0].tolist() == pytest.approx([0.25, 0.75], abs=1e-5)
    assert float((found[2] - 0.5).abs()) == pytest.approx(0.25, abs=1e-5)
    own = torch.sigmoid(8 * (table.level.double() - 0.5).abs() - 2)[:, None]
    unmoved = true_progressions.find_values(table, f, own, "level")
    torch.testing.assert_close(unmoved[:, 0], table.level.double(), rtol=0, atol=1e-4)


def test_an_output_that_the_classifier_never_gives_takes_the_nearest_one():
    table = Table(level=torch.tensor([0.4, 0.6]), world=WORLD)
    f = Curve(lambda v: 2 * v)  # at least 1/2
    wanted = torch.tensor([[0.01, 0.999]] * 2)
    found = true_progressions.find_values(table, f, wanted, "level")
    assert found.tolist() == [[0, 1], [0, 1]]
    flat = true_progressions.find_values(table, Curve(lambda v: 0 * v), wanted, "level")
    torch.testing.assert_close(flat, table.level.double()[:, None].expand(2, 2))  # nothing helps
    with pytest.raises(ValueError, match=r"^wanted: got \(2,\)"):
        true_progressions.find_values(table, f, wanted[:, 0], "level")


@needs_scan
def test_rendered_hearts_get_the_wanted_output():
    factors = worlds.get("radiographs").sample(3, "test", seed=2)
    f = Curve(lambda v: v)  # replaced below by a brightness classifier of whole images
    f.forward = lambda x: torch.stack([0 * x.flatten(1).mean(1), 40 * (x.flatten(1).mean(1))], 1)
    low, high = (
        f(factors.world.render(factors.move("heart_size", v))).softmax(1)[:, 1] for v in (0.2, 0.8)
    )
    wanted = torch.stack([low, (low + high) / 2], 1)
    found = true_progressions.render_progression(factors, f, wanted, "heart_size")
    given = f(found.images.flatten(0, 1)).softmax(1)[:, 1].view(3, 2)
    torch.testing.assert_close(given, wanted, rtol=0, atol=2e-3)
    assert found.images.shape == (3, 2, 1, 64, 64) and len(found.factors) == 6
    other = torch.tensor([name != "heart_size" for name in factors.world.names])
    assert torch.equal(found.factors.values[::2, other], factors.values[:, other])


# ---------------------------------------------------------------- shortcuts


class Brightness:
    """An oracle that reads an image's mean level as the second of two factors."""

    names = ("other", "device")

    def read(self, x):
        level = x.flatten(1).mean(1)
        return torch.stack([1 - 0 * level, level], 1), torch.zeros(len(x), 2)


def explanations(before, after, valid, source=None):
    query, counterfactual = (
        torch.tensor(v)[:, None, None, None].expand(-1, 1, 2, 2) for v in (before, after)
    )
    n = len(query)
    target = torch.ones(n, dtype=torch.int64)
    return SimpleNamespace(
        query=query,
        counterfactual=counterfactual,
        valid=torch.tensor(valid),
        source=torch.zeros(n, dtype=torch.int64) if source is None else torch.tensor(source),
        target=target,
    )


def test_the_share_counts_valid_explanations_beyond_half_the_scale():
    cfs = explanations(
        [0.1, 0.1, 0.9, 0.1, 0.2], [0.8, 0.5, 0.2, 0.9, 0.9], [1, 1, 1, 0, 1], [0, 0, 0, 0, 1]
    )
    cfs.valid = cfs.valid.bool()
    unedited = cfs.query.clone()
    unedited[0] += 0.6
    judge = Curve(lambda v: v - 0.45)
    table = shortcuts.shortcut_table({"A": (cfs, unedited)}, Brightness(), "device", judge)
    row = table.loc["A"]
    assert row.n == 3  # one failed, and one was the target already
    assert row.moved == pytest.approx(2 / 3) and row.low <= row.moved <= row.high
    assert row.judge == 1 and row.zero_edit == pytest.approx(1 / 3)
    cfs.valid = torch.zeros(5, dtype=torch.bool)
    none = shortcuts.shortcut_table({"A": (cfs, unedited)}, Brightness(), "device", judge).loc["A"]
    assert none.n == 0 and none[["moved", "judge", "zero_edit"]].isna().all()
    with pytest.raises(ValueError, match=r"^name: got 'lead', expected one of"):
        shortcuts.binary_moved(Brightness(), "lead", cfs.query, cfs.query)
