"""The register of recipes, and what makes a checkpoint and its card of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from cf_utils import core
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card

RECIPES: dict[str, Callable[[str, int, Path | None], tuple[nn.Module, dict, dict]]] = {}


EMBEDDED: set[str] = set()  # recipes of data that ship in a package: they read no data root


def recipe(name: str, embedded: bool = False):
    def add(function):
        RECIPES[name] = function
        if embedded:
            EMBEDDED.add(name)
        return function

    return add


def make(
    name: str, root: str, seed: int = 0, folder: Path | None = None, out: Path = checkpoints.FOLDER
) -> dict:
    """Train, measure the stored (float16) weights, write checkpoint and card; return the card. Of several processes (`torchrun
    --nproc-per-node 2 -m cf_utils.training.recipes NAME`), which share each batch, the first writes."""
    if name not in RECIPES:
        raise ValueError(f"recipe: got {name!r}, expected one of {sorted(RECIPES)}")
    if not root and name not in EMBEDDED:
        raise ValueError(
            f"--data: {name} is made from official files; pass the folder that holds them"
        )
    core.seed_everything(seed)
    model, card, log = RECIPES[name](root, seed, folder)
    card.setdefault("architecture", {"class": type(model).__name__})
    about = " ".join((RECIPES[name].__doc__ or "").split())
    data = "" if name in EMBEDDED else " --data DIR"
    card = {
        "recipe": f"cf train {name}{data} --seed {seed}",
        "about": about,
        "seed": seed,
        **card,
        "quality": log.pop("quality"),
        "training": log,
        "torch": torch.__version__,
    }
    if PartialState().is_main_process:
        checkpoints.save(name, model, Card.from_json(card), out)
    return card
