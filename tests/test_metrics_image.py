"""FID, sFID, KID, LPIPS and diversity against closed forms, plain loops and pytorch-fid's code."""

import dataclasses
import itertools
from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid_inception
from torch import nn
from torchvision import models

from cf_utils.evaluation.metrics import features, image, perceptual
from cf_utils.models import encoders, pretrained
from cf_utils.models.image_classifiers import IMAGENET_NORM
from cf_utils.models.weight_files import WeightsFile
from tests.test_weights import alexnet


def draw(n, d, seed=0, mean=0.0, mix=True):
    """Normal rows (n, d), with correlated columns if `mix`."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=gen, dtype=torch.float64)
    return (x @ torch.randn(d, d, generator=gen, dtype=torch.float64) / d**0.5 if mix else x) + mean


def as_features(x, official_for=()):
    return features.Features(x, "Toy", official_for)


def draw_exactly(mean, sd, n=40, seed=0):
    """Rows whose sample mean and covariance are exactly `mean` and diag(sd^2)."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
    return torch.from_numpy(x * np.array(sd) + np.array(mean))


# ---------------------------------------------------------------- Frechet distance


def test_frechet_distance_of_gaussians_with_diagonal_covariances_has_a_closed_form():
    """|m - m'|^2 + sum (s - s')^2, also in one dimension."""
    a = draw_exactly([0, 1, 2], [1, 2, 0.5])
    b = draw_exactly([1, 1, 4], [3, 2, 0.25], n=60, seed=1)
    assert image.frechet_distance(a, b) == pytest.approx(5 + 4 + 0 + 0.0625, rel=1e-9)
    found = image.frechet_distance(draw_exactly([2.0], [3.0]), draw_exactly([5.0], [1.0]))
    assert found == pytest.approx(9 + 4, rel=1e-9)


@pytest.mark.parametrize("n,m,d", [(50, 40, 6), (200, 30, 12), (7, 40, 12), (8, 9, 12)])
def test_frechet_distance_equals_that_with_a_matrix_root(n, m, d):
    """References: pytorch-fid where both covariances have full rank, and eigenvalues always."""
    a, b = draw(n, d), draw(m, d, seed=1, mean=0.3)
    found = image.frechet_distance(a, b)
    mean_a, mean_b = (x.numpy().mean(0) for x in (a, b))
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    if min(n, m) > d:
        expected = fid_score.calculate_frechet_distance(mean_a, cov_a, mean_b, cov_b)
        assert found == pytest.approx(expected, rel=1e-6)
    root = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None)).sum()
    by_hand = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    assert found == pytest.approx(by_hand, rel=1e-6)  # measured 1.3e-8
    rotation = torch.linalg.qr(draw(d, d, seed=5))[0]
    for p, q in ((b, a), (a.flip(0), b), (a @ rotation + 1, b @ rotation + 1)):
        assert image.frechet_distance(p, q) == pytest.approx(found, rel=1e-9)
    assert image.frechet_distance(a, a) < 1e-9 * float(a.square().sum())


def test_fid_flags_small_sets_and_has_its_name_only_with_the_official_encoder():
    small, official = as_features(draw(20, 6)), as_features(draw(12, 6), ("fid",))
    assert image.fid(small, small)["fid_embedded"] < 1e-9
    assert not image.fid(small, as_features(draw(12, 6)))["biased"]
    few = image.fid(small, as_features(draw(11, 6)))  # fewer than 2 x 6 images
    assert few["biased"] and (few["n_real"], few["n_fake"]) == (20, 11)
    assert "fid" in image.fid(official, official)
    assert "kid_embedded" in image.kid(official, official)


def test_features_of_two_encoders_and_degenerate_sets_are_refused():
    small = as_features(draw(20, 6))
    with pytest.raises(ValueError, match="expected one encoder"):
        image.fid(small, features.Features(draw(12, 6), "Other", ()))
    with pytest.raises(ValueError, match="2 or more finite rows"):
        image.fid(small, as_features(draw(1, 6)))
    with pytest.raises(ValueError, match="2 or more finite rows"):
        image.fid(small, as_features(torch.full((5, 6), torch.nan)))


def test_sfid_equals_a_loop_over_halves():
    query = draw(13, 3)
    changed, valid = query + 0.5 * draw(13, 3, seed=3), torch.arange(13) % 4 != 0
    found = image.sfid(as_features(query), as_features(changed), valid, splits=3, seed=7)
    gen, values, floors = torch.Generator().manual_seed(7), [], []
    for _ in range(3):
        order = torch.randperm(13, generator=gen).tolist()
        for real, fake in ((order[:6], order[6:]), (order[6:], order[:6])):
            fake = [i for i in fake if i % 4 != 0]
            values.append(image.frechet_distance(query[real], changed[fake]))
            floors.append(image.frechet_distance(query[real], query[fake]))
    assert found["sfid_embedded"] == pytest.approx(np.mean(values))
    assert found["sfid_embedded_floor"] == pytest.approx(np.mean(floors))
    by_split = np.mean(np.reshape(values, (3, 2)), 1)
    assert found["sfid_embedded_sd"] == pytest.approx(np.std(by_split))


