"""Image classifiers: normalisation, independent items, smooth gradients, published file formats."""

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


class Nested(nn.Module):
    """DenseNet-121 as DiVE's and STEEX's code nest it, with a head of `outputs` beside it."""

    def __init__(self, body, outputs):
        super().__init__()
        self.feat_extract = nn.Module()
        self.feat_extract.feat_extract = body
        self.classifier = nn.Linear(1024, outputs)

    def forward(self, x):
        return self.classifier(self.feat_extract.feat_extract(x))


@pytest.fixture(scope="module")
def nested():
    torch.manual_seed(0)
    body = models.densenet121(weights=None)
    body.classifier = nn.Identity()
    return {k: Nested(body, k).eval() for k in (3, 4, 40)}


def write(path, model, form):
    state = model.state_dict()
    if form == "steex":  # beside an optimiser's state
        optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
        content = {"epoch": 3, "optimizer_state_dict": optimizer, "loss": 0.1}
        torch.save(content | {"model_state_dict": state}, path)
    elif form == "dive":  # in two parts
        parts = ("feat_extract", "classifier")
        torch.save({part: getattr(model, part).state_dict() for part in parts}, path)
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
def test_published_densenets_load_from_every_format(tmp_path, nested, kind, outputs, form):
    suffix = "safetensors" if form == "safetensors" else "pt"
    path = write(tmp_path / f"classifier.{suffix}", nested[outputs], form)
    model = load_published(path, kind)
    x = images(2, (32, 32))
    with torch.no_grad():
        theirs = nested[outputs]((x - 0.5) / 0.5)
        torch.testing.assert_close(model(x), theirs, rtol=0, atol=1e-5)  # measured 0
        logits = OneOutput(model, outputs - 1)(x)
    assert not model.training and model(x).shape == (2, outputs)
    torch.testing.assert_close(logits.softmax(1)[:, 1], theirs[:, -1].sigmoid())
    named = PUBLISHED[kind]
    assert named == outputs or len(named) == outputs


def test_the_published_resnet_gives_torchvisions_logits(tmp_path):
    torch.manual_seed(0)
    theirs = models.resnet50(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    model, x = load_published(tmp_path / "resnet50.pth", "imagenet"), images(1, (32, 32))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs((x - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4)


def test_a_wrong_checkpoint_is_refused_with_names_and_shapes(tmp_path, nested):
    path = write(tmp_path / "hq.pt", nested[3], "steex")
    two = r"hq.pt is no bdd classifier, 2 names.*classifier.bias: file \(3,\), model \(4,\)"
    with pytest.raises(ValueError, match=two):
        load_published(path, "bdd")
    many = r"no imagenet classifier.*bn1.bias: file absent, model \(64,\).*; \.\.\."
    with pytest.raises(ValueError, match=many):
        load_published(path, "imagenet")
    state = {f"module.{k}": v for k, v in nested[3].state_dict().items()}
    torch.save(state | {"extra": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"1 names.*extra: file \(2,\), model absent"):
        load_published(path, "celebahq")
    with pytest.raises(ValueError, match="kind: got 'CelebA'"):
        load_published(path, "CelebA")
    with pytest.raises(FileNotFoundError, match=r"none\.pt is missing"):
        load_published(tmp_path / "none.pt", "bdd")


class Run:
    """A pickle that opens a file when it is loaded."""

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
    content = {"model_state_dict": Run(tmp_path / "ran")}
    torch.save(content, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(content, 2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match="no torch file of tensors alone"):
            load_published(tmp_path / name, "bdd")
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: got a list, expected a dict"):
        files.read_published(tmp_path / "list.pt")


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (128, 128)])
def test_the_small_densenet_takes_the_image_sizes_of_the_worlds(size):
    model = SmallDenseNet(outputs=2).eval()
    x = images(3, size)
    with torch.no_grad():
        z = model(x)
        assert z.shape == (3, 2)
        torch.testing.assert_close(
            model(x[1:2]), z[1:2], rtol=0, atol=1e-5
        )  # items are independent
        features = model.net.features((x - 0.5) / 0.5)
        head = features * features.sigmoid()  # SiLU, then the mean over places
        last = model.net.classifier
        torch.testing.assert_close(z, F.linear(head.mean((2, 3)), last.weight, last.bias))
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 1_000_000  # 355,530
    grey = r"x: got shape \(3, 1, 64, 64\), expected images \(B, 3, H, W\)"
    with pytest.raises(ValueError, match=grey):
        ImageDenseNet().forward(x.new_zeros(3, 1, 64, 64))


def test_the_small_densenet_has_continuous_gradients():
    """The second derivative along a line equals differences of the gradient (float64)."""
    torch.manual_seed(0)
    model = SmallDenseNet(growth=8, blocks=(2, 2), first=8).double().eval()
    assert not any(isinstance(m, (nn.ReLU, nn.MaxPool2d)) for m in model.modules())
    x = images(1, (16, 16), torch.float64).requires_grad_()
    way = torch.randn(1, 3, 16, 16, dtype=torch.float64)

    def slope(step):
        z = x + step * way
        return (torch.autograd.grad(model(z).sum(), z, create_graph=True)[0] * way).sum()

    (second,) = torch.autograd.grad(slope(0.0), x)
    differences = (slope(1e-4) - slope(-1e-4)) / 2e-4
    torch.testing.assert_close(
        (second * way).sum(), differences.detach(), rtol=1e-6, atol=0
    )  # 8e-9


def test_the_small_densenet_learns_which_half_is_bright():
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


def test_checkpoints_build_image_classifiers_by_their_card(tmp_path, monkeypatch):
    settings = {"outputs": 2, "growth": 8, "blocks": [2, 2], "first": 8}
    model = SmallDenseNet(2, 8, (2, 2), 8).eval()
    card = Card(architecture={"class": "SmallDenseNet", "arguments": settings})
    checkpoints.save("tiny", model, card, tmp_path, half=False)
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path)
    (loaded, card), x = checkpoints.load("tiny"), images(2, (16, 16))
    torch.testing.assert_close(loaded(x), model(x))
    assert not loaded.training and card.name == "tiny"
    assert ImageResNet(10).net.fc.out_features == 10
