"""Accepted values of notebook parameters, checked before a kernel starts.

A parameter's name means the same in every notebook, so one rule per name is enough: sizes are at
least 1, `tau` is a probability, `dataset` is the name of a data set.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from cf_utils.core.choices import check_choice
from cf_utils.harness import notebooks

# whole numbers of at least 1; other whole numbers may be 0, which often means "the preset's"
SIZES = re.compile(r"n|n_\w+|per_pair|pairs|batch|steps|max_blocks|longest|\w+_(tries|seeds)")
PROBABILITIES = re.compile(r"tau(_\w+)?")
CATALOG_NAMES = {"bdd100k": "bdd", "imagenet": "imagenet_pairs"}  # of values of `dataset`
CASE_SETS = ("celeba", "celebahq", "bdd", "imagenet_pairs")  # read through harness.cases


def check_values(name: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming notebook and parameter, for the first value that makes no sense."""
    for key, value in values.items():
        argument = f"{name}: parameter {key}"
        if key in CHOICES:
            check_choice(argument, value, CHOICES[key]())
        elif key == "device":
            check_device(argument, value)
        elif isinstance(value, list | tuple) and not value:
            raise ValueError(f"{argument} got {value!r}, expected at least one entry")
        for number in value if isinstance(value, list | tuple) else [value]:
            if expected := _expected(key, number):
                raise ValueError(f"{argument} got {value!r}, expected {expected}")


def _expected(key: str, value: Any) -> str | None:
    """Describe what a number should have been; None if it is fine or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or key == "seed":
        return None
    if not math.isfinite(value):
        return "a finite number"
    if PROBABILITIES.fullmatch(key):
        return None if 0 < value < 1 else "a probability inside (0, 1)"
    least = 1 if isinstance(value, int) and SIZES.fullmatch(key) else 0
    return None if value >= least else f"at least {least}"


def check_device(argument: str, name: str) -> None:
    """Raise ValueError unless `name` is 'auto' or a device that torch knows, such as 'cuda:1'."""
    import torch

    if name == "auto":
        return
    try:
        torch.device(name)
    except RuntimeError as e:
        raise ValueError(f"{argument}: got {name!r}, expected auto, cpu, cuda or mps") from e


def check_data(name: str, given: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError if the data root holds no data set that the notebook reads.

    Nothing is checked without `data_root` and `table`: the notebook then uses embedded data.
    """
    root, table = given.get("data_root", ""), given.get("table", "")
    if not root and not table:
        return
    found = [status(root) for status in _status_functions(name, given)]
    if found and all(status.state == "missing" for status in found):
        advice = "; ".join(dict.fromkeys(status.advice for status in found))
        raise FileNotFoundError(
            f"{name}: data_root got {root!r}, which holds none of its data sets: {advice}"
        )


def _status_functions(name: str, given: Mapping[str, Any]) -> list[Callable[[str], Any]]:
    """Return a function root -> Status for each data set that the notebook may read."""
    from cf_utils.datasets import credit
    from cf_utils.datasets.catalog import SETS

    values = {**notebooks.defaults(name), **given}
    if "dataset" in values:
        return [SETS[CATALOG_NAMES.get(values["dataset"], values["dataset"])].status]
    imported = {
        alias.name
        for node in ast.walk(ast.parse(notebooks.code(name)))
        if isinstance(node, ast.ImportFrom)
        and node.module in ("cf_utils.datasets", "cf_utils.harness")
        for alias in node.names
    }
    if "credit" in imported:
        return [lambda root: credit.status(root, values.get("table") or None)]
    wanted = CASE_SETS if "cases" in imported else ()
    return [SETS[key].status for key in SETS if key in imported or key in wanted]


def _tables() -> list[str]:
    from cf_utils.datasets import credit

    return ["", *credit.OFFICIAL]


def _datasets() -> list[str]:
    from cf_utils.harness import cases

    return list(cases.SPLITS)


def _checkpoints() -> list[str]:
    from cf_utils.models import checkpoints

    return checkpoints.names()


CHOICES: dict[str, Callable[[], list[str]]] = {  # functions, because their imports are slow
    "dataset": _datasets,
    "table": _tables,
    "explained": _checkpoints,
    "second": lambda: ["", *_checkpoints()],
    "distance": lambda: ["l1", "l2"],
    "broken": lambda: ["error", "skip"],
}
