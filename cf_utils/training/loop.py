"""The one training loop: accelerate from one core to many GPUs, EMA, resume after a kill, progress.

A training is a list of `Part`s: each has its own parameters, optimiser and loss, and is stepped in turn on every batch (one
part for a classifier, three for an adversarial autoencoder).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cf_utils import core
from cf_utils.core import files


@dataclass(frozen=True, eq=False)
class Part:
    """`loss(module, batch) -> scalar`, minimised over `parameters(module)` by AdamW with a one-cycle (cosine) schedule."""

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
    folder: str | Path | None = None,
    clip: float | None = None,
    stop: Callable[[nn.Module, int], bool] | None = None,
    workers: int = 0,
    device: str = "auto",
) -> dict:
    """Train `module` in place; return {"seconds", "steps", "epochs", "losses"} (losses: mean of each part, an entry an epoch).

    ema: decay of an exponential moving average, whose weights the module has at the end; a short training forgets its first
    weights sooner: the decay after n steps is at most (1 + n) / (10 + n). folder: state is saved there after
    each epoch, and a training that finds one goes on; the order of batches depends on (seed, epoch) alone, so a killed and
    resumed training ends where an uninterrupted one does. Under `torchrun` (or `accelerate launch`) the processes share each
    batch of `batch_size`, which their number must divide. workers: processes that read `data` ahead, where its items are files.
    stop(module, step): asked after every step; True ends the training.
    """
    accelerator = Accelerator(
        cpu=device == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    order = torch.Generator()
    loader = DataLoader(
        data,
        batch_size=batch_size,
        shuffle=True,
        generator=order,
        drop_last=True,
        num_workers=workers,
    )
    owner = module
    optimisers = [
        torch.optim.AdamW(
            list(p.parameters(module)), lr=p.lr, betas=p.betas, weight_decay=p.weight_decay
        )
        for p in parts
    ]
    module, loader, *optimisers = accelerator.prepare(module, loader, *optimisers)
    total = epochs * len(loader)
    rise = 0.2 if total >= 10 else 0.5  # OneCycleLR divides by a rise of one step
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, p.lr, max(total, 4), pct_start=rise)
        if p.schedule
        else None
        for o, p in zip(optimisers, parts, strict=True)
    ]
    average = None
    if ema:
        average = torch.optim.swa_utils.AveragedModel(
            owner, multi_avg_fn=partial(_towards, decay=ema), use_buffers=True
        )
    state = Path(folder) / "state.pt" if folder else None
    log: dict[str, Any] = {"seconds": 0.0, "steps": 0, "epochs": 0, "losses": []}
    if state and state.exists():
        saved = torch.load(state, weights_only=True, map_location=accelerator.device)
        owner.load_state_dict(saved["module"])
        for keep, objects in ((saved["optimisers"], optimisers), (saved["schedules"], schedules)):
            for s, o in zip(keep, objects, strict=True):
                if o is not None:
                    o.load_state_dict(s)
        if average is not None:
            average.load_state_dict(saved["average"])
        log = saved["log"]
    began, done, stopped = time.perf_counter() - log["seconds"], log["epochs"], False
    for epoch in range(done, epochs):
        order.manual_seed(seed * 100_003 + epoch)
        torch.manual_seed(
            seed * 100_003 + epoch + 10**12 * accelerator.process_index
        )  # augmentation, dropout, noise
        module.train()
        sums = torch.zeros(len(parts))
        for batch in core.progress(loader, desc=f"epoch {epoch + 1}/{epochs}", leave=False):
            for i, (part, optimiser, schedule) in enumerate(
                zip(parts, optimisers, schedules, strict=True)
            ):
                optimiser.zero_grad(set_to_none=True)
                loss = part.loss(module, batch)
                accelerator.backward(loss)
                if clip:
                    accelerator.clip_grad_norm_(part.parameters(owner), clip)
                optimiser.step()
                if schedule:
                    schedule.step()
                sums[i] += loss.item()
            if average is not None:
                average.update_parameters(owner)
            log["steps"] += 1
            if stop and stop(owner, log["steps"]):
                stopped = True
                break
        log["epochs"], log["seconds"] = epoch + 1, time.perf_counter() - began
        log["losses"].append((sums / len(loader)).tolist())
        if state and accelerator.is_main_process:
            with files.whole_file(state) as part_file:
                torch.save(
                    {
                        "module": owner.state_dict(),
                        "optimisers": [o.state_dict() for o in optimisers],
                        "schedules": [s and s.state_dict() for s in schedules],
                        "average": average and average.state_dict(),
                        "log": log,
                    },
                    part_file,
                )
        if stopped:
            break
    if average is not None:
        owner.load_state_dict(average.module.state_dict())
    owner.eval()
    return log


def _towards(averages: list[Tensor], now: list[Tensor], n: Tensor, decay: float) -> None:
    """One step of the average, in place, after n steps."""
    share = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
    for a, b in zip(averages, now, strict=True):
        a.lerp_(b.to(a.dtype), share) if a.is_floating_point() else a.copy_(b)
