"""Masks of organs: widths, Dice, registration, the U-Net and its shipped weights."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from cf_utils import worlds
from cf_utils.core.masks import measure_width
from cf_utils.evaluation.metrics.segmentation import (
    cardiothoracic_ratio,
    dice,
    heart_size,
    keep_largest,
    register_mask,
)
from cf_utils.evaluation.truth.heart_masks import HeartPairs, compare_masks, render_pairs
from cf_utils.models import checkpoints
from cf_utils.models.segmentation import UNet
from cf_utils.training.recipes import segmentation
from cf_utils.worlds import radiographs, radiographs_ct

NAME = "radiographs_heart_unet"
needs_scan = pytest.mark.skipif(not radiographs_ct.exists(), reason=f"run {radiographs_ct.HOW}")


def box(rows, columns, side=16):
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    mask[:, :, rows, columns] = True
    return mask


# ---------------------------------------------------------------- widths, Dice and sizes


def test_the_width_of_a_bool_mask_is_its_number_of_columns():
    for first, last in ((0, 15), (3, 3), (0, 4), (9, 15), (5, 11)):
        mask = box(slice(2, 5), slice(first, last + 1))
        mask[0, 0, 9, first] = True  # rows do not matter, nor do gaps
        mask[0, 0, 2:5, first + 1 : last] = False
        assert measure_width(mask).tolist() == [last - first + 1]
        assert measure_width(mask.flip(3)).tolist() == [last - first + 1]
        assert measure_width(mask.float()).tolist() == [last - first + 1]
    assert measure_width(box(slice(0), slice(0))).isnan().all()
    assert measure_width(torch.full((2, 1, 4, 4), 0.4)).isnan().all()


def test_the_width_of_probabilities_is_interpolated():
    row = torch.tensor([0.0, 0.25, 0.75, 1.0, 0.3, 0.9, 0.6, 0.1])
    mask = torch.zeros(1, 1, 3, 8)
    mask[0, 0, 1] = row
    # crosses 1/2 half way from 1 to 2, and a fifth of the way from 6 to 7
    assert measure_width(mask).item() == pytest.approx(6.2 - 1.5)
    for shift in (0.25, 0.5, 0.9):  # a box that is shifted by a part of a pixel keeps its width
        soft = (1 - shift) * box(slice(4, 9), slice(4, 9)).float()
        soft += shift * box(slice(4, 9), slice(5, 10)).float()
        assert measure_width(soft).item() == pytest.approx(5, abs=0.51)
    lone = torch.zeros(1, 1, 3, 8)
    lone[0, 0, 1, 0] = 0.8  # outside the image is 0
    assert measure_width(lone).item() == pytest.approx(2 * 0.3 / 0.8)
    with pytest.raises(ValueError, match=r"mask: got shape \(3, 8\)"):
        measure_width(mask[0, 0])


def test_dice_equals_numbers_computed_by_hand():
    a, b = box(slice(0, 4), slice(0, 4)), box(slice(2, 4), slice(0, 6))  # 16 and 12, 8 in common
    masks, truths = torch.cat([a, a, a, a * False]), torch.cat([b, a, a * False, a * False])
    values = dice(masks, truths).tolist()
    assert values[:3] == [16 / 28, 1, 0] and math.isnan(values[3])
    assert torch.equal(dice(truths, masks)[:3], dice(masks, truths)[:3])
    assert dice(0.5 * a.float(), b).item() == 16 / 28  # set from 1/2
    assert dice(0.49 * a.float(), b).item() == 0
    with pytest.raises(ValueError, match="mask: got shape"):
        dice(a, b[0])


def test_heart_size_and_cardiothoracic_ratio():
    heart, lungs = box(slice(6, 12), slice(5, 11)), box(slice(0, 14), slice(2, 14))
    assert heart_size(heart).item() == 36 / 256
    assert cardiothoracic_ratio(heart, lungs).item() == 0.5
    halves = box(slice(0, 14), slice(2, 6)) | box(slice(0, 14), slice(10, 14))
    assert cardiothoracic_ratio(heart, halves).item() == 0.5  # both lungs together
    assert cardiothoracic_ratio(heart * False, lungs).isnan().all()
    assert heart_size(0.25 * heart.float()).item() == 9 / 256


def test_small_parts_of_a_mask_are_removed():
    large, middle, speck = (
        box(slice(0, 5), slice(0, 5)),
        box(slice(8, 11), slice(8, 11)),
        box(slice(14, 15), slice(0, 2)),
    )
    both = torch.cat([large | middle | speck, speck], 1)
    kept = keep_largest(both)
    assert torch.equal(kept, torch.cat([large | middle, speck], 1))  # 9 of 25, but 2 of 25
    assert torch.equal(keep_largest(both, share=0.5)[:, :1], large)
    soft = 0.7 * both.float() + 0.1
    assert torch.equal(keep_largest(soft) >= 0.5, kept)
    assert torch.equal(keep_largest(both * False), both * False)


# ---------------------------------------------------------------- registration


def texture(n=3, side=64, seed=0):
    """Smooth random images (n, 1, side, side) with structure everywhere."""
    noise = torch.rand(n, 1, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)


def disc(radius, centre=(0.0, 0.0), side=64):
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    return (((x - centre[0]) ** 2 + (y - centre[1]) ** 2) <= radius**2)[None, None]


def swell(x, strength):
    """Enlarge the centre of images: what lies at r comes from r (1 - strength (1 - r^2)^2)."""
    side = x.shape[-1]
    y0, x0 = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    rest = (1 - x0**2 - y0**2).clamp(min=0) ** 2
    grid = torch.stack([x0, y0], -1) * (1 - strength * rest)[..., None]
    grid = grid.expand(len(x), -1, -1, -1)
    return F.grid_sample(x.float(), grid, align_corners=True, padding_mode="border")


def test_a_registered_mask_follows_a_shift():
    x = texture()
    mask = disc(0.4).expand(3, -1, -1, -1)
    moved = register_mask(x, x.roll((2, -3), (2, 3)), mask)
    true = mask.roll((2, -3), (2, 3))
    assert (dice(moved, true) > 0.97).all()  # measured 0.99; 0.87 for the mask as it is
    assert (dice(mask, true) < 0.9).all()


@pytest.mark.parametrize("strength", [0.3, -0.4])
def test_a_registered_mask_follows_a_deformation(strength):
    x, mask = texture(4), disc(0.4).expand(4, -1, -1, -1)
    image, true = swell(x, strength), swell(mask, strength)
    moved = register_mask(x, image, mask)
    assert (dice(moved, true) > 0.95).all()  # measured 0.97 to 0.99
    assert (dice(mask, true) < 0.87).all()
    back = register_mask(image, x, true)
    assert (dice(back, mask) > 0.95).all()


def test_equal_images_leave_the_masks_as_they_are():
    x, masks = texture(2), torch.cat([disc(0.4), disc(0.2, (0.3, 0.1))], 1).expand(2, -1, -1, -1)
    assert torch.equal(register_mask(x, x, masks), masks.float())
    soft = masks.float() * 0.7
    torch.testing.assert_close(register_mask(x, x, soft), soft)


def test_an_item_does_not_depend_on_its_batch_and_colours_are_averaged():
    x, mask = texture(3), disc(0.4).expand(3, -1, -1, -1)
    image = swell(x, 0.3)
    together = register_mask(x, image, mask)
    assert torch.equal(register_mask(x[1:2], image[1:2], mask[1:2]), together[1:2])
    colours = (t.repeat(1, 3, 1, 1) for t in (x, image))
    torch.testing.assert_close(register_mask(*colours, mask), together)


def test_registration_refuses_shapes_that_do_not_fit():
    x, mask = texture(2), disc(0.4).expand(2, -1, -1, -1)
    with pytest.raises(ValueError, match="image: got shape"):
        register_mask(x, x[:1], mask)
    for wrong in (mask[:1], mask[0], mask[..., :32]):
        with pytest.raises(ValueError, match="mask: got shape"):
            register_mask(x, x, wrong)


# ---------------------------------------------------------------- the network


def small_net(seed=0, **settings):
    """A U-Net with random weights and running statistics."""
    torch.manual_seed(seed)
    net = UNet(**({"widths": (4, 6, 8)} | settings))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return net.eval()


def reference(net, x, depth=3):
    """The same network, written out from its weights."""
    state = net.state_dict()

    def double(z, name):
        for k in (0, 3):
            bn = f"{name}.{k + 1}"
            z = F.conv2d(z, state[f"{name}.{k}.weight"], padding=1)
            mean, var = (state[f"{bn}.running_{s}"].view(1, -1, 1, 1) for s in ("mean", "var"))
            scale, shift = (state[f"{bn}.{s}"].view(1, -1, 1, 1) for s in ("weight", "bias"))
            z = (scale * (z - mean) / (var + 1e-5).sqrt() + shift).clamp(min=0)
        return z

    levels = [double(2 * x - 1, "down.0")]
    for k in range(1, depth):
        levels.append(double(F.max_pool2d(levels[-1], 2), f"down.{k}"))
    z = levels[-1]
    for k in range(depth - 1):
        z = F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)
        z = double(torch.cat([z, levels[depth - 2 - k]], 1), f"up.{k}")
    return F.conv2d(z, state["head.weight"], state["head.bias"])


def test_the_network_equals_a_second_implementation():
    net, x = small_net(), texture(2)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(net, x), rtol=1e-4, atol=1e-5)


def test_images_of_other_sizes_are_resized():
    net, x = small_net(), texture(2, 128)
    with torch.no_grad():
        inside = F.interpolate(x, (64, 64), mode="bilinear", antialias=True)
        logits = net(x)
        outside = F.interpolate(net(inside), (128, 128), mode="bilinear")
    assert logits.shape == (2, 2, 128, 128)
    torch.testing.assert_close(logits, outside, rtol=1e-4, atol=1e-4)
    assert net(texture(1, 32)).shape == (1, 2, 32, 32)


def test_a_mask_does_not_depend_on_the_batch_or_on_the_mode():
    net, x = small_net(), texture(5)
    net.train()
    masks = net.segment(x, batch_size=2)
    assert net.training  # as before
    assert list(masks) == ["heart", "lungs"] and masks["lungs"].shape == (5, 1, 64, 64)
    alone = net.segment(x[3:4])
    for organ in masks:
        torch.testing.assert_close(alone[organ], masks[organ][3:4])
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(masks["lungs"], net(x)[:, 1:].sigmoid())


def test_wrong_images_and_sizes_are_refused():
    with pytest.raises(ValueError, match=r"x: got shape \(1, 3, 64, 64\).*one channel"):
        small_net()(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"size: got \(30, 30\), expected multiples of 4"):
        UNet(size=(30, 30), widths=(4, 6, 8))


def test_the_loss_equals_numbers_computed_by_hand():
    truth = torch.tensor([[[[1.0, 0.0]]]])
    logits = torch.tensor([[[[math.log(3), 0.0]]]])  # probabilities 3/4 and 1/2
    cross_entropy = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    soft_dice = (2 * 3 / 4 + 1) / (3 / 4 + 1 / 2 + 1 + 1)
    loss = segmentation.mask_loss(logits, truth.bool()).item()
    assert loss == pytest.approx(cross_entropy + 1 - soft_dice)
    assert segmentation.mask_loss(40 * (2 * truth - 1), truth).item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- against true masks


def test_methods_are_compared_with_the_truth():
    """Bright discs on a texture; a perfect and a blind segmentation, and no registration."""
    before = {"heart": disc(0.30).expand(1, -1, -1, -1), "lungs": disc(0.8).expand(1, -1, -1, -1)}
    after = {"heart": disc(0.42).expand(1, -1, -1, -1), "lungs": disc(0.8).expand(1, -1, -1, -1)}
    query, image = 0.2 + before["heart"] * 0.6, 0.2 + after["heart"] * 0.6
    pairs = HeartPairs(query, image, before, after)

    def perfect(x):
        return {"heart": (x > 0.5).float(), "lungs": before["lungs"].float()}

    def blind(x):
        return {organ: mask.float() for organ, mask in before.items()}

    table = compare_masks(perfect, pairs)
    assert table["unet"] == {"dice_heart": 1, "dice_lungs": 1, "ratio_error": 0, "ratio_share": 1}
    overlap = dice(before["heart"], after["heart"])[0].item()
    assert table["none"]["dice_heart"] == pytest.approx(overlap)
    assert table["none"]["ratio_share"] == 0
    true = (measure_width(after["heart"]) - measure_width(before["heart"]))[0] / measure_width(
        after["lungs"]
    )
    assert table["none"]["ratio_error"] == pytest.approx(true[0].item())
    assert table["registered_unet"] == pytest.approx(table["registration"])
    assert compare_masks(blind, pairs)["unet"] == pytest.approx(table["none"])


@needs_scan
def test_pairs_differ_in_the_heart_alone():
    pairs = render_pairs(6, seed=3)
    before, after = (
        cardiothoracic_ratio(masks["heart"], masks["lungs"])
        for masks in (pairs.before, pairs.after)
    )
    for ratio, masks in ((before, pairs.before), (after, pairs.after)):  # the world has its own
        torch.testing.assert_close(
            radiographs.cardiothoracic_ratio(masks["heart"], masks["lungs"]).double(), ratio
        )
    factors = worlds.get("radiographs").sample(6, "test", seed=3)
    size = factors["heart_size"]
    assert (((after - before) > 0) == (size < 0.5))[(size - 0.5).abs() > 0.1].all()
    assert torch.equal(pairs.query, factors.world.render(factors))
    far = ~(pairs.before["heart"] | pairs.after["heart"])
    change = (pairs.image - pairs.query).abs()
    assert change[far].mean() < 0.25 * change[~far].mean()  # measured 0.15: the blur reaches far


@needs_scan
@pytest.mark.skipif(not checkpoints.exists(NAME), reason="not trained yet")
def test_the_shipped_network_finds_heart_and_lungs():
    net, card = checkpoints.load(NAME, data=worlds.get("radiographs"), kind="segmenter")
    pairs = render_pairs(12, seed=7)
    table = compare_masks(net.segment, pairs)
    assert card.quality["64 px"]["dice"]["heart"] > 0.95
    assert table["unet"]["dice_heart"] > 0.93 and table["unet"]["dice_lungs"] > 0.95
    assert table["registration"]["dice_heart"] > table["none"]["dice_heart"] + 0.05  # 0.93, 0.85
    assert 0.8 < table["unet"]["ratio_share"] < 1.2
    assert 0.6 < table["registration"]["ratio_share"] < 1.1


@pytest.mark.skipif(not checkpoints.exists(NAME), reason="not trained yet")
def test_the_card_of_the_shipped_network_states_its_recipe(monkeypatch):
    seen = {}
    monkeypatch.setattr(segmentation, "Renders", lambda *targets: None)
    monkeypatch.setattr(segmentation, "stack_masks", lambda *arguments: None)
    monkeypatch.setattr(segmentation.loop, "fit", lambda *args, **given: seen.update(given) or {})
    trained, card = segmentation.radiographs_heart_unet("", 0, None), checkpoints.read_card(NAME)
    assert trained.card["settings"] == card.settings == seen["settings"]
    assert trained.card["data"] == card.data
    assert json.loads(json.dumps(trained.card["architecture"])) == card.architecture
    assert seen["epochs"] == card.settings["epochs"]
    assert seen["batch_size"] == card.settings["batch_size"]
