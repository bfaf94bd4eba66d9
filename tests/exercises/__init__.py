"""Answers to the notebooks' exercises: three or more wrong ones, two right ones for each exercise.

`notebook_NN.py` holds those of one notebook. `RIGHT` maps an exercise's number to its answers,
`WRONG` to answers by the name of their mistake. An answer is the tuple of functions that the
exercise asks for.
"""

from __future__ import annotations

import importlib
import pkgutil

_NAMES = [m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("notebook_")]
_MODULES = [importlib.import_module(f"{__name__}.{name}") for name in _NAMES]
RIGHT = {number: answers for m in _MODULES for number, answers in m.RIGHT.items()}
WRONG = {number: answers for m in _MODULES for number, answers in m.WRONG.items()}