def test_sfid_ignores_failures_and_is_far_from_zero_without_change():
    query = draw(13, 3)
    changed, valid = query + 0.5 * draw(13, 3, seed=3), torch.arange(13) % 4 != 0
    found = image.sfid(as_features(query), as_features(changed), valid, splits=3, seed=7)
    garbage = torch.where(valid[:, None], changed, 1e6)
    assert image.sfid(as_features(query), as_features(garbage), valid, splits=3, seed=7) == found
    same = image.sfid(as_features(query), as_features(query))
    assert same["sfid_embedded"] == same["sfid_embedded_floor"] > 0.1  # measured 0.94
    with pytest.raises(ValueError, match="at least 2 in each random half"):
        image.sfid(as_features(query), as_features(changed), torch.arange(13) < 2)


# ---------------------------------------------------------------- KID


def mmd_by_hand(a, b):
    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    a, b = a.tolist(), b.tolist()
    within = [
        np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)
    ]
    return sum(within) - 2 * np.mean([kernel(x, y) for x, y in itertools.product(a, b)])


def test_kid_and_its_jackknife_equal_loops_over_pairs():
    a, b = draw(9, 4), draw(7, 4, seed=1, mean=0.5)
    found = image.kid(as_features(a), as_features(b))
    assert found["kid_embedded"] == pytest.approx(mmd_by_hand(a, b), rel=1e-9)
    without_a = [mmd_by_hand(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(9)]
    without_b = [mmd_by_hand(a, torch.cat([b[:i], b[i + 1 :]])) for i in range(7)]
    variance = sum(
        (len(w) - 1) / len(w) * ((w - np.mean(w)) ** 2).sum()
        for w in (np.array(without_a), np.array(without_b))
    )
    assert found["kid_embedded_se"] == pytest.approx(variance**0.5, rel=1e-9)


def test_kid_is_unbiased_and_its_standard_error_is_that_of_new_draws():
    def repeat(shift):
        return [
            image.kid(
                as_features(draw(50, 4, 2 * i, mix=False)),
                as_features(draw(40, 4, 2 * i + 1, shift, mix=False)),
            )
            for i in range(150)
        ]

    different = repeat(0.5)
    spread = np.std([r["kid_embedded"] for r in different])
    estimate = np.mean([r["kid_embedded_se"] for r in different])
    assert 0.8 < estimate / spread < 1.25  # measured 0.93
    values = np.array([r["kid_embedded"] for r in repeat(0.0)])
    error = values.std() / 150**0.5
    assert abs(values.mean()) < 3 * error and (values < 0).any()  # measured 0.24 of the 3
    # with the diagonal of the kernel matrix the mean would be off by `diagonal`
    diagonal = ((draw(50, 4, mix=False).square().sum(1) / 4 + 1) ** 3).mean().item() / 50
    assert diagonal > 5 * error  # measured 17


def test_kid_over_subsets_agrees_with_that_over_all_pairs():
    a, b = as_features(draw(30, 4)), as_features(draw(20, 4, seed=1, mean=0.5))
    whole, parts = image.kid(a, b), image.kid(a, b, subsets=300, size=12, seed=1)
    assert parts["subsets"] == 300
    difference = abs(parts["kid_embedded"] - whole["kid_embedded"])
    assert difference < 4 * parts["kid_embedded_se"]
    assert image.kid(a, b, subsets=300, size=12, seed=1) == parts
    equal = as_features(draw(20, 4))  # subsets of 20 of 20 images are the whole sets
    expected = image.kid(equal, b)["kid_embedded"]
    found = image.kid(equal, b, subsets=2, size=20)["kid_embedded"]
    assert found == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="size up to 20"):
        image.kid(a, b, subsets=2, size=21)


# ---------------------------------------------------------------- encoders


