"""Speed and memory of gradual construction: `python benchmarks/gradual.py`.

speedup_batch64     seconds of 64 items one by one over seconds of a batch of 64; same settings
max_abs_difference  largest difference of a value or a score between these two, in float64
speedup_early       seconds per item one by one without `patience`, over those of the preset
                    "early" in a batch
*_early, *_full     validity and judge agreement of the preset "early", and without `patience`
overhead            seconds of a search at constant batch size over those of its bare passes,
                    forward and back; alternating, best of --repeats
peak_mib            growth of resident memory during a batch (on a GPU: peak allocated)

One thread by default: with two threads on a shared machine, the bare passes alone vary by as much
as the bound of the overhead allows.

Prints one table and writes results/benchmarks/gradual.json. The exit code is 1 if a
bound is missed, except with --quick.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from _side import Passes, explain_one_by_one, make_parser, peak_mib, report, time_call
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals
from cf_utils.datasets import mnist
from cf_utils.evaluation.metrics import decision
from cf_utils.explainers import mean_logits, presets
from cf_utils.models import checkpoints

JUDGES = ("mnist_judge_augmented", "mnist_judge_adversarial", "mnist_judge_svm")
BOUNDS = {
    "speedup_batch64": (3, None),
    "max_abs_difference": (None, 1e-9),
    "speedup_early": (8, None),
    "overhead": (None, 1.15),
    "float32_same_validity": (0.99, None),
    "float32_same_blocks": (0.99, None),
    "validity_early_change": (-0.01, 0.01),
    "judge_agreement_early_change": (-0.01, 0.01),
}


def measure_agreement(judges: list[nn.Module], cfs: Counterfactuals) -> float:
    """Return the share of all items that are valid and that most judges assign to the target."""
    agree = decision.vote(judges, cfs.counterfactual) == cfs.target.cpu()
    return (agree & cfs.valid.cpu()).double().mean().item()


def measure_overhead(explain, model: nn.Module, x: Tensor, target: Tensor, repeats: int) -> dict:
    """Compare a search that no item leaves with the bare passes that it makes."""
    passes = Passes(explain, model, x, target)
    sizes = {n for _, n, _ in passes.made}
    if sizes != {len(x)}:
        raise RuntimeError(f"passes: got batches of {sorted(sizes)}, expected {len(x)} items")
    if len(passes.made) * len(x) != passes.cfs.n_forward.sum():
        raise RuntimeError("passes: the explainer's count differs from that of the hooks")
    search = bare = float("inf")
    for _ in range(repeats):
        search = min(search, time_call(explain, model, x, target, None)[1])
        bare = min(bare, passes.bare())
    n = len(passes.made)
    return {"overhead": search / bare, "passes": n, "ms_per_pass_bare": 1e3 * bare / n}


def compare_in_float64(explain, prototypes: Tensor, x: Tensor, target: Tensor, ids) -> float:
    """Return the largest difference of a value or a score, one by one against a batch."""
    model = checkpoints.load("mnist_cnn", x.device).model.double()
    explain = explain.with_(prototypes=prototypes.double())
    one, _ = explain_one_by_one(explain, model, x.double(), target, ids)
    many, _ = time_call(explain, model, x.double(), target, ids)
    many = many.select(many.ids.argsort())
    return max(
        (one.counterfactual - many.counterfactual).abs().max().item(),
        (one.score - many.score).abs().max().item(),
    )


def run_side_by_side(rivals: dict, model, x, target, ids, batch: int) -> tuple[dict, dict]:
    """Run all rivals batch by batch in turn; return their results and their seconds.

    `rivals`: name -> (how to call, explainer, number of items).
    """
    found: dict[str, list[Counterfactuals]] = {name: [] for name in rivals}
    seconds = dict.fromkeys(rivals, 0.0)
    for at in core.progress(range(0, len(x), batch), desc="side by side"):
        for name, (call, explain, n) in rivals.items():
            if at < n:
                r = slice(at, min(at + batch, n))
                cfs, took = call(explain, model, x[r], target[r], ids[r])
                found[name].append(cfs)
                seconds[name] += took
    return {name: Counterfactuals.join(parts) for name, parts in found.items()}, seconds


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = make_parser(__doc__, "gradual")
    for name, default, about in (
        ("n", 256, "digits compared in float32"),
        ("n-early", 990, "digits on which the preset 'early' is judged"),
        ("n64", 8, "digits compared in float64"),
        ("iterations", 100, "Adam steps per composition step"),
        ("blocks", 12, "budget of blocks"),
        ("repeats", 5, "timings of the overhead; the best counts"),
        ("batch", 64, "digits in a batch"),
        ("threads", 1, "threads of torch; 0: torch's choice"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=about)
    about = "when blocks are ranked, batch against one by one; `each`: rounding can swap blocks"
    parser.add_argument("--ranking", choices=("once", "each"), default="once", help=about)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    args = parser.parse_args(argv)
    if args.quick:
        args.n = args.n_early = args.batch = 16
        args.n64, args.iterations, args.repeats = 2, 20, 1
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    start, device = time.perf_counter(), core.pick_device(args.device)
    warnings.simplefilter("ignore", UserWarning)  # the overhead's tau is out of reach on purpose
    model = checkpoints.load("mnist_cnn", device).model
    judges = [checkpoints.load(name, device).model for name in JUDGES]
    prototypes = mean_logits(model, mnist.load("", "train").x.to(device), seed=args.seed)
    pool, most = mnist.load("", "test"), max(args.n, args.n_early)
    rows, target = mnist.ordered_pairs(pool, -(-most // 90))
    rows, target = rows[:most], target[:most].to(device)
    x, ids = pool.x[rows].to(device), pool.ids[rows]

    settings = {"steps": args.iterations, "max_blocks": args.blocks, "seed": args.seed}
    full, early = (
        presets.get("gradual", "mnist", variant, **settings).build(prototypes)
        for variant in ("recommended", "early")
    )
    slow = full.with_(ranking=args.ranking)
    never = slow.with_(tau=1 - 1e-9, max_blocks=2)  # no item leaves
    time_call(never.with_(steps=2), model, x[:1], target[:1], None)  # loads libraries
    first, few = slice(0, args.batch), slice(0, args.n64)
    memory = peak_mib(slow, model, x[first], target[first])
    cost = measure_overhead(never, model, x[first], target[first], args.repeats)
    rivals = {
        "batch": (time_call, slow, args.n),
        "alone": (explain_one_by_one, slow, args.n),
        "full": (time_call, full, args.n_early),
        "early": (time_call, early, args.n_early),
    }
    found, seconds = run_side_by_side(rivals, model, x, target, ids, args.batch)
    difference = compare_in_float64(slow, prototypes, x[few], target[few], ids[few])
    alone, batch = found["alone"], found["batch"]
    same_blocks = (alone.mask == batch.mask).flatten(1).all(1)
    figures = {
        "speedup_batch64": seconds["alone"] / seconds["batch"],
        "max_abs_difference": difference,
        "speedup_early": seconds["alone"] / args.n / (seconds["early"] / args.n_early),
        "overhead": cost["overhead"],
        "peak_mib": memory,
        "float32_same_validity": (alone.valid == batch.valid).double().mean().item(),
        "float32_same_blocks": same_blocks.double().mean().item(),
    }
    for name in ("full", "early"):
        figures[f"validity_{name}"] = found[name].valid.double().mean().item()
        figures[f"judge_agreement_{name}"] = measure_agreement(judges, found[name])
    for name in ("validity", "judge_agreement"):
        figures[f"{name}_early_change"] = figures[f"{name}_early"] - figures[f"{name}_full"]
    record = {f"seconds_{name}": seconds[name] for name in ("alone", "batch", "early")}
    record |= {"passes_overhead": cost["passes"], "ms_per_pass_bare": cost["ms_per_pass_bare"]}
    record |= {"n": args.n, "n_early": args.n_early, "data": "embedded"}
    return report(figures, BOUNDS, start, args, device, **record)


if __name__ == "__main__":
    raise SystemExit(main())
