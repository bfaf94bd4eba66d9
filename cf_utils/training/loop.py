"""The training loop of all models, from one CPU core to many GPUs (by accelerate).

A training is a list of `Part`s. Each part has its own parameters, optimiser and loss. The parts are
stepped in turn on every batch: one part for a classifier, three for an adversarial autoencoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from cf_utils import core
from cf_utils.training import fingerprint
from cf_utils.training.progress import report
from cf_utils.training.state import StateFile


@dataclass(frozen=True, eq=False)
class Part:
    """A loss and the parameters that AdamW updates to minimise it.

    loss: (module, batch) -> scalar. lr: learning rate, the highest one of the schedule.
    parameters: module -> the parameters of this part.
    schedule: use a one-cycle schedule with cosine annealing; False keeps the rate constant.
    """

    loss: Callable[[nn.Module, Any], Tensor]
    lr: float
    parameters: Callable[[nn.Module], Iterable[nn.Parameter]] = nn.Module.parameters
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: bool = True


def fit(
    module: nn.Module,
    data: Dataset,
    parts: list[Part],
    *,
    epochs: int,
    batch_size: int = 128,
    seed: int = 0,
    ema: float | None = None,
    averaged: Callable[[nn.Module], nn.Module] | None = None,
    folder: str | Path | None = None,
    clip: float | None = None,
    stop: Callable[[nn.Module, int], bool] | None = None,
    workers: int = 0,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train `module` in place, leave it in eval mode, and return the log.

    Args:
        batch_size: items per step over all processes, which share each batch; the number of
            processes (`torchrun`, `accelerate launch`) must divide it.
        seed: with the epoch, it determines the order of batches and all random draws.
        ema: decay of an exponential moving average of the weights; the module ends with the
            averages. After n steps the decay is at most (1 + n) / (10 + n).
        averaged: module -> the part of it that `ema` averages; None: all of it.
        folder: where the state is saved after each epoch. A later call with equal arguments resumes
            from it and ends with the weights of an uninterrupted training.
        clip: largest norm of the gradient of a part.
        stop: (module, number of steps) -> whether to end the training, called after every step.
        workers: processes that load `data` in advance; for data sets that read files.
        settings: what else the training depends on, such as the augmentation inside a loss. They
            are compared, like all other arguments, before a saved state is resumed.

    Returns: {"seconds", "steps", "epochs", "losses"}; losses holds the mean loss of each part, per
    epoch.
    Raises ValueError if the state in `folder` is unreadable or belongs to another training.
    """
    values = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "ema": ema, "clip": clip}
    values["settings"] = settings or {}
    state = _open_state(folder, module, data, parts, values) if folder else None
    training = _prepare(module, data, parts, epochs, batch_size, workers, device)
    if ema:
        training.start_average(ema, averaged)
    if state and (saved := state.read(training.accelerator.device)):
        training.restore(saved)
    log = training.log
    began = time.perf_counter() - log["seconds"]
    for epoch in range(log["epochs"], epochs):
        if training.stopped:
            break
        training.seed(seed * 100_003 + epoch)
        losses = training.run_epoch(f"epoch {epoch + 1}/{epochs}", clip, stop)
        training.end_epoch(losses, time.perf_counter() - began)
        if state and training.accelerator.is_main_process:
            state.write(training.save())
    training.finish()
    return log


