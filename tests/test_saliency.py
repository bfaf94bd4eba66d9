"""Gradient maps, Grad-CAM and random masks: closed forms, plain autograd, invariances."""

import pytest
import torch
from torch import nn

from cf_utils.evaluation.metrics import saliency
from cf_utils.evaluation.truth import localization
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet

torch.manual_seed(0)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 3)).double()
TARGET = torch.tensor([0, 1, 1, 0, 1])


class Pooled(nn.Module):
    """Convolution, SiLU, mean over pixels, linear layer.

    The derivative of a logit with respect to one pixel of a channel is its weight / pixels.
    """

    def __init__(self, stride=1, classes=2):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, stride, 1), nn.SiLU()
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


@pytest.fixture
def x():
    return torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_gradient_of_a_linear_model_is_the_difference_of_its_weights(x):
    logits, w = LINEAR(x), LINEAR[1].weight.detach()
    target = torch.tensor([0, 1, 2, 0, 1])
    other = logits.scatter(1, target[:, None], -torch.inf).argmax(1)
    expected = (w[target] - w[other]).view(x.shape)
    found = saliency.gradient(LINEAR, x, target)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    margin = saliency.logit_margin(logits, target)
    assert torch.equal(margin > 0, logits.argmax(1) == target)


def test_both_classes_of_a_single_output_have_opposite_maps(x):
    f = OneOutput(Pooled(classes=1)).double()

    def grad_cam(target):
        return saliency.grad_cam(f, f.model.act, x, target)

    for maps in (saliency.gradient(f, x, TARGET), grad_cam(TARGET)):
        assert (maps.flatten(1).abs().sum(1) > 0).all()
    opposite = -saliency.gradient(f, x, 1 - TARGET)
    torch.testing.assert_close(saliency.gradient(f, x, TARGET), opposite)
    torch.testing.assert_close(grad_cam(TARGET), -grad_cam(1 - TARGET))


def test_grad_cam_at_full_resolution_has_a_closed_form(x):
    f = Pooled(classes=3).double()
    activation, w = f.act(f.conv(x)).detach(), f.head.weight.detach()  # (B, 4, 6, 8)
    other = f(x).scatter(1, TARGET[:, None], -torch.inf).argmax(1)
    alpha = (w[TARGET] - w[other]) / activation[0, 0].numel()
    expected = torch.einsum("bk,bkhw->bhw", alpha, activation)
    found = saliency.grad_cam(f, f.act, x, TARGET)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert (expected < 0).any() and (expected > 0).any()  # signed


def interpolate(small, height, width):
    """Interpolate (h, w) bilinearly with half-pixel centres, pixel by pixel."""
    h, w = small.shape
    out = torch.zeros(height, width, dtype=small.dtype)
    for i in range(height):
        for j in range(width):
            r, c = max((i + 0.5) * h / height - 0.5, 0.0), max((j + 0.5) * w / width - 0.5, 0.0)
            i0, j0 = int(r), int(c)
            i1, j1, a, b = min(i0 + 1, h - 1), min(j0 + 1, w - 1), r - i0, c - j0
            top = (1 - b) * small[i0, j0] + b * small[i0, j1]
            bottom = (1 - b) * small[i1, j0] + b * small[i1, j1]
            out[i, j] = (1 - a) * top + a * bottom
    return out


def test_grad_cam_of_a_coarse_layer_equals_plain_autograd():
    net = SmallDenseNet(growth=4, blocks=(1, 2), first=8, pool=True)
    f, gen = OneOutput(net).double().eval(), torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=gen))
    x = torch.rand(3, 3, 32, 64, generator=gen, dtype=torch.float64)
    layer, target, outputs = net.net.features.denseblock2, torch.tensor([1, 0, 1]), []
    hook = layer.register_forward_hook(lambda m, i, out: outputs.append(out))
    logits = f(x)
    hook.remove()
    margin = (2 * target - 1) * (logits[:, 1] - logits[:, 0])
    (g,) = torch.autograd.grad(margin.sum(), outputs[0])
    coarse = (g.mean((2, 3), keepdim=True) * outputs[0]).sum(1).detach()
    assert coarse.shape[1:] == (4, 8)
    expected = torch.stack([interpolate(cam, 32, 64) for cam in coarse])
    found = saliency.grad_cam(f, layer, x, target)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_items_do_not_depend_on_their_batch_and_the_classifier_is_unchanged(x):
    f = Pooled().double().train()
    f.act.eval()
    f.conv.bias.requires_grad_(False)
    order = torch.tensor([3, 0, 4])
    for explain in (
        lambda v, target, **k: saliency.gradient(f, v, target, **k),
        lambda v, target, **k: saliency.grad_cam(f, f.act, v, target, **k),
    ):
        whole = explain(x, TARGET)
        some = explain(x[order], TARGET[order])
        torch.testing.assert_close(some, whole[order], atol=1e-12, rtol=0)
        torch.testing.assert_close(explain(x, TARGET, batch_size=2), whole, atol=1e-12, rtol=0)
        assert not whole.requires_grad
    assert f.training and f.conv.training and not f.act.training
    assert f.conv.weight.requires_grad and not f.conv.bias.requires_grad
    assert all(p.grad is None for p in f.parameters()) and not f.act._forward_hooks


