"""What a training depends on, so that a saved state is resumed only by the same training."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from cf_utils.core import files


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into one level of dotted keys, with values that JSON preserves.

    `{"model": {"width": 3}}` becomes `{"model.width": 3}`; tuples become lists.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flat


def list_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ between two flat dicts, with both values, sorted."""
    absent = "absent"
    return [
        f"{key}: saved {saved.get(key, absent)!r}, current {current.get(key, absent)!r}"
        for key in sorted(saved.keys() | current.keys())
        if saved.get(key, absent) != current.get(key, absent)
    ]


def describe_function(function: object) -> str:
    """Return the dotted name of a function, with the arguments that `functools.partial` binds."""
    if isinstance(function, functools.partial):
        bound = [describe_value(value) for value in function.args]
        bound += [f"{key}={describe_value(value)}" for key, value in function.keywords.items()]
        return f"{describe_function(function.func)}({', '.join(bound)})"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def describe_value(value: object) -> str:
    """Return a text that is equal in every process: no addresses of objects."""
    if value is None or isinstance(value, str | int | float | bool | list | tuple):
        return repr(value)
    return describe_function(value) if callable(value) else type(value).__qualname__


def describe_module(module: nn.Module) -> str:
    """Return the class of a module and a hash of the names and shapes of its weights."""
    shapes = [f"{name}{tuple(value.shape)}" for name, value in module.state_dict().items()]
    return f"{type(module).__qualname__} {files.sha256(*shapes)[:16]}"


def hash_dataset(data: Dataset) -> str:
    """Hash what identifies a data set: tensors by content, files on disk by relative name.

    Folders are ignored, so that data may move to another place. Files are not opened.
    """
    digest = hashlib.sha256()
    _update(digest, data)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: object) -> None:
    """Add a value to a hash: its type, then its content or that of its fields."""
    digest.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, Tensor):
        digest.update(files.sha256(value).encode())
    elif isinstance(value, str | int | float | bool | None):
        digest.update(repr(value).encode())
    elif isinstance(value, list | tuple):
        for item in value:
            _update(digest, item)
    elif isinstance(value, Mapping):
        _update(digest, [*value.items()])
    elif isinstance(value, Path):
        pass
    elif isinstance(value, Dataset) or dataclasses.is_dataclass(value):
        _update(digest, {k: v for k, v in vars(value).items() if not k.startswith("_")})
    elif callable(value):
        digest.update(describe_function(value).encode())