@dataclass(eq=False)
class _Training:
    """The state of a training, and the steps that change it."""

    accelerator: Accelerator
    owner: nn.Module  # the caller's module
    module: nn.Module  # the same, wrapped by accelerate
    parts: list[Part]
    epochs: int  # planned in all
    loader: DataLoader
    order: torch.Generator  # draws the order of the batches
    optimisers: list[Any]
    schedules: list[Any]
    average: AveragedModel | None = None
    averaged: Callable[[nn.Module], nn.Module] | None = None  # owner -> what is averaged
    stopped: bool = False  # whether `stop` ended the training
    log: dict[str, Any] = field(
        default_factory=lambda: {"seconds": 0.0, "steps": 0, "epochs": 0, "losses": []}
    )

    def start_average(
        self, decay: float, averaged: Callable[[nn.Module], nn.Module] | None
    ) -> None:
        """Average the weights and buffers from now on, of all or of a part of the module."""
        update = partial(_update_average, decay=decay)
        self.averaged = averaged or _identity
        part = self.averaged(self.owner)
        self.average = AveragedModel(part, multi_avg_fn=update, use_buffers=True)

    def seed(self, seed: int) -> None:
        """Seed the order of batches, equal in all processes, and all other draws, which differ."""
        self.order.manual_seed(seed)
        torch.manual_seed(seed + 10**12 * self.accelerator.process_index)

    def run_epoch(
        self, title: str, clip: float | None, stop: Callable[[nn.Module, int], bool] | None
    ) -> list[float]:
        """Train on each batch once, or until `stop`; return the mean loss of each part."""
        self.module.train()
        sums = torch.zeros(len(self.parts))
        average, averaged = self.average, self.averaged
        for batch in core.progress(self.loader, desc=title, leave=False):
            for i in range(len(self.parts)):
                sums[i] += self.step(i, batch, clip)
            if average is not None and averaged is not None:
                average.update_parameters(averaged(self.owner))
            self.log["steps"] += 1
            if stop and stop(self.owner, self.log["steps"]):
                self.stopped = True
                break
        return (sums / len(self.loader)).tolist()

    def end_epoch(self, losses: list[float], seconds: float) -> None:
        """Add an epoch to the log, and report it where no progress bar is shown."""
        self.log["epochs"] += 1
        self.log["seconds"] = seconds
        self.log["losses"].append(losses)
        if self.accelerator.is_main_process:
            text = ", ".join(f"{loss:.4g}" for loss in losses)
            report(f"epoch {self.log['epochs']}/{self.epochs}: loss {text}, {seconds:.0f} s")

    def step(self, i: int, batch: Any, clip: float | None) -> float:
        """Update the parameters of part i on a batch; return its loss."""
        part, optimiser, schedule = self.parts[i], self.optimisers[i], self.schedules[i]
        optimiser.zero_grad(set_to_none=True)
        loss = part.loss(self.module, batch)
        self.accelerator.backward(loss)
        if clip:
            self.accelerator.clip_grad_norm_(part.parameters(self.owner), clip)
        optimiser.step()
        if schedule:
            schedule.step()
        return loss.item()

    def save(self) -> dict[str, Any]:
        """Return everything that `restore` needs."""
        return {
            "module": self.owner.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "schedules": [schedule and schedule.state_dict() for schedule in self.schedules],
            "average": self.average and self.average.state_dict(),
            "stopped": self.stopped,
            "log": self.log,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `save` returned."""
        self.owner.load_state_dict(saved["module"])
        for name in ("optimisers", "schedules"):
            for own, content in zip(getattr(self, name), saved[name], strict=True):
                if own is not None:
                    own.load_state_dict(content)
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.stopped = saved["stopped"]
        self.log.update(saved["log"])

    def finish(self) -> None:
        """Give the module the averaged weights, if there are any, and set it to eval mode."""
        if self.average is not None and self.averaged is not None:
            self.averaged(self.owner).load_state_dict(self.average.module.state_dict())
        self.owner.eval()


def _prepare(
    module: nn.Module,
    data: Dataset,
    parts: list[Part],
    epochs: int,
    batch_size: int,
    workers: int,
    device: str,
) -> _Training:
    """Build the loader, optimisers and schedules, and move everything to the device."""
    config = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=device == "cpu", dataloader_config=config)
    order = torch.Generator()
    loader = DataLoader(
        data,
        batch_size=batch_size,
        shuffle=True,
        generator=order,
        drop_last=True,
        num_workers=workers,
    )
    optimisers = [
        torch.optim.AdamW(
            list(part.parameters(module)),
            lr=part.lr,
            betas=part.betas,
            weight_decay=part.weight_decay,
        )
        for part in parts
    ]
    owner = module
    module, loader, *optimisers = accelerator.prepare(module, loader, *optimisers)
    steps = epochs * len(loader)
    rise = 0.2 if steps >= 10 else 0.5  # OneCycleLR divides by zero if the rise is one step
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(optimiser, part.lr, max(steps, 4), pct_start=rise)
        if part.schedule
        else None
        for optimiser, part in zip(optimisers, parts, strict=True)
    ]
    return _Training(
        accelerator, owner, module, parts, epochs, loader, order, optimisers, schedules
    )


def _open_state(
    folder: str | Path,
    module: nn.Module,
    data: Dataset,
    parts: list[Part],
    values: dict[str, Any],
) -> StateFile:
    """Return the state file of the training with these settings, parts, module and data."""
    values["module"] = fingerprint.describe_module(module)
    values["data"] = fingerprint.hash_dataset(data)
    for i, part in enumerate(parts):
        values[f"part {i}"] = {
            "loss": fingerprint.describe_function(part.loss),
            "lr": part.lr,
            "weight_decay": part.weight_decay,
            "betas": part.betas,
            "schedule": part.schedule,
        }
    return StateFile(Path(folder) / "state.pt", fingerprint.flatten(values))


def _identity(module: nn.Module) -> nn.Module:
    return module


def _update_average(averages: list[Tensor], now: list[Tensor], n: Tensor, decay: float) -> None:
    """Move the average towards the weights, in place, after n steps."""
    share = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
    for average, value in zip(averages, now, strict=True):
        if average.is_floating_point():
            average.lerp_(value.to(average.dtype), share)
        else:
            average.copy_(value)
