"""Gradient maps, Grad-CAM and masks of equal area: closed forms, a computation by hand, invariances."""

import pytest
import torch
from torch import nn

from cf_utils.evaluation.metrics import saliency
from cf_utils.evaluation.truth import localization
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import SmallDenseNet

torch.manual_seed(0)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 3)).double()


class Pooled(nn.Module):
    """Convolution, SiLU, mean over places, linear: the derivative of a logit by a place of a channel is its weight / places."""

    def __init__(self, stride=1, classes=2):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, stride, 1), nn.SiLU()
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.act(self.conv(x)).mean((2, 3)))


@pytest.fixture
def x():
    return torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OF = torch.tensor([0, 1, 1, 0, 1])


def test_the_gradient_of_a_linear_model_is_the_difference_of_its_weights(x):
    logits, w = LINEAR(x), LINEAR[1].weight.detach()
    of = torch.tensor([0, 1, 2, 0, 1])
    other = logits.scatter(1, of[:, None], -torch.inf).argmax(1)
    expected = (w[of] - w[other]).view(x.shape)
    torch.testing.assert_close(saliency.gradient(LINEAR, x, of), expected, atol=1e-12, rtol=0)
    assert torch.equal(saliency.logit_margin(logits, of) > 0, logits.argmax(1) == of)


def test_of_one_output_both_classes_have_a_map_and_they_are_opposite(x):
    f = OneOutput(Pooled(classes=1)).double()
    for one in (saliency.gradient(f, x, OF), saliency.grad_cam(f, f.model.act, x, OF)):
        assert (one.flatten(1).abs().sum(1) > 0).all()
    torch.testing.assert_close(saliency.gradient(f, x, OF), -saliency.gradient(f, x, 1 - OF))
    a, b = (saliency.grad_cam(f, f.model.act, x, of) for of in (OF, 1 - OF))
    torch.testing.assert_close(a, -b)


def test_grad_cam_by_hand_at_full_resolution(x):
    f = Pooled(classes=3).double()
    held, w = f.act(f.conv(x)).detach(), f.head.weight.detach()  # (B, 4, 6, 8)
    other = f(x).scatter(1, OF[:, None], -torch.inf).argmax(1)
    alpha = (w[OF] - w[other]) / held[0, 0].numel()
    expected = torch.einsum("bk,bkhw->bhw", alpha, held)
    torch.testing.assert_close(saliency.grad_cam(f, f.act, x, OF), expected, atol=1e-12, rtol=0)
    assert (expected < 0).any() and (expected > 0).any()  # signed


def bilinear(small, height, width):
    """Half-pixel bilinear interpolation of (h, w), pixel by pixel, the edge continued."""
    h, w = small.shape
    out = torch.zeros(height, width, dtype=small.dtype)
    for i in range(height):
        for j in range(width):
            r, c = max((i + 0.5) * h / height - 0.5, 0.0), max((j + 0.5) * w / width - 0.5, 0.0)
            i0, j0 = int(r), int(c)
            i1, j1, a, b = min(i0 + 1, h - 1), min(j0 + 1, w - 1), r - i0, c - j0
            out[i, j] = (1 - a) * ((1 - b) * small[i0, j0] + b * small[i0, j1]) + a * (
                (1 - b) * small[i1, j0] + b * small[i1, j1]
            )
    return out


def test_grad_cam_of_a_coarse_layer_of_the_shipped_architecture_by_autograd():
    net = SmallDenseNet(growth=4, blocks=(1, 2), first=8, pool=True)
    f, gen = OneOutput(net).double().eval(), torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=gen))
    x, layer = (
        torch.rand(3, 3, 32, 64, generator=gen, dtype=torch.float64),
        net.net.features.denseblock2,
    )
    of = torch.tensor([1, 0, 1])
    held = []
    hook = layer.register_forward_hook(lambda m, i, out: held.append(out))
    z = f(x)
    hook.remove()
    (g,) = torch.autograd.grad(((2 * of - 1) * (z[:, 1] - z[:, 0])).sum(), held[0])
    coarse = (g.mean((2, 3), keepdim=True) * held[0]).sum(1).detach()
    assert coarse.shape[1:] == (4, 8)
    expected = torch.stack([bilinear(one, 32, 64) for one in coarse])
    torch.testing.assert_close(saliency.grad_cam(f, layer, x, of), expected, atol=1e-12, rtol=1e-9)


