"""`python -m cf_utils.training.tuning faces --method ace`: measure a method's settings on validation renders, choose one by the rule,
write results/tuning/<world>_<label>_<kind>_<method>.json, print it as a table."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from cf_utils import core
from cf_utils.datasets import rendered
from cf_utils.harness import cases, results
from cf_utils.models import checkpoints
from cf_utils.training.tuning.grids import GRIDS, METHODS, PAPER
from cf_utils.training.tuning.record import checkpoint_hashes, shown
from cf_utils.training.tuning.tuner import Tuner, tune


def main(argv: list[str] | None = None) -> int:
    """0; 1 where the time was up before all that was asked for is measured."""
    parser = argparse.ArgumentParser(prog="python -m cf_utils.training.tuning", description=__doc__)
    parser.add_argument("world", choices=tuple(GRIDS))
    parser.add_argument("--method", choices=tuple(METHODS), required=True)
    parser.add_argument("--label", help=f"main labels: {rendered.MAIN}")
    parser.add_argument(
        "--kind", default="causal", choices=("causal", "shortcut", "mixed"), help="of classifier"
    )
    parser.add_argument("--n", type=int, default=64, help="validation queries")
    parser.add_argument("--batch", type=int, default=8, help="images explained at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out",
        type=Path,
        default=results.project() / "results" / "tuning",
        help="folder of the records",
    )
    parser.add_argument(
        "--settings", help="only these, by number: 3,7; the record keeps the others it has"
    )
    parser.add_argument(
        "--limit-minutes", type=float, default=math.inf, help="no batch begins later"
    )
    parser.add_argument("--list", action="store_true", help="list the settings by number, and end")
    args = parser.parse_args(argv)
    grid, label = GRIDS[args.world][args.method], args.label or rendered.MAIN[args.world]
    if args.list:
        print(
            *(f"{k:3d}  {dict(s)}{', the paper' * (k == PAPER)}" for k, s in enumerate(grid)),
            sep="\n",
        )
        return 0
    given = args.settings.split(",") if args.settings is not None else map(str, range(len(grid)))
    numbers = [int(k) if k.strip().isdecimal() else -1 for k in given]
    if not all(0 <= k < len(grid) for k in numbers):
        parser.error(
            f"--settings: got {args.settings!r}, expected numbers from 0 to {len(grid) - 1} as in 3,7"
        )
    if args.n < 1 or args.batch < 1 or not args.limit_minutes > 0:
        parser.error(
            f"--n, --batch, --limit-minutes: got {args.n}, {args.batch}, {args.limit_minutes:g}, expected over 0"
        )
    deadline, on = time.monotonic() + 60 * args.limit_minutes, core.pick_device(args.device)
    oracle = checkpoints.load(f"{args.world}_oracle", kind="oracle")
    case = cases.rendered_case(args.world, label, args.kind, args.n, "validation", args.seed, on)
    name = f"{args.world}_{label}_{args.kind}"
    made_on = {
        "world": args.world,
        "label": label,
        "kind": args.kind,
        "method": args.method,
        "split": "validation",
        "n": args.n,
        "seed": args.seed,
        "checkpoints": checkpoint_hashes(args.world, label, args.kind),
    }
    tuner = Tuner(
        case=case,
        oracle=oracle,
        method=args.method,
        grid=grid,
        folder=results.root() / "tuning" / name,
        batch=args.batch,
        seed=args.seed,
        device=on,
        deadline=deadline,
    )
    record = tune(tuner, made_on, numbers, args.out / f"{name}_{args.method}.json")
    if record is not None:
        print(shown(record))
    return int(record is None or any(k in record["left"] for k in numbers))


if __name__ == "__main__":
    raise SystemExit(main())
