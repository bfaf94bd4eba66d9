"""Speed of gradual construction on words: `python benchmarks/words.py`.

sentences_per_second_recommended  search among real words
sentences_per_second_paper        the paper's form, with --steps Adam steps per composition step
sentences_per_second_loop         the paper's form, if it replaced words by `find_nearest_by_loop`
speedup_replacement               nearest words by a loop over points and vocabulary, as in the
                                  authors' released code, over ours (one chunked cdist)
same_words                        share of points for which both give the same word
share_replacement                 share of the paper form's time that our replacement takes

Prints one table and writes results/benchmarks/words.json. The exit code is 1 if a
bound is missed, except with --quick.
"""

from __future__ import annotations

import time

import torch
from _side import make_parser, measure_seconds, report
from torch import Tensor

from cf_utils.datasets import glove, imdb
from cf_utils.explainers import average_by_class, presets
from cf_utils.explainers.gradual_words import find_nearest
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.texts import predict_texts

MAX_WORDS = 150  # of the explained reviews
MIN_COUNT = 5  # occurrences in training of a word of the vocabulary


def find_nearest_by_loop(points: Tensor, table: Tensor) -> Tensor:
    """Return what `find_nearest` does, by one distance per point and vocabulary word."""
    rows = []
    for point in points:
        best, row = float("inf"), -1
        for k, word in enumerate(table):
            distance = torch.dist(point, word).item()
            if distance < best:
                best, row = distance, k
        rows.append(row)
    return torch.tensor(rows)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = make_parser(__doc__, "words")
    parser.add_argument("--n", type=int, default=64, help="reviews")
    parser.add_argument("--steps", type=int, default=100, help="Adam steps of the paper's form")
    parser.add_argument("--points", type=int, default=3, help="vectors that the loop replaces")
    args = parser.parse_args(argv)
    if args.quick:
        args.n, args.steps, args.points = 4, 5, 1
    start = time.perf_counter()
    vectors, test = glove.load(), imdb.load("", "test")
    train = imdb.load("", "train").take(range(1000))
    model = checkpoints.load("imdb_cnn").model
    prototypes = average_by_class(predict_texts(model, vectors, train.texts), seed=args.seed)
    rows = glove.encode(vectors, train.texts)
    counts = torch.bincount(rows[rows >= 0], minlength=len(vectors.words))
    vocabulary = vectors.take((counts >= MIN_COUNT).nonzero().flatten())
    encoded = glove.encode(vectors, test.texts[: 20 * args.n])
    short = ((encoded >= 0).sum(1) <= MAX_WORDS).nonzero().flatten()[: args.n]
    x = glove.embed(vectors, encoded[short][:, : MAX_WORDS + glove.TAIL])
    target = 1 - classifiers.predict(model, x).argmax(1)
    table = vectors.vectors[:2000] if args.quick else vectors.vectors

    recommended = presets.get("gradual_words", "imdb", "recommended", vectors=vocabulary.vectors)
    paper = presets.get("gradual_words", "imdb", vectors=table, steps=args.steps, max_blocks=8)
    figures, seconds, found = {}, {}, {}
    for name, preset in (("recommended", recommended), ("paper", paper)):
        explain = preset.build(prototypes, seed=args.seed)
        seconds[name], found[name] = measure_seconds(
            lambda explain=explain: explain(model, x, target, torch.arange(len(x)))
        )
        figures[f"sentences_per_second_{name}"] = len(x) / seconds[name]
        figures[f"validity_{name}"] = found[name].valid.double().mean().item()

    cfs = found["paper"]
    last = cfs.path[torch.arange(len(cfs)), cfs.path_len - 1]
    points = last[(last != cfs.query).any(2)]  # the vectors that the search moved
    tries = [measure_seconds(lambda: find_nearest(points, table)) for _ in range(3)]
    ours, nearest = min(tries, key=lambda pair: pair[0])
    few = points[: args.points]
    loop, by_loop = measure_seconds(lambda: find_nearest_by_loop(few, table))
    per_point = loop / args.points
    without = seconds["paper"] - ours
    figures["sentences_per_second_loop"] = len(x) / (without + per_point * len(points))
    figures["speedup_replacement"] = per_point / (ours / len(points))
    figures["same_words"] = (by_loop == nearest[: args.points]).double().mean().item()
    figures["share_replacement"] = ours / seconds["paper"]
    bounds = {"speedup_replacement": (20, None), "same_words": (1.0, None)}
    return report(figures, bounds, start, args, n=len(x), words=len(table), data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
