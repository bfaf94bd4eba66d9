"""FVA, FS, S3, MNAC, CD, and the published face networks against plain forward passes from their papers' layers."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import models

from cf_utils.evaluation.metrics import attributes, features, identity
from cf_utils.models import encoders, pretrained
from cf_utils.models.published_oracles import PublishedOracle


class Direction(nn.Module):
    """Sees of an image its first pixel's red and green less a half: a direction in the plane."""

    def forward(self, x):
        return x[:, :2, 0, 0] - 0.5


def looking(*degrees):
    """Images (N, 3, 2, 2) that `Direction` sees at these angles."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    x = torch.full((len(degrees), 3, 2, 2), 0.3)
    x[:, :2, 0, 0] = 0.5 + 0.4 * torch.stack([angle.cos(), angle.sin()], 1).float()
    return x


def test_fva_and_fs_in_closed_form():
    query, moved = looking(0, 10, 90, 200), looking(0, 69, 149, 20)  # 0, 59, 59 and 180 degrees
    got = identity.fva_fs(Direction(), query, moved, threshold=0.5)
    assert got["fva_embedded"] == 0.75 and got["n"] == 4  # 0.25 where a distance is taken for it
    assert got["fs_embedded"] == pytest.approx(
        np.cos(np.deg2rad([0, 59, 59, 180])).mean(), abs=1e-6
    )
    same = identity.fva_fs(Direction(), query, query, threshold=0.5)
    assert (same["fva_embedded"], same["fs_embedded"]) == (1, pytest.approx(1))
    turned = identity.fva_fs(Direction(), query, 1 - query, threshold=0.5)
    assert (turned["fva_embedded"], turned["fs_embedded"]) == (0, pytest.approx(-1))


def test_the_floor_pairs_each_query_with_another_one():
    seen = features.Features(torch.eye(7), "Toy", ())
    for seed in range(5):
        assert identity.random_similarity(seen, seed).tolist() == [0] * 7  # nobody with itself
    query = looking(0, 0, 120, 240)
    got = identity.fva_fs(Direction(), query, query, threshold=0.5)
    assert got["fs_embedded_random"] < 1 and got["fva_embedded_random"] <= 0.25
    with pytest.raises(ValueError, match="at least 2"):
        identity.random_similarity(features.Features(torch.eye(1), "Toy", ()))


def test_where_the_threshold_comes_from():
    query, moved = looking(0, 0), looking(50, 70)  # cosines 0.64 and 0.34
    encoder = Direction()
    with pytest.raises(ValueError, match="threshold: got None for Direction"):
        identity.fva_fs(encoder, query, moved)
    encoder.threshold = 0.3
    assert identity.fva_fs(encoder, query, moved)["fva_embedded"] == 1
    encoder.threshold = 0.5
    assert identity.fva_fs(encoder, query, moved)["fva_embedded"] == 0.5
    assert identity.fva_fs(encoder, query, moved, threshold=0.9)["fva_embedded"] == 0
    encoder.official_for = ("fva", "fs")
    assert set(identity.fva_fs(encoder, query, moved)) == {
        "fva",
        "fs",
        "fva_random",
        "fs_random",
        "n",
    }


def test_s3_is_the_mean_cosine_and_has_its_name_from_simsiam_alone():
    query, moved = looking(0, 10), looking(60, 10)
    assert identity.s3(Direction(), query, moved)["s3_embedded"] == pytest.approx(0.75, abs=1e-6)
    assert "s3" in encoders.SimSiam.official_for and "s3" not in encoders.FaceNet.official_for
    with pytest.raises(ValueError, match="as many as a"):
        identity.s3(Direction(), query, moved[:1])


# ---------------------------------------------------------------- attributes


def test_readings_are_logits_above_zero():
    x = torch.tensor([[[[0.2]], [[0.5]], [[0.9]]], [[[0.6]], [[0.4]], [[0.1]]]])
    oracle = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        oracle[1].weight.copy_(torch.eye(3))
        oracle[1].bias.fill_(-0.45)
    assert attributes.read_attributes(oracle, x, batch_size=1).tolist() == [
        [False, True, True],
        [True, False, False],
    ]
    with pytest.raises(ValueError, match=r"expected finite \(B, A\)"):
        attributes.read_attributes(oracle, x * torch.nan)


def cd_by_hand(before, after, labels, q):
    """Attribute after attribute with numpy's corrcoef; what it cannot define counts 0."""
    change, total = after.astype(float) - before, 0.0
    for a in range(before.shape[1]):
        with np.errstate(all="ignore"):
            rho = [
                np.nan_to_num(np.corrcoef(v[:, q], v[:, a])[0, 1])
                for v in (labels.astype(float), change)
            ]
        total += abs(rho[0] - rho[1])
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 5), st.floats(0, 1))
def test_mnac_and_cd_attribute_after_attribute(seed, n, width, p):
    rng = np.random.default_rng(seed)
    before, after = rng.random((n, width)) < 0.5, rng.random((n, width)) < p
    labels = rng.random((20, width)) < 0.3
    q = seed % width
    b, a = torch.from_numpy(before), torch.from_numpy(after)
    assert attributes.attributes_changed(b, a).tolist() == [
        sum(x != y for x, y in zip(r, s, strict=True))
        for r, s in zip(before.tolist(), after.tolist(), strict=True)
    ]
    training = attributes.correlations(torch.from_numpy(labels), q)
    got = attributes.correlation_difference(b, a, training, q)
    assert got == pytest.approx(cd_by_hand(before, after, labels, q), abs=1e-9)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert attributes.correlation_difference(b[order], a[order], training, q) == pytest.approx(
        got, abs=1e-9
    )


