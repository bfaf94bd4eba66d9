"""What ACE costs beyond the passes that it needs.

overhead
    seconds of a call / seconds of its passes through prior and classifier alone
speedup_batch8
    seconds of eight images one by one / in one batch
max_abs_difference
    largest difference between counterfactuals computed one by one and in one batch, on a small
    network in float64
same_decision
    share of images with the same decision one by one and in one batch, in float32
checkpoint_max_abs_difference, peak_mib, peak_mib_checkpoint
    the same call with and without `checkpoint`; on a CPU the memory is the growth of a new process
speedup_early, flip_rate, flip_rate_early
    effect of ending an attack once the target's logit leads by `--margin`

Prints a table and writes a JSON file; exits with 1 if a bound is missed (`--quick` has none).
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch
from _side import Passes, explain_one_by_one, make_parser, peak_mib, report, time_call
from torch import Tensor, nn

from cf_utils import core
from cf_utils.datasets import rendered
from cf_utils.explainers import presets
from cf_utils.explainers.ace import ACE
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.generators import diffusion

TINY = {
    "size": (16, 16),
    "steps": 100,
    "widths": (16, 32),
    "attention": (False, True),
    "head_width": 16,
    "groups": 8,
    "blocks": 1,
}
BATCH = 8


class Task(NamedTuple):
    """What is explained, and by which settings."""

    explain: ACE
    model: nn.Module
    x: Tensor
    target: Tensor
    ids: Tensor

    def shorten(self, n: int, **changes) -> Task:
        """Return the task of the first n images with other settings."""
        return Task(self.explain.with_(**changes), self.model, *(part[:n] for part in self[2:]))


def build_small(n: int) -> Task:
    """Return a task with an untrained prior and classifier in float64."""
    gen = core.seed_everything(0)
    prior = diffusion.build(**TINY).double()
    nn.init.normal_(prior.unet.conv_out.weight, std=0.05)
    layers = nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(392, 2)
    model = nn.Sequential(*layers).double()
    x = torch.rand(n, 3, 16, 16, generator=gen, dtype=torch.float64)
    target = 1 - classifiers.predict(model, x).argmax(1)
    return Task(ACE(prior=prior, iterations=10, dilation=3), model, x, target, torch.arange(n))


def build_faces(args: argparse.Namespace, device: torch.device) -> Task:
    """Return a task of rendered faces with the shipped networks."""
    prior = checkpoints.load("faces_ddpm", device).model
    model = classifiers.OneOutput(checkpoints.load("faces_smile_causal", device).model)
    data = rendered.load("faces", "test", n=args.n)
    x = data.x.to(device)
    target = 1 - classifiers.predict(model, x).argmax(1)
    preset = presets.get("ace", "faces", iterations=args.iterations, seed=args.seed)
    return Task(preset.build(prior=prior), model, x, target, data.ids)


def measure_difference(a: core.Counterfactuals, b: core.Counterfactuals) -> float:
    """Return the largest difference of two results' counterfactuals, matched by id."""
    images = [cfs.counterfactual[cfs.ids.argsort()] for cfs in (a, b)]
    return (images[0] - images[1]).abs().max().item()


def measure_overhead(task: Task, repeats: int) -> dict[str, float]:
    """Time a call and its bare passes in turn; the best of `repeats` counts."""
    explain, model, x, target, _ = task
    passes = Passes(explain, model, x, target, generator=explain.prior)
    made = sum(n for module, n, _ in passes.made if module is explain.prior)
    if made != passes.cfs.n_forward_generator.sum():
        raise RuntimeError("n_forward_generator: differs from the passes that a hook counts")
    whole, bare = float("inf"), float("inf")
    for _ in range(repeats):
        whole = min(whole, time_call(explain, model, x, target, None)[1])
        bare = min(bare, passes.bare())
    return {
        "overhead": whole / bare,
        "unet_passes_an_image": made / len(x),
        "seconds_an_image": whole / len(x),
    }


def measure_batches(task: Task) -> dict[str, float]:
    """Compare one batch with single images, and with recomputed activations."""
    batch, together = time_call(*task)
    alone, seconds = explain_one_by_one(*task)
    again, _ = time_call(*task.shorten(BATCH, checkpoint=True))
    small = build_small(len(task.x))
    one_by_one, _ = explain_one_by_one(*small)
    plain, recomputed = (time_call(*small.shorten(BATCH, checkpoint=on))[0] for on in (False, True))
    valid = [cfs.valid[cfs.ids.argsort()] for cfs in (alone, batch)]
    return {
        "speedup_batch8": seconds / together,
        "max_abs_difference": measure_difference(one_by_one, plain),
        "same_decision": (valid[0] == valid[1]).double().mean().item(),
        "checkpoint_max_abs_difference": max(
            measure_difference(plain, recomputed), measure_difference(batch, again)
        ),
    }


def measure_memory(task: Task) -> dict[str, float]:
    """Return the memory of one iteration, with and without recomputed activations."""
    with_, without = (
        peak_mib(*task.shorten(BATCH, iterations=1, checkpoint=on)[:4]) for on in (True, False)
    )
    return {"peak_mib_checkpoint": with_, "peak_mib": without}


def measure_leaving(task: Task, margin: float) -> dict[str, float]:
    """Compare whole attacks with attacks that an item leaves at `margin`."""
    whole, slow = time_call(*task)
    early, fast = time_call(*task.shorten(len(task.x), margin=margin))
    return {
        "speedup_early": slow / fast,
        "flip_rate": whole.valid.double().mean().item(),
        "flip_rate_early": early.valid.double().mean().item(),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a bound is missed, else 0."""
    parser = make_parser(__doc__, "ace")
    parser.add_argument("--n", type=int, default=24, help="faces explained")
    parser.add_argument("--iterations", type=int, default=50, help="iterations of the attack")
    parser.add_argument("--margin", type=float, default=10.0, help="of logits, ends an attack")
    parser.add_argument("--repeats", type=int, default=3, help="timings; the best counts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.iterations, args.repeats = 2, 3, 1
    start, device = time.perf_counter(), core.pick_device(args.device)
    faces = build_faces(args, device)
    short = faces.shorten(BATCH, iterations=min(args.iterations, 4), trace=2)
    time_call(*short.shorten(1, iterations=1))  # loads libraries and selects kernels
    figures = measure_overhead(short, args.repeats) | measure_batches(short)
    figures |= measure_memory(short) | measure_leaving(faces, args.margin)
    bounds = {
        "overhead": (None, 1.15),
        "max_abs_difference": (None, 1e-4),
        "same_decision": (0.99, None),
        "checkpoint_max_abs_difference": (None, 1e-4),
        "speedup_early": (1.5, None),
        "flip_rate_early": (figures["flip_rate"], None),
    }
    return report(figures, bounds, start, args, device, n=len(faces.x), data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
