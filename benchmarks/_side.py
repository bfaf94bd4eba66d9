"""What the benchmarks share: time of a call, a batch one by one, the bare passes that a call made, the table and the record."""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import files

Bounds = Mapping[
    str, tuple[float | None, float | None]
]  # lowest and highest; None: no bound on that side
ROUNDING = 1e-9  # of the sums of shares


def timed(
    explain, model: nn.Module, x: Tensor, target: Tensor, ids
) -> tuple[core.Counterfactuals, float]:
    began = time.perf_counter()
    cfs = explain(model, x, target, ids)
    cfs.score.tolist()  # a GPU is done only then
    return cfs, time.perf_counter() - began


def one_by_one(
    explain, model: nn.Module, x: Tensor, target: Tensor, ids
) -> tuple[core.Counterfactuals, float]:
    """Sorted by id; joining is not part of the time."""
    parts = [
        timed(explain, model, x[i : i + 1], target[i : i + 1], ids[i : i + 1])
        for i in range(len(x))
    ]
    whole = parts[0][0]
    for part, _ in parts[1:]:
        whole = whole + part
    return whole, sum(s for _, s in parts)


class Passes:
    """The passes of a classifier (and of a generator, module of (z, t)) during a call, by hooks of our own: [module, batch
    size, was there a way back] each."""

    def __init__(
        self,
        explain,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        ids=None,
        generator: nn.Module | None = None,
    ):
        self.model, self.generator, self.x, self.made = model, generator, x, []
        hooks = [m.register_forward_hook(self._count) for m in (model, generator) if m is not None]
        self.cfs, _ = timed(explain, model, x, target, ids)
        for hook in hooks:
            hook.remove()

    def _count(self, module, given, out) -> None:
        this = [module, len(out), False]
        self.made.append(this)
        if out.requires_grad:
            out.register_hook(lambda g: this.__setitem__(2, True))

    def bare(self) -> float:
        """Seconds of the same passes in their order and sizes, parameters frozen, and nothing else."""
        most = max(n for _, n, _ in self.made)
        rows = self.x.repeat(-(-most // len(self.x)), *[1] * (self.x.ndim - 1))
        t = torch.zeros(most, dtype=torch.int64, device=self.x.device)
        with core.frozen(*(m for m in (self.model, self.generator) if m is not None)):
            began = time.perf_counter()
            for module, n, back in self.made:
                z = rows[:n].detach().requires_grad_(back)
                with torch.set_grad_enabled(back):
                    out = module(z, t[:n]) if module is self.generator else module(z)
                if back:
                    torch.autograd.grad(out.sum(), z)
            if self.x.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - began


def peak_mib(explain, model, x, target, ids=None) -> float:
    """Memory that a call takes on top of what was there, in MiB: the GPU's, or that of a process of its own, watched every 2 ms
    (in this one memory that earlier calls gave back would be taken again, and not be seen)."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        timed(explain, model, x, target, ids)
        return torch.cuda.max_memory_allocated() / 2**20
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_growth, explain, model, x, target, ids).result()


def _growth(explain, model, x, target, ids) -> float:
    timed(
        explain, model, x[:1], target[:1], None if ids is None else ids[:1]
    )  # what is loaded once is not the call's
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        timed(explain, model, x, target, ids)
    finally:
        done.set()
        thread.join()
    return max(0, peak[0] - before) / 2**20


def report(
    figures: Mapping[str, float],
    bounds: Bounds,
    began: float,
    args: argparse.Namespace,
    device: torch.device | str = "cpu",
    **record,
) -> int:
    """Print the table, write the record to args.out; 1 where a bound is missed (0 under --quick, which judges none)."""
    missed = []
    print(f"{'figure':<34}{'value':>12}  bound")
    for name, value in figures.items():
        low, high = bounds.get(name, (None, None))
        ok = (low is None or value >= low - ROUNDING) and (high is None or value <= high + ROUNDING)
        missed += [] if ok else [name]
        bound = " and ".join(f"{s} {b:g}" for s, b in ((">=", low), ("<=", high)) if b is not None)
        print(f"{name:<34}{value:>12.4g}  {bound}{'' if ok else '  MISSED'}")
    device = torch.device(device)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device} {platform.machine()}"
    )
    seconds, out = time.perf_counter() - began, Path(args.out)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "data", "device", "quick")}
    files.write_json(
        out,
        {
            **figures,
            "missed": missed,
            "quick": args.quick,
            **record,
            "settings": settings,
            "device": where,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": seconds,
        },
    )
    print(f"{seconds:.0f} s, {torch.get_num_threads()} threads, {where}; written to {out}")
    if missed and not args.quick:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and not args.quick)
