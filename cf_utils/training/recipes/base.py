"""The registry of recipes, and how a recipe becomes a checkpoint with a model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from torch import nn

from cf_utils import core
from cf_utils.core.choices import check_choice
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from cf_utils.training.progress import report


class Trained(NamedTuple):
    """What a recipe returns.

    model: trained, in eval mode.
    card: entries of the model card that the recipe knows: data, settings, architecture, ...
    log: of the training, for the model card.
    measure: model -> its quality, for the model card; called on the weights that are stored.
    """

    model: nn.Module
    card: dict[str, Any]
    log: dict[str, Any]
    measure: Callable[[Any], dict[str, Any]]


Recipe = Callable[[str, int, Path | None], Trained]
RECIPES: dict[str, Recipe] = {}  # by the name of the checkpoint
EMBEDDED: set[str] = set()  # recipes that need no data folder: their data ship in a package


def recipe(name: str, embedded: bool = False) -> Callable[[Recipe], Recipe]:
    """Register a function (data folder, seed, state folder) -> Trained as the recipe of `name`.

    Its docstring becomes the entry "about" of the model card. embedded: it reads no data folder.
    """

    def register(function: Recipe) -> Recipe:
        RECIPES[name] = function
        if embedded:
            EMBEDDED.add(name)
        return function

    return register


def make(
    name: str,
    root: str,
    seed: int = 0,
    folder: Path | None = None,
    out: Path = checkpoints.FOLDER,
) -> dict[str, Any]:
    """Train a checkpoint, write it with its model card, and return the card.

    Weights are stored as float16. They are rounded to it before their quality is measured.

    Args:
        name: key of `RECIPES`.
        root: folder with official data sets; '' for the recipes in `EMBEDDED`.
        folder: of training states, from which a killed training resumes; None keeps none.
        out: folder of the checkpoint. Of several processes (`torchrun`), the first writes.

    Raises ValueError for an unknown name, or if the recipe needs a data folder and gets none.
    """
    check_choice("recipe", name, sorted(RECIPES))
    if not root and name not in EMBEDDED:
        raise ValueError(
            f"--data: got none, but {name} is made from official files; pass their folder"
        )
    core.seed_everything(seed)
    report(f"{name}: training")
    model, card, log, measure = RECIPES[name](root, seed, folder)
    round_weights(model)
    report(f"{name}: measuring")
    data = "" if name in EMBEDDED else " --data DIR"
    card = {
        "recipe": f"cf train {name}{data} --seed {seed}",
        "about": " ".join((RECIPES[name].__doc__ or "").split()),
        "seed": seed,
        "architecture": {"class": type(model).__name__},
        **card,
        "quality": measure(model),
        "training": log,
        "torch": torch.__version__,
    }
    if PartialState().is_main_process:
        checkpoints.save(name, model, Card.from_json(card), out)
    return card


def round_weights(module: nn.Module) -> None:
    """Round all floating-point weights and buffers to float16 in place; their dtype stays."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
