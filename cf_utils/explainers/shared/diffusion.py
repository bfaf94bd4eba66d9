"""What the methods that search through a diffusion prior share: checks, counted passes, images taken from another run."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cf_utils.core import NAN, Counterfactuals, PassCounter
from cf_utils.core.checks import listed
from cf_utils.models.generators.diffusion import DDPM, Chain


def check_prior(prior: DDPM, x: Tensor, bounds, **chains: tuple[str, int]) -> None:
    """ValueError unless the prior knows images like x (B, C, H, W) in [0, 1], and each (spacing, steps) of `chains`, by the
    argument's name, is some of the prior's levels."""
    if bounds is None or tuple(bounds) != (0, 1):
        raise ValueError(
            f"bounds: got {bounds}, expected (0, 1): the prior knows images of that range"
        )
    size = (prior.channels, *prior.size)
    if tuple(x.shape[1:]) != size:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, this prior was trained on (B, {', '.join(map(str, size))})"
        )
    for name, (spacing, steps) in chains.items():
        levels = len(prior.schedule.respaced(spacing))
        if not 1 <= steps <= levels:
            raise ValueError(
                f"{name}: got {steps}, expected 1 to {levels}, the levels of spacing {spacing!r}"
            )


NAN_PRIOR = "prior returned NaN"


def counted(prior: DDPM, n: int, bfloat16: bool = False) -> PassCounter:
    """The prior as a black box of pairs (z, t), whose passes for n items are counted; bfloat16: in autocast."""

    def passes(zt: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast(zt[0].device.type, torch.bfloat16, enabled=bfloat16):
            return prior(*zt)

    return PassCounter(passes, n)


def chain_of(
    prior: DDPM, generator: PassCounter, rows: Tensor, spacing: str | None, **settings
) -> Chain:
    """The prior's chain for the items `rows`, its passes booked by `generator` (of `counted`)."""
    return dataclasses.replace(
        prior.chain(spacing, **settings), model=lambda z, t: generator((z, t), rows)
    )


def check_taken(name: str, cfs: Counterfactuals | None, method: str) -> None:
    """ValueError, by the argument's name, unless cfs is None or a result of this method with its path."""
    if cfs is not None and (cfs.settings.get("method") != method or cfs.path is None):
        raise ValueError(
            f"{name}: got a result of {cfs.settings.get('method')}, expected one of {method} with its path"
        )


def taken(
    name: str, cfs: Counterfactuals, images: Tensor, ids, x: Tensor, target: Tensor
) -> tuple[Tensor, list[str]]:
    """The rows of `images`, one an item of `cfs`, that belong to the queries x with these `ids` and targets, and whose NaN each
    had met there, or "": such an item stays failed. ValueError, by the argument's name, where one lacks or was another query."""
    at, own = {i: k for k, i in enumerate(listed(cfs.ids))}, listed(ids)
    if missing := [i for i in own if i not in at]:
        raise ValueError(f"{name}: has no item {missing[:5]}")
    rows = [at[i] for i in own]
    if cfs.query.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"{name}: its queries have shape {tuple(cfs.query.shape[1:])}, got x of {tuple(x.shape[1:])}"
        )
    alike = {
        "query": (cfs.query[rows].to(x) == x).flatten(1).all(1),
        "target": cfs.target[rows].to(target) == target,
    }
    for what, same in alike.items():
        if not same.all():
            others = [i for i, ok in zip(own, same.tolist(), strict=True) if not ok]
            raise ValueError(
                f"{name}: its {what} of item {others[:5]} is another one than the one asked for here"
            )
    return images[rows].to(x), [
        why if (why := cfs.reason[k]) in (NAN, NAN_PRIOR) else "" for k in rows
    ]
