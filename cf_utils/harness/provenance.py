"""Where results come from: the device and the commit that stand in metrics.json."""

from __future__ import annotations

import subprocess

import torch

from cf_utils import core
from cf_utils.harness import folders

DIRTY = "-dirty"  # ending of a commit whose code or notebooks were changed


def device() -> str:
    """Return what torch runs on: 'cpu', 'mps' or the name of the GPU."""
    kind = core.pick_device().type
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def commit() -> str | None:
    """Return the checked-out commit, or None outside a git repository.

    It ends in '-dirty' when cf_utils or notebooks differ from that commit.
    """
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + (DIRTY if _git("status", "--porcelain", "--", "cf_utils", "notebooks") else "")


def _git(*arguments: str) -> str | None:
    """Run git in the project; return its output, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folders.project(),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
