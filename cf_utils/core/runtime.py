"""Devices, seeds, noise per item, and progress bars."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cf_utils.core.checks import Ids, check_count, to_list

BAR_DELAY = 2.0  # seconds before a search shows its progress bar


def pick_device(name: str = "auto") -> torch.device:
    """Return torch.device(name); `auto` prefers CUDA, then Apple's MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_of(module: nn.Module, otherwise: torch.device | str = "cpu") -> torch.device:
    """Return the device of a module's parameters, or `otherwise` if it has none."""
    return next((p.device for p in module.parameters()), torch.device(otherwise))


def seed_everything(seed: int) -> torch.Generator:
    """Seed torch's and numpy's global generators; return a new CPU generator with the same seed."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that we call draw from it)
    return torch.Generator().manual_seed(seed)


def draw_rows(total: int, n: int, seed: int) -> Tensor:
    """Draw n distinct row numbers out of `total`, int64 in random order; all rows if n > total.

    With equal `total` and seed, a smaller n gives the first rows of a larger one. Raises ValueError
    for n < 1.
    """
    check_count("n", n)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]


def item_noise(
    seed: int, ids: Ids, shape: Sequence[int], stream: str, kind: str = "normal"
) -> Tensor:
    """Draw noise (B, *shape) that depends on (seed, id, stream) alone, not on batch or order.

    Args:
        ids: int64 (B,) or B strings.
        stream: a name for this use of noise; other names give independent noise.
        kind: "normal", N(0, 1), or "uniform", U[0, 1).

    Returns: float32 on the CPU. The SHA-256 of (seed, id, stream) seeds each item's generator.
    """
    rows = []
    for i in to_list(ids):
        digest = hashlib.sha256(f"{seed}|{i}|{stream}".encode()).digest()
        gen = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows.append((torch.randn if kind == "normal" else torch.rand)(tuple(shape), generator=gen))
    return torch.stack(rows)


def headless() -> bool:
    """Return whether CF_HEADLESS is set, or there is neither a notebook nor a terminal."""
    return bool(os.environ.get("CF_HEADLESS")) or not (
        "ipykernel" in sys.modules or sys.stderr.isatty()
    )


def interactive() -> bool:
    """Return whether a person runs this notebook, that is, whether its front end answers `input()`.

    JupyterLab, Jupyter Notebook, VS Code and Colab do; papermill, nbval, nbclient and nbconvert do
    not. False outside of a notebook's kernel, and wherever CF_HEADLESS is set.
    """
    if os.environ.get("CF_HEADLESS") or "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent() if kernel is not None else {}
    return bool(request.get("content", {}).get("allow_stdin"))


def progress(items: Iterable | None = None, **settings: Any) -> tqdm:
    """Wrap `items` in a tqdm progress bar; a headless run prints none."""
    return tqdm(items, disable=headless(), **settings)


@contextlib.contextmanager
def search_bar(name: str, n: int) -> Generator[Callable[[Tensor], None]]:
    """Show a progress bar for a search of n items if it takes longer than `BAR_DELAY` seconds.

    Yields a function to call at each pass of the classifier, with the item of each row. The bar
    counts passes, and says how many items the last pass still contained.
    """
    settings = {"desc": name, "unit": " passes", "delay": BAR_DELAY, "leave": False}
    with progress(**settings) as bar:
        due = time.monotonic() + BAR_DELAY

        def count(rows: Tensor) -> None:
            nonlocal due
            if not bar.disable and time.monotonic() >= due:
                due = time.monotonic() + 1
                bar.set_postfix_str(f"{len(rows.unique())} of {n} items left", refresh=False)
            bar.update()

        yield count