def test_reference_points_of_cd():
    before = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]]).bool()
    both, alone = ~before, torch.stack([~before[:, 0], before[:, 1]], 1)
    tied = attributes.correlations(before, 0)  # in training both go together: (1, 1)
    assert attributes.correlation_difference(before, both, tied, 0) == pytest.approx(
        0
    )  # moved together: as in the data
    assert attributes.correlation_difference(before, alone, tied, 0) == pytest.approx(
        1
    )  # only the one asked for
    assert attributes.correlation_difference(before, before, tied, 0) == pytest.approx(
        2
    )  # nothing moved
    assert attributes.correlation_difference(before[:2], both[:2], tied, 0) == pytest.approx(
        2
    )  # all one way: no spread either
    for bad in ((before.long(), both), (before, both[:2])):
        with pytest.raises(ValueError, match="expected two bool"):
            attributes.correlation_difference(*bad, tied, 0)
    with pytest.raises(ValueError, match=r"training: got \(3,\)"):
        attributes.correlation_difference(before, both, torch.zeros(3), 0)
    with pytest.raises(ValueError, match="one of its columns"):
        attributes.correlations(before, 2)


# ---------------------------------------------------------------- the published networks


def normalised(y, at):
    """Batch normalisation with running statistics, from the tensors that `at(kind)` finds."""
    mean, variance, scale, shift = (
        at(k).view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / (variance + 1e-5).sqrt() * scale + shift


def caffe_forward(y, at):
    """VGGFace2's ResNet-50 (Cao et al., 2018) layer by layer; at(stage, block, part, kind) finds a tensor, stage 1 the stem."""
    y = normalised(
        F.conv2d(y, at(1, 1, "conv1", "weight"), stride=2, padding=3), lambda k: at(1, 1, "bn1", k)
    ).clamp(min=0)
    y = F.max_pool2d(
        F.pad(y, (0, 1, 0, 1), value=-torch.inf), 3, 2
    )  # even sizes: pooling that rounds up
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            z = y
            for part, s, p in (("1", stride, 0), ("2", 1, 1), ("3", 1, 0)):
                z = F.conv2d(z, at(stage, block, "conv" + part, "weight"), stride=s, padding=p)
                z = normalised(z, lambda k, s=stage, b=block, part=part: at(s, b, "bn" + part, k))
                z = z.clamp(min=0) if part != "3" else z
            if block == 1:
                y = F.conv2d(y, at(stage, 1, "downsample.0", "weight"), stride=stride)
                y = normalised(y, lambda k, s=stage: at(s, 1, "downsample.1", k))
            y = (y + z).clamp(min=0)
    return y.mean((2, 3))


def residual(seed=0) -> dict[str, torch.Tensor]:
    """Random weights of a ResNet-50 under torchvision's names, without the last layer and without counters."""
    gen, state = torch.Generator().manual_seed(seed), {}
    with torch.device("meta"):
        shapes = models.resnet50(weights=None).state_dict()
    for k, v in shapes.items():
        if k.endswith("num_batches_tracked") or k.startswith("fc."):
            continue
        if v.ndim == 1:
            state[k] = torch.rand(v.shape, generator=gen) + 0.5
        else:
            state[k] = torch.randn(v.shape, generator=gen) * (2 / v[0].numel()) ** 0.5
    return state


def plain(state):
    """A finder of tensors under torchvision's names."""

    def at(stage, block, part, kind):
        return state[
            f"{part}.{kind}" if stage == 1 else f"layer{stage - 1}.{block - 1}.{part}.{kind}"
        ]

    return at


CAFFE = {
    "conv1": "1x1_reduce",
    "bn1": "1x1_reduce_bn",
    "conv2": "3x3",
    "bn2": "3x3_bn",
    "conv3": "1x1_increase",
    "bn3": "1x1_increase_bn",
    "downsample.0": "1x1_proj",
    "downsample.1": "1x1_proj_bn",
}


def in_caffe(state, before=""):
    """The same weights under the names of the oracles' files."""
    out = {}
    for k, v in state.items():
        place, kind = k.rsplit(".", 1)
        if place in ("conv1", "bn1"):
            new = "conv1_7x7_s2" + "_bn" * (place == "bn1")
        else:
            layer, block, part = place.split(".", 2)
            new = f"conv{int(layer[5:]) + 1}_{int(block) + 1}_{CAFFE[part]}"
        out[f"{before}{new}.{kind}"] = v
    return out


def test_the_face_network_layer_by_layer(tmp_path, monkeypatch):
    """From a picture in 8 bits, resized by PIL as the official code does: resizing, channel order, means, strides, pooling."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    state = residual()
    path = tmp_path / pretrained.FILES["vggface2"].file
    path.write_bytes(
        pickle.dumps(
            {k: v.numpy() for k, v in state.items()}
            | {"fc.weight": np.zeros((2, 2048), np.float32)},
            3,
        )
    )
    picture = (
        np.random.default_rng(0)
        .integers(0, 256, (9, 9, 3), dtype=np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )  # 72 x 72
    net = encoders.load("vggface2")
    got = net(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    large = np.array(
        Image.fromarray(picture).resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32
    )
    y = torch.from_numpy(
        large[:, :, ::-1] - np.array([91.4953, 103.8827, 131.0912], np.float32)
    ).permute(2, 0, 1)[None]
    expected = caffe_forward(y, plain(state))
    error = ((got - expected).norm() / expected.norm()).item()
    assert got.shape == (1, 2048) and error < 0.002  # measured 0.0003 (8 bits); RGB: 0.035
    assert net.threshold == 0.5
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no pickle of numpy arrays"):
        encoders.load("vggface2")


@pytest.mark.parametrize("kind", ["celeba", "celebahq"])
def test_the_published_oracles_layer_by_layer(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="MNAC and CD on"):
        PublishedOracle(kind)
    gen, state = torch.Generator().manual_seed(1), residual(1)
    head = {
        "weight": torch.randn(40, 128 if kind == "celeba" else 2048, generator=gen),
        "bias": torch.randn(40, generator=gen),
    }
    narrow = torch.randn(128, 2048, 1, 1, generator=gen)
    path = tmp_path / pretrained.FILES[f"{kind}_oracle"].file
    if kind == "celeba":
        torch.save(
            {"feat_extract": in_caffe(state) | {"feat_extract.weight": narrow}, "classifier": head},
            path,
        )
    else:
        named = in_caffe(state, "feat_extract.") | {f"classifier.{k}": v for k, v in head.items()}
        torch.save({"model_state_dict": named, "epoch": 3}, path)
    x = torch.rand(1, 3, 20, 20, generator=gen)
    if kind == "celeba":
        y = x[:, [2, 1, 0]] - torch.tensor([131.0912, 103.8827, 91.4953]).view(1, 3, 1, 1) / 255
    else:
        y = 2 * x - 1
    deep = caffe_forward(F.interpolate(y, (224, 224), mode="bicubic"), plain(state))
    expected = (deep @ narrow[:, :, 0, 0].T if kind == "celeba" else deep) @ head[
        "weight"
    ].T + head["bias"]
    torch.testing.assert_close(
        PublishedOracle(kind)(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
    if kind == "celebahq":
        other = PublishedOracle(kind, normalise_twice=True)(x)
        assert (
            (other - expected).norm() / expected.norm()
        ) > 0.1  # measured 1.1: the mistake gives another scale
        torch.save(
            {"model_state_dict": {k: v for k, v in named.items() if "conv5_3" not in k}}, path
        )
        with pytest.raises(ValueError, match=r"0\.layer4\.2\.bn1\.bias: file absent"):
            PublishedOracle(kind)
    with pytest.raises(ValueError, match="kind, normalise_twice"):
        PublishedOracle("bdd")


def test_simsiam_is_the_encoder_up_to_its_projector(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    gen, state = torch.Generator().manual_seed(2), residual(2)
    projector = {f"fc.{i}.weight": torch.randn(2048, 2048, generator=gen) * 0.03 for i in (0, 3, 6)}
    projector["fc.6.bias"] = torch.zeros(2048)
    for i in (1, 4, 7):
        kinds = (
            ("running_mean", "running_var")
            if i == 7
            else ("running_mean", "running_var", "weight", "bias")
        )
        projector |= {f"fc.{i}.{k}": torch.rand(2048, generator=gen) + 0.5 for k in kinds}
    saved = {f"module.encoder.{k}": v for k, v in (state | projector).items()} | {
        "module.predictor.0.weight": torch.zeros(2, 2)
    }
    torch.save({"epoch": 100, "state_dict": saved}, tmp_path / pretrained.FILES["simsiam"].file)
    x = torch.rand(2, 3, 32, 48, generator=gen)
    trunk = models.resnet50(weights=None)
    trunk.fc = nn.Identity()
    trunk.load_state_dict(state, strict=False)
    with torch.no_grad():
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        z = trunk.eval()((x - mean) / std)
    for i in (0, 3, 6):
        z = z @ projector[f"fc.{i}.weight"].T
        at = {
            k: projector.get(f"fc.{i + 1}.{k}")
            for k in ("running_mean", "running_var", "weight", "bias")
        }
        z = (z - at["running_mean"]) / (at["running_var"] + 1e-5).sqrt()
        z = (z * at["weight"] + at["bias"]).clamp(min=0) if i < 6 else z
    torch.testing.assert_close(
        encoders.load("simsiam")(x), z, rtol=1e-3, atol=1e-3 * float(z.abs().max())
    )
