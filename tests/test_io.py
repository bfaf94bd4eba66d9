"""Files are whole or old; checkpoints say what does not fit; fetching verifies."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from torch import nn

from cf_utils.core import files
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "deep" / "f.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.whole_file(path) as part:
        part.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]  # and nothing is left beside it
    files.write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("writer", ["text", "json", "tensors", "checkpoint", "fetch"])
def test_sigkill_around_the_rename(tmp_path, writer, when):
    """Killed just before or just after os.replace, every writer leaves the whole old file or the whole new one."""

    def write(value):
        if writer == "text":
            files.write_text(tmp_path / "f", str(value) * 1000)
        elif writer == "json":
            files.write_json(tmp_path / "f", [value] * 1000)
        elif writer == "tensors":
            files.write_tensors(tmp_path / "f", {"a": torch.full((500,), float(value))})
        elif writer == "fetch":
            source = tmp_path / f"source {value}"
            source.write_text(str(value) * 1000)
            files.fetch(source.as_uri(), tmp_path / "f", files.sha256(source))
        else:
            model = nn.Linear(2, 2)
            nn.init.constant_(model.weight, value)
            checkpoints.save("f", model, Card(extra={"value": value}), tmp_path)

    rename = os.replace

    def killed(a, b):
        if when == "after":
            rename(a, b)
        os.kill(os.getpid(), signal.SIGKILL)

    write(1)
    child = os.fork()
    if child == 0:
        os.replace = killed
        try:
            write(2)
        finally:
            os._exit(0)  # not reached: killed at the rename
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    value = 2 if when == "after" else 1
    if writer in ("text", "fetch"):
        assert (tmp_path / "f").read_text() == str(value) * 1000
    elif writer == "json":
        assert files.read_json(tmp_path / "f") == [value] * 1000
    elif writer == "tensors":
        assert torch.equal(
            files.read_tensors(tmp_path / "f")["a"], torch.full((500,), float(value))
        )
    elif when == "before":
        assert checkpoints.load_weights("f", nn.Linear(2, 2), tmp_path).extra["value"] == 1
    else:  # new weights under the old card: two trainings, never taken for a pair
        with pytest.raises(ValueError, match="as in its card"):
            checkpoints.load_weights("f", nn.Linear(2, 2), tmp_path)


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "f.json", {"a": float("nan")})
    assert not (tmp_path / "f.json").exists()
    files.write_json(tmp_path / "f.json", {"b": 1, "a": None})
    assert list(json.loads((tmp_path / "f.json").read_text())) == ["b", "a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_raises(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        files.write_text(tmp_path / "f", "x")
    tmp_path.chmod(0o700)


def test_hash_sees_shape_dtype_values_and_order(tmp_path):
    a = torch.arange(6.0)
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256(tmp_path / "f") == files.sha256(b"abc") == files.sha256("abc")
    assert len({files.sha256(t) for t in (a, a.view(2, 3), a.double(), a + 1e-6)}) == 4
    assert files.sha256(a.view(2, 3).T) == files.sha256(a.view(2, 3).T.contiguous())
    assert files.sha256("a", a) != files.sha256(a, "a")


def net(hidden=4):
    torch.manual_seed(hidden)
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden))


@pytest.mark.parametrize(("half", "error"), [(True, 2e-3), (False, 0.0)])
def test_checkpoint_round_trip(tmp_path, half, error):
    model = net().train()
    checkpoints.save("m", model, Card(about="x"), tmp_path, half=half)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    card = checkpoints.load_weights("m", other, tmp_path)
    assert card.about == "x"
    assert card.parameters == 24
    assert not other.training
    assert other[0].weight.dtype == torch.float32
    assert (other[0].weight - model[0].weight).abs().max() <= error  # float16: 2^-11 of the value
    assert other[1].num_batches_tracked.dtype == torch.int64


def test_checkpoint_that_does_not_fit(tmp_path):
    checkpoints.save("m", net(4), Card(), tmp_path)
    with pytest.raises(
        ValueError,
        match=r"fit Sequential: 0\.bias: file \(4,\), model \(5,\); 0\.weight: file \(4, 3\)",
    ):
        checkpoints.load_weights("m", net(5), tmp_path)
    with pytest.raises(ValueError, match=r"1\.bias: file \(4,\), model absent"):
        checkpoints.load_weights("m", nn.Sequential(nn.Linear(3, 4)), tmp_path)
    with pytest.raises(ValueError, match=r"2\.weight: file absent, model \(2, 4\)"):
        checkpoints.load_weights("m", nn.Sequential(*net(4), nn.Linear(4, 2)), tmp_path)
    before = net(5)
    kept = before[0].weight.clone()
    with pytest.raises(ValueError, match="fit"):
        checkpoints.load_weights("m", before, tmp_path)
    assert torch.equal(before[0].weight, kept)  # refused before anything was written into it


def test_checkpoint_missing_or_of_another_training(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"got 'm', but .*m\.json is missing; .*`cf train m`"
    ):
        checkpoints.load_weights("m", net(), tmp_path)
    path = checkpoints.save("m", net(), Card(), tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + b"\x01\x02")
    with pytest.raises(ValueError, match=r"sha256 .* as in its card"):
        checkpoints.load_weights("m", net(), tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.json"):
        checkpoints.load_weights("m", net(), tmp_path)


def test_fetch_verifies(tmp_path):
    source, path = tmp_path / "source", tmp_path / "to" / "f"
    source.write_bytes(b"the data")
    url, good = source.as_uri(), files.sha256(b"the data")
    with pytest.raises(ValueError, match="came, expected"):
        files.fetch(url, path, "0" * 64)
    assert not path.exists()
    assert files.fetch(url, path, good).read_bytes() == b"the data"
    path.write_bytes(b"the da")  # broken off: fetched anew
    assert files.fetch(url, path, good).read_bytes() == b"the data"
    source.unlink()
    assert files.fetch(url, path, good) == path  # whole: nothing is asked of the source
    path.write_bytes(b"broken")
    with pytest.raises(OSError, match="source"):
        files.fetch(url, path, good)
    assert path.read_bytes() == b"broken"
    assert not list(path.parent.glob("*.part-*"))


def test_a_loaded_network_convolves_channels_last_and_says_the_same(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).double()
    checkpoints.save("c", net, Card(), tmp_path)
    other = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).double()
    checkpoints.load_weights("c", other, tmp_path)
    wide = [p for p in other.parameters() if p.ndim == 4]
    assert len(wide) == 2 and all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    assert not wide[0].is_contiguous()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        other(x), net.half().double()(x), rtol=1e-9, atol=1e-9
    )  # stored in float16
