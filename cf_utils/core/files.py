"""File primitives: atomic writes, strict JSON, tensors, hashes, safe reading of published weights.

All writers go through `whole_file`, which writes to a temporary name and renames it. A process that
is killed at any moment leaves either the old file or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import pickle
import platform
import re
import secrets
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]  # of the project
_DAY = 24 * 60 * 60  # seconds
_CHUNK = 1 << 20  # bytes read at once


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary file is removed when the block fails. Its name holds the host, the process id and
    a random token, so that containers and nodes with equal ids never share it. Temporary files of
    `path` that killed processes left more than a day ago are removed. The new file gets the
    permissions of the umask, whichever library writes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    part = _part_name(path)
    try:
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)  # as the umask sets it
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:  # safetensors makes a private file
            part.chmod(mode)
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _part_name(path: Path) -> Path:
    host = re.sub(r"[^A-Za-z0-9-]", "_", platform.node())[:40]
    return path.with_name(f"{path.name}.part-{host}-{os.getpid()}-{secrets.token_hex(4)}")


def _remove_leftovers(path: Path) -> None:
    for part in path.parent.glob(f"{glob.escape(path.name)}.part-*"):
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            if time.time() - part.stat().st_ctime > _DAY:
                part.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write strict JSON atomically, without sorting keys. Raises ValueError on NaN or infinity."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the parsed content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors atomically in safetensors format, from whatever device they are on."""
    with whole_file(path) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors file, on the CPU."""
    with safetensors.safe_open(path, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)


def sha256(*parts: bytes | str | Tensor | Path) -> str:
    """Return the SHA-256 of all parts, one after another, as a hex string.

    A `Path` stands for the content of its file. A tensor is hashed by dtype, shape and values.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as f:
                while block := f.read(_CHUNK):
                    digest.update(block)
        elif isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            values = part.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def module_sha256(module: nn.Module) -> str:
    """Return the hash of a module's parameters and buffers by name, independent of the device."""
    return sha256(*(p for k, v in sorted(module.state_dict().items()) for p in (k, v)))


def read_published(path: str | Path) -> dict[str, Any]:
    """Read a published weights file without running code: safetensors, or torch's own format.

    Tensors are on the CPU. Raises FileNotFoundError when there is no file. Raises ValueError when
    it has neither format, is not a dict, or holds anything besides tensors and plain containers.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    errors = (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError, OSError)
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except errors as e:
        raise ValueError(
            f"{path}: no safetensors and no torch file of tensors alone: {e!s:.200}"
        ) from e
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a {type(content).__name__}, expected a dict of tensors")
    return content


def fetch(url: str, path: str | Path, expected_sha256: str) -> Path:
    """Download `url` to `path`, unless a file with the expected hash is already there.

    Raises ValueError when the download has another hash; `path` then keeps what it held before.
    """
    path = Path(path)
    if path.exists() and sha256(path) == expected_sha256:
        return path
    with whole_file(path) as part:
        with urllib.request.urlopen(url, timeout=60) as source, open(part, "wb") as f:
            while block := source.read(_CHUNK):
                f.write(block)
        if (found := sha256(part)) != expected_sha256:
            raise ValueError(
                f"{url}: got sha256 {found[:12]}..., expected {expected_sha256[:12]}...; the file "
                "has changed or the download broke off"
            )
    return path
