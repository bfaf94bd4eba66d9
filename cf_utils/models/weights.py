"""Weights in memory: compare a state dict with a module, fill the module, set its memory layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module) -> Module:
    """Store the weights of 2-d convolutions channels last, in place, and return the module.

    This layout is faster on CPUs and tensor cores. Outputs differ by rounding.
    """
    for weight in module.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module


def mismatches(state: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """List the names whose shapes differ between a file's state dict and a module's, sorted.

    Each entry reads `name: file <shape>, model <shape>`. The list is empty when all weights fit.
    """
    names = sorted(map(str, state.keys() | expected.keys()))
    pairs = [(name, _shape(state, name), _shape(expected, name)) for name in names]
    return [
        f"{name}: file {ours}, model {theirs}" for name, ours, theirs in pairs if ours != theirs
    ]


def _shape(state: Mapping[str, object], name: str) -> object:
    if name not in state:
        return "absent"
    value = state[name]
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def fill(module: nn.Module, state: Mapping[str, Tensor], error: str) -> None:
    """Assign a published state dict to a module that was built on the meta device.

    Counters of batch norm (`num_batches_tracked`), which inference never reads, may be absent.
    Raises ValueError that begins with `error` and lists the names and shapes that differ.
    """
    own, state = module.state_dict(), dict(state)
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    if wrong := mismatches(state, own):
        listed = "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
        raise ValueError(f"{error}, {len(wrong)} names do not fit: {listed}")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, assign=True)
