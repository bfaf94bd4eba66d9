"""FID, sFID, KID, LPIPS, diversity: closed forms, plain second implementations, pytorch-fid's own code."""

import dataclasses
import itertools
from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as theirs
from torch import nn
from torchvision import models

from cf_utils.evaluation.metrics import features, image, perceptual
from cf_utils.models import encoders, pretrained
from cf_utils.models.image_classifiers import IMAGENET_NORM
from cf_utils.models.weight_files import WeightsFile
from tests.test_weights import alexnet


def draws(n, d, seed=0, mean=0.0, mix=True):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=gen, dtype=torch.float64)
    return (x @ torch.randn(d, d, generator=gen, dtype=torch.float64) / d**0.5 if mix else x) + mean


def of(x, official_for=()):
    return features.Features(x, "Toy", official_for)


def exactly(mean, sd, n=40, seed=0):
    """Rows whose sample mean and covariance are exactly `mean` and diag(sd^2)."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
    return torch.from_numpy(x * np.array(sd) + np.array(mean))


# ---------------------------------------------------------------- Frechet distance


def test_frechet_distance_of_gaussians_in_closed_form():
    """Covariances that commute: |m - m'|^2 + sum (s - s')^2; one dimension too."""
    a, b = exactly([0, 1, 2], [1, 2, 0.5]), exactly([1, 1, 4], [3, 2, 0.25], n=60, seed=1)
    assert image.frechet_distance(a, b) == pytest.approx(5 + 4 + 0 + 0.0625, rel=1e-9)
    assert image.frechet_distance(exactly([2.0], [3.0]), exactly([5.0], [1.0])) == pytest.approx(
        9 + 4, rel=1e-9
    )


@pytest.mark.parametrize("n,m,d", [(50, 40, 6), (200, 30, 12), (7, 40, 12), (8, 9, 12)])
def test_frechet_distance_against_the_matrix_root(n, m, d):
    """scipy's sqrtm in pytorch-fid's function where both covariances have full rank; the product's eigenvalues in all cases."""
    a, b = draws(n, d), draws(m, d, seed=1, mean=0.3)
    got = image.frechet_distance(a, b)
    moments = [
        f(x.numpy())
        for x in (a, b)
        for f in (lambda v: v.mean(0), lambda v: np.cov(v, rowvar=False))
    ]
    if min(n, m) > d:
        assert got == pytest.approx(fid_score.calculate_frechet_distance(*moments), rel=1e-6)
    root = np.sqrt(np.clip(np.linalg.eigvals(moments[1] @ moments[3]).real, 0, None)).sum()
    by_hand = ((moments[0] - moments[2]) ** 2).sum() + np.trace(moments[1] + moments[3]) - 2 * root
    assert got == pytest.approx(by_hand, rel=1e-6)  # measured 1.3e-8: the roots of rounded zeros
    turn = torch.linalg.qr(draws(d, d, seed=5))[0]
    for p, q in ((b, a), (a.flip(0), b), (a @ turn + 1, b @ turn + 1)):
        assert image.frechet_distance(p, q) == pytest.approx(got, rel=1e-9)
    assert image.frechet_distance(a, a) < 1e-9 * float(a.square().sum())


def test_names_sizes_and_refusals():
    small, large = of(draws(20, 6)), of(draws(12, 6), ("fid",))
    assert (
        image.fid(small, small)["fid_embedded"] < 1e-9
        and not image.fid(small, of(draws(12, 6)))["biased"]
    )
    few = image.fid(small, of(draws(11, 6)))
    assert few["biased"] and (few["n_real"], few["n_fake"]) == (20, 11)  # under 2 x 6
    assert "fid" in image.fid(large, large) and "kid_embedded" in image.kid(large, large)
    with pytest.raises(ValueError, match="expected one"):
        image.fid(small, features.Features(draws(12, 6), "Other", ()))
    with pytest.raises(ValueError, match="2 or more finite rows"):
        image.fid(small, of(draws(1, 6)))
    with pytest.raises(ValueError, match="2 or more finite rows"):
        image.fid(small, of(torch.full((5, 6), torch.nan)))