class Mean(nn.Module):
    """Mean colours, doubled in training mode; `inner` has a mode of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.scale * self.inner(x).mean((2, 3)) * (2 if self.training else 1)


@pytest.mark.parametrize("outer", [True, False])
def test_extract_encodes_in_eval_mode_and_restores_every_submodules_mode(outer):
    x, net = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)), Mean()
    net.train(outer)
    net.inner.train(not outer)
    found = features.extract(net, x, batch_size=3)
    expected = x.mean((2, 3)) / (1 + 1e-5) ** 0.5  # running statistics 0 and 1
    torch.testing.assert_close(found.values, expected)
    assert net.training == outer and net.inner.training != outer
    assert net.inner.num_batches_tracked == 0  # no running statistics moved


def test_extract_restores_modes_after_an_error():
    net = Mean().train()
    net.inner.eval()
    net.inner.forward = None
    with pytest.raises(TypeError):
        features.extract(net, torch.rand(2, 3, 4, 4))
    assert net.training and not net.inner.training


def test_features_select_rows_and_name_their_metrics():
    x = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = features.extract(Mean(), x)
    assert found.name("fid") == "fid_embedded"
    assert torch.equal(found.take(torch.tensor([4])).values, found.values[4:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :1], "expected float images"),
        (lambda x: x * 255, "expected inside"),
        (lambda x: x * torch.nan, "expected inside"),
        (lambda x: x[:0], "N >= 1"),
        (lambda x: (x * 255).byte(), "expected float images"),
    ],
)
def test_extract_refuses_what_is_no_image(change, message):
    x = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=message):
        features.extract(Mean(), change(x))


MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
ALEXNET = [(0, 4, 2, 1), (3, 1, 2, 1), (6, 1, 1, 0), (8, 1, 1, 0), (10, 1, 1, 0)]


def convolve(y, state, i, stride, pad):
    """Apply convolution i of a torchvision trunk, and ReLU."""
    weight, bias = (state[f"features.{i}.{kind}"] for kind in ("weight", "bias"))
    return F.conv2d(y, weight, bias, stride, pad).clamp(min=0)


def test_alexnet_features_equal_a_plain_forward_pass():
    state, x = alexnet(), torch.rand(2, 3, 130, 140, generator=torch.Generator().manual_seed(0))
    y = (x - MEAN) / STD
    for i, stride, pad, pool in ALEXNET:
        y = convolve(y, state, i, stride, pad)
        y = F.max_pool2d(y, 3, 2) if pool else y
    net = encoders.load("alexnet")
    torch.testing.assert_close(net(x), y.mean((2, 3)), rtol=1e-4, atol=1e-5)
    small = x[:, :, :32, :64]  # enlarged to 128 x 256
    enlarged = F.interpolate(small, (128, 256), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(small), net(enlarged))


def test_inception_features_equal_those_of_pytorch_fid(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = tmp_path / pretrained.FILES["inception"].file
    published = pytorch_fid_inception._inception_v3(
        num_classes=1008, aux_logits=False, weights=None
    )
    torch.save(published.state_dict(), path)
    with pytest.raises(ValueError, match="expected 6726825d"):  # another hash
        encoders.load("inception")
    monkeypatch.setitem(pretrained.FILES, "inception", WeightsFile(path.name, "FID", "", ""))
    net = encoders.load("inception")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for picture, file in zip(pictures, paths, strict=True):
        Image.fromarray(picture).save(file)
    expected = fid_score.get_activations(paths, net.net, batch_size=2, num_workers=0)
    found = features.extract(net, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-6)
    assert found.values.shape == (2, 2048) and expected.std() > 0
    assert "fid" in image.fid(found, found)


# ---------------------------------------------------------------- LPIPS


VGG16_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # convolutions in `features`
LPIPS_MEAN = torch.tensor([-0.03, -0.088, -0.188]).view(3, 1, 1)
LPIPS_STD = torch.tensor([0.458, 0.448, 0.45]).view(3, 1, 1)


def lpips_layers(net, state, x):
    """Outputs of the five layers that LPIPS compares, with unit length over channels."""
    if net == "alex":
        layers, outputs, window = ALEXNET, (0, 3, 6, 8, 10), 3
    else:
        layers = [(i, 1, 1, i in (2, 7, 14, 21)) for i in VGG16_LAYERS]
        outputs, window = (2, 7, 14, 21, 28), 2
    y, found = (2 * x - 1 - LPIPS_MEAN) / LPIPS_STD, []
    for i, stride, pad, pool in layers:
        y = convolve(y, state, i, stride, pad)
        if i in outputs:
            found.append(y / (y.norm(dim=1, keepdim=True) + 1e-10))
        y = F.max_pool2d(y, window, 2) if pool else y
    return found


def lpips_by_hand(net, state, a, b):
    """Zhang et al.: squared difference, weighted over channels, mean over pixels, summed."""
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        linear = torch.load(path, map_location="cpu", weights_only=True)
    total = 0
    pairs = zip(*(lpips_layers(net, state, x) for x in (a, b)), strict=True)
    for k, (p, q) in enumerate(pairs):
        weighted = (p - q) ** 2 * linear[f"lin{k}.model.1.weight"]
        total = total + weighted.sum(1).mean((1, 2))
    return total


def draw_vgg16(gen):
    """Random weights of VGG16, whose file is not part of the set-up."""
    widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    state = {}
    for i, a, b in zip(VGG16_LAYERS, widths, widths[1:], strict=False):
        scale = (2 / (9 * a)) ** 0.5
        state[f"features.{i}.weight"] = torch.randn(b, a, 3, 3, generator=gen) * scale
        state[f"features.{i}.bias"] = torch.randn(b, generator=gen) * 0.1
    return state


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_a_second_implementation(net, monkeypatch):
    gen = torch.Generator().manual_seed(0)
    state = alexnet() if net == "alex" else draw_vgg16(gen)
    if net == "vgg":
        monkeypatch.setattr(pretrained, "load_trunk", lambda name: state)
    x, y = torch.rand(2, 3, 3, 40, 40, generator=gen)
    model = perceptual.lpips_network(net)
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    assert not model.training
    found = perceptual.lpips_distance(model, x, y)
    torch.testing.assert_close(found, lpips_by_hand(net, state, x, y), rtol=1e-4, atol=1e-6)
    assert (found > 0.001).all()
    assert (perceptual.lpips_distance(model, x, x) == 0).all()
    swapped = perceptual.lpips_distance(model, y, x, batch_size=2)
    torch.testing.assert_close(swapped, found, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="the shape of a"):
        perceptual.lpips_distance(model, x, y[:2])


class AbsoluteDifference(nn.Module):
    """Stands in for LPIPS."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, a, b, normalize):
        difference = (a - b).abs().mean((1, 2, 3), keepdim=True)
        return self.scale * difference * (1 if normalize else 9)


