"""FVA, FS, S3, MNAC, CD in closed form; published face networks against plain forward passes."""

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
    """Encodes red and green of the first pixel, minus a half: a direction in the plane."""

    def __init__(self, threshold=None, official_for=()):
        super().__init__()
        self.threshold, self.official_for = threshold, official_for

    def forward(self, x):
        return x[:, :2, 0, 0] - 0.5


def make_images(*degrees):
    """Images (N, 3, 2, 2) that `Direction` encodes as these angles."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    x = torch.full((len(degrees), 3, 2, 2), 0.3)
    x[:, :2, 0, 0] = 0.5 + 0.4 * torch.stack([angle.cos(), angle.sin()], 1).float()
    return x


def test_fva_and_fs_have_a_closed_form():
    query, changed = make_images(0, 10, 90, 200), make_images(0, 69, 149, 20)  # by 0, 59, 59, 180
    found = identity.fva_fs(Direction(), query, changed, threshold=0.5)
    assert found["n"] == 4
    assert found["fva_embedded"] == 0.75  # 0.25 if the cosine distance were compared
    cosines = np.cos(np.deg2rad([0, 59, 59, 180]))
    assert found["fs_embedded"] == pytest.approx(cosines.mean(), abs=1e-6)
    same = identity.fva_fs(Direction(), query, query, threshold=0.5)
    assert (same["fva_embedded"], same["fs_embedded"]) == (1, pytest.approx(1))
    opposite = identity.fva_fs(Direction(), query, 1 - query, threshold=0.5)
    assert (opposite["fva_embedded"], opposite["fs_embedded"]) == (0, pytest.approx(-1))


def test_floor_pairs_each_query_with_another_one():
    orthogonal = features.Features(torch.eye(7), "Toy", ())
    for seed in range(5):
        assert identity.random_similarity(orthogonal, seed).tolist() == [0] * 7
    query = make_images(0, 0, 120, 240)
    found = identity.fva_fs(Direction(), query, query, threshold=0.5)
    assert found["fs_embedded_random"] < 1 and found["fva_embedded_random"] <= 0.25
    with pytest.raises(ValueError, match="at least 2"):
        identity.random_similarity(features.Features(torch.eye(1), "Toy", ()))


def test_threshold_is_the_arguments_or_the_encoders():
    query, changed = make_images(0, 0), make_images(50, 70)  # cosines 0.64 and 0.34
    with pytest.raises(ValueError, match="threshold: got None for Direction"):
        identity.fva_fs(Direction(), query, changed)
    for own, argument, expected in ((0.3, None, 1), (0.5, None, 0.5), (0.5, 0.9, 0)):
        found = identity.fva_fs(Direction(own), query, changed, threshold=argument)
        assert found["fva_embedded"] == expected
    official = identity.fva_fs(Direction(0.5, ("fva", "fs")), query, changed)
    assert set(official) == {"fva", "fs", "fva_random", "fs_random", "n"}


def test_s3_is_the_mean_cosine_and_has_its_name_only_with_simsiam():
    query, changed = make_images(0, 10), make_images(60, 10)
    found = identity.s3(Direction(), query, changed)
    assert found["s3_embedded"] == pytest.approx(0.75, abs=1e-6)
    assert "s3" in encoders.SimSiam.official_for and "s3" not in encoders.FaceNet.official_for
    with pytest.raises(ValueError, match="as many as a"):
        identity.s3(Direction(), query, changed[:1])


# ---------------------------------------------------------------- attributes


def test_attributes_are_present_where_logits_are_positive():
    x = torch.tensor([[[[0.2]], [[0.5]], [[0.9]]], [[[0.6]], [[0.4]], [[0.1]]]])
    oracle = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        oracle[1].weight.copy_(torch.eye(3))
        oracle[1].bias.fill_(-0.45)
    found = attributes.read_attributes(oracle, x, batch_size=1)
    assert found.tolist() == [[False, True, True], [True, False, False]]
    with pytest.raises(ValueError, match=r"expected finite \(B, A\)"):
        attributes.read_attributes(oracle, x * torch.nan)


def cd_by_hand(before, after, labels, q):
    """CD by numpy's corrcoef, attribute by attribute; undefined correlations count 0."""
    change, total = after.astype(float) - before, 0.0
    for a in range(before.shape[1]):
        with np.errstate(all="ignore"):
            in_training, in_changes = (
                np.nan_to_num(np.corrcoef(v[:, q], v[:, a])[0, 1])
                for v in (labels.astype(float), change)
            )
        total += abs(in_training - in_changes)
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 5), st.floats(0, 1))
def test_mnac_and_cd_equal_loops_over_attributes(seed, n, width, p):
    rng = np.random.default_rng(seed)
    before, after = rng.random((n, width)) < 0.5, rng.random((n, width)) < p
    labels = rng.random((20, width)) < 0.3
    q = seed % width
    b, a = torch.from_numpy(before), torch.from_numpy(after)
    rows = zip(before.tolist(), after.tolist(), strict=True)
    expected = [sum(x != y for x, y in zip(r, s, strict=True)) for r, s in rows]
    assert attributes.attributes_changed(b, a).tolist() == expected
    training = attributes.correlations(torch.from_numpy(labels), q)
    found = attributes.correlation_difference(b, a, training, q)
    assert found == pytest.approx(cd_by_hand(before, after, labels, q), abs=1e-9)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = attributes.correlation_difference(b[order], a[order], training, q)
    assert shuffled == pytest.approx(found, abs=1e-9)


