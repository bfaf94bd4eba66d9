"""Images with known causes: `worlds.get(name)` returns a world that samples and renders them."""

from __future__ import annotations

import importlib

from cf_utils.worlds.factors import Factor, Factors
from cf_utils.worlds.graph import Graph
from cf_utils.worlds.world import Label, World

NAMES = ("faces", "roads", "radiographs", "lung_ct")


def get(name: str) -> World:
    """Return a world by its name; its module is imported on first use."""
    if name not in NAMES:
        raise ValueError(f"world: got {name!r}, expected one of {NAMES}")
    return importlib.import_module(f"cf_utils.worlds.{name}").WORLD


def of_checkpoint(name: str) -> World:
    """Return the world of a checkpoint, with whose name the checkpoint's name begins."""
    known = [world for world in NAMES if name.startswith(f"{world}_")]
    return get(known[0] if known else name.split("_")[0])


__all__ = ["NAMES", "Factor", "Factors", "Graph", "Label", "World", "get", "of_checkpoint"]
