"""The world card: can a label be read from what should reveal it, and from nothing else?

Probes are trained on renders of the training split and scored on test renders. Scores and bounds
are areas under the ROC curve (AUC). The accuracy of the CNN is reported as well; it is limited by
images close to the label's threshold. The CNN is trained on all training renders; the probes that
should find nothing are trained on the first `FEW`. In a neutralised render the label's cause and
its children have one fixed value, so nothing is left to read.

A label that is drawn with a known probability has a Bayes-optimal AUC below 1, with which its CNN
is compared. Fibrosis and emphysema are changes of density, so densities may reveal them in CT.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cf_utils import worlds
from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.training.progress import report
from cf_utils.training.world_probes import (
    bootstrap_auc,
    histogram_auc,
    logit_margin,
    nearest_distance_ratio,
    pgd_flip_rate,
    pixel_auc,
    train_probe,
)
from cf_utils.worlds import Label, World, lung_ct

FEW = 6000
FOLDER = files.ROOT / "results" / "worlds"
CHECKED = {
    "faces": ("smile", "age"),
    "roads": ("action",),
    "radiographs": ("cardiomegaly",),
    "lung_ct": ("mortality", "emphysema"),
}
PROBABILITY = {("lung_ct", "mortality"): lung_ct.mortality_probability}
ABOUT = {
    "radiographs": "All images show the ribs, lungs and vessels of one patient; persons differ by "
    "deformation, habitus and density only.",
    "lung_ct": "All images show slices of one patient's CT; persons differ by deformation, habitus "
    "and the choice of slices. Densities alone reveal much of the extent.",
}
BOUNDS = {  # key -> lowest and highest value
    "auc_neutralised": (0.47, 0.53),
    "auc_histogram": (0.0, 0.60),
    "auc_pixels": (0.0, 0.80),
    "auc_cnn": (0.97, 1.0),
    "flipped_by_pgd": (0.9, 1.0),
    "nearest_train_over_test": (0.98, np.inf),
}
OWN_BOUNDS: dict[str, dict[str, tuple[float, float]]] = {  # of a label, instead of those above
    "mortality": {
        "auc_histogram": (0.0, 1.0),
        "auc_pixels": (0.0, 1.0),
        "auc_cnn": (0.0, 1.0),
        "cnn_over_bayes": (0.95, 1.05),
    },
    "emphysema": {"auc_histogram": (0.0, 1.0), "auc_pixels": (0.0, 1.0)},
}


def check(
    name: str,
    n: int = 16_000,
    n_test: int = 3000,
    epochs: int = 10,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure a world; return the content of its card.

    n, n_test: training and test renders. labels: names; None for those in `CHECKED`.
    Raises ValueError for an unknown world or n below 1.
    """
    if n < 1:
        raise ValueError(f"--n: got {n}, expected a whole number over 0")
    world, began = worlds.get(check_choice("world", name, worlds.NAMES)), time.perf_counter()
    train, test = world.sample(n, "train", seed=seed), world.sample(n_test, "test", seed=seed)
    report(f"{name}: rendering {n + n_test:,} images")
    cpu = time.process_time()
    x, x_test = world.render(train), world.render(test)
    ms = 1000 * (time.process_time() - cpu) / (n + n_test)
    checked = {}
    for label in labels or CHECKED[name]:
        report(f"{name}: checking {label}")
        checked[label] = check_label(world, world.label(label), x, x_test, n, n_test, epochs, seed)
    return {
        "world": name,
        **({"about": ABOUT[name]} if name in ABOUT else {}),
        "sha256": world.sha256(),
        "size": list(world.size),
        "n_train": n,
        "n_few": min(n, FEW),
        "n_test": n_test,
        "seed": seed,
        "cpu_ms_per_image": ms,
        "checked": checked,
        "labels": {label.name: describe_label(label, test) for label in world.labels},
        "outside": list_violations(checked),
        "seconds": time.perf_counter() - began,
    }


