"""A class survey: which counterfactual images do people accept as their target?

Source: Gradual Construction, section 4.3.3 and Fig. 6. The paper mixed 25 images of each of four
methods and asked 30 people whether each image looks like its target digit. It reports each method's
share of all accepted images.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals, files
from cf_utils.core.checks import to_list
from cf_utils.evaluation.metrics.decision import vote
from cf_utils.viz import survey_analysis
from cf_utils.viz.survey_analysis import JUDGES
from cf_utils.viz.survey_form import VoteForm, to_pixels
from cf_utils.viz.survey_votes import PICTURE, Votes, check_vote, number_votes, shuffle

Picture = tuple[str, str, int, Tensor]  # method, id, target, image


class Survey:
    """Draw reached counterfactuals of each method, mix them, and collect votes on them.

    The question is "Does this look like its target?". Failures, and queries that were the target
    already, are left out; the table gives the share reached. The draw and its order depend on the
    seed, the method and the id alone. A voter's second vote on a picture replaces the first.

    Args:
        results: method -> counterfactuals (B, 1 or 3, H, W), shown clamped to [0, 1].
        n_each: pictures per method; `note` says where a method reached fewer.
        seed: of the draw and its order.
        path: CSV file of all votes, which several notebooks may share. A survey opened on it
            continues it. Votes on other pictures stay in the file but do not count.
    """

    def __init__(
        self,
        results: dict[str, Counterfactuals],
        n_each: int = 25,
        seed: int = 0,
        path: str | Path | None = None,
    ) -> None:
        _check_survey(results, n_each)
        self.reached = {name: cfs.reached.float().mean().item() for name, cfs in results.items()}
        pictures: list[Picture] = []
        self._too_few = []
        for name, cfs in results.items():
            drawn = _draw(name, cfs, n_each, seed)
            if len(drawn) < n_each:
                self._too_few.append(
                    f"{name}: {len(drawn)} of the {n_each} pictures requested, "
                    "no more counterfactuals reached their target"
                )
            pictures += drawn
        if not pictures:
            raise ValueError(
                "results: no method reached its target on any item, so there is nothing to show"
            )
        keys = [f"{name}|{i}" for name, i, *_ in pictures]
        pictures = shuffle(pictures, keys, seed, "survey order")
        self.pictures = [image for *_, image in pictures]
        rows = [(*key, files.sha256(to_pixels(x).tobytes())[:12]) for *key, x in pictures]
        self.items = pd.DataFrame(rows, columns=PICTURE)
        self._all_votes = Votes(path)

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        text = f"Survey of {len(self)} pictures by {len(self.reached)} methods"
        return f"{text} ({self.note})" if self.note else text

    @property
    def note(self) -> str:
        """Caveats of the result: too few pictures, votes that do not count; empty if none."""
        other = len(self._all_votes.frame) - len(self.votes)
        ignored = f"{other} votes in the file are about other pictures and do not count"
        return "; ".join(self._too_few + [ignored] * bool(other))

    @property
    def votes(self) -> pd.DataFrame:
        """Votes on this survey's pictures, one row per vote; `item` is the picture's number."""
        return number_votes(self._all_votes.frame, self.items, PICTURE)

    def judged_by(self, voter: str) -> set[int]:
        """Read the votes again; return the items that a voter has judged."""
        self._all_votes.read()
        votes = self.votes
        return set(votes.loc[votes["voter"] == voter, "item"])

    def vote(self, i: int, accepted: bool, voter: str) -> None:
        """Record whether `voter` accepts item i; raise ValueError on a bad argument."""
        name = check_vote(i, len(self), voter)
        if not isinstance(accepted, bool):
            raise ValueError(f"accepted: got {accepted!r}, expected True or False")
        self._record(name, {i: accepted})

    def ask_judges(self, judges: Sequence[nn.Module]) -> None:
        """Let the majority of models vote on every picture, for runs without people."""
        if not judges:
            raise ValueError("judges: got none, expected at least one model")
        seen = vote(judges, torch.stack(self.pictures)).tolist()
        pairs = zip(seen, self.items["target"], strict=True)
        self._record(JUDGES, {i: decision == target for i, (decision, target) in enumerate(pairs)})

    def table(self) -> pd.DataFrame:
        """Tabulate the votes, one row per method; see `survey_analysis.tabulate`.

        Uses people's votes, or the judges' if no person has voted.
        """
        votes, _ = survey_analysis.select_voters(self.votes)
        shown = {name: int((self.items["method"] == name).sum()) for name in self.reached}
        return survey_analysis.tabulate(votes, shown, self.reached)

    def figure(self) -> Figure:
        """Draw acceptance and the share of Fig. 6 per method."""
        votes, voters = survey_analysis.select_voters(self.votes)
        return survey_analysis.draw(self.table(), len(votes), voters)

    def form(self) -> widgets.VBox:
        """Build the form for one voter."""
        return VoteForm(self).box

    def _record(self, voter: str, answers: dict[int, bool]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = self.items.loc[list(answers)].assign(
            voter=voter, item=list(answers), accepted=list(answers.values()), time=now
        )
        self._all_votes.add(new)


def _check_survey(results: Any, n_each: Any) -> None:
    named = isinstance(results, dict) and len(results) > 0
    if not named or not all(isinstance(c, Counterfactuals) for c in results.values()):
        raise ValueError(
            f"results: expected a dict of at least one method's name -> Counterfactuals, "
            f"got a {type(results).__name__}"
        )
    if isinstance(n_each, bool) or not isinstance(n_each, int) or n_each < 1:
        raise ValueError(f"n_each: got {n_each!r}, expected a whole number >= 1")
    shapes = {name: tuple(c.counterfactual.shape[1:]) for name, c in results.items()}
    images = all(len(shape) == 3 and shape[0] in (1, 3) for shape in shapes.values())
    if len(set(shapes.values())) > 1 or not images:
        raise ValueError(
            f"results: got items of shapes {shapes}, expected images (1 or 3, H, W) of one size"
        )


def _draw(name: str, cfs: Counterfactuals, n: int, seed: int) -> list[Picture]:
    """Draw up to n reached counterfactuals of a method."""
    ids = [str(i) for i in to_list(cfs.ids)]
    rows = [i for i, why in enumerate(cfs.reason) if bool(cfs.reached[i]) and why != core.ALREADY]
    rows = shuffle(rows, [f"{name}|{ids[i]}" for i in rows], seed, "survey draw")[:n]
    return [(name, ids[i], int(cfs.target[i]), cfs.counterfactual[i].detach().cpu()) for i in rows]
