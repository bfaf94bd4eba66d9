"""A tuning session: measure a method's settings on validation renders, choose one, write a record.

The record is results/tuning/<world>_<label>_<kind>_<method>.json. `cf tune` calls this module.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cf_utils import core
from cf_utils.core.choices import check_choice
from cf_utils.datasets import rendered
from cf_utils.harness import cases, folders
from cf_utils.harness.parameter_rules import check_device
from cf_utils.models import checkpoints
from cf_utils.training.tuning.grids import GRIDS, METHODS, PAPER
from cf_utils.training.tuning.record import format_record, read_checkpoint_hashes
from cf_utils.training.tuning.tuner import Tuner, tune

KINDS = ("causal", "shortcut", "mixed")  # of classifiers


def list_settings(world: str, method: str) -> list[str]:
    """Return one line per setting that `measure` tries, with its number."""
    return [
        f"{k:3d}  {dict(setting)}{', the paper' * (k == PAPER)}"
        for k, setting in enumerate(_grid(world, method))
    ]


@dataclass(frozen=True)
class Queries:
    """The validation renders to explain, the classifier to explain, and where to compute."""

    world: str  # a key of `GRIDS`
    label: str = ""  # '' is the world's main label
    kind: str = "causal"  # of classifier, one of `KINDS`
    n: int = 64
    batch: int = 8  # images explained at once
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice("world", self.world, GRIDS)
        check_choice("--kind", self.kind, KINDS)
        check_device("--device", self.device)
        for name in ("n", "batch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name}: got {value}, expected a whole number over 0")
        object.__setattr__(self, "label", self.label or rendered.MAIN[self.world])

    @property
    def name(self) -> str:
        """Name of the classifier's checkpoint; the record's file name begins with it."""
        return f"{self.world}_{self.label}_{self.kind}"


def measure(
    queries: Queries,
    method: str,
    settings: str = "all",
    limit_minutes: float = math.inf,
    out: str | Path = "",
) -> int:
    """Measure settings, write the record after each of them, and print it as a table.

    Args:
        method: a key of `METHODS`.
        settings: numbers such as "3,7", or "all". The record keeps the other settings it has.
        limit_minutes: no batch begins later.
        out: folder of the records; '' is results/tuning.

    Returns 1 if time was up before all of them were measured, else 0. Raises ValueError, before
    any work, for invalid arguments.
    """
    grid = _grid(queries.world, method)
    numbers = _numbers(settings, len(grid))
    if not limit_minutes > 0:
        raise ValueError(f"--limit-minutes: got {limit_minutes:g}, expected a number over 0")
    deadline = time.monotonic() + 60 * limit_minutes
    oracle = checkpoints.load(f"{queries.world}_oracle", kind="oracle")
    tuner = Tuner(
        case=_load_case(queries),
        generator=_load_generator(queries, method),
        oracle=oracle,
        method=method,
        grid=grid,
        folder=folders.root() / "tuning" / queries.name,
        batch=queries.batch,
        seed=queries.seed,
        device=core.pick_device(queries.device),
        deadline=deadline,
    )
    folder = Path(out) if out else folders.project() / "results" / "tuning"
    path = folder / f"{queries.name}_{method}.json"
    record = tune(tuner, _describe(queries, method), numbers, path)
    if record is None:
        return 1
    print(format_record(record))
    return int(any(k in record["left"] for k in numbers))


def _load_case(queries: Queries) -> cases.Case:
    q, device = queries, core.pick_device(queries.device)
    return cases.rendered_case(q.world, q.label, q.kind, q.n, "validation", q.seed, device)


def _load_generator(queries: Queries, method: str) -> nn.Module | None:
    """Return the method's generative model, or None if it is the prior of the case."""
    spec = METHODS[method]
    if spec.generator == "prior":
        return None
    name = f"{queries.world}_{spec.checkpoint}"
    return checkpoints.load(name, core.pick_device(queries.device)).model


def _grid(world: str, method: str) -> Sequence[Any]:
    check_choice("world", world, GRIDS)
    check_choice("--method", method, GRIDS[world])
    return GRIDS[world][method]


def _numbers(settings: str, size: int) -> list[int]:
    """Parse "3,7"; "all" means all numbers below `size`."""
    if settings == "all":
        return list(range(size))
    numbers = [int(k) if k.strip().isdecimal() else -1 for k in settings.split(",")]
    if not all(0 <= k < size for k in numbers):
        raise ValueError(
            f"--settings: got {settings!r}, expected numbers from 0 to {size - 1}, such as 3,7"
        )
    return numbers


def _describe(queries: Queries, method: str) -> dict[str, Any]:
    """Return what all rows of a record depend on."""
    q = queries
    return {
        "world": q.world,
        "label": q.label,
        "kind": q.kind,
        "method": method,
        "split": "validation",
        "n": q.n,
        "seed": q.seed,
        "checkpoints": read_checkpoint_hashes(q.world, q.label, q.kind, METHODS[method].checkpoint),
    }
