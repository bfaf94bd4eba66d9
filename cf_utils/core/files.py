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
CHECKPOINTS = ROOT / "results" / "checkpoints"


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


def save_checkpoint(
    name: str, module: nn.Module, card: dict, folder: Path = CHECKPOINTS, half: bool = True
) -> Path:
    """Write `<name>.safetensors` and its card `<name>.json`; floats as float16 unless `half` is False.

    The card gets the file's hash, so a weights file and a card of two trainings are never taken for a pair.
    """
    state = {
        k: v.half() if half and v.is_floating_point() else v for k, v in module.state_dict().items()
    }
    path = folder / f"{name}.safetensors"
    write_tensors(path, state)
    parameters = sum(p.numel() for p in module.parameters())
    write_json(
        path.with_suffix(".json"),
        {"name": name, **card, "parameters": parameters, "sha256": sha256(path)},
    )
    return path


def load_checkpoint(name: str, module: nn.Module, folder: Path = CHECKPOINTS) -> dict:
    """Fill `module` from `<name>.safetensors`, set it to eval mode, and return the card.

    Raises FileNotFoundError when it is missing, ValueError when it belongs to another card or another architecture.
    """
    path = folder / f"{name}.safetensors"
    for p in (path, path.with_suffix(".json")):
        if not p.exists():
            raise FileNotFoundError(
                f"{p} is missing; `python -m cf_utils.training.recipes {name} --data DIR` makes it"
            )
    card = read_json(path.with_suffix(".json"))
    if (found := sha256(path)) != card["sha256"]:
        raise ValueError(
            f"{path}: sha256 {found[:12]}..., its card says {card['sha256'][:12]}...; make it again"
        )
    state, own = read_tensors(path), module.state_dict()
    if wrong := misfits(state, own):
        raise ValueError(f"{path} does not fit {type(module).__name__}: " + "; ".join(wrong[:8]))
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
    channels_last(module).eval()
    return card


def channels_last(module: nn.Module) -> nn.Module:
    """Lay the weights of 2-d convolutions out as CPUs and tensor cores like them best; returns the module. A pass on a CPU takes
    0.7 to 0.9 of the time (`benchmarks/layout.py`; digits' networks gain nothing), its result differs by rounding."""
    for w in module.parameters():
        if w.ndim == 4:
            w.data = w.data.contiguous(memory_format=torch.channels_last)
    return module


def misfits(state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """What of a file's weights does not fit a model's, by name with both shapes; empty when all do."""

    def shape(s: dict, k: str):
        return (
            "absent"
            if k not in s
            else tuple(s[k].shape)
            if isinstance(s[k], Tensor)
            else f"a {type(s[k]).__name__}"
        )

    shapes = {
        k: [shape(s, k) for s in (state, own)] for k in sorted(map(str, state.keys() | own.keys()))
    }
    return [f"{k}: file {a}, model {b}" for k, (a, b) in shapes.items() if a != b]


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
