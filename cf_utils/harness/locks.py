"""Keeps concurrent jobs apart: file locks, one GPU per job, environment variables of a kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def lock_file(path: Path, description: str) -> Iterator[int]:
    """Hold the lock file `path`, after waiting for its holder; yield the file descriptor.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        description: what the lock protects, for the message while waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "(just starting)"
            print(
                f"{description} is being run by process {owner}; waiting for it",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def free_gpu() -> Iterator[str | None]:
    """Reserve a GPU that no other job of this user runs on; yield its number.

    Yields None with fewer than two GPUs, or if CUDA_VISIBLE_DEVICES is already set.
    """
    import torch

    n = torch.cuda.device_count()
    if n < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"cf-utils-gpus-{os.getuid()}"  # one per machine
    folder.mkdir(exist_ok=True)
    while True:
        for i in range(n):
            with open(folder / f"{i}.lock", "a") as slot:
                try:
                    fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield str(i)
                return
        time.sleep(1)


@contextlib.contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Set environment variables, which kernels inherit, and restore them; None removes one."""
    before = {key: os.environ.get(key) for key in changes}
    _set_environment(changes)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
