"""Speed and memory of gradual construction, side by side in one process: `python benchmarks/gradual.py` (see --help).

speedup_batch64     one by one / a batch of 64, seconds; same settings, no leaving, alternating batch by batch
max_abs_difference  the same two in float64 on few items: largest difference of a value or a score
speedup_early       one by one without leaving / a batch of 64 of the recommended preset that leaves composition steps early,
                    seconds an item; its validity and agreement of judges beside those of the same preset without leaving
                    (`full`), on more items: a sixth of them change their verdict one way or the other, so 200 do not tell a point
                    from none
overhead            a search at constant batch 64 / its bare passes forward and back, alternating, best of 5
peak_mib            growth of resident memory during a batch of 64 (GPU: peak allocated)

All of it on one thread unless --threads says otherwise: on two cores of a shared machine the bare passes alone differ by a tenth
from one repeat to the next, which is as much as the overhead's bound leaves (two threads: 1.12 to 1.26 in three goes in a row,
speed-ups 8.9 and 17; one thread: 1.04 to 1.12, 6.6 and 12).

Prints one table and writes results/benchmarks/gradual.json; ends non-zero where a bound is missed (--quick judges none).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from _side import Passes, one_by_one, peak_mib, report, timed

from cf_utils import core
from cf_utils.core import files
from cf_utils.datasets import mnist
from cf_utils.explainers.gradual import GradualConstruction, mean_logits
from cf_utils.models import checkpoints, classifiers

JUDGES = ("mnist_judge_augmented", "mnist_judge_adversarial", "mnist_judge_svm")


def agreement(judges, cfs: core.Counterfactuals) -> float:
    """Share of all items that are valid and that the judges' majority takes for the target."""
    votes = torch.stack(
        [classifiers.predict(j, cfs.counterfactual).argmax(1).cpu() for j in judges]
    )
    return (
        ((classifiers.majority(votes) == cfs.target.cpu()) & cfs.valid.cpu()).double().mean().item()
    )


