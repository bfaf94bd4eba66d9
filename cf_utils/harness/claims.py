"""Ranges of claims: how far the value of each checked claim varies between seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import folders


def write_ranges(name: str, run_folders: Sequence[Path]) -> Path:
    """Write results/claims/<name>.json from the claims.json of several runs; return its path.

    Its content is {claim: {low, high, min, max, opposite}}: the bounds of the claim, and the
    lowest and highest finite value of all runs (None if there is none).
    """
    ranges: dict[str, dict[str, Any]] = {}
    for folder in run_folders:
        for claim in files.read_json(folder / "claims.json"):
            before = ranges.get(claim["name"], {})
            values = [claim["value"], before.get("min"), before.get("max")]
            finite = [value for value in values if value is not None]
            ranges[claim["name"]] = {
                "low": claim["low"],
                "high": claim["high"],
                "min": min(finite, default=None),
                "max": max(finite, default=None),
                "opposite": claim["opposite"],
            }
    path = folders.project() / "results" / "claims" / f"{name}.json"
    files.write_json(path, ranges)
    return path
