"""What DiffExplainer costs beyond the passes that it needs, and what decoding steps buy.

overhead
    seconds of one call for `--n` patients / seconds of its passes through encoder, noise predictor
    and classifier alone, in the same number and batch sizes
speedup_batch
    seconds of calls for one patient each / seconds of one call for all of them
max_abs_difference
    largest difference between the counterfactuals of these calls, whose searches end at scores
    that differ by rounding
seconds_a_patient, predictor_passes_a_patient
    of one call; a pass of the noise predictor sees one slice
seconds_steps_K, psnr_steps_K
    seconds per patient of a reconstruction in K steps, inversion included, and its PSNR in dB

Prints a table and writes a JSON file; exits with 1 if a bound is missed (`--quick` has none).
"""

from __future__ import annotations

import argparse
import time

import torch
from _side import explain_one_by_one, make_parser, measure_seconds, report, time_call
from torch import Tensor, nn

from cf_utils import core, worlds
from cf_utils.evaluation.metrics.reconstruction import psnr
from cf_utils.explainers import presets
from cf_utils.explainers.diffexplainer import DiffExplainer
from cf_utils.models import checkpoints


class Recorder:
    """The passes of some modules during a block: which module, with which inputs."""

    def __init__(self, *modules: nn.Module):
        self.modules, self.made = modules, []

    def __enter__(self) -> Recorder:
        self.hooks = [m.register_forward_hook(self._note) for m in self.modules]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.made.append((module, tuple(value.detach() for value in inputs)))

    def rows(self, module: nn.Module) -> int:
        """Return how many items have passed through a module."""
        return sum(len(inputs[0]) for which, inputs in self.made if which is module)

    @torch.no_grad()
    def replay(self) -> None:
        """Make the passes again, and nothing else."""
        for module, inputs in self.made:
            module(*inputs)


def build(seed: int, device: torch.device, **settings: int) -> tuple[DiffExplainer, nn.Module]:
    """Return DiffExplainer and the black box of mortality, with the shipped networks."""
    networks = {
        "autoencoder": checkpoints.load("lung_ct_diffae", device).model,
        "agent": checkpoints.load("lung_ct_agent", device).model,
    }
    explain = presets.get("diffexplainer", "lung_ct").build(seed=seed, **networks, **settings)
    return explain, checkpoints.load("lung_ct_mortality", device).model


def measure_call(
    explain: DiffExplainer, f: nn.Module, x: Tensor, ids: Tensor, repeats: int
) -> dict[str, float]:
    """Compare one call for all patients with its passes alone, and with one call per patient."""
    net = explain.autoencoder
    target = 1 - f(x).argmax(1)
    with Recorder(net.encoder, net.unet, f) as passes:
        cfs, _ = time_call(explain, f, x, target, ids)
    whole, bare = float("inf"), float("inf")
    with core.frozen(net, f):
        for _ in range(repeats):
            whole = min(whole, time_call(explain, f, x, target, ids)[1])
            bare = min(bare, measure_seconds(passes.replay)[0])
    alone, seconds = explain_one_by_one(explain, f, x, target, ids)
    joined = core.Counterfactuals.join([cfs])
    return {
        "overhead": whole / bare,
        "speedup_batch": seconds / whole,
        "max_abs_difference": (alone.counterfactual - joined.counterfactual).abs().max().item(),
        "seconds_a_patient": whole / len(x),
        "predictor_passes_a_patient": passes.rows(net.unet) / len(x),
    }


def measure_steps(explain: DiffExplainer, x: Tensor, steps: list[int]) -> dict[str, float]:
    """Measure seconds and PSNR of reconstructions in each number of steps."""
    figures = {}
    for k in steps:
        seconds, y = measure_seconds(lambda k=k: explain.with_(steps=k).zero_edit(x).cpu())
        figures[f"seconds_steps_{k}"] = seconds / len(x)
        figures[f"psnr_steps_{k}"] = psnr(y, x.cpu()).mean().item()
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a bound is missed, else 0."""
    parser = make_parser(__doc__, "diffexplainer")
    parser.add_argument("--n", type=int, default=6, help="patients")
    parser.add_argument("--steps", type=int, default=20, help="of decoding and inversion")
    parser.add_argument("--sweep", type=int, nargs="+", default=[5, 10, 20, 50], help="steps K")
    parser.add_argument("--repeats", type=int, default=2, help="timings; the best counts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.quick:
        args.n, args.steps, args.sweep, args.repeats = 2, 2, [2, 4], 1
    start, device = time.perf_counter(), core.pick_device(args.device)
    core.seed_everything(args.seed)
    world = worlds.get("lung_ct")
    factors = world.sample(args.n, "test", "site_a")
    x = world.render(factors).to(device)
    explain, f = build(args.seed, device, steps=args.steps)
    figures = measure_call(explain, f, x, factors.ids, args.repeats)
    figures |= measure_steps(explain, x, args.sweep)
    bounds = {
        "overhead": (None, 1.15),
        "speedup_batch": (1.0, None),
        "max_abs_difference": (None, 0.05),
    }
    return report(figures, bounds, start, args, device, n=args.n, data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
