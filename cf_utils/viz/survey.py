"""The survey of Gradual Construction (section 4.3.3, Fig. 6) as a class exercise: which pictures do people accept?

The paper mixed 25 counterfactual images of each of four methods, asked 30 people of each whether it looks like the number
that it should have become, and gave each method's share among all accepted images. Here the class votes itself.
"""

from __future__ import annotations

import io as memory
import math
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import filelock
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import Counterfactuals, files
from cf_utils.evaluation.metrics.decision import judged

JUDGES = "judges"  # stands in the voter column where models voted instead of people
KEY = ["method", "id", "target", "picture"]
COLUMNS = ["voter", "item", "method", "id", "target", "accepted", "time", "picture"]


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval for a share k / n: inside [0, 1], and no mere point at k = 0 or k = n. NaN where n = 0."""
    if n == 0:
        return math.nan, math.nan
    p, shrink = k / n, 1 + z * z / n
    centre, half = (
        (p + z * z / (2 * n)) / shrink,
        z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    return max(centre - half, 0.0), min(centre + half, 1.0)


class Survey:
    """Draw `n_each` reached counterfactuals a method, mix them, and collect votes on "does this look like its target?".

    `results`: method -> Counterfactuals of images (B, 1 or 3, H, W), shown clamped to [0, 1]. What is drawn and its order
    depend on seed, method and id alone. Failures, and queries that were the target already, hold no counterfactual to judge:
    they are left out, so the table gives the share reached. `note` says where a method had fewer than `n_each`.

    `path`: CSV of all votes, rewritten whole at each vote under a lock, so several notebooks may share it, and a survey opened
    on it goes on. Votes on pictures that this survey does not show (other settings, another machine's rounding) stay in the
    file, do not count, and `note` says so. A voter's second vote on a picture replaces the first.
    """

    def __init__(
        self,
        results: dict[str, Counterfactuals],
        n_each: int = 25,
        seed: int = 0,
        path: str | Path | None = None,
    ):
        if (
            not isinstance(results, dict)
            or not results
            or not all(isinstance(c, Counterfactuals) for c in results.values())
        ):
            raise ValueError(
                "results: expected a dict of at least one method's name -> Counterfactuals"
            )
        if isinstance(n_each, bool) or not isinstance(n_each, int) or n_each < 1:
            raise ValueError(f"n_each: got {n_each!r}, expected a whole number >= 1")
        shapes = {name: tuple(c.counterfactual.shape[1:]) for name, c in results.items()}
        if len(set(shapes.values())) > 1 or any(
            len(s) != 3 or s[0] not in (1, 3) for s in shapes.values()
        ):
            raise ValueError(
                f"results: got items of shapes {shapes}, expected images (1 or 3, H, W) of one size"
            )
        self.reached = {name: cfs.reached.float().mean().item() for name, cfs in results.items()}
        self.path, self._few, drawn = None if path is None else Path(path), [], []
        for name, cfs in results.items():
            ids = [str(i) for i in (cfs.ids.tolist() if isinstance(cfs.ids, Tensor) else cfs.ids)]
            rows = [i for i, why in enumerate(cfs.reason) if cfs.reached[i] and why != core.ALREADY]
            rows = _shuffled(rows, [f"{name}|{ids[i]}" for i in rows], seed, "survey draw")[:n_each]
            if len(rows) < n_each:
                self._few.append(
                    f"{name}: {len(rows)} of the {n_each} pictures asked for, no more were reached"
                )
            drawn += [
                (name, ids[i], int(cfs.target[i]), cfs.counterfactual[i].detach().cpu())
                for i in rows
            ]
        if not drawn:
            raise ValueError(
                "results: no method reached its target on any item, so there is nothing to show"
            )
        drawn = _shuffled(drawn, [f"{name}|{i}" for name, i, *_ in drawn], seed, "survey order")
        self.pictures = [d[3] for d in drawn]
        self.items = pd.DataFrame(
            [(*d[:3], files.sha256(_pixels(d[3]).tobytes())[:12]) for d in drawn], columns=KEY
        )
        self._votes = pd.DataFrame(columns=COLUMNS)
        self._read()

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Survey of {len(self)} pictures by {len(self.reached)} methods" + (
            f" ({self.note})" if self.note else ""
        )

    @property
    def note(self) -> str:
        """What a reader of the numbers must know: too few pictures, votes that do not count. Empty where all is as asked."""
        foreign = len(self._votes) - len(self.votes)
        return "; ".join(
            self._few
            + [f"{foreign} votes in the file are about other pictures and do not count"]
            * bool(foreign)
        )

    @property
    def votes(self) -> pd.DataFrame:
        """The votes that count, a row each; `item` is the number in this survey."""
        number = {
            key: i for i, key in enumerate(self.items[KEY].itertuples(index=False, name=None))
        }
        item = [number.get(key, -1) for key in self._votes[KEY].itertuples(index=False, name=None)]
        return self._votes.assign(item=item)[np.array(item, dtype=int) >= 0]

    def vote(self, i: int, accepted: bool, voter: str) -> None:
        """Record that `voter` says yes (True) or no (False) to item i."""
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(self):
            raise ValueError(f"i: got {i!r}, expected an item's number from 0 to {len(self) - 1}")
        if not isinstance(accepted, bool):
            raise ValueError(f"accepted: got {accepted!r}, expected True or False")
        if (
            not isinstance(voter, str)
            or not voter.strip()
            or not voter.isprintable()
            or voter.strip() == JUDGES
        ):
            raise ValueError(
                f"voter: got {voter!r}, expected a name on one line, other than {JUDGES!r}"
            )
        self._record(voter.strip(), {i: accepted})

    def ask_judges(self, judges: Sequence[nn.Module]) -> None:
        """Where no people vote (headless runs): the judges' majority votes on every picture, as the voter "judges"."""
        if not judges:
            raise ValueError("judges: expected at least one model")
        seen = judged(judges, torch.stack(self.pictures)).tolist()
        self._record(
            JUDGES,
            {i: s == t for i, (s, t) in enumerate(zip(seen, self.items["target"], strict=True))},
        )

    def _counted(self) -> tuple[pd.DataFrame, str]:
        """The votes behind the table, people's where there are any, and whose they are in words."""
        people = self.votes[self.votes["voter"] != JUDGES]
        if len(people) or not len(self.votes):
            n = people["voter"].nunique()
            return people, f"{n} {'person' if n == 1 else 'people'}"
        return self.votes, "the judges (models, no people)"

    def table(self) -> pd.DataFrame:
        """A row a method: share of items `reached`, pictures `shown`, `votes`, `accepted`, `acceptance` with Wilson's 95 %
        interval (`low`, `high`), and Fig. 6's `share` of the method among all accepted votes (sums to 1).

        People's votes, or the judges' where no person has voted. Read both rates: four methods of equal acceptance have a
        share of 0.25 each, whether 9 pictures in 10 are accepted or 1 in 10; and the share grows with the pictures shown. The
        interval takes votes as independent: too narrow where several people judge the same few pictures.
        """
        votes, rows = self._counted()[0], {}
        for name, reached in self.reached.items():
            own = votes.loc[votes["method"] == name, "accepted"]
            n, k = len(own), int(own.sum())
            low, high = wilson(k, n)
            rows[name] = {
                "reached": reached,
                "shown": int((self.items["method"] == name).sum()),
                "votes": n,
                "accepted": k,
                "acceptance": k / n if n else math.nan,
                "low": low,
                "high": high,
            }
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
        return frame.assign(share=frame["accepted"] / (frame["accepted"].sum() or math.nan))

    def figure(self) -> Figure:
        """Acceptance with its interval, and Fig. 6's share with the line of equal methods, on one scale."""
        frame, (votes, who) = self.table(), self._counted()
        fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), dpi=100, sharey=True, layout="constrained")
        bars = np.stack(
            [frame["acceptance"] - frame["low"], frame["high"] - frame["acceptance"]]
        ).clip(min=0)
        axes[0].bar(frame.index, frame["acceptance"], yerr=bars, capsize=4, color="#4c72b0")
        axes[0].set(ylim=(0, 1.02), ylabel="share")
        axes[0].set_title("accepted, of this method's votes (95 %)", fontsize=9)
        axes[1].bar(frame.index, frame["share"], color="#dd8452")
        axes[1].axhline(1 / len(frame), ls="--", lw=1, color="#444444")
        axes[1].set_title("Fig. 6: of all accepted votes (dashed: all equal)", fontsize=9)
        for ax in axes:
            ax.tick_params(axis="x", labelrotation=25 if len(frame) > 4 else 0)
        fig.suptitle(f"{len(votes)} votes of {who}", fontsize=10)
        return fig

    def form(self) -> widgets.VBox:
        """The form for one voter: a picture at a time, Yes or No, and the result when all are judged (or asked for earlier).

        Without a name the votes go to a guest's name of this form, so two nameless voters do not overwrite each other.
        """
        guest, at = f"guest-{uuid.uuid4().hex[:6]}", None
        name = widgets.Text(
            placeholder="your name (optional)", continuous_update=False, layout={"width": "220px"}
        )
        question, progress, note, result = (
            widgets.HTML(),
            widgets.Label(),
            widgets.Label(),
            widgets.VBox(),
        )
        picture = widgets.Image(format="png", layout={"width": "224px"})
        yes, no, end = (
            widgets.Button(description=text, button_style=style)
            for text, style in (("Yes", "success"), ("No", "danger"), ("Show result", ""))
        )

        def advance(_=None):
            nonlocal at
            self._read()
            voter = name.value.strip() or guest
            done = set(self.votes.loc[self.votes["voter"] == voter, "item"])
            at = (
                None
                if voter == JUDGES
                else next((i for i in range(len(self)) if i not in done), None)
            )
            progress.value = (
                "This name is taken." if voter == JUDGES else f"{len(done)} of {len(self)} judged"
            )
            note.value, yes.disabled, no.disabled = self.note, at is None, at is None
            result.children = ()  # it names the methods: not to be seen while voting
            picture.layout.display = "none" if at is None else None
            if at is not None:
                target = int(self.items["target"][at])
                question.value = (
                    f"<b>Does this look like {'an' if target == 8 else 'a'} {target}?</b>"
                )
                picture.value = _png(self.pictures[at])
            elif len(done) == len(self):
                question.value = "<b>Thank you: all pictures are judged.</b>"
                reveal()

        def reveal(_=None):
            fig, buffer = self.figure(), memory.BytesIO()
            plt.close(fig)  # or the inline backend shows it once more
            fig.savefig(buffer, format="png")
            why = (
                "<i>share</i>, the statistic of Fig. 6, hides absolute rates: equal methods get equal shares even where "
                "hardly anything was accepted. Hence <i>acceptance</i> beside it."
            )
            result.children = (
                widgets.HTML(self.table().to_html(float_format="{:.2f}".format) + why),
                widgets.Image(value=buffer.getvalue(), format="png"),
            )

        def answer(button):
            if at is not None:
                self.vote(at, button is yes, name.value.strip() or guest)
                advance()

        for button in (yes, no):
            button.on_click(answer)
        end.on_click(reveal)
        name.observe(advance, "value")
        advance()
        return widgets.VBox(
            [
                widgets.HBox([name, progress]),
                question,
                picture,
                widgets.HBox([yes, no, end]),
                note,
                result,
            ]
        )

    def _record(self, voter: str, answers: dict[int, bool]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = self.items.loc[list(answers)].assign(
            voter=voter, item=list(answers), accepted=list(answers.values()), time=now
        )
        if self.path is None:
            self._votes = _joined(self._votes, new)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(
            f"{self.path}.lock", timeout=30
        ):  # somebody else may vote between our reading and writing
            self._read()
            joined = _joined(self._votes, new)
            with files.whole_file(self.path) as part:
                joined.astype({"accepted": int}).to_csv(part, index=False)
            self._votes = joined

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:  # all as text: ids like 007 and a voter called NA stay
            votes = pd.read_csv(self.path, dtype=str, keep_default_na=False)
            if list(votes.columns) != COLUMNS or not votes["accepted"].isin(["0", "1"]).all():
                raise ValueError(f"expected the columns {COLUMNS} and accepted 0 or 1")
            self._votes = votes.assign(
                accepted=votes["accepted"] == "1", target=votes["target"].astype(int)
            )
        except ValueError as e:  # pandas' own errors are ValueErrors too
            raise ValueError(f"path: {self.path} is no CSV of votes: {e}") from e


def _shuffled(things: list, keys: list[str], seed: int, stream: str) -> list:
    """In an order that depends on (seed, key) alone: not on how they came in or which others are there."""
    noise = core.item_noise(seed, keys, (), stream, "uniform").tolist() if keys else []
    return [things[j] for j in sorted(range(len(keys)), key=lambda j: (noise[j], keys[j]))]


def _joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    both = pd.concat([old, new[COLUMNS]], ignore_index=True) if len(old) else new[COLUMNS]
    return both.drop_duplicates(["voter", *KEY], keep="last", ignore_index=True)


def _pixels(image: Tensor) -> np.ndarray:
    """What is seen: (C, H, W) clamped to [0, 1], as bytes (H, W) or (H, W, 3)."""
    a = (image.clamp(0, 1) * 255).round().byte().numpy()
    return a[0] if len(a) == 1 else np.moveaxis(a, 0, -1).copy()


def _png(image: Tensor, side: int = 224) -> bytes:
    """Enlarged without smoothing, so that no blur of ours makes noise look like a stroke."""
    picture, buffer = Image.fromarray(_pixels(image)), memory.BytesIO()
    scale = max(1, side // max(picture.size))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
