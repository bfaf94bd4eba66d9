"""Votes of a class survey, kept in memory or in a CSV file that several notebooks may share."""

from __future__ import annotations

from pathlib import Path

import filelock
import pandas as pd

from cf_utils.core import files

PICTURE = ["method", "id", "target", "picture"]  # identify a picture; `picture` hashes its pixels
COLUMNS = ["voter", "item", "method", "id", "target", "accepted", "time", "picture"]


class Votes:
    """All votes, one row each in `frame`; a voter's second vote on a picture replaces the first.

    `path`: CSV file, rewritten whole under a lock at each vote; None keeps the votes in memory.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.frame = pd.DataFrame(columns=COLUMNS)
        self.read()

    def add(self, new: pd.DataFrame) -> None:
        """Add votes with the columns COLUMNS."""
        if self.path is None:
            self.frame = _append(self.frame, new)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.path}.lock", timeout=30):
            self.read()  # other notebooks may have voted
            frame = _append(self.frame, new)
            with files.whole_file(self.path) as part:
                frame.astype({"accepted": int}).to_csv(part, index=False)
            self.frame = frame

    def read(self) -> None:
        """Read the file, if there is one; raise ValueError if it holds no votes."""
        if self.path is None or not self.path.exists():
            return
        try:  # as text, so that ids like 007 and a voter named NA are kept
            votes = pd.read_csv(self.path, dtype=str, keep_default_na=False)
            if list(votes.columns) != COLUMNS or not votes["accepted"].isin(["0", "1"]).all():
                raise ValueError(f"expected the columns {COLUMNS} and accepted 0 or 1")
            accepted, target = votes["accepted"] == "1", votes["target"].astype(int)
        except ValueError as e:  # pandas' errors are ValueErrors too
            raise ValueError(
                f"path: {self.path} is no CSV of votes: {e}; move it away or pass another path"
            ) from e
        self.frame = votes.assign(accepted=accepted, target=target)


def _append(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    both = pd.concat([old, new[COLUMNS]], ignore_index=True) if len(old) else new[COLUMNS]
    return both.drop_duplicates(["voter", *PICTURE], keep="last", ignore_index=True)
