"""Tools of the benchmarks: times and memory of calls, bare passes, the table and the record."""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import files

Bounds = Mapping[str, tuple[float | None, float | None]]  # lowest, highest; None: no bound
Result = TypeVar("Result")
ROUNDING = 1e-9  # tolerance of the bounds
RECORDED_ELSEWHERE = ("out", "data", "device", "quick")  # arguments that are no settings


def measure_seconds(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds that `call` takes, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def time_call(
    explain: core.Explainer, model: nn.Module, x: Tensor, target: Tensor, ids: core.Ids | None
) -> tuple[core.Counterfactuals, float]:
    """Return the counterfactuals of one call, and its seconds."""
    start = time.perf_counter()
    cfs = explain(model, x, target, ids)
    cfs.score.tolist()  # waits for a GPU
    return cfs, time.perf_counter() - start


def explain_one_by_one(
    explain: core.Explainer, model: nn.Module, x: Tensor, target: Tensor, ids: Tensor
) -> tuple[core.Counterfactuals, float]:
    """Return the same items explained one by one, sorted by id, and the seconds of the calls."""
    parts = [
        time_call(explain, model, x[i : i + 1], target[i : i + 1], ids[i : i + 1])
        for i in range(len(x))
    ]
    whole = core.Counterfactuals.join([part for part, _ in parts])
    return whole, sum(seconds for _, seconds in parts)


class Passes:
    """The passes of a classifier, and of a generator z, t -> z, during one call of an explainer.

    `made` lists [module, batch size, whether it was differentiated], counted by hooks; `cfs` is the
    call's result.
    """

    def __init__(
        self,
        explain: core.Explainer,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        ids: core.Ids | None = None,
        generator: nn.Module | None = None,
    ):
        self.generator, self.x = generator, x
        self.modules = [m for m in (model, generator) if m is not None]
        self.made: list[list] = []
        hooks = [m.register_forward_hook(self._count) for m in self.modules]
        self.cfs, _ = time_call(explain, model, x, target, ids)
        for hook in hooks:
            hook.remove()

    def _count(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        entry = [module, len(output), False]
        self.made.append(entry)
        if output.requires_grad:
            output.register_hook(lambda gradient: entry.__setitem__(2, True))

    def bare(self) -> float:
        """Repeat the passes and nothing else, in order and size; return the seconds."""
        most = max(n for _, n, _ in self.made)
        rows = self.x.repeat(-(-most // len(self.x)), *[1] * (self.x.ndim - 1))
        t = torch.zeros(most, dtype=torch.int64, device=self.x.device)
        with core.frozen(*self.modules):
            start = time.perf_counter()
            for module, n, back in self.made:
                z = rows[:n].detach().requires_grad_(back)
                with torch.set_grad_enabled(back):
                    out = module(z, t[:n]) if module is self.generator else module(z)
                if back:
                    torch.autograd.grad(out.sum(), z)
            if self.x.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - start


def peak_mib(
    explain: core.Explainer,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    ids: core.Ids | None = None,
) -> float:
    """Return the memory in MiB that a call needs: allocated on a GPU, or growth of a process.

    The process is a new one, because this one would reuse memory that earlier calls freed.
    """
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        time_call(explain, model, x, target, ids)
        return torch.cuda.max_memory_allocated() / 2**20
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_measure_growth, explain, model, x, target, ids).result()


def _measure_growth(explain, model, x, target, ids) -> float:
    one = None if ids is None else ids[:1]
    time_call(explain, model, x[:1], target[:1], one)  # loads libraries, which are not the call's
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        time_call(explain, model, x, target, ids)
    finally:
        done.set()
        thread.join()
    return max(0, peak[0] - before) / 2**20


def report(
    figures: Mapping[str, float],
    bounds: Bounds,
    start: float,
    args: argparse.Namespace,
    device: torch.device | str = "cpu",
    **record,
) -> int:
    """Print the figures beside their bounds, and write all of it to `args.out`.

    Args:
        figures: name -> value.
        bounds: name -> lowest and highest value.
        start: `time.perf_counter()` at the start of the benchmark.
        args: its command line arguments, among them `out` and `quick`.
        device: where it ran.
        record: more entries of the written file.

    Returns: exit code; 1 if a bound is missed, always 0 with `quick`.
    """
    missed = []
    print(f"{'figure':<34}{'value':>12}  bound")
    for name, value in figures.items():
        low, high = bounds.get(name, (None, None))
        ok = (low is None or value >= low - ROUNDING) and (high is None or value <= high + ROUNDING)
        missed += [] if ok else [name]
        bound = " and ".join(f"{s} {b:g}" for s, b in ((">=", low), ("<=", high)) if b is not None)
        print(f"{name:<34}{value:>12.4g}  {bound}{'' if ok else '  MISSED'}")
    seconds, where = time.perf_counter() - start, _describe_device(torch.device(device))
    settings = {k: v for k, v in vars(args).items() if k not in RECORDED_ELSEWHERE}
    content = {**figures, "missed": missed, "quick": args.quick, **record, "settings": settings}
    content |= {"device": where, "threads": torch.get_num_threads(), "torch": torch.__version__}
    files.write_json(args.out, content | {"seconds": seconds})
    print(f"{seconds:.0f} s, {torch.get_num_threads()} threads, {where}; written to {args.out}")
    if missed and not args.quick:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and not args.quick)


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} {platform.machine()}"


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description, and adds defaults."""


def make_parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all benchmarks: --seed, --quick, --out."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=_Help)
    parser.add_argument("--seed", type=int, default=0, help="seed of prototypes and noise")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no bounds: a smoke test")
    out = files.ROOT / "results" / "benchmarks" / f"{name}.json"
    parser.add_argument("--out", type=Path, default=out, help="file of the record")
    return parser
