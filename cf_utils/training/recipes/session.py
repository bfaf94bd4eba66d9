"""A training session: train several checkpoints one after the other; `cf train` calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState

from cf_utils.core.choices import check_choice
from cf_utils.harness.locks import environment
from cf_utils.models import checkpoints
from cf_utils.training.recipes import EMBEDDED, RECIPES, calibrate_again, make


def list_checkpoints() -> list[str]:
    """Return one line per recipe: the name, and whether the checkpoint is there."""
    lines = []
    for name in sorted(RECIPES):
        state = "present" if checkpoints.exists(name) else "missing"
        lines.append(f"{name:28} {state:8} {'' if name in EMBEDDED else 'needs --data'}".rstrip())
    return lines


def train(
    names: Sequence[str],
    data: str = "",
    seed: int = 0,
    resume: str | Path = "",
    out: str | Path = "",
    calibrate: bool = False,
) -> None:
    """Train checkpoints, write them with their model cards, and print their quality.

    Args:
        names: keys of `RECIPES`, or "all": those that ship.
        data: folder with official data sets.
        resume: folder of training states, from which a killed training goes on; '' keeps none.
        out: folder of the checkpoints; '' is that of the shipped ones.
        calibrate: train nothing; calibrate shipped oracles again, by the prior that ships.

    Raises ValueError, before any work, for an unknown name.
    """
    if not names:
        raise ValueError("checkpoint: got no name, expected at least one; see `cf train --list`")
    for name in names:
        check_choice("checkpoint", name, [*sorted(RECIPES), "all"])
    if "all" in names:
        names = [name for name in RECIPES if checkpoints.exists(name)]
    out = Path(out) if out else checkpoints.FOLDER
    with _share_cpu_training():
        for name in names:
            if calibrate:
                card, effort = calibrate_again(name, out), "calibrated"
            else:
                card = make(name, data, seed, Path(resume) / name if resume else None, out)
                effort = f"{card['training']['seconds']:.0f} s"
            if PartialState().is_main_process:
                print(name, card["quality"], effort)


def _share_cpu_training() -> AbstractContextManager[None]:
    """Let the processes of `torchrun` share each batch on a machine without a GPU, too.

    Accelerate needs this variable; without it, each process would train the whole model.
    """
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    return environment(ACCELERATE_USE_CPU="1") if shared else nullcontext()
