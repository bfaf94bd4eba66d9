"""Records beside the results of a run, which tell whether the results can be used again.

    parameters.json    all parameters of the run, written by the runner before the kernel starts
    checkpoints.json   hash of each model card whose weights the notebook loaded, by name
    metrics.json       written last: results without it are not complete
    done.json          the same for a shard

An empty or damaged record never stops a run: the job that it belongs to runs again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.models import checkpoints

PLACE = "data_root"  # parameter that differs between machines, so it is not compared for publishing


def read(path: Path) -> Any | None:
    """Read a JSON file; None if it is missing or damaged."""
    try:
        return files.read_json(path)
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def damaged(folder: Path) -> list[str]:
    """Return the names of the records in a folder that are there but cannot be read."""
    return [path.name for path in sorted(folder.glob("*.json")) if read(path) is None]


def differences(folder: Path, expected: Mapping[str, Any], ignored: str = "") -> list[str] | None:
    """Compare the parameters of the results in a folder with those expected of them.

    Returns one text such as "n=5 instead of 250" per difference, and None if the parameters are
    unknown because parameters.json is missing or damaged. The parameter `ignored` is not compared.
    """
    stored = read(folder / "parameters.json")
    if not isinstance(stored, dict):
        return None
    keys = [key for key in {**stored, **expected} if key != ignored]
    return [
        f"{key}={stored.get(key)!r} instead of {expected.get(key)!r}"
        for key in keys
        if key not in stored or key not in expected or stored[key] != expected[key]
    ]


def why_stale(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """Say why the results in a folder must be computed again; None if they can be used.

    They are stale if a record is damaged, if they ran with other parameters than `expected`, or if
    a checkpoint that they loaded has changed since.
    """
    if names := damaged(folder):
        return f"{', '.join(names)} in {folder} cannot be read"
    found = differences(folder, expected)
    if found is None:
        return "its parameters are unknown, because the notebook was not started by `cf run`"
    if found:
        return f"it ran with {', '.join(found)}"
    loaded = read(folder / "checkpoints.json") or {}
    changed = [name for name, sha256 in loaded.items() if _card_hash(name) != sha256]
    return f"checkpoint {', '.join(changed)} has changed" if changed else None


def _card_hash(name: str) -> str | None:
    path = checkpoints.FOLDER / f"{name}.json"
    return files.sha256(path) if path.exists() else None