class Corner(nn.Module):
    """Class 1 by the amount of red in the top left corner, 2 x 3 pixels of 6 x 8."""

    def __init__(self):
        super().__init__()
        self.keep = nn.Identity()
        self.corner = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
        self.corner[:, 0, :2, :3] = 1

    def forward(self, x):
        z = (self.keep(x) * self.corner).sum((1, 2, 3)) - 1
        return torch.stack([-z, z], 1)


def test_maps_of_a_detector_lie_in_its_region_and_a_random_mask_does_not(x):
    f = Corner()
    region = (f.corner[:, :1] > 0).expand(5, -1, -1, -1)
    size = saliency.gradient(f, x, TARGET).abs().sum(1)
    assert (localization.pixel_auroc(size, region) == 1).all()
    mask = saliency.random_mask(region, torch.arange(5))
    by_chance = localization.pixel_auroc(mask[:, 0].double(), region)
    assert by_chance.mean() < 0.9  # measured 0.49
    red = torch.cat([x[:, :1], 0 * x[:, 1:]], 1)
    cam = saliency.grad_cam(f, f.keep, red, TARGET)
    assert cam.shape == (5, 6, 8)
    assert (cam[TARGET == 1] >= 0).all() and (cam[TARGET == 0] <= 0).all()


def test_random_mask_has_the_same_area_and_depends_on_the_item_alone():
    gen, ids = torch.Generator().manual_seed(0), torch.arange(400)
    mask = torch.rand(400, 1, 8, 16, generator=gen) < torch.rand(400, 1, 1, 1, generator=gen)
    mask[0], mask[1] = False, True
    drawn = saliency.random_mask(mask, ids)
    assert drawn.dtype == torch.bool and torch.equal(drawn.sum((1, 2, 3)), mask.sum((1, 2, 3)))
    order = torch.tensor([17, 3, 250])
    assert torch.equal(saliency.random_mask(mask[order], ids[order]), drawn[order])
    other = saliency.random_mask(mask, ids, seed=1)
    differ = (other[2:] != drawn[2:]).flatten(1).any(1)  # empty and full masks cannot differ
    assert differ.double().mean() > 0.95  # measured 0.99
    by_place = drawn.double().mean(0).flatten()
    assert (by_place - mask.double().mean()).abs().max() < 0.1  # measured 0.048, sd 0.025
    auroc = localization.pixel_auroc(drawn[:, 0].double(), mask)
    assert abs(auroc.nanmean() - 0.5) < 0.01  # chance; measured 0.501
    with_names = saliency.random_mask(mask[:2], ("a", "b"))
    assert torch.equal(with_names.sum((1, 2, 3)), mask[:2].sum((1, 2, 3)))


@pytest.mark.parametrize(
    "change,argument",
    [
        ({"target": TARGET[:3]}, "target"),
        ({"target": TARGET.float()}, "target"),
        ({"target": TARGET + 2}, "target"),
        ({"x": torch.full((5, 3, 6, 8), torch.nan)}, "x"),
        ({"x": torch.rand(5, 12)}, "x"),
    ],
)
def test_invalid_input_is_refused_by_name(x, change, argument):
    given = {"x": x.float(), "target": TARGET} | change
    f = Pooled()
    with pytest.raises(ValueError, match=f"^{argument}"):
        saliency.gradient(f, **given)
    with pytest.raises(ValueError, match=f"^{argument}"):
        saliency.grad_cam(f, f.act, **given)


def test_layers_of_another_model_and_invalid_masks_are_refused(x):
    with pytest.raises(ValueError, match="layer"):
        saliency.grad_cam(Pooled().double(), Pooled().act, x, TARGET)
    for mask, ids, argument in (
        (torch.ones(2, 1, 4, 4), [0, 1], "mask"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bool), [0, 1], "mask"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), [0], "ids"),
    ):
        with pytest.raises(ValueError, match=f"^{argument}"):
            saliency.random_mask(mask, ids)
