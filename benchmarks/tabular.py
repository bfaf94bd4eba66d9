"""Rows explained a second, five methods on the same table: `python benchmarks/tabular.py [--data DIR]` (see --help).

rows_per_second_*     each method on the same rows, in one batch
speedup_batch         gradual construction one by one / in one batch, seconds a row; same settings, alternating
speedup_spheres       Growing Spheres as a loop, one query and one draw at a time / all queries and draws at once, seconds a row
speedup_spheres_query the same with all draws of one query at once
limit_gradual         the bare classifier passes that the batch made / its time (1 would be no overhead at all)

Without --data the rows are those of the embedded German credit table; with it, UCI's or HELOC's test rows. One by one is timed on
--alone rows spread over the same rows, and compared by the row. Prints one table, writes results/benchmarks/tabular.json, ends
non-zero where a bound is missed (--quick judges none).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from _side import Passes, one_by_one, report, timed

from cf_utils import core
from cf_utils.core import files
from cf_utils.datasets import credit
from cf_utils.explainers import mean_logits, presets
from cf_utils.models import checkpoints, classifiers


class OneAtATime(torch.nn.Module):
    """The same classifier, asked row by row."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model(x[i : i + 1]) for i in range(len(x))])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="", help="folder that holds UCI credit or HELOC; empty: German credit"
    )
    parser.add_argument("--name", help="uci_credit or heloc, where both lie there")
    parser.add_argument("--n", type=int, default=1000, help="rows in one batch (default 1000)")
    parser.add_argument(
        "--alone", type=int, default=50, help="of them, timed one by one (default 50)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="of batch and one by one; the best counts (default 3)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="64 rows, 4 alone, once: does it run?")
    parser.add_argument(
        "--out", type=Path, default=files.ROOT / "results" / "benchmarks" / "tabular.json"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.alone, args.repeats = 64, 4, 1
    began = time.perf_counter()
    warnings.simplefilter("ignore", UserWarning)
    train, test = (credit.load(args.data, s, args.name) for s in ("train", "test"))
    name = test.layout.name
    model = checkpoints.load(f"{name}_mlp").model
    parts = [test] if args.data else [credit.load("", s) for s in ("train", "validation", "test")]
    x = torch.cat([p.x for p in parts])[: args.n]
    ids, target = torch.arange(len(x)), 1 - classifiers.predict(model, x).argmax(1)
    limits, prototypes = test.constraints(), mean_logits(model, train.x, seed=args.seed)
    common = dict(tau=0.5, seed=args.seed, bounds=None)
    mad = core.median_absolute_deviation(train.x)
    gradual, constrained = (presets.get("gradual", name, v) for v in (None, "constrained"))
    rivals = {k: presets.get(k, name) for k in ("wachter", "cem", "growing_spheres", "lore")}
    methods = {
        "gradual": gradual.build(prototypes, patience=20, seed=args.seed),
        "gradual_clamped": constrained.build(prototypes, constraints=limits, seed=args.seed),
        "wachter": rivals["wachter"].build(mad=mad, **common),
        "cem": rivals["cem"].build(**common),
        "growing_spheres": rivals["growing_spheres"].build(**common),
        "lore": rivals["lore"].build(train.x, **common),
    }
    figures: dict[str, float] = {}
    for key, explain in methods.items():
        cfs, seconds = timed(explain, model, x, target, ids)
        figures[f"rows_per_second_{key}"] = len(x) / seconds
        figures[f"validity_{key}"] = cfs.valid.double().mean().item()

    few = torch.linspace(0, len(x) - 1, args.alone).long()
    for key, label in (("gradual", "batch"), ("growing_spheres", "spheres_query")):
        explain, one, many = methods[key], float("inf"), float("inf")
        for _ in range(args.repeats):
            whole, seconds = timed(explain, model, x, target, ids)
            many = min(many, seconds / len(x))
            single, seconds = one_by_one(explain, model, x[few], target[few], ids[few])
            one = min(one, seconds / len(few))
        figures[f"speedup_{label}"] = one / many
        changed, others = (c.counterfactual != c.query for c in (single, whole.select(few)))
        same = (changed == others).all(1) & (
            single.valid == whole.valid[few]
        )  # decision, and which features
        figures[f"same_{label}"] = same.double().mean().item()
        if key == "gradual":
            figures["limit_gradual"] = Passes(explain, model, x, target, ids).bare() / (
                many * len(x)
            )
        else:
            loop, rows = OneAtATime(model), few[: max(1, args.alone // 10)]
            figures["speedup_spheres"] = (
                one_by_one(explain, loop, x[rows], target[rows], ids[rows])[1] / len(rows) / many
            )
    bounds = {
        "speedup_batch": (40, None),
        "speedup_spheres": (20, None),
        "same_batch": (0.98, None),
        "same_spheres_query": (0.98, None),
    }
    return report(
        figures,
        bounds,
        began,
        args,
        n=len(x),
        table=name,
        data="official" if args.data else "embedded",
    )


if __name__ == "__main__":
    raise SystemExit(main())
