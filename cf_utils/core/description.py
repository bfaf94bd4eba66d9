"""Describe settings as plain JSON, for result files and cache keys."""

from __future__ import annotations

import dataclasses
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.result import Counterfactuals

# Hashing a large result is slow, and a method that reuses one is described once per batch.
_DESCRIBED: WeakKeyDictionary[Counterfactuals, dict] = WeakKeyDictionary()


def describe(value: Any) -> Any:
    """Return `value` as plain JSON.

    A dataclass becomes a dict of its fields, a tensor its shape and SHA-256, and a module its class
    name and SHA-256. `stored_as`, in a class or in a field's metadata, is the name in older files;
    it replaces the present name. Raises TypeError for anything that has no JSON form.
    """
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "sha256": files.sha256(value)[:16]}
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__, "sha256": files.module_sha256(value)[:16]}
    if isinstance(value, Counterfactuals):
        if value not in _DESCRIBED:
            _DESCRIBED[value] = _describe_fields(value)
        return _DESCRIBED[value]
    if dataclasses.is_dataclass(value):
        return _describe_fields(value)
    if isinstance(value, (tuple, list)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be a setting: it has no plain JSON form")


def _describe_fields(value: Any) -> dict[str, Any]:
    found = {"method": getattr(value, "stored_as", type(value).__name__)}
    for field in dataclasses.fields(value):
        name = field.metadata.get("stored_as", field.name)
        found[name] = describe(getattr(value, field.name))
    return found
