"""A training session: train several checkpoints one after the other; `cf train` calls it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState

from cf_utils import worlds
from cf_utils.core.choices import check_choice
from cf_utils.harness.locks import environment
from cf_utils.models import checkpoints
from cf_utils.training.recipes import EMBEDDED, RECIPES, calibrate_again, fine_tune_again, make
from cf_utils.training.recipes.zero_edits import list_stale


def list_checkpoints() -> list[str]:
    """Return one line per recipe: the name, and whether the checkpoint is there.

    The line of an oracle names the generators whose null its card does not hold.
    """
    lines = []
    for name in sorted(RECIPES):
        state = "present" if checkpoints.exists(name) else "missing"
        hint = "" if name in EMBEDDED else "needs --data"
        if name.endswith("_oracle") and (stale := _list_stale(name)):
            hint = f"needs --calibrate, for {', '.join(stale)}"
        lines.append(f"{name:28} {state:8} {hint}".rstrip())
    return lines


def _list_stale(name: str) -> list[str]:
    """List the generators whose null the card of a shipped oracle does not hold."""
    if not checkpoints.exists(name):
        return []
    return list_stale(checkpoints.read_card(name), worlds.of_checkpoint(name))


def train(
    names: Sequence[str],
    data: str = "",
    seed: int = 0,
    resume: str | Path = "",
    out: str | Path = "",
    calibrate: bool = False,
    fine_tune: bool = False,
) -> None:
    """Train checkpoints, write them with their model cards, and print their quality.

    Args:
        names: keys of `RECIPES`, or "all": those that ship.
        data: folder with official data sets.
        resume: folder of training states, from which a killed training goes on; '' keeps none.
        out: folder of the checkpoints; '' is that of the shipped ones.
        calibrate: train nothing; calibrate shipped oracles again, by the generators that ship.
        fine_tune: train shipped oracles on zero edits of the generators that ship, from their
            shipped weights on, and calibrate them.

    Raises ValueError, before any work, for an unknown name or if both flags are set.
    """
    if calibrate and fine_tune:
        raise ValueError(
            "--calibrate, --fine-tune: got both, expected one; --fine-tune calibrates, too"
        )
    if not names:
        raise ValueError("checkpoint: got no name, expected at least one; see `cf train --list`")
    for name in names:
        check_choice("checkpoint", name, [*sorted(RECIPES), "all"])
    if "all" in names:
        names = [name for name in RECIPES if checkpoints.exists(name)]
    out = Path(out) if out else checkpoints.FOLDER
    with _share_cpu_training():
        for name in names:
            folder = Path(resume) / name if resume else None
            if calibrate:
                card, effort = calibrate_again(name, out), "calibrated"
            elif fine_tune:
                card, effort = fine_tune_again(name, folder, out), "fine-tuned"
            else:
                card = make(name, data, seed, folder, out)
                effort = f"{card['training']['seconds']:.0f} s"
            if PartialState().is_main_process:
                print(name, card["quality"], effort)


def _share_cpu_training() -> AbstractContextManager[None]:
    """Let the processes of `torchrun` share each batch on a machine without a GPU, too.

    Accelerate needs this variable; without it, each process would train the whole model.
    """
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()
    return environment(ACCELERATE_USE_CPU="1") if shared else nullcontext()
