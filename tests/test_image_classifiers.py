"""Image classifiers: normalisation inside, rows apart, smooth gradients, and the published checkpoints' own formats."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from cf_utils.core import files
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.cards import Card
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.image_classifiers import (
    PUBLISHED,
    ImageDenseNet,
    ImageResNet,
    SmallDenseNet,
    load_published,
)


def images(n=3, size=(64, 64), dtype=torch.float32):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0)).to(dtype)


class Doubled(nn.Module):
    """How DiVE's and STEEX's code nests torchvision's DenseNet-121, with a head of `outputs` beside it."""

    def __init__(self, body, outputs):
        super().__init__()
        self.feat_extract = nn.Module()
        self.feat_extract.feat_extract = body
        self.classifier = nn.Linear(1024, outputs)

    def forward(self, x):
        return self.classifier(self.feat_extract.feat_extract(x))


@pytest.fixture(scope="module")
def doubled():
    torch.manual_seed(0)
    body = models.densenet121(weights=None)
    body.classifier = nn.Identity()
    return {k: Doubled(body, k).eval() for k in (3, 4, 40)}


def write(path, model, form):
    state = model.state_dict()
    if form == "steex":  # beside an optimiser's state
        torch.save(
            {
                "epoch": 3,
                "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]},
                "loss": 0.1,
                "model_state_dict": state,
            },
            path,
        )
    elif form == "dive":  # in two parts
        torch.save(
            {
                "feat_extract": model.feat_extract.state_dict(),
                "classifier": model.classifier.state_dict(),
            },
            path,
        )
    elif form == "safetensors":
        save_file(state, path)
    elif form == "parallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif form == "old":
        torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "outputs", "form"),
    [
        ("celeba", 40, "dive"),
        ("celebahq", 3, "steex"),
        ("bdd", 4, "steex"),
        ("bdd", 4, "safetensors"),
        ("celebahq", 3, "parallel"),
        ("celeba", 40, "old"),
    ],
)
def test_published_densenets(tmp_path, doubled, kind, outputs, form):
    path = write(
        tmp_path / f"classifier.{'safetensors' if form == 'safetensors' else 'pt'}",
        doubled[outputs],
        form,
    )
    model = load_published(path, kind)
    x = images(2, (32, 32))
    with torch.no_grad():
        theirs = doubled[outputs]((x - 0.5) / 0.5)
        torch.testing.assert_close(model(x), theirs, rtol=0, atol=1e-5)  # measured 0
        logits = OneOutput(model, outputs - 1)(x)
    assert not model.training and model(x).shape == (2, outputs)
    torch.testing.assert_close(logits.softmax(1)[:, 1], theirs[:, -1].sigmoid())
    named = PUBLISHED[kind]
    assert named == outputs or len(named) == outputs