def test_sfid_by_hand():
    query = draws(13, 3)
    changed, valid = query + 0.5 * draws(13, 3, seed=3), torch.arange(13) % 4 != 0
    got = image.sfid(of(query), of(changed), valid, splits=3, seed=7)
    gen, values, floors = torch.Generator().manual_seed(7), [], []
    for _ in range(3):
        order = torch.randperm(13, generator=gen).tolist()
        for one, two in ((order[:6], order[6:]), (order[6:], order[:6])):
            two = [i for i in two if i % 4 != 0]
            values.append(image.frechet_distance(query[one], changed[two]))
            floors.append(image.frechet_distance(query[one], query[two]))
    assert got["sfid_embedded"] == pytest.approx(np.mean(values)) and got[
        "sfid_embedded_floor"
    ] == pytest.approx(np.mean(floors))
    assert got["sfid_embedded_sd"] == pytest.approx(np.std(np.mean(np.reshape(values, (3, 2)), 1)))
    garbage = torch.where(valid[:, None], changed, 1e6)
    assert (
        image.sfid(of(query), of(garbage), valid, splits=3, seed=7) == got
    )  # failures play no part
    same = image.sfid(of(query), of(query))
    assert (
        same["sfid_embedded"] == same["sfid_embedded_floor"] > 0.1
    )  # measured 0.94: no change is far from 0
    with pytest.raises(ValueError, match="at least 2 in each random half"):
        image.sfid(of(query), of(changed), torch.arange(13) < 2)


# ---------------------------------------------------------------- KID