def test_diversity_is_the_mean_over_pairs_of_runs():
    net = AbsoluteDifference()
    runs = torch.rand(3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    by_hand = [
        np.mean([(runs[p, i] - runs[q, i]).abs().mean() for p, q in ((0, 1), (0, 2), (1, 2))])
        for i in range(4)
    ]
    np.testing.assert_allclose(perceptual.diversity(net, runs).detach(), by_hand, rtol=1e-6)
    valid = torch.tensor(
        [[True, True, False, False], [True, False, False, False], [True, True, False, True]]
    )
    found = perceptual.diversity(net, runs, valid, batch_size=3)
    assert found.isnan().tolist() == [False, True, False, True]
    assert found[0] == pytest.approx(by_hand[0], rel=1e-6)
    for bad in (runs[:1], runs[0]):
        with pytest.raises(ValueError, match="R >= 2"):
            perceptual.diversity(net, bad)
    with pytest.raises(ValueError, match="valid: got"):
        perceptual.diversity(net, runs, valid[:2])


# ---------------------------------------------------------------- VGG19


@pytest.fixture
def vgg19(tmp_path, monkeypatch):
    """The path of VGG19's weights, not yet there, and a random network of that architecture."""
    torch.manual_seed(0)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    any_hash = dataclasses.replace(pretrained.FILES["vgg19"], begins="")
    monkeypatch.setitem(pretrained.FILES, "vgg19", any_hash)
    return tmp_path / any_hash.file, models.vgg19(weights=None).features


def save_features(layers, path):
    state = {f"features.{k}": v for k, v in layers.state_dict().items()}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, path)


def test_perceptual_term_of_dime_compares_vgg19s_first_18_layers(vgg19):
    path, net = vgg19
    save_features(net[:18], path)
    term, (x, y) = perceptual.VGG19(), torch.rand(2, 3, 3, 32, 32)
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET_NORM)
    with torch.no_grad():
        a, b = (net[:18]((x - mean) / sd) for x in (x, y))
        by_hand = torch.stack([F.mse_loss(p, q) for p, q in zip(a, b, strict=True)])
    torch.testing.assert_close(term(x, y), by_hand, rtol=1e-5, atol=1e-9)
    assert term(x, x).abs().max() == 0 and term(x, y).min() > 0
    g = torch.autograd.grad(term(x.requires_grad_(True), y).sum(), x)[0]
    assert g.abs().sum() > 0 and not any(p.requires_grad for p in term.parameters())


def test_missing_or_incomplete_vgg19_weights_are_refused(vgg19):
    path, net = vgg19
    message = r"vgg19-dcbb9e9d\.pth is missing, for DiME's perceptual term.*pytorch\.org"
    with pytest.raises(FileNotFoundError, match=message):
        perceptual.VGG19()
    save_features(net[:5], path)
    with pytest.raises(ValueError, match=r"is no VGG19: .*16\.weight: file absent"):
        perceptual.VGG19()
