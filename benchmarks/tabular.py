"""Speed of five methods on the same rows of a table: `python benchmarks/tabular.py [--data DIR]`.

rows_per_second_*      rows of one batch per second
validity_*             share of these rows that are decided as the target
speedup_batch          gradual construction: seconds per row one by one over those in one batch
speedup_spheres        the same of Growing Spheres; the loop also classifies one draw at a time
speedup_spheres_query  the same of Growing Spheres; the loop classifies all draws of a query at once
same_*                 share of rows with the same decision and changed features, one by one and
                       in one batch
limit_gradual          seconds of the bare passes of the classifier that the batch makes over the
                       seconds of the batch; without any overhead it is 1

The rows are those of the embedded German credit table; with --data, the test rows of UCI credit or
HELOC. One by one is measured on --alone rows spread over the batch, and compared per row.

Prints one table and writes results/benchmarks/tabular.json. The exit code is 1 if a bound is
missed, except with --quick.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from _side import Passes, explain_one_by_one, make_parser, report, time_call
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals, Explainer
from cf_utils.datasets import credit
from cf_utils.datasets.tabular import Table
from cf_utils.explainers import mean_logits, presets
from cf_utils.models import checkpoints, classifiers

BOUNDS = {
    "speedup_batch": (40, None),
    "speedup_spheres": (20, None),
    "same_batch": (0.98, None),
    "same_spheres_query": (0.98, None),
}


class OneAtATime(nn.Module):
    """A classifier that passes each row through the model on its own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(x[i : i + 1]) for i in range(len(x))])


def build_methods(train: Table, model: nn.Module, seed: int) -> dict[str, Explainer]:
    """Return the explainers by name, with the table's presets."""
    name, settings = train.layout.name, {"tau": 0.5, "seed": seed}
    prototypes = mean_logits(model, train.x, seed=seed)
    gradual = presets.get("gradual", name, patience=20, seed=seed)
    constrained = presets.get("gradual", name, "constrained", seed=seed)
    deviation = core.median_absolute_deviation(train.x)
    return {
        "gradual": gradual.build(prototypes),
        "gradual_clamped": constrained.build(prototypes, constraints=train.constraints()),
        "wachter": presets.get("wachter", name, **settings).build(mad=deviation),
        "cem": presets.get("cem", name, **settings).build(),
        "growing_spheres": presets.get("growing_spheres", name, **settings).build(),
        "lore": presets.get("lore", name, **settings).build(train.x),
    }


def compare(single: Counterfactuals, batch: Counterfactuals) -> float:
    """Return the share of items with the same decision and the same changed features."""
    changed, others = (cfs.counterfactual != cfs.query for cfs in (single, batch))
    same = (changed == others).all(1) & (single.valid == batch.valid)
    return same.double().mean().item()


def measure_speedup(
    explain: Explainer, model: nn.Module, x: Tensor, target: Tensor, few: Tensor, repeats: int
) -> tuple[float, float, float]:
    """Time items `few` one by one and all items in one batch, alternating; the best time counts.

    Returns the speed-up, the share of equal results, and the seconds of the batch.
    """
    ids, alone, batch = torch.arange(len(x)), float("inf"), float("inf")
    for _ in range(repeats):
        whole, seconds = time_call(explain, model, x, target, ids)
        batch = min(batch, seconds)
        single, seconds = explain_one_by_one(explain, model, x[few], target[few], ids[few])
        alone = min(alone, seconds)
    speedup = (alone / len(few)) / (batch / len(x))
    return speedup, compare(single, whole.select(few)), batch


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = make_parser(__doc__, "tabular")
    about = "folder that contains UCI credit or HELOC; empty: German credit"
    parser.add_argument("--data", default="", help=about)
    parser.add_argument("--name", help="uci_credit or heloc, if the folder contains both")
    parser.add_argument("--n", type=int, default=1000, help="rows in one batch")
    parser.add_argument("--alone", type=int, default=50, help="rows explained one by one")
    parser.add_argument("--repeats", type=int, default=3, help="timings of both; the best counts")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.alone, args.repeats = 64, 4, 1
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    args = parse(argv)
    start = time.perf_counter()
    warnings.simplefilter("ignore", UserWarning)
    train, test = (credit.load(args.data, split, args.name) for split in ("train", "test"))
    model = checkpoints.load(f"{test.layout.name}_mlp").model
    splits = ("train", "validation", "test")
    parts = [test] if args.data else [credit.load("", split) for split in splits]
    x = torch.cat([part.x for part in parts])[: args.n]
    target = 1 - classifiers.predict(model, x).argmax(1)
    methods, figures = build_methods(train, model, args.seed), {}
    for name, explain in methods.items():
        cfs, seconds = time_call(explain, model, x, target, torch.arange(len(x)))
        figures[f"rows_per_second_{name}"] = len(x) / seconds
        figures[f"validity_{name}"] = cfs.valid.double().mean().item()

    few = torch.linspace(0, len(x) - 1, args.alone).long()
    gradual, spheres = methods["gradual"], methods["growing_spheres"]
    speedup, same, seconds = measure_speedup(gradual, model, x, target, few, args.repeats)
    figures |= {"speedup_batch": speedup, "same_batch": same}
    bare = Passes(gradual, model, x, target, torch.arange(len(x))).bare()
    figures["limit_gradual"] = bare / seconds
    speedup, same, seconds = measure_speedup(spheres, model, x, target, few, args.repeats)
    figures |= {"speedup_spheres_query": speedup, "same_spheres_query": same}
    rows = few[: max(1, args.alone // 10)]
    loop = OneAtATime(model)
    alone = explain_one_by_one(spheres, loop, x[rows], target[rows], rows)[1]
    figures["speedup_spheres"] = (alone / len(rows)) / (seconds / len(x))
    data = "official" if args.data else "embedded"
    record = {"n": len(x), "table": test.layout.name, "data": data}
    return report(figures, BOUNDS, start, args, **record)


if __name__ == "__main__":
    raise SystemExit(main())
