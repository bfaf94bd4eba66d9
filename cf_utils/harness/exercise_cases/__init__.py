"""The cases of `exercises`: inputs of each exercise whose result is known by hand.

`notebook_NN.py` holds those of one notebook: its `CASES` maps an exercise's number to its cases.
"""

from __future__ import annotations

import importlib
import pkgutil

from cf_utils.harness.exercise_cases.case import Case

__all__ = ["CASES", "Case"]


def _collect() -> dict[str, tuple[Case, ...]]:
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("notebook_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {number: cases for module in modules for number, cases in module.CASES.items()}


CASES = _collect()
