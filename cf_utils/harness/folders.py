"""Folders of runs: the project, the root of all results, the folder of a run or of one shard.

A run writes to <root>/<profile>/<notebook>/. The root is CF_RESULTS_ROOT, or results/run. Published
results lie in results/<profile>/<notebook>/, which git tracks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cf_utils.core import files

DEMO = "demo"  # the notebooks' own parameters; in this profile a failed claim raises


def project() -> Path:
    """Return the repository, or CF_PROJECT_ROOT if it is set."""
    return Path(os.environ.get("CF_PROJECT_ROOT") or files.ROOT)


def root() -> Path:
    """Return the folder in which all runs write."""
    return Path(os.environ.get("CF_RESULTS_ROOT") or project() / "results" / "run").resolve()


def run_folder(profile: str, notebook: str) -> Path:
    """Return the folder of a run. Raises ValueError for names that could leave the root."""
    return root() / check_file_name(profile) / check_file_name(notebook)


def published_folder(profile: str, notebook: str) -> Path:
    """Return the tracked folder of a published run."""
    return project() / "results" / check_file_name(profile) / check_file_name(notebook)


def shard_folder(folder: Path, shard: tuple[int, int]) -> Path:
    """Return the folder in which one job keeps its own files: the run's, or its shard's."""
    return folder if shard == (1, 1) else folder / "shards" / f"{shard[0]}-of-{shard[1]}"


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "k/N" with 1 <= k <= N. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard: got {text!r}, expected k/N with 1 <= k <= N")
    return int(found[1]), int(found[2])


def shard_from_environment() -> tuple[int, int]:
    """Return (k, N) from CF_SHARD, or (1, 1) if it is not set."""
    return parse_shard(os.environ.get("CF_SHARD") or "1/1")


def check_writable(folder: Path) -> None:
    """Raise ValueError, before any work, if nothing can be written to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / ".probe", "")
        (folder / ".probe").unlink(missing_ok=True)  # another shard may have removed it
    except OSError as e:
        raise ValueError(
            f"results folder: {folder} cannot be written ({e.strerror}); "
            "set CF_RESULTS_ROOT to a folder that can be"
        ) from e


def check_file_name(text: str) -> str:
    """Return `text` if it is safe as the name of a file or folder; otherwise raise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", text):
        raise ValueError(
            f"name: got {text!r}, expected letters, digits, '_', '-' and '.' only, "
            "because it becomes the name of a file"
        )
    return text
