"""Files: written whole or not at all, and never unpickled.

Every writer of this project ends in `whole_file`: the content goes to a temporary name in the same folder and is renamed,
so a run killed at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, remove it when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content) -> None:
    """Strict JSON (no NaN: a reader in another language must be able to read it), keys in the order given."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    with whole_file(path) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (safe_open is no dict)


def sha256(*parts: bytes | str | Tensor | Path) -> str:
    """Hash of byte strings, texts, tensors (shape, dtype, values) and files (as Path), in the order given."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as f:
                while block := f.read(1 << 20):
                    h.update(block)
        elif isinstance(part, Tensor):
            h.update(f"{part.dtype}{tuple(part.shape)}".encode())
            h.update(
                part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        else:
            h.update(part.encode() if isinstance(part, str) else part)
    return h.hexdigest()


def module_sha256(module: nn.Module) -> str:
    """Hash of a module's weights and buffers, by name, independent of the device they are on."""
    return sha256(*(p for k, v in sorted(module.state_dict().items()) for p in (k, v)))


def read_published(path: str | Path) -> dict:
    """What somebody else's weights file holds: safetensors, or torch's format with `weights_only=True`, on the CPU.

    FileNotFoundError; ValueError where the file is neither, or asks for code to be run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        safetensors.SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
    ) as e:
        raise ValueError(
            f"{path}: no safetensors and no torch file of tensors alone: {e!s:.200}"
        ) from e
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    return content


def fetch(url: str, path: str | Path, sha256_: str) -> Path:
    """Download `url` to `path` unless a file with the right hash is there; a file with another hash is fetched anew.

    Raises ValueError when what came has another hash; nothing is left at `path` then that was not there before.
    """
    path = Path(path)
    if path.exists() and sha256(path) == sha256_:
        return path
    with whole_file(path) as part:
        with urllib.request.urlopen(url, timeout=60) as source, open(part, "wb") as f:
            while block := source.read(1 << 20):
                f.write(block)
        if (found := sha256(part)) != sha256_:
            raise ValueError(f"{url}: sha256 {found[:12]}... came, expected {sha256_[:12]}...")
    return path
