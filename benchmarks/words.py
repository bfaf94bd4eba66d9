"""Sentences a second, gradual construction on words: `python benchmarks/words.py` (see --help).

sentences_per_second_*  the recommended form, and the paper's (--steps Adam steps a composition step)
sentences_per_second_loop  the paper's form with the replacement as a loop (below), from the parts measured
speedup_replacement     the replacement by the nearest word, as a loop over the vocabulary word by word (the way of the authors'
                        released code, without its early stop), against ours: one chunked cdist; same points, same answers
share_replacement       what share of the paper form's time ours takes

Prints one table and writes results/benchmarks/words.json; ends non-zero where a bound is missed (--quick judges none).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from _side import report

from cf_utils.core import files
from cf_utils.datasets import glove, imdb
from cf_utils.explainers.gradual import mean_of_logits
from cf_utils.explainers.gradual_words import GradualWords, nearest, predict_texts
from cf_utils.models import checkpoints, classifiers


def by_loop(points: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The plain reference: for each point, one distance a vocabulary word."""
    out = []
    for p in points:
        best, at = float("inf"), -1
        for k, word in enumerate(table):
            d = torch.dist(p, word).item()
            if d < best:
                best, at = d, k
        out.append(at)
    return torch.tensor(out)


def seconds_of(call) -> tuple[float, object]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n", type=int, default=64, help="reviews of at most 150 words (default 64)"
    )
    parser.add_argument("--steps", type=int, default=100, help="of the paper's form (default 100)")
    parser.add_argument(
        "--points",
        type=int,
        default=3,
        help="vectors replaced by the loop (default 3: it takes seconds each)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="4 reviews, 5 steps, 1 point, 2,000 words: does it run?",
    )
    parser.add_argument(
        "--out", type=Path, default=files.ROOT / "results" / "benchmarks" / "words.json"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.steps, args.points = 4, 5, 1
    began = time.perf_counter()
    vectors, train, test = glove.load(), imdb.load("", "train"), imdb.load("", "test")
    model = checkpoints.load("imdb_cnn").model
    train = train.take(range(1000))
    rows = glove.encode(vectors, train.texts)
    prototypes = mean_of_logits(predict_texts(model, vectors, train.texts), seed=args.seed)
    words = vectors.take(
        (torch.bincount(rows[rows >= 0], minlength=len(vectors.words)) >= 5).nonzero().flatten()
    )
    encoded = glove.encode(vectors, test.texts[: 20 * args.n])
    short = ((encoded >= 0).sum(1) <= 150).nonzero().flatten()[: args.n]
    x = glove.embed(vectors, encoded[short][:, : 150 + glove.TAIL])
    target = 1 - classifiers.predict(model, x).argmax(1)
    table = vectors.vectors[:2000] if args.quick else vectors.vectors
    forms = {
        "recommended": GradualWords.recommended(prototypes, words.vectors, seed=args.seed),
        "paper": GradualWords(
            prototypes, vectors=table, steps=args.steps, max_blocks=8, seed=args.seed
        ),
    }
    figures, took = {}, {}
    for name, explain in forms.items():
        took[name], cfs = seconds_of(
            lambda explain=explain: explain(model, x, target, torch.arange(len(x)))
        )
        figures[f"sentences_per_second_{name}"] = len(x) / took[name]
        figures[f"validity_{name}"] = cfs.valid.double().mean().item()
        if name == "paper":
            last = cfs.path[torch.arange(len(cfs)), cfs.path_len - 1]
            points = last[(last != cfs.query).any(2)]  # the vectors that the search moved
    ours, found = min(
        (seconds_of(lambda: nearest(points, table)) for _ in range(3)), key=lambda pair: pair[0]
    )
    loop, plain = seconds_of(lambda: by_loop(points[: args.points], table))
    loop /= args.points
    figures["sentences_per_second_loop"] = len(x) / (took["paper"] - ours + loop * len(points))
    figures["speedup_replacement"] = loop / (ours / len(points))
    figures["same_words"] = (plain == found[: args.points]).double().mean().item()
    figures["share_replacement"] = ours / took["paper"]
    bounds = {"speedup_replacement": (20, None), "same_words": (1.0, None)}
    return report(figures, bounds, began, args, n=len(x), words=len(table), data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
