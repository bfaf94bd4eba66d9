"""File primitives: atomic writes, permissions, leftovers of killed processes, hashes, downloads."""

from __future__ import annotations

import json
import os
import signal
import stat

import pytest
import torch
from torch import nn

from cf_utils.core import files
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card

WRITERS = ("text", "json", "tensors", "checkpoint", "fetch")


def write(writer, folder, value):
    """Write `value` to `folder`/f with one of the project's writers."""
    if writer == "text":
        files.write_text(folder / "f", str(value) * 1000)
    elif writer == "json":
        files.write_json(folder / "f", [value] * 1000)
    elif writer == "tensors":
        files.write_tensors(folder / "f", {"a": torch.full((500,), float(value))})
    elif writer == "fetch":
        source = folder / f"source {value}"
        source.write_text(str(value) * 1000)
        files.fetch(source.as_uri(), folder / "f", files.sha256(source))
    else:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, value)
        checkpoints.save("f", model, Card(extra={"value": value}), folder)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "deep" / "f.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.whole_file(path) as part:
        part.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]  # nothing is left beside it
    files.write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_kill_around_the_rename_leaves_a_whole_file(tmp_path, writer, when):
    """A writer killed just before or after os.replace leaves the old file or the new one."""
    rename = os.replace

    def killed(a, b):
        if when == "after":
            rename(a, b)
        os.kill(os.getpid(), signal.SIGKILL)

    write(writer, tmp_path, 1)
    child = os.fork()
    if child == 0:
        os.replace = killed
        try:
            write(writer, tmp_path, 2)
        finally:
            os._exit(0)  # not reached: killed at the rename
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    value = 2 if when == "after" else 1
    if writer in ("text", "fetch"):
        assert (tmp_path / "f").read_text() == str(value) * 1000
    elif writer == "json":
        assert files.read_json(tmp_path / "f") == [value] * 1000
    elif writer == "tensors":
        expected = torch.full((500,), float(value))
        assert torch.equal(files.read_tensors(tmp_path / "f")["a"], expected)
    elif when == "before":
        card = checkpoints.load_weights("f", nn.Linear(2, 2), tmp_path)
        assert card.extra["value"] == 1
    else:  # new weights beside the old card: refused, because they come from two trainings
        with pytest.raises(ValueError, match="as in its card"):
            checkpoints.load_weights("f", nn.Linear(2, 2), tmp_path)


def test_processes_with_equal_ids_write_to_different_temporary_files(tmp_path, monkeypatch):
    """Two containers, or two nodes that share a folder, may run processes with the same id."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "f"
    with files.whole_file(path) as first:
        with files.whole_file(path) as second:
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second" and first.exists()
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(files.platform, "node", lambda: "a/node name")
    with files.whole_file(path) as part:
        assert part.name.startswith("f.part-a_node_name-7-") and part.parent == tmp_path


def test_temporary_files_of_killed_processes_are_removed_after_a_day(tmp_path, monkeypatch):
    path, other = tmp_path / "f[1]", tmp_path / "g.part-host-1-0a"
    left, foreign = tmp_path / "f[1].part-host-1-0a", tmp_path / "f1.part-host-1-0a"
    for part in (left, other, foreign):
        part.write_text("half")
    now = files.time.time()
    files.write_text(path, "x")
    assert left.exists()  # another process may still write it
    monkeypatch.setattr(files.time, "time", lambda: now + 2 * 24 * 3600)
    files.write_text(path, "y")
    assert sorted(tmp_path.iterdir()) == sorted([path, other, foreign])  # of this file only


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_honours_the_umask(tmp_path, writer, umask):
    before = os.umask(umask)
    try:
        write(writer, tmp_path, 1)
    finally:
        os.umask(before)
    written = [p for p in tmp_path.iterdir() if not p.name.startswith("source")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in written} == {0o666 & ~umask}


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


def test_the_hash_depends_on_shape_dtype_values_and_order(tmp_path):
    a = torch.arange(6.0)
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256(tmp_path / "f") == files.sha256(b"abc") == files.sha256("abc")
    assert len({files.sha256(t) for t in (a, a.view(2, 3), a.double(), a + 1e-6)}) == 4
    assert files.sha256(a.view(2, 3).T) == files.sha256(a.view(2, 3).T.contiguous())
    assert files.sha256("a", a) != files.sha256(a, "a")


def test_a_download_is_verified(tmp_path):
    source, path = tmp_path / "source", tmp_path / "to" / "f"
    source.write_bytes(b"the data")
    url, good = source.as_uri(), files.sha256(b"the data")
    with pytest.raises(ValueError, match=r"got sha256 .*, expected 000000000000\.\.\."):
        files.fetch(url, path, "0" * 64)
    assert not path.exists()
    assert files.fetch(url, path, good).read_bytes() == b"the data"
    path.write_bytes(b"the da")  # cut off: fetched again
    assert files.fetch(url, path, good).read_bytes() == b"the data"
    source.unlink()
    assert files.fetch(url, path, good) == path  # whole: the source is not contacted
    path.write_bytes(b"broken")
    with pytest.raises(OSError, match="source"):
        files.fetch(url, path, good)
    assert path.read_bytes() == b"broken"
    assert not list(path.parent.glob("*.part-*"))