def test_rows_do_not_depend_on_their_batch_or_order_and_the_classifier_is_as_before(x):
    f = Pooled().double().train()
    f.conv.bias.requires_grad_(False)
    order = torch.tensor([3, 0, 4])
    for one in (
        lambda v, of, **k: saliency.gradient(f, v, of, **k),
        lambda v, of, **k: saliency.grad_cam(f, f.act, v, of, **k),
    ):
        whole = one(x, OF)
        torch.testing.assert_close(one(x[order], OF[order]), whole[order], atol=1e-12, rtol=0)
        torch.testing.assert_close(one(x, OF, batch_size=2), whole, atol=1e-12, rtol=0)
        assert not whole.requires_grad
    assert f.training and f.conv.weight.requires_grad and not f.conv.bias.requires_grad
    assert all(p.grad is None for p in f.parameters()) and not f.act._forward_hooks


def test_a_detector_of_one_place_is_found_by_both_and_by_no_random_mask(x):
    """f counts red in one corner: the maps lie there (AUROC 1), a random mask of that area does not."""

    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.keep = nn.Identity()

        def forward(self, x):
            z = (self.keep(x) * corner).sum((1, 2, 3)) - 1
            return torch.stack([-z, z], 1)

    corner = torch.zeros(1, 3, 6, 8, dtype=torch.float64)
    corner[:, 0, :2, :3] = 1
    f, region = Corner(), (corner[:, :1] > 0).expand(5, -1, -1, -1)
    assert (
        localization.pixel_auroc(saliency.gradient(f, x, OF).abs().sum(1), region) == 1
    ).all()
    mask = saliency.random_mask(region, torch.arange(5))
    assert (
        localization.pixel_auroc(mask[:, 0].double(), region).mean() < 0.9
    )  # measured 0.49
    held = saliency.grad_cam(f, f.keep, torch.cat([x[:, :1], 0 * x[:, 1:]], 1), OF)
    assert held.shape == (5, 6, 8) and (held[OF == 1] >= 0).all() and (held[OF == 0] <= 0).all()


def test_a_random_mask_has_the_area_and_belongs_to_its_item():
    gen, ids = torch.Generator().manual_seed(0), torch.arange(400)
    mask = torch.rand(400, 1, 8, 16, generator=gen) < torch.rand(400, 1, 1, 1, generator=gen)
    mask[0], mask[1] = False, True
    drawn = saliency.random_mask(mask, ids)
    assert drawn.dtype == torch.bool and torch.equal(drawn.sum((1, 2, 3)), mask.sum((1, 2, 3)))
    order = torch.tensor([17, 3, 250])
    assert torch.equal(saliency.random_mask(mask[order], ids[order]), drawn[order])
    other = saliency.random_mask(mask, ids, seed=1)
    assert (other[2:] != drawn[2:]).flatten(1).any(
        1
    ).double().mean() > 0.95  # measured 0.99: not masks of no or of all pixels
    by_place = drawn.double().mean(0).flatten()
    assert (by_place - mask.double().mean()).abs().max() < 0.1  # measured 0.048; sd 0.025 a place
    score = localization.pixel_auroc(drawn[:, 0].double(), mask)
    assert abs(score.nanmean() - 0.5) < 0.01  # measured 0.501: chance
    texts = saliency.random_mask(mask[:2], ("a", "b"))
    assert torch.equal(texts.sum((1, 2, 3)), mask[:2].sum((1, 2, 3)))


@pytest.mark.parametrize(
    "change,named",
    [
        ({"target": OF[:3]}, "target"),
        ({"target": OF.float()}, "target"),
        ({"target": OF + 2}, "target"),
        ({"x": torch.full((5, 3, 6, 8), torch.nan)}, "x"),
        ({"x": torch.rand(5, 12)}, "x"),
    ],
)
def test_bad_input_is_refused_by_name(x, change, named):
    given = {"x": x.float(), "target": OF} | change
    f = Pooled()
    for call in (
        lambda: saliency.gradient(f, **given),
        lambda: saliency.grad_cam(f, f.act, **given),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            call()


def test_a_layer_of_another_model_and_bad_masks_are_refused(x):
    with pytest.raises(ValueError, match="layer"):
        saliency.grad_cam(Pooled().double(), Pooled().act, x, OF)
    for mask, ids, named in (
        (torch.ones(2, 1, 4, 4), [0, 1], "mask"),
        (torch.ones(2, 3, 4, 4, dtype=torch.bool), [0, 1], "mask"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), [0], "ids"),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            saliency.random_mask(mask, ids)
