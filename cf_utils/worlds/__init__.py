"""Images with known causes: `worlds.get(name)`, then `.sample` and `.render`; `python -m cf_utils.worlds check NAME`."""

from __future__ import annotations

import importlib

from cf_utils.worlds.base import Factors, World

NAMES = ("faces", "roads")


def get(name: str) -> World:
    """A world by its name; its module is read only then."""
    if name not in NAMES:
        raise ValueError(f"world: got {name!r}, expected one of {NAMES}")
    return importlib.import_module(f"cf_utils.worlds.{name}").WORLD


__all__ = ["NAMES", "Factors", "World", "get"]
