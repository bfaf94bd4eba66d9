"""Votes of a class survey, kept in memory or in a CSV file that several notebooks may share."""

from __future__ import annotations

from pathlib import Path

import filelock
import numpy as np
import pandas as pd

from cf_utils import core
from cf_utils.core import files
from cf_utils.viz.survey_analysis import JUDGES

PICTURE = ["method", "id", "target", "picture"]  # identify a picture; `picture` hashes its pixels
COLUMNS = ["voter", "item", "method", "id", "target", "accepted", "time", "picture"]
QUESTION = ["task", "category", "id", "picture"]  # identify a question
ANSWER_COLUMNS = ["voter", "item", *QUESTION, "answer", "time"]


class Votes:
    """All votes, one row each in `frame`; a voter's second vote on a picture replaces the first.

    `path`: CSV file, rewritten whole under a lock at each vote; None keeps the votes in memory.
    """

    columns, key = COLUMNS, PICTURE

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.frame = pd.DataFrame(columns=self.columns)
        self.read()

    def parse(self, votes: pd.DataFrame) -> pd.DataFrame:
        """Return votes read as text with the types of `frame`; raise ValueError on others."""
        if not votes["accepted"].isin(["0", "1"]).all():
            raise ValueError("expected accepted 0 or 1")
        accepted, target = votes["accepted"] == "1", votes["target"].astype(int)
        return votes.assign(accepted=accepted, target=target)

    def to_text(self, votes: pd.DataFrame) -> pd.DataFrame:
        """Return votes as they are written."""
        return votes.astype({"accepted": int})

    def add(self, new: pd.DataFrame) -> None:
        """Add votes with the columns `columns`."""
        if self.path is None:
            self.frame = self._append(new)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.path}.lock", timeout=30):
            self.read()  # other notebooks may have voted
            frame = self._append(new)
            with files.whole_file(self.path) as part:
                self.to_text(frame).to_csv(part, index=False)
            self.frame = frame

    def read(self) -> None:
        """Read the file, if there is one; raise ValueError if it holds no votes."""
        if self.path is None or not self.path.exists():
            return
        try:  # as text, so that ids like 007 and a voter named NA are kept
            votes = pd.read_csv(self.path, dtype=str, keep_default_na=False)
            if list(votes.columns) != self.columns:
                raise ValueError(f"expected the columns {self.columns}")
            self.frame = self.parse(votes)
        except ValueError as e:  # pandas' errors are ValueErrors too
            raise ValueError(
                f"path: {self.path} is no CSV of votes: {e}; move it away or pass another path"
            ) from e

    def _append(self, new: pd.DataFrame) -> pd.DataFrame:
        new = new[self.columns]
        both = pd.concat([self.frame, new], ignore_index=True) if len(self.frame) else new
        return both.drop_duplicates(["voter", *self.key], keep="last", ignore_index=True)


class Answers(Votes):
    """Votes that choose one option of a question."""

    columns, key = ANSWER_COLUMNS, QUESTION

    def parse(self, votes: pd.DataFrame) -> pd.DataFrame:
        """Return the answers as they are: text."""
        return votes

    def to_text(self, votes: pd.DataFrame) -> pd.DataFrame:
        """Return the answers as they are: text."""
        return votes


def shuffle(things: list, keys: list[str], seed: int, stream: str) -> list:
    """Shuffle in an order that depends on (seed, key) alone, whichever others are there."""
    noise = core.item_noise(seed, keys, (), stream, "uniform").tolist() if keys else []
    return [things[j] for j in sorted(range(len(keys)), key=lambda j: (noise[j], keys[j]))]


def number_votes(frame: pd.DataFrame, items: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Return the votes on `items` with the item's number as `item`; votes on others are left out.

    Votes and items belong together if they are equal in the columns `key`.
    """
    number = {row: i for i, row in enumerate(items[key].itertuples(index=False, name=None))}
    item = [number.get(row, -1) for row in frame[key].itertuples(index=False, name=None)]
    return frame.assign(item=item)[np.array(item, dtype=int) >= 0]


def check_vote(i: object, n: int, voter: object) -> str:
    """Return the name of a voter without blanks around it.

    Raises ValueError for a bad name, or an item's number that is not from 0 to n - 1.
    """
    if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < n:
        raise ValueError(f"i: got {i!r}, expected an item's number from 0 to {n - 1}")
    name = voter.strip() if isinstance(voter, str) and voter.isprintable() else ""
    if not name or name.startswith(JUDGES):
        raise ValueError(
            f"voter: got {voter!r}, expected a name on one line that does not begin with {JUDGES!r}"
        )
    return name