def overhead(explain, model, x, target, repeats: int) -> dict:
    """A search from which nothing leaves, against the passes it made and nothing else; alternating, best of `repeats`."""
    passes = Passes(explain, model, x, target)
    if {n for _, n, _ in passes.made} != {len(x)}:
        raise RuntimeError(
            f"the batch was to stay at {len(x)}, passes were of {sorted({n for _, n, _ in passes.made})} rows"
        )
    if len(passes.made) * len(x) != passes.cfs.n_forward.sum():
        raise RuntimeError("the explainer counts other passes than the hook")
    best = [float("inf")] * 2
    for _ in range(repeats):
        best = [
            min(best[0], timed(explain, model, x, target, None)[1]),
            min(best[1], passes.bare()),
        ]
    return {
        "overhead": best[0] / best[1],
        "passes": len(passes.made),
        "ms_per_pass_bare": 1e3 * best[1] / len(passes.made),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n", type=int, default=256, help="digits compared in float32 (default 256)"
    )
    parser.add_argument(
        "--n-early",
        type=int,
        default=990,
        help="digits on which leaving early is judged (default 990)",
    )
    parser.add_argument("--n64", type=int, default=8, help="digits compared in float64 (default 8)")
    parser.add_argument(
        "--iterations", type=int, default=100, help="Adam steps of a composition step (default 100)"
    )
    parser.add_argument("--blocks", type=int, default=12, help="budget of blocks (default 12)")
    parser.add_argument(
        "--ranking",
        choices=("once", "each"),
        default="once",
        help="batch against one by one: once (default, the paper's), or each, where rounding can exchange blocks",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="of the overhead; the best counts (default 5)"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default 1; 0: torch's choice)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="n and n-early 16, n64 2, batch 16, 20 iterations, 1 repeat",
    )
    parser.add_argument(
        "--out", type=Path, default=files.ROOT / "results" / "benchmarks" / "gradual.json"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.n_early, args.n64, args.batch, args.iterations, args.repeats = (
            16,
            16,
            2,
            16,
            20,
            1,
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    began, device = time.perf_counter(), core.pick_device(args.device)
    warnings.simplefilter("ignore", UserWarning)  # the overhead asks for a tau that nothing reaches
    model = checkpoints.load("mnist_cnn", device).model
    judges = [checkpoints.load(j, device).model for j in JUDGES]
    proto = mean_logits(model, mnist.load("", "train").x.to(device), seed=args.seed)
    pool = mnist.load("", "test")
    most = max(args.n, args.n_early)
    rows, target = mnist.ordered_pairs(pool, -(-most // 90))
    rows, target = rows[:most], target[:most].to(device)
    x, ids = pool.x[rows].to(device), pool.ids[rows]
    slow = GradualConstruction.recommended(
        proto, steps=args.iterations, max_blocks=args.blocks, seed=args.seed, ranking=args.ranking
    )
    full = slow.with_(ranking="each")  # the preset as it is: blocks are ranked again at each step
    early = GradualConstruction.early(
        proto, steps=args.iterations, max_blocks=args.blocks, seed=args.seed
    )
    first = slice(0, args.batch)

    never = slow.with_(tau=1 - 1e-9, max_blocks=2)
    timed(
        never.with_(steps=2), model, x[:1], target[:1], None
    )  # warm up on one: libraries are loaded, kernels chosen
    memory = peak_mib(slow, model, x[first], target[first])
    cost = overhead(never, model, x[first], target[first], args.repeats)

    found: dict[str, list] = {"alone": [], "batch": [], "full": [], "early": []}
    seconds = dict.fromkeys(found, 0.0)
    rivals = {
        "batch": (timed, slow, args.n),
        "alone": (one_by_one, slow, args.n),
        "full": (timed, full, args.n_early),
        "early": (timed, early, args.n_early),
    }
    for at in core.progress(range(0, most, args.batch), desc="side by side"):
        for name, (call, explain, n) in rivals.items():
            if at < n:
                r = slice(at, min(at + args.batch, n))
                cfs, s = call(explain, model, x[r], target[r], ids[r])
                found[name].append(cfs)
                seconds[name] += s
    whole = {}
    for name, parts in found.items():
        whole[name] = parts[0]
        for part in parts[1:]:
            whole[name] = whole[name] + part
    alone, batch, unhurried, quick = whole["alone"], whole["batch"], whole["full"], whole["early"]

    double = checkpoints.load("mnist_cnn", device).model.double()
    exact = slow.with_(prototypes=proto.double())
    few = slice(0, args.n64)
    one, _ = one_by_one(exact, double, x[few].double(), target[few], ids[few])
    many, _ = timed(exact, double, x[few].double(), target[few], ids[few])
    many = many.select(many.ids.argsort())
    difference = max(
        (one.counterfactual - many.counterfactual).abs().max().item(),
        (one.score - many.score).abs().max().item(),
    )

    figures = {
        "speedup_batch64": seconds["alone"] / seconds["batch"],
        "max_abs_difference": difference,
        "speedup_early": seconds["alone"] / args.n / (seconds["early"] / args.n_early),
        "overhead": cost["overhead"],
        "peak_mib": memory,
        "float32_same_validity": (alone.valid == batch.valid).double().mean().item(),
        "float32_same_blocks": (alone.mask == batch.mask).flatten(1).all(1).double().mean().item(),
        "validity_full": unhurried.valid.double().mean().item(),
        "validity_early": quick.valid.double().mean().item(),
        "judge_agreement_full": agreement(judges, unhurried),
        "judge_agreement_early": agreement(judges, quick),
    }
    figures["validity_early_change"] = figures["validity_early"] - figures["validity_full"]
    figures["judge_agreement_early_change"] = (
        figures["judge_agreement_early"] - figures["judge_agreement_full"]
    )
    bounds = {
        "speedup_batch64": (3, None),
        "max_abs_difference": (None, 1e-9),
        "speedup_early": (8, None),
        "overhead": (None, 1.15),
        "float32_same_validity": (0.99, None),
        "float32_same_blocks": (0.99, None),
        "validity_early_change": (-0.01, 0.01),
        "judge_agreement_early_change": (-0.01, 0.01),
    }  # a point
    return report(
        figures,
        bounds,
        began,
        args,
        device,
        n=args.n,
        n_early=args.n_early,
        data="embedded",
        seconds_alone=seconds["alone"],
        seconds_batch=seconds["batch"],
        seconds_early=seconds["early"],
        passes_overhead=cost["passes"],
        ms_per_pass_bare=cost["ms_per_pass_bare"],
    )


if __name__ == "__main__":
    raise SystemExit(main())
