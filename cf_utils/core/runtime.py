"""Devices, seeds, noise that depends on the item alone, progress bars."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else CPU. Any other name goes to torch.device as it is."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_of(module: nn.Module, otherwise: torch.device | str = "cpu") -> torch.device:
    """Where a module's parameters are; `otherwise` for one that has none. Data stay where they are: a network is asked on its own
    device and answers on that of its input."""
    return next((p.device for p in module.parameters()), torch.device(otherwise))


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch and numpy's global generators; return a fresh CPU generator with the same seed for explicit use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that we call draw from it)
    return torch.Generator().manual_seed(seed)


def item_noise(
    seed: int, ids: Tensor | Sequence[str], shape: Sequence[int], stream: str, kind: str = "normal"
) -> Tensor:
    """Noise (B, *shape) that depends on (seed, id, stream) alone: not on the batch, the shard or the order.

    Drawn in float32 on the CPU from a SHA-256 of the three; the caller casts and moves it. `kind`: normal N(0, 1) or
    uniform U[0, 1).
    """
    rows = []
    for i in ids.tolist() if isinstance(ids, Tensor) else ids:
        digest = hashlib.sha256(f"{seed}|{i}|{stream}".encode()).digest()
        gen = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows.append((torch.randn if kind == "normal" else torch.rand)(tuple(shape), generator=gen))
    return torch.stack(rows)


def headless() -> bool:
    """True where nobody watches: papermill and nbval runs (CF_HEADLESS), or a stderr that is no terminal."""
    return bool(os.environ.get("CF_HEADLESS")) or not (
        "ipykernel" in sys.modules or sys.stderr.isatty()
    )


def progress(items: Iterable | None = None, **kw) -> tqdm:
    """tqdm.auto, quiet when headless."""
    return tqdm(items, disable=headless(), **kw)
