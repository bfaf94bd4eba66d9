"""Tools for searches with a diffusion prior: checks, counted passes, reused results."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import NAN, Counterfactuals, Ids, PassCounter, check_query, device_of
from cf_utils.core.checks import to_list
from cf_utils.models.generators.diffusion import DDPM, Chain

NAN_PRIOR = "prior returned NaN"


def check_prior(
    prior: DDPM, x: Tensor, bounds: tuple[Any, Any] | None, **chains: tuple[str, int]
) -> None:
    """Raise ValueError unless the prior models images like x (B, C, H, W) in [0, 1].

    Args:
        prior, x: the prior, and images that it should model.
        bounds: the explainer's range of x, which must be (0, 1).
        chains: (spacing, steps) per argument name; `spacing` must keep at least `steps` levels.
    """
    if bounds is None or tuple(bounds) != (0, 1):
        raise ValueError(
            f"bounds: got {bounds}, expected (0, 1), the only range that a diffusion prior models"
        )
    size = (prior.channels, *prior.size)
    if tuple(x.shape[1:]) != size:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (B, {', '.join(map(str, size))}); "
            "this prior was trained on images of that size"
        )
    for name, (spacing, steps) in chains.items():
        levels = len(prior.schedule.respace(spacing))
        if not 1 <= steps <= levels:
            raise ValueError(
                f"{name}: got {steps}, expected 1 to {levels}, the levels of spacing {spacing!r}"
            )


def check_images(x: Tensor, ids: Ids | None, bounds: tuple[Any, Any] | None) -> Ids:
    """Raise ValueError unless x (B, C, H, W) and ids are valid; return the ids, or row numbers."""
    return check_query(x, torch.zeros(len(x), dtype=torch.int64), ids, bounds)


class _Autocast(nn.Module):
    """A prior that takes z and t as one pair, in bfloat16 autocast if wanted."""

    def __init__(self, prior: DDPM, bfloat16: bool):
        super().__init__()
        self.prior, self.enabled = prior, bfloat16

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        device = device_of(self.prior, pair[0].device)  # the prior moves its input there
        with torch.autocast(device.type, torch.bfloat16, enabled=self.enabled):
            return self.prior(*pair)


def count_passes(prior: DDPM, n: int, bfloat16: bool = False) -> PassCounter:
    """Return a counter of the prior's passes for n items; its input is a pair (z, t)."""
    return PassCounter(_Autocast(prior, bfloat16), n)


def build_chain(
    prior: DDPM, counter: PassCounter, rows: Tensor, spacing: str | None, **settings: Any
) -> Chain:
    """Return the prior's chain for the items `rows` (B,); `counter` counts its passes."""
    chain = prior.chain(spacing, **settings)
    return dataclasses.replace(chain, model=lambda z, t: counter((z, t), rows))


def check_reuse(cfs: Counterfactuals | None, method: str) -> None:
    """Raise ValueError unless cfs is None or a result of `method` with its path."""
    if cfs is not None and (cfs.settings.get("method") != method or cfs.path is None):
        raise ValueError(
            f"reuse: got a result of {cfs.settings.get('method')}, expected one of {method} with "
            "its path"
        )


def reuse_results(
    cfs: Counterfactuals, images: Tensor, ids: Ids, x: Tensor, target: Tensor
) -> tuple[Tensor, list[str]]:
    """Return the images and failure reasons that an earlier result holds for some queries.

    Args:
        cfs: the earlier result, matched by id.
        images: (N, C, H, W), one per item of `cfs`.
        ids, x, target: the queries (B, ...), which must be among those of `cfs`.

    Returns images (B, C, H, W), and a reason per item: that of `cfs` if NaN caused it, else "".
    Raises ValueError if an item is missing, or had another query or target.
    """
    position, own = {i: k for k, i in enumerate(to_list(cfs.ids))}, to_list(ids)
    if missing := [i for i in own if i not in position]:
        raise ValueError(f"reuse: has no item {missing[:5]}; explain these items first")
    rows = [position[i] for i in own]
    if cfs.query.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"reuse: got queries of shape {tuple(cfs.query.shape[1:])}, expected "
            f"{tuple(x.shape[1:])}, the shape of x"
        )
    _check_same("query", (cfs.query[rows].to(x) == x).flatten(1).all(1), own)
    _check_same("target", cfs.target[rows].to(target) == target, own)
    reasons = [cfs.reason[k] for k in rows]
    return images[rows].to(x), [why if why in (NAN, NAN_PRIOR) else "" for why in reasons]


def _check_same(name: str, same: Tensor, ids: list) -> None:
    """Raise ValueError that lists the items where `same`, bool (B,), is False."""
    if not same.all():
        others = [i for i, ok in zip(ids, same.tolist(), strict=True) if not ok]
        raise ValueError(
            f"reuse: got another {name} for items {others[:5]}, expected the one of this call"
        )
