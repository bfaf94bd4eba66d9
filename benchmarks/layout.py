"""Speed of the memory layout that loading gives to weights: `python benchmarks/layout.py`.

ratio_*             seconds of a pass forward and back with the weights as they are loaded (channels
                    last) over seconds with the usual layout; same network and images, alternating,
                    best of --repeats; for the diffusion model also forward alone
max_abs_difference  largest difference of the two outputs, in units of the largest output

Even with equal layouts, the ratio of two runs varies by up to the bound.

Prints one table and writes results/benchmarks/layout.json. The exit code is 1 if a
bound is missed, except with --quick.
"""

from __future__ import annotations

import copy
import functools
import time

import torch
from _side import make_parser, measure_seconds, report
from torch import Tensor, nn

from cf_utils.models import checkpoints
from cf_utils.models.generators import diffusion

SHAPES = {
    "mnist_cnn": (1, 28, 28),
    "faces_smile_causal": (3, 64, 64),
    "roads_action_causal": (3, 64, 128),
    "faces_ddpm": (3, 64, 64),
}


def run_pass(model: nn.Module, x: Tensor, back: bool = True) -> Tensor:
    """Run a forward pass, and back to the images if `back` is True; return the output."""
    z = x.clone().requires_grad_(back)
    with torch.set_grad_enabled(back):
        out = model(z, torch.full((len(z),), 50)) if isinstance(model, diffusion.DDPM) else model(z)
    if back:
        torch.autograd.grad(out.sum(), z)
    return out.detach()


def measure_warm(call) -> float:
    """Call twice and return the seconds of the second call, with warm caches."""
    call()
    return measure_seconds(call)[0]


def compare_layouts(name: str, x: Tensor, back: bool, repeats: int) -> tuple[float, float]:
    """Return the ratio of seconds and the relative difference of outputs for one network."""
    loaded = checkpoints.load(name).model.requires_grad_(False)
    usual = copy.deepcopy(loaded).to(memory_format=torch.contiguous_format)
    calls = [functools.partial(run_pass, model, x, back) for model in (loaded, usual)]
    a, b = (call() for call in calls)
    best = [float("inf")] * 2
    for _ in range(repeats):
        best = [min(s, measure_warm(call)) for s, call in zip(best, calls, strict=True)]
    return best[0] / best[1], ((a - b).abs().max() / b.abs().max()).item()


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = make_parser(__doc__, "layout")
    parser.add_argument("--batch", type=int, default=16, help="images in a pass")
    parser.add_argument("--repeats", type=int, default=30, help="timings; the best counts")
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0: its own choice")
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.repeats = 2, 2
    if args.threads:
        torch.set_num_threads(args.threads)
    start, generator = time.perf_counter(), torch.Generator().manual_seed(args.seed)
    figures, differences = {}, []
    for name, shape in SHAPES.items():
        x = torch.rand(args.batch, *shape, generator=generator)
        for tag, back in [("", True), *([("_forward", False)] if name.endswith("_ddpm") else [])]:
            ratio, difference = compare_layouts(name, x, back, args.repeats)
            figures[f"ratio_{name}{tag}"] = ratio
            differences.append(difference)
    bounds = {name: (None, 1.05) for name in figures} | {"max_abs_difference": (None, 1e-4)}
    figures["max_abs_difference"] = max(differences)
    return report(figures, bounds, start, args, n=args.batch, data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
