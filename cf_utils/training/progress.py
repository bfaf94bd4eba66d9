"""Progress of long jobs as lines of text, where no terminal shows a progress bar."""

from __future__ import annotations

import os
import sys

from cf_utils import core


def report(text: str) -> None:
    """Print a line to stderr if it is no terminal, such as the log of a cluster job.

    Prints nothing in a notebook, nor where CF_HEADLESS is set.
    """
    if core.headless() and not os.environ.get("CF_HEADLESS"):
        print(text, file=sys.stderr, flush=True)