def check_label(
    world: World,
    label: Label,
    x: Tensor,
    x_test: Tensor,
    n: int,
    n_test: int,
    epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Measure how well each probe reads a label from training and test renders x, x_test."""
    tables = world.sample(n, "train", seed=seed), world.sample(n_test, "test", seed=seed)
    y, y_test = (label(factors) for factors in tables)
    model = train_probe(x, y, epochs, seed)
    score = logit_margin(model, x_test)
    auc = bootstrap_auc(y_test, score)[0]
    few = min(n, FEW)
    neutral, error = neutralised_auc(
        label, tables[0].take(slice(0, few // 2)), tables[1], max(2, epochs // 2), seed
    )
    return {
        "share": y_test.double().mean().item(),
        "near_threshold": label.share_near_threshold(tables[1]) if label.factor else None,
        "auc_neutralised": neutral,
        "auc_neutralised_se": error,
        "auc_histogram": histogram_auc(x[:few], y[:few], x_test, y_test),
        "auc_pixels": pixel_auc(x[:few], y[:few], x_test, y_test),
        "auc_cnn": auc,
        **compare_with_bayes(label, tables[1], auc),
        "accuracy_cnn": ((score > 0).long() == y_test).double().mean().item(),
        "flipped_by_pgd": pgd_flip_rate(model, x_test[:256]),
        "nearest_train_over_test": nearest_distance_ratio(x[:few], x_test),
    }


def compare_with_bayes(label: Label, factors: worlds.Factors, auc: float) -> dict[str, float]:
    """Return the Bayes-optimal AUC of a label that is drawn, and `auc` as a share of it.

    Returns nothing for a label that the factors determine.
    """
    probability = PROBABILITY.get((factors.world.name, label.name))
    if probability is None:
        return {}
    best = bootstrap_auc(label(factors), probability(factors))[0]
    return {"auc_bayes": best, "cnn_over_bayes": auc / best}


def neutralised_auc(
    label: Label, train: worlds.Factors, test: worlds.Factors, epochs: int, seed: int
) -> tuple[float, float]:
    """Return AUC and standard error of a CNN on renders that carry no information on the label."""
    world = train.world
    x, x_test = (world.render(label.neutralise(factors)) for factors in (train, test))
    probe = train_probe(x, label(train), epochs, seed)
    return bootstrap_auc(label(test), logit_margin(probe, x_test))


def describe_label(label: Label, factors: worlds.Factors) -> dict[str, float]:
    """Return the share of class 1, and that of images near the threshold if there is one."""
    out = {"share": label(factors).double().mean().item()}
    if label.factor:
        out["within_0.05"] = label.share_near_threshold(factors)
    return out


def list_violations(checked: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Describe each value that lies outside its bounds, one line each."""
    return [
        f"{label}: {key} {row[key]:.3f} is outside [{low}, {high}]"
        for label, row in checked.items()
        for key, (low, high) in {**BOUNDS, **OWN_BOUNDS.get(label, {})}.items()
        if not low <= row[key] <= high
    ]


def print_card(card: Mapping[str, Any]) -> None:
    """Print what `check` has measured, and each value outside its bounds."""
    for label, row in card["checked"].items():
        lines = [f"{key} {value:.3f}" for key, value in row.items() if value is not None]
        print(label, *lines, sep="\n  ")
    print(f"{card['cpu_ms_per_image']:.1f} ms per image; {card['seconds']:.0f} s")
    for line in card["outside"]:
        print("outside:", line)


def write(name: str, n: int = 16_000) -> int:
    """Measure a world with n training renders, write results/worlds/<name>.json, and print it.

    Returns 1 if a bound is missed, else 0. Raises ValueError for an unknown world or n below 1.
    """
    card = check(name, n)
    files.write_json(FOLDER / f"{name}.json", card)
    print_card(card)
    return int(bool(card["outside"]))