def test_cd_of_two_attributes_that_go_together_in_training():
    before = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]]).bool()
    both, first_alone = ~before, torch.stack([~before[:, 0], before[:, 1]], 1)
    training = attributes.correlations(before, 0)  # (1, 1)

    def cd(before, after):
        return attributes.correlation_difference(before, after, training, 0)

    assert cd(before, both) == pytest.approx(0)  # changed together, as in the data
    assert cd(before, first_alone) == pytest.approx(1)
    assert cd(before, before) == pytest.approx(2)  # no change: every correlation is undefined
    assert cd(before[:2], both[:2]) == pytest.approx(2)  # one direction: undefined, too


def test_invalid_attributes_are_refused():
    before = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]]).bool()
    training = attributes.correlations(before, 0)
    for bad in ((before.long(), ~before), (before, ~before[:2])):
        with pytest.raises(ValueError, match="expected two bool"):
            attributes.correlation_difference(*bad, training, 0)
    with pytest.raises(ValueError, match=r"training: got \(3,\)"):
        attributes.correlation_difference(before, ~before, torch.zeros(3), 0)
    with pytest.raises(ValueError, match="one of its columns"):
        attributes.correlations(before, 2)


# ---------------------------------------------------------------- published networks


def batch_norm(y, at):
    """Normalise by running statistics; `at(kind)` returns a tensor."""
    mean, variance, scale, shift = (
        at(k).view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / (variance + 1e-5).sqrt() * scale + shift


def forward_by_hand(y, at):
    """VGGFace2's ResNet-50 (Cao et al., 2018), layer by layer.

    `at(stage, block, part, kind)` returns a tensor; stage 1 is the stem.
    """
    y = F.conv2d(y, at(1, 1, "conv1", "weight"), stride=2, padding=3)
    y = batch_norm(y, lambda k: at(1, 1, "bn1", k)).clamp(min=0)
    y = F.pad(y, (0, 1, 0, 1), value=-torch.inf)  # even sizes: pooling that rounds up
    y = F.max_pool2d(y, 3, 2)
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            z = y
            for part, s, p in (("1", stride, 0), ("2", 1, 1), ("3", 1, 0)):
                z = F.conv2d(z, at(stage, block, "conv" + part, "weight"), stride=s, padding=p)
                z = batch_norm(z, lambda k, s=stage, b=block, part=part: at(s, b, "bn" + part, k))
                z = z.clamp(min=0) if part != "3" else z
            if block == 1:
                y = F.conv2d(y, at(stage, 1, "downsample.0", "weight"), stride=stride)
                y = batch_norm(y, lambda k, s=stage: at(s, 1, "downsample.1", k))
            y = (y + z).clamp(min=0)
    return y.mean((2, 3))


def draw_resnet(seed=0) -> dict[str, torch.Tensor]:
    """Random weights of a ResNet-50 by torchvision's names, without the last layer."""
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


def find_tensor(state):
    """Return the `at` of `forward_by_hand` for weights by torchvision's names."""

    def at(stage, block, part, kind):
        layer = part if stage == 1 else f"layer{stage - 1}.{block - 1}.{part}"
        return state[f"{layer}.{kind}"]

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


def rename_for_caffe(state, prefix=""):
    """Rename weights as in the files of the oracles."""
    out = {}
    for k, v in state.items():
        place, kind = k.rsplit(".", 1)
        if place in ("conv1", "bn1"):
            new = "conv1_7x7_s2" + "_bn" * (place == "bn1")
        else:
            layer, block, part = place.split(".", 2)
            new = f"conv{int(layer[5:]) + 1}_{int(block) + 1}_{CAFFE[part]}"
        out[f"{prefix}{new}.{kind}"] = v
    return out


def test_face_network_equals_a_plain_forward_pass_of_an_8_bit_image(tmp_path, monkeypatch):
    """Covers the resizing by PIL, channel order, means, strides and pooling."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    state = draw_resnet()
    path = tmp_path / pretrained.FILES["vggface2"].file
    arrays = {k: v.numpy() for k, v in state.items()}
    arrays["fc.weight"] = np.zeros((2, 2048), np.float32)
    path.write_bytes(pickle.dumps(arrays, 3))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # 72 x 72
    net = encoders.load("vggface2")
    found = net(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    enlarged = Image.fromarray(picture).resize((224, 224), Image.Resampling.BILINEAR)
    bgr = np.array(enlarged, dtype=np.float32)[:, :, ::-1]
    y = bgr - np.array([91.4953, 103.8827, 131.0912], np.float32)
    expected = forward_by_hand(torch.from_numpy(y).permute(2, 0, 1)[None], find_tensor(state))
    error = ((found - expected).norm() / expected.norm()).item()
    assert found.shape == (1, 2048) and error < 0.002  # measured 0.0003; 0.035 with RGB
    assert net.threshold == 0.5
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no pickle of numpy arrays"):
        encoders.load("vggface2")


@pytest.fixture(params=["celeba", "celebahq"])
def published(request, tmp_path, monkeypatch):
    """A published oracle's file with random weights: its kind, path, content and weights."""
    kind = request.param
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    gen, state = torch.Generator().manual_seed(1), draw_resnet(1)
    width = 128 if kind == "celeba" else 2048
    head = {
        "weight": torch.randn(40, width, generator=gen),
        "bias": torch.randn(40, generator=gen),
    }
    narrow = torch.randn(128, 2048, 1, 1, generator=gen)
    if kind == "celeba":
        trunk = rename_for_caffe(state) | {"feat_extract.weight": narrow}
        content = {"feat_extract": trunk, "classifier": head}
    else:
        named = rename_for_caffe(state, "feat_extract.")
        named |= {f"classifier.{k}": v for k, v in head.items()}
        content = {"model_state_dict": named, "epoch": 3}
    path = tmp_path / pretrained.FILES[f"{kind}_oracle"].file
    return kind, path, content, (state, narrow, head), torch.rand(1, 3, 20, 20, generator=gen)


def oracle_by_hand(kind, weights, x):
    """Logits of a published oracle for images x."""
    state, narrow, head = weights
    if kind == "celeba":
        y = x[:, [2, 1, 0]] - torch.tensor([131.0912, 103.8827, 91.4953]).view(1, 3, 1, 1) / 255
    else:
        y = 2 * x - 1
    deep = forward_by_hand(F.interpolate(y, (224, 224), mode="bicubic"), find_tensor(state))
    deep = deep @ narrow[:, :, 0, 0].T if kind == "celeba" else deep
    return deep @ head["weight"].T + head["bias"]


def test_published_oracles_equal_plain_forward_passes(published):
    kind, path, content, weights, x = published
    with pytest.raises(FileNotFoundError, match="MNAC and CD on"):
        PublishedOracle(kind)
    torch.save(content, path)
    expected = oracle_by_hand(kind, weights, x)
    bound = 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(PublishedOracle(kind)(x), expected, rtol=1e-3, atol=bound)
    with pytest.raises(ValueError, match="kind, normalise_twice"):
        PublishedOracle("bdd")
    if kind == "celeba":
        return
    twice = PublishedOracle(kind, normalise_twice=True)(x)  # normalised twice, as in ACE's script
    assert (twice - expected).norm() / expected.norm() > 0.1  # measured 1.1
    named = content["model_state_dict"]
    incomplete = {k: v for k, v in named.items() if "conv5_3" not in k}
    torch.save({"model_state_dict": incomplete}, path)
    with pytest.raises(ValueError, match=r"0\.layer4\.2\.bn1\.bias: file absent"):
        PublishedOracle(kind)


def draw_projector(gen):
    """Random weights of SimSiam's projector; its last batch norm has no scale and shift."""
    projector = {f"fc.{i}.weight": torch.randn(2048, 2048, generator=gen) * 0.03 for i in (0, 3, 6)}
    projector["fc.6.bias"] = torch.zeros(2048)
    statistics = ("running_mean", "running_var")
    for i in (1, 4, 7):
        kinds = statistics if i == 7 else (*statistics, "weight", "bias")
        projector |= {f"fc.{i}.{k}": torch.rand(2048, generator=gen) + 0.5 for k in kinds}
    return projector


def test_simsiam_features_equal_a_plain_pass_through_its_projector(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    gen, state = torch.Generator().manual_seed(2), draw_resnet(2)
    projector = draw_projector(gen)
    saved = {f"module.encoder.{k}": v for k, v in (state | projector).items()}
    saved["module.predictor.0.weight"] = torch.zeros(2, 2)
    torch.save({"epoch": 100, "state_dict": saved}, tmp_path / pretrained.FILES["simsiam"].file)
    x = torch.rand(2, 3, 32, 48, generator=gen)
    trunk = models.resnet50(weights=None)
    trunk.fc = nn.Identity()
    trunk.load_state_dict(state, strict=False)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        z = trunk.eval()((x - mean) / std)
    for i in (0, 3, 6):
        z = z @ projector[f"fc.{i}.weight"].T
        norm = f"fc.{i + 1}."
        z = (z - projector[norm + "running_mean"]) / (projector[norm + "running_var"] + 1e-5).sqrt()
        if i < 6:
            z = (z * projector[norm + "weight"] + projector[norm + "bias"]).clamp(min=0)
    bound = 1e-3 * float(z.abs().max())
    torch.testing.assert_close(encoders.load("simsiam")(x), z, rtol=1e-3, atol=bound)
