"""What the layout of a network's weights is worth: `python benchmarks/layout.py` (see --help).

ratio_*             a pass forward and back with the weights as they are loaded (`weights.channels_last`) over one with them as usual:
                    the same network and images, alternating, best of --repeats; of the diffusion model forward alone, too
max_abs_difference  of the outputs of the two, in units of the largest output

No network may be slower; the bound of 1.05 is what two goes with the same layout differ by.

Prints one table and writes results/benchmarks/layout.json; ends non-zero where a bound is missed (--quick judges none).
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from pathlib import Path

import torch
from _side import report
from torch import nn

from cf_utils.core import files
from cf_utils.models import checkpoints
from cf_utils.models.generators import diffusion

SHAPES = {
    "mnist_cnn": (1, 28, 28),
    "faces_smile_causal": (3, 64, 64),
    "roads_action_causal": (3, 64, 128),
    "faces_ddpm": (3, 64, 64),
}


def passed(model: nn.Module, x: torch.Tensor, back: bool = True) -> torch.Tensor:
    """The output of a pass, and a way back to the images where that is asked for."""
    z = x.clone().requires_grad_(back)
    with torch.set_grad_enabled(back):
        out = model(z, torch.full((len(z),), 50)) if isinstance(model, diffusion.DDPM) else model(z)
    if back:
        torch.autograd.grad(out.sum(), z)
    return out.detach()


def seconds_of(call) -> float:
    call()  # the other network has been through the caches
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="images in a pass (default 16)")
    parser.add_argument(
        "--repeats", type=int, default=30, help="of each pass; the best counts (default 30)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default 1; 0: torch's choice)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 images, 2 repeats: does it run?")
    parser.add_argument(
        "--out", type=Path, default=files.ROOT / "results" / "benchmarks" / "layout.json"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.repeats = 2, 2
    if args.threads:
        torch.set_num_threads(args.threads)
    began, gen, figures, apart = (
        time.perf_counter(),
        torch.Generator().manual_seed(args.seed),
        {},
        [],
    )
    for name, shape in SHAPES.items():
        last = checkpoints.load(name).model.requires_grad_(False)
        first = copy.deepcopy(last).to(memory_format=torch.contiguous_format)
        x = torch.rand(args.batch, *shape, generator=gen)
        for back, tag in ((True, ""), (False, "_forward")):
            if not back and not name.endswith("_ddpm"):
                continue
            calls, best = (
                [functools.partial(passed, model, x, back) for model in (last, first)],
                [float("inf")] * 2,
            )
            a, b = (call() for call in calls)  # and warm up
            apart.append(((a - b).abs().max() / b.abs().max()).item())
            for _ in range(args.repeats):
                best = [min(one, seconds_of(call)) for one, call in zip(best, calls, strict=True)]
            figures[f"ratio_{name}{tag}"] = best[0] / best[1]
    bounds = {name: (None, 1.05) for name in figures} | {"max_abs_difference": (None, 1e-4)}
    return report(
        figures | {"max_abs_difference": max(apart)},
        bounds,
        began,
        args,
        n=args.batch,
        data="embedded",
    )


if __name__ == "__main__":
    raise SystemExit(main())