def test_published_resnet(tmp_path):
    torch.manual_seed(0)
    theirs = models.resnet50(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    model, x = load_published(tmp_path / "resnet50.pth", "imagenet"), images(1, (32, 32))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        torch.testing.assert_close(
            model(x), theirs((x - mean[:, None, None]) / std[:, None, None]), rtol=0, atol=1e-4
        )


def test_a_wrong_checkpoint_is_refused_with_names_and_shapes(tmp_path, doubled):
    path = write(tmp_path / "hq.pt", doubled[3], "steex")
    with pytest.raises(
        ValueError,
        match=r"hq.pt is no bdd classifier, 2 names.*classifier.bias: file \(3,\), model \(4,\)",
    ):
        load_published(path, "bdd")
    with pytest.raises(
        ValueError, match=r"no imagenet classifier.*bn1.bias: file absent, model \(64,\).*; \.\.\."
    ):
        load_published(path, "imagenet")
    state = {f"module.{k}": v for k, v in doubled[3].state_dict().items()}
    torch.save(state | {"extra": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"1 names.*extra: file \(2,\), model absent"):
        load_published(path, "celebahq")
    with pytest.raises(ValueError, match="kind: got 'CelebA'"):
        load_published(path, "CelebA")
    with pytest.raises(FileNotFoundError, match=r"none\.pt is missing"):
        load_published(tmp_path / "none.pt", "bdd")


class Run:
    """A pickle that would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: no safetensors and no torch file"):
            load_published(tmp_path / name, "bdd")


def test_nothing_in_a_file_is_run(tmp_path):
    for name, save in (
        ("a.pt", torch.save),
        ("b.pt", lambda c, p: p.write_bytes(pickle.dumps(c, 2))),
    ):
        save({"model_state_dict": Run(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(ValueError, match="no torch file of tensors alone"):
            load_published(tmp_path / name, "bdd")
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: got a list, expected a dict"):
        files.read_published(tmp_path / "list.pt")


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 128)])
def test_small_densenet_takes_the_worlds_sizes(size):
    model = SmallDenseNet(outputs=2).eval()
    x = images(3, size)
    with torch.no_grad():
        z = model(x)
        assert z.shape == (3, 2)
        torch.testing.assert_close(model(x[1:2]), z[1:2], rtol=0, atol=1e-5)  # a row on its own
        features = model.net.features((x - 0.5) / 0.5)
        head = features * features.sigmoid()  # SiLU, then the mean over places
        torch.testing.assert_close(
            z, F.linear(head.mean((2, 3)), model.net.classifier.weight, model.net.classifier.bias)
        )
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 1_000_000  # 355,530
    with pytest.raises(
        ValueError, match=r"x: got shape \(3, 1, 64, 64\), expected images \(B, 3, H, W\)"
    ):
        ImageDenseNet().forward(x.new_zeros(3, 1, 64, 64))


def test_small_densenet_is_smooth_where_relu_has_kinks():
    """The second derivative along a line exists and is what differences of the gradient give (float64; measured 8e-9)."""
    torch.manual_seed(0)
    model = SmallDenseNet(growth=8, blocks=(2, 2), first=8).double().eval()
    assert not any(isinstance(m, (nn.ReLU, nn.MaxPool2d)) for m in model.modules())
    x, way = (
        images(1, (16, 16), torch.float64).requires_grad_(),
        torch.randn(1, 3, 16, 16, dtype=torch.float64),
    )

    def slope(step):
        z = x + step * way
        return (torch.autograd.grad(model(z).sum(), z, create_graph=True)[0] * way).sum()

    (second,) = torch.autograd.grad(slope(0.0), x)
    differences = (slope(1e-4) - slope(-1e-4)) / 2e-4
    torch.testing.assert_close((second * way).sum(), differences.detach(), rtol=1e-6, atol=0)


def test_small_densenet_learns():
    """Bright upper half or lower half, through OneOutput."""
    torch.manual_seed(0)
    x, y = images(64, (16, 16)) * 0.5, torch.arange(64) % 2
    x[y == 1, :, :8] += 0.5
    x[y == 0, :, 8:] += 0.5
    model = SmallDenseNet(growth=8, blocks=(2, 2), first=8)
    adam = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(25):
        adam.zero_grad()
        F.cross_entropy(OneOutput(model)(x), y).backward()
        adam.step()
    model.eval()
    assert classifiers.accuracy(OneOutput(model), x, y) == 1.0


def test_load_finds_image_classifiers_by_their_card(tmp_path, monkeypatch):
    settings, model = (
        {"outputs": 2, "growth": 8, "blocks": [2, 2], "first": 8},
        SmallDenseNet(2, 8, (2, 2), 8).eval(),
    )
    card = Card(architecture={"class": "SmallDenseNet", "arguments": settings})
    checkpoints.save("tiny", model, card, tmp_path, half=False)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    (loaded, card), x = checkpoints.load("tiny"), images(2, (16, 16))
    torch.testing.assert_close(loaded(x), model(x))
    assert not loaded.training and card.name == "tiny"
    assert ImageResNet(10).net.fc.out_features == 10
