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
import platform
import sys
import time
import warnings
from pathlib import Path

import torch

from cf_utils import classifiers, core, io
from cf_utils.datasets import credit
from cf_utils.explainers.cem import CEM
from cf_utils.explainers.gradual import GradualConstruction, mean_logits
from cf_utils.explainers.growing_spheres import GrowingSpheres
from cf_utils.explainers.lore import LORE
from cf_utils.explainers.wachter import Wachter


def timed(explain, model, x, target, ids) -> tuple[core.Counterfactuals, float]:
    began = time.perf_counter()
    cfs = explain(model, x, target, ids)
    cfs.score.tolist()                                          # a GPU is done only then
    return cfs, time.perf_counter() - began


def alone(explain, model, x, target, ids) -> tuple[list[core.Counterfactuals], float]:
    parts = [timed(explain, model, x[i:i + 1], target[i:i + 1], ids[i:i + 1]) for i in range(len(x))]
    return [c for c, _ in parts], sum(s for _, s in parts)


class OneAtATime(torch.nn.Module):
    """The same classifier, asked row by row."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model(x[i:i + 1]) for i in range(len(x))])


def bare(explain, model, x, target, ids) -> float:
    """Seconds of the passes that a batch makes, in their order and sizes, and nothing else."""
    passes: list[list] = []

    def count(module, given, out):
        passes.append([len(out), False])
        if out.requires_grad:
            this = passes[-1]
            out.register_hook(lambda g: this.__setitem__(1, True))

    hook = model.register_forward_hook(count)
    explain(model, x, target, ids)
    hook.remove()
    rows = x.repeat(-(-max(n for n, _ in passes) // len(x)), 1)
    with core.frozen(model):
        began = time.perf_counter()
        for n, back in passes:
            z = rows[:n].clone().requires_grad_(back)
            if back:
                torch.autograd.grad(model(z).sum(), z)
            else:
                with torch.no_grad():
                    model(z)
        return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder that holds UCI credit or HELOC; empty: German credit")
    parser.add_argument("--name", help="uci_credit or heloc, where both lie there")
    parser.add_argument("--n", type=int, default=1000, help="rows in one batch (default 1000)")
    parser.add_argument("--alone", type=int, default=50, help="of them, timed one by one (default 50)")
    parser.add_argument("--repeats", type=int, default=3, help="of batch and one by one; the best counts (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="64 rows, 4 alone, once: does it run?")
    parser.add_argument("--out", type=Path, default=io.ROOT / "results" / "benchmarks" / "tabular.json")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.alone, args.repeats = 64, 4, 1
    began = time.perf_counter()
    warnings.simplefilter("ignore", UserWarning)
    train, test = (credit.load(args.data, s, args.name) for s in ("train", "test"))
    name = test.layout.name
    model = classifiers.load(f"{name}_mlp")
    parts = [test] if args.data else [credit.load("", s) for s in ("train", "validation", "test")]
    x = torch.cat([p.x for p in parts])[:args.n]
    ids, target = torch.arange(len(x)), 1 - classifiers.predict(model, x).argmax(1)
    limits, prototypes = test.constraints(), mean_logits(model, train.x, seed=args.seed)
    common = dict(tau=0.5, seed=args.seed, bounds=None)
    methods = {
        "gradual": GradualConstruction.tables(prototypes, patience=20, seed=args.seed),
        "gradual_clamped": GradualConstruction.recommended_tables(prototypes, limits, seed=args.seed),
        "wachter": Wachter.tables(core.median_absolute_deviation(train.x), **common),
        "cem": CEM.tables(**common), "growing_spheres": GrowingSpheres.tables(**common), "lore": LORE(train.x, **common)}
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
            singles, seconds = alone(explain, model, x[few], target[few], ids[few])
            one = min(one, seconds / len(few))
        figures[f"speedup_{label}"] = one / many
        changed = torch.cat([c.counterfactual != c.query for c in singles]) == (whole.counterfactual != whole.query)[few]
        valid = torch.cat([c.valid for c in singles]) == whole.valid[few]
        figures[f"same_{label}"] = (changed.all(1) & valid).double().mean().item()         # decision, and which features
        if key == "gradual":
            figures["limit_gradual"] = bare(explain, model, x, target, ids) / (many * len(x))
        else:
            loop, rows = OneAtATime(model), few[:max(1, args.alone // 10)]
            figures["speedup_spheres"] = alone(explain, loop, x[rows], target[rows], ids[rows])[1] / len(rows) / many
    bounds = {"speedup_batch": 40, "speedup_spheres": 20, "same_batch": 0.98, "same_spheres_query": 0.98}
    missed = [k for k, low in bounds.items() if figures[k] < low]
    print(f"{'figure':<34}{'value':>12}  bound")
    for key, value in figures.items():
        print(f"{key:<34}{value:>12.4g}  {f'>= {bounds[key]:g}' if key in bounds else ''}{'  MISSED' if key in missed else ''}")
    record = {**figures, "missed": missed, "quick": args.quick, "n": len(x), "n_alone": args.alone, "table": name,
              "data": "official" if args.data else "embedded", "seed": args.seed, "repeats": args.repeats,
              "threads": torch.get_num_threads(), "device": f"cpu {platform.machine()}", "torch": torch.__version__,
              "seconds": time.perf_counter() - began}
    io.write_json(args.out, record)
    print(f"{record['seconds']:.0f} s, {record['threads']} threads; written to {args.out}")
    if missed and not args.quick:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and not args.quick)


if __name__ == "__main__":
    raise SystemExit(main())
