"""Trains the GAN of progressive exaggeration in rounds, each with its own weights and rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import Dataset

from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.training import loop
from cf_utils.training.exaggeration import (
    Disturbance,
    Objective,
    Weights,
    averaged_part,
    joint_parts,
    warm_up_parts,
)
from cf_utils.training.running_statistics import update_statistics


class Round(NamedTuple):
    """A stage of the training.

    weights: of Eq. 9; None: reconstruction only. lr: learning rate; None: the paper's, or that of
    the warm-up. critic: learning rate of the discriminator, relative to that of the generator.
    disturb, disturb_critic: see `Objective`. decay: a one-cycle schedule instead of the paper's
    constant rate.
    """

    epochs: int
    weights: Weights | None = Weights()
    lr: float | None = None
    critic: float = 1.0
    disturb: Disturbance = Disturbance()
    decay: bool = False
    disturb_critic: Disturbance = Disturbance()

    def objective(self, gan: ConditionalGAN, classifier: nn.Module) -> Objective:
        """Return the objective of this stage."""
        return Objective(
            gan,
            classifier,
            self.weights or Weights(),
            self.disturb,
            disturb_critic=self.disturb_critic,
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings of the objective, without a disturbance that changes nothing."""
        found = {"weights": self.weights and asdict(self.weights), "disturb": asdict(self.disturb)}
        if self.disturb_critic != Disturbance():
            found["disturb_critic"] = asdict(self.disturb_critic)
        return found

    def parts(self) -> list[loop.Part]:
        """Return the parts of the training loop."""
        if self.weights is None:
            return warm_up_parts(self.lr or 3e-3)
        return joint_parts(self.lr or 2e-4, self.critic, self.decay)


def fit_rounds(
    gan: ConditionalGAN,
    classifier: nn.Module,
    data: Dataset,
    rounds: Sequence[Round],
    *,
    batch_size: int,
    seed: int = 0,
    folder: Path | None = None,
    ema: float = 0.999,
    workers: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a GAN in place, round by round, and return the log; see `loop.fit` for the arguments.

    Each round ends with the averaged weights, from which the next one starts. The running
    statistics of batch normalisation are measured anew at the end, see `update_statistics`. A
    killed training resumes in its round. Raises ValueError if the state in `folder` has other
    settings.
    """
    logs = []
    for k, stage in enumerate(rounds):
        log = loop.fit(
            stage.objective(gan, classifier),
            data,
            stage.parts(),
            epochs=stage.epochs,
            batch_size=batch_size,
            seed=seed + 50 * k,
            ema=ema,
            averaged=averaged_part,
            folder=folder and folder / str(k),
            workers=workers,
            settings=stage.settings() | dict(settings or {}),
        )
        logs.append(log)
    update_statistics(gan, data, seed)
    total = {key: sum(log[key] for log in logs) for key in ("seconds", "steps", "epochs")}
    return total | {"losses": [log["losses"] for log in logs]}


def describe_rounds(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the entries of a model card that tell how a GAN was trained."""
    return {
        "rounds": [
            {
                "epochs": r.epochs,
                "lr": [part.lr for part in r.parts()],
                "one_cycle": r.parts()[0].schedule,
                **r.settings(),
                "weights": asdict(r.weights) if r.weights else "reconstruction",
            }
            for r in rounds
        ],
        "weights_of_the_paper": asdict(Weights()),
        "low_precision": "bfloat16",
    }
