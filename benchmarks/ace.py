"""What ACE costs beside the passes it needs: `python benchmarks/ace.py` (see --help).

overhead                a call / the same passes of the UNet and the classifier, forward and back, and nothing else
speedup_batch8          eight images one by one / in one batch
max_abs_difference      of the counterfactuals, one by one against a batch, on a small network in float64
same_decision           share of images with the same decision either way, in float32 (the sign of a tiny gradient is rounding)
checkpoint_max_abs_difference, peak_mib, peak_mib_checkpoint
                        the same call with each pass of the UNet recomputed on the way back; on a CPU the memory is what the
                        process grew by, which is too little where freed memory is used again
speedup_early           leaving the attack once flipped with a margin, and flip_rate, flip_rate_early

Prints one table and writes results/benchmarks/ace.json; ends non-zero where a bound is missed (--quick judges none).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _side import Passes, one_by_one, peak_mib, report, timed
from torch import nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.datasets import rendered
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


def small(n: int) -> tuple[ACE, nn.Module, torch.Tensor, torch.Tensor]:
    """An untrained prior and classifier in float64."""
    gen = core.seed_everything(0)
    prior = diffusion.build(**TINY).double()
    nn.init.normal_(prior.unet.conv_out.weight, std=0.05)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(392, 2)
    ).double()
    x = torch.rand(n, 3, 16, 16, generator=gen, dtype=torch.float64)
    return (
        ACE(prior=prior, iterations=10, dilation=3),
        model,
        x,
        1 - classifiers.predict(model, x).argmax(1),
    )


def difference(a: core.Counterfactuals, b: core.Counterfactuals) -> float:
    order = b.ids.argsort()
    return (a.counterfactual[a.ids.argsort()] - b.counterfactual[order]).abs().max().item()


def overhead(explain, model, x, target, repeats: int) -> dict[str, float]:
    """A call against the bare passes it made, alternating, best of `repeats`."""
    passes = Passes(explain, model, x, target, generator=explain.prior)
    made = sum(n for m, n, _ in passes.made if m is explain.prior)
    if made != passes.cfs.n_forward_generator.sum():
        raise RuntimeError("the explainer counts other passes than the hook")
    best = [float("inf")] * 2
    for _ in range(repeats):
        best = [
            min(best[0], timed(explain, model, x, target, None)[1]),
            min(best[1], passes.bare()),
        ]
    return {
        "overhead": best[0] / best[1],
        "unet_passes_an_image": made / len(x),
        "seconds_an_image": best[0] / len(x),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n", type=int, default=24, help="faces explained with and without leaving (default 24)"
    )
    parser.add_argument(
        "--iterations", type=int, default=50, help="of the attack (default 50, the paper's)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=10.0,
        help="of logits, to leave early (default 10; at 3 a third is lost)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="of the overhead; the best counts (default 3)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="2 faces, 3 iterations, 1 repeat: does it run?"
    )
    parser.add_argument(
        "--out", type=Path, default=files.ROOT / "results" / "benchmarks" / "ace.json"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.iterations, args.repeats = 2, 3, 1
    began, device = time.perf_counter(), core.pick_device(args.device)
    prior, model = (
        checkpoints.load("faces_ddpm", device).model,
        classifiers.OneOutput(checkpoints.load("faces_smile_causal", device).model),
    )
    data = rendered.load("faces", "test", n=args.n)
    x, ids = data.x.to(device), data.ids
    target = 1 - classifiers.predict(model, x).argmax(1)
    few = slice(0, min(args.n, 8))
    explain = ACE.faces(prior, iterations=args.iterations, margin=None, seed=args.seed)
    short = explain.with_(iterations=min(args.iterations, 4), trace=2)

    timed(
        short.with_(iterations=1), model, x[:1], target[:1], None
    )  # warm up: libraries are loaded, kernels chosen
    cost = overhead(short, model, x[few], target[few], args.repeats)
    batch, together = timed(short, model, x[few], target[few], ids[few])
    one, alone = one_by_one(short, model, x[few], target[few], ids[few])
    again, _ = timed(short.with_(checkpoint=True), model, x[few], target[few], ids[few])
    memory = {
        f"peak_mib{tag}": peak_mib(
            short.with_(iterations=1, checkpoint=on), model, x[few], target[few]
        )
        for tag, on in (("_checkpoint", True), ("", False))
    }

    tiny, net, z, to = small(len(x[few]))
    rows = torch.arange(len(z))
    exact = [
        one_by_one(tiny, net, z, to, rows)[0],
        *(timed(tiny.with_(checkpoint=on), net, z, to, rows)[0] for on in (False, True)),
    ]

    whole, slow = timed(explain, model, x, target, ids)
    left, fast = timed(explain.with_(margin=args.margin), model, x, target, ids)
    order = one.ids.argsort()
    figures = {
        **cost,
        "speedup_batch8": alone / together,
        "max_abs_difference": difference(exact[0], exact[1]),
        "same_decision": (one.valid[order] == batch.valid[batch.ids.argsort()])
        .double()
        .mean()
        .item(),
        "checkpoint_max_abs_difference": max(
            difference(exact[1], exact[2]), difference(batch, again)
        ),
        **memory,
        "speedup_early": slow / fast,
        "flip_rate": whole.valid.double().mean().item(),
        "flip_rate_early": left.valid.double().mean().item(),
    }
    bounds = {
        "overhead": (None, 1.15),
        "max_abs_difference": (None, 1e-4),
        "same_decision": (0.99, None),
        "checkpoint_max_abs_difference": (None, 1e-4),
        "speedup_early": (1.5, None),
        "flip_rate_early": (figures["flip_rate"], None),
    }
    return report(figures, bounds, began, args, device, n=len(x), data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