def mmd_by_hand(a, b):
    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    a, b = a.tolist(), b.tolist()
    within = [np.mean([k(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)]
    return sum(within) - 2 * np.mean([k(x, y) for x, y in itertools.product(a, b)])


def test_kid_pair_after_pair_and_its_jackknife():
    a, b = draws(9, 4), draws(7, 4, seed=1, mean=0.5)
    got = image.kid(of(a), of(b))
    assert got["kid_embedded"] == pytest.approx(mmd_by_hand(a, b), rel=1e-9)
    without = [
        [mmd_by_hand(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(9)],
        [mmd_by_hand(a, torch.cat([b[:i], b[i + 1 :]])) for i in range(7)],
    ]
    variance = sum(
        (len(w) - 1) / len(w) * np.square(np.array(w) - np.mean(w)).sum() for w in without
    )
    assert got["kid_embedded_se"] == pytest.approx(variance**0.5, rel=1e-9)


def test_kid_is_unbiased_and_its_error_is_that_of_other_draws():
    apart, same = (
        [
            image.kid(
                of(draws(50, 4, 2 * i, mix=False)), of(draws(40, 4, 2 * i + 1, shift, mix=False))
            )
            for i in range(150)
        ]
        for shift in (0.5, 0.0)
    )
    spread = np.std([r["kid_embedded"] for r in apart])
    assert 0.8 < np.mean([r["kid_embedded_se"] for r in apart]) / spread < 1.25  # measured 0.93
    values = np.array([r["kid_embedded"] for r in same])
    assert (
        abs(values.mean()) < 3 * values.std() / 150**0.5 and (values < 0).any()
    )  # measured 0.24 of the 3
    own = ((draws(50, 4, mix=False).square().sum(1) / 4 + 1) ** 3).mean().item()
    assert (
        own / 50 > 5 * values.std() / 150**0.5
    )  # measured 17: with its diagonal the mean would be so far off


def test_kid_over_subsets():
    a, b = of(draws(30, 4)), of(draws(20, 4, seed=1, mean=0.5))
    whole, parts = image.kid(a, b), image.kid(a, b, subsets=300, size=12, seed=1)
    assert (
        parts["subsets"] == 300
        and abs(parts["kid_embedded"] - whole["kid_embedded"]) < 4 * parts["kid_embedded_se"]
    )
    assert image.kid(a, b, subsets=300, size=12, seed=1) == parts
    equal = of(draws(20, 4))
    assert image.kid(equal, b, subsets=2, size=20)["kid_embedded"] == pytest.approx(
        image.kid(equal, b)["kid_embedded"], rel=1e-9
    )
    with pytest.raises(ValueError, match="size up to 20"):
        image.kid(a, b, subsets=2, size=21)


# ---------------------------------------------------------------- encoders


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x.mean((2, 3)) * (2 if self.training else 1)


def test_extract_checks_batches_and_puts_the_mode_back():
    x, net = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)), Mean().train()
    got = features.extract(net, x, batch_size=3)
    torch.testing.assert_close(got.values, x.mean((2, 3)))
    assert (
        net.training
        and got.name("fid") == "fid_embedded"
        and torch.equal(got.take(torch.tensor([4])).values, got.values[4:5])
    )
    for bad, why in (
        (x[:, :1], "expected float images"),
        (x * 255, "expected inside"),
        (x * torch.nan, "expected inside"),
        (x[:0], "N >= 1"),
        ((x * 255).byte(), "expected float images"),
    ):
        with pytest.raises(ValueError, match=why):
            features.extract(net, bad)


def test_the_trunk_by_hand():
    state, x = alexnet(), torch.rand(2, 3, 130, 140, generator=torch.Generator().manual_seed(0))
    y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    for i, stride, pad, pool in (
        (0, 4, 2, 1),
        (3, 1, 2, 1),
        (6, 1, 1, 0),
        (8, 1, 1, 0),
        (10, 1, 1, 0),
    ):
        y = F.conv2d(
            y, state[f"features.{i}.weight"], state[f"features.{i}.bias"], stride, pad
        ).clamp(min=0)
        y = F.max_pool2d(y, 3, 2) if pool else y
    net = encoders.load("alexnet")
    torch.testing.assert_close(net(x), y.mean((2, 3)), rtol=1e-4, atol=1e-5)
    small = x[:, :, :32, :64]  # 128 x 256 is what it sees of 32 x 64
    wide = F.interpolate(small, (128, 256), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(small), net(wide))


def test_inception_is_pytorch_fids_with_the_published_file_alone(tmp_path, monkeypatch):
    """Features of images equal those that pytorch-fid reads from the same images on disk."""
    torch.manual_seed(0)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = tmp_path / pretrained.FILES["inception"].file
    torch.save(
        theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict(), path
    )  # the same names
    with pytest.raises(ValueError, match="expected 6726825d"):
        encoders.load("inception")
    monkeypatch.setitem(pretrained.FILES, "inception", WeightsFile(path.name, "FID", "", ""))
    net = encoders.load("inception")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    for i, p in enumerate(pictures):
        Image.fromarray(p).save(tmp_path / f"{i}.png")
    expected = fid_score.get_activations(
        [tmp_path / "0.png", tmp_path / "1.png"], net.net, batch_size=2, num_workers=0
    )
    got = features.extract(net, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(got.values, expected, rtol=1e-4, atol=1e-6)
    assert got.values.shape == (2, 2048) and expected.std() > 0 and "fid" in image.fid(got, got)


# ---------------------------------------------------------------- LPIPS


def lpips_by_hand(net, state, a, b):
    """Zhang et al.: unit length over channels, squared difference, weighted over channels, averaged over places, summed."""
    layers = (
        [(0, 4, 2, 1), (3, 1, 2, 1), (6, 1, 1, 0), (8, 1, 1, 0), (10, 1, 1, 0)]
        if net == "alex"
        else [(i, 1, 1, i in (2, 7, 14, 21)) for i in pretrained.TRUNKS["vgg16"][1]]
    )
    taps = (0, 3, 6, 8, 10) if net == "alex" else (2, 7, 14, 21, 28)
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        lins = torch.load(path, map_location="cpu", weights_only=True)
    total, tapped = 0, []
    for x in (a, b):
        y = (2 * x - 1 - torch.tensor([-0.03, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.45]
        ).view(3, 1, 1)
        out = []
        for i, stride, pad, pool in layers:
            y = F.conv2d(
                y, state[f"features.{i}.weight"], state[f"features.{i}.bias"], stride, pad
            ).clamp(min=0)
            out += [y / (y.norm(dim=1, keepdim=True) + 1e-10)] if i in taps else []
            y = F.max_pool2d(y, 3 if net == "alex" else 2, 2) if pool else y
        tapped.append(out)
    for k, (p, q) in enumerate(zip(*tapped, strict=True)):
        total = total + ((p - q) ** 2 * lins[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_a_second_implementation(net, monkeypatch):
    gen = torch.Generator().manual_seed(0)
    if net == "alex":
        state = alexnet()
    else:  # the second trunk is made on demand: the wiring is the same for any weights
        widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
        state = {}
        for i, a, b in zip(pretrained.TRUNKS["vgg16"][1], widths, widths[1:], strict=False):
            state[f"features.{i}.weight"] = (
                torch.randn(b, a, 3, 3, generator=gen) * (2 / (9 * a)) ** 0.5
            )
            state[f"features.{i}.bias"] = torch.randn(b, generator=gen) * 0.1
        monkeypatch.setattr(pretrained, "load_trunk", lambda name: state)
    x, y = torch.rand(2, 3, 3, 40, 40, generator=gen)
    model = perceptual.lpips_network(net)
    assert (
        not any(p.is_meta for p in (*model.parameters(), *model.buffers())) and not model.training
    )
    got = perceptual.lpips_distance(model, x, y)
    torch.testing.assert_close(got, lpips_by_hand(net, state, x, y), rtol=1e-4, atol=1e-6)
    assert (got > 0.001).all()
    assert (perceptual.lpips_distance(model, x, x) == 0).all()
    torch.testing.assert_close(
        perceptual.lpips_distance(model, y, x, batch_size=2), got, rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="the shape of a"):
        perceptual.lpips_distance(model, x, y[:2])


class Apart(nn.Module):
    """Stands in for LPIPS: mean absolute difference."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, a, b, normalize):
        return self.one * (a - b).abs().mean((1, 2, 3), keepdim=True) * (1 if normalize else 9)


def test_diversity_over_pairs():
    runs = torch.rand(3, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    by_hand = [
        np.mean([(runs[p, i] - runs[q, i]).abs().mean() for p, q in ((0, 1), (0, 2), (1, 2))])
        for i in range(4)
    ]
    np.testing.assert_allclose(perceptual.diversity(Apart(), runs).detach(), by_hand, rtol=1e-6)
    valid = torch.tensor(
        [[True, True, False, False], [True, False, False, False], [True, True, False, True]]
    )
    got = perceptual.diversity(Apart(), runs, valid, batch_size=3)
    assert got.isnan().tolist() == [False, True, False, True] and got[0] == pytest.approx(
        by_hand[0], rel=1e-6
    )
    for bad in (runs[:1], runs[0]):
        with pytest.raises(ValueError, match="R >= 2"):
            perceptual.diversity(Apart(), bad)
    with pytest.raises(ValueError, match="valid: got"):
        perceptual.diversity(Apart(), runs, valid[:2])


def test_dimes_perceptual_term_is_vgg19s_first_18_layers(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = models.vgg19(weights=None).features
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    monkeypatch.setitem(
        pretrained.FILES, "vgg19", dataclasses.replace(pretrained.FILES["vgg19"], begins="")
    )
    with pytest.raises(
        FileNotFoundError,
        match=r"vgg19-dcbb9e9d\.pth is missing, for DiME's perceptual term.*pytorch\.org",
    ):
        perceptual.VGG19()
    path = tmp_path / pretrained.FILES["vgg19"].file
    torch.save(
        {f"features.{k}": v for k, v in net[:18].state_dict().items()}
        | {"classifier.0.bias": torch.zeros(3)},
        path,
    )
    term, (x, y) = perceptual.VGG19(), torch.rand(2, 3, 3, 32, 32)
    mean, sd = (torch.tensor(v).view(1, 3, 1, 1) for v in IMAGENET_NORM)
    with torch.no_grad():
        by_hand = [
            torch.nn.functional.mse_loss(
                *(net[:18](((one - mean) / sd)[None, i][0]) for one in (x, y))
            )
            for i in range(3)
        ]
    torch.testing.assert_close(term(x, y), torch.stack(by_hand), rtol=1e-5, atol=1e-9)
    assert term(x, x).abs().max() == 0 and term(x, y).min() > 0
    g = torch.autograd.grad(term(x.requires_grad_(True), y).sum(), x)[0]
    assert g.abs().sum() > 0 and not any(p.requires_grad for p in term.parameters())
    torch.save({f"features.{k}": v for k, v in net[:5].state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"is no VGG19: .*16\.weight: file absent"):
        perceptual.VGG19()
