"""What the tables of credit decisions share: scaling, units, splits, and constraints by name.

Source: Gradual Construction (Jung et al., Pattern Recognition 2022), section 4.4. Features are
scaled to [0, 1] by the minimum and maximum of the rows of `train`. Nothing is clipped, so a row of
another split may lie outside [0, 1], and every row returns to its own units exactly. In every table
class 0 is "refused" and class 1 is "approved".

Splits: a quarter of the rows is `test`, as in the paper; a tenth of the rest is `validation`, what
remains is `train`. The paper's training part is the two together. Rows are drawn by the SHA-256 of
their number, so the split does not depend on a library's random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Constraints
from cf_utils.datasets.base import SPLITS, InMemory
from cf_utils.datasets.table_files import check_values

NAMES = ("refused", "approved")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """What is known of a table before it is read."""

    name: str
    features: tuple[str, ...]
    # Direction of change that favours approval by common sense: +1 a rise, -1 a fall, 0 neither.
    sensible: Mapping[str, int]
    immutable: tuple[str, ...]  # what an applicant cannot change: a default for `constraints`
    categories: Mapping[str, Sequence[int]]  # feature -> its only values
    codes: Mapping[int, str] = field(default_factory=dict)  # value -> why there is no number
    integer: tuple[str, ...] | None = None  # features that are whole numbers; None: all
    monotone: Mapping[str, int] = field(default_factory=dict)  # +1: may only rise, -1: only fall


@dataclass(frozen=True, eq=False)
class Table(InMemory):
    """A split of a table: x (N, F) float32, scaled by `train`; y (N,) int64; ids (N,)."""

    layout: Layout
    low: Tensor = field(repr=False)  # (F,) float64, smallest training value in units
    high: Tensor = field(repr=False)  # (F,) float64, largest training value in units
    lowest: Tensor = field(repr=False)  # (F,) float64, smallest training value that is no code

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, label: str | None, **options: Any) -> Table:
        """Make a table of your own data; `own_table.table_from_frame` lists the options."""
        from cf_utils.datasets import own_table  # it imports this module

        return own_table.table_from_frame(frame, label, **options)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the F features."""
        return self.layout.features

    @property
    def sensible(self) -> Tensor:
        """Direction that favours approval, (F,) int64: +1 a rise, -1 a fall, 0 neither."""
        return torch.tensor([self.layout.sensible[f] for f in self.features])

    @property
    def span(self) -> Tensor:
        """Units per 1 in x, (F,) float64; 1 for a feature with a single value."""
        return torch.where(self.high > self.low, self.high - self.low, 1.0)

    def to_units(self, x: Tensor) -> pd.DataFrame:
        """Return rows (N, F) of x in the data's units, one column per feature.

        A number that is whole up to float32's rounding becomes whole; nothing else is rounded.
        """
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != len(self.features):
            got = tuple(getattr(x, "shape", ()))
            raise ValueError(f"x: got {got}, expected (N, {len(self.features)})")
        x = x.detach().cpu().double()
        units = x * self.span + self.low
        whole = units.round()
        rounding = 1.2e-7 * self.span * x.abs().clamp(min=1)
        units = torch.where((units - whole).abs() <= rounding, whole, units)
        frame = pd.DataFrame(units.numpy(), columns=list(self.features))
        return frame.astype({f: np.int64 for f in frame if (frame[f] % 1 == 0).all()})

    def from_units(self, frame: pd.DataFrame) -> Tensor:
        """Return x (N, F) float32 of applications in the data's units.

        The columns must be `features`, in that order. Raises ValueError that names the column and
        the first row: wrong columns, text, missing values, unknown categories.
        """
        return self.scale(check_values(frame, self.layout))

    def scale(self, units: np.ndarray) -> Tensor:
        """Return x (N, F) float32 of values (N, F) float64 in the data's units."""
        return ((torch.from_numpy(units) - self.low) / self.span).float()

    def constraints(
        self,
        immutable: Sequence[str] = (),
        only_up: Sequence[str] = (),
        only_down: Sequence[str] = (),
        integer: bool = True,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> Constraints:
        """Build constraints by feature name.

        Args:
            immutable, only_up, only_down: names of features.
            integer: features that hold whole numbers keep them whole.
            ranges: feature -> (low, high) in units. Default: the range of the training rows
                without codes, because nobody can be advised to have no record.

        Raises ValueError for unknown names, contradictions, and low > high.
        """
        self._check_names(immutable, only_up, only_down, tuple(ranges or ()))
        low, high = self.lowest.clone(), self.high.clone()
        for f, (a, b) in (ranges or {}).items():
            if not a <= b:
                raise ValueError(f"ranges: got {f} from {a} to {b}, expected low <= high")
            low[self.features.index(f)], high[self.features.index(f)] = a, b
        whole = self.features if self.layout.integer is None else self.layout.integer
        step = (1 / self.span) * (self._flag(whole) & integer)
        return Constraints(
            low=((low - self.low) / self.span).float(),
            high=((high - self.low) / self.span).float(),
            immutable=self._flag(immutable),
            only_up=self._flag(only_up),
            only_down=self._flag(only_down),
            step=step.float(),
        )

    def stated_constraints(self) -> Constraints:
        """Build the constraints that the layout states: immutable, monotone and whole features."""
        rises, falls = (
            [f for f, way in self.layout.monotone.items() if way == sign] for sign in (1, -1)
        )
        return self.constraints(self.layout.immutable, only_up=rises, only_down=falls)

    def _check_names(
        self,
        immutable: Sequence[str],
        only_up: Sequence[str],
        only_down: Sequence[str],
        ranges: Sequence[str],
    ) -> None:
        groups = {"immutable": immutable, "only_up": only_up, "only_down": only_down}
        for name, given in {**groups, "ranges": ranges}.items():
            if isinstance(given, str):
                raise ValueError(
                    f"{name}: got the text {given!r}, expected a sequence of feature names"
                )
            if unknown := [f for f in given if f not in self.features]:
                raise ValueError(
                    f"{name}: got the unknown feature {unknown[0]!r}, "
                    f"expected names out of {list(self.features)}"
                )
        if both := sorted(set(only_up) & set(only_down)):
            raise ValueError(f"only_up, only_down: {both} are in both; name them immutable instead")

    def _flag(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([f in names for f in self.features])

    def changes(self, query_row: Tensor, cf_row: Tensor, least: float = 0.0) -> list[str]:
        """Describe the differences between two rows (F,) of x: "NetFractionInstallBurden 51 -> 38".

        Args:
            query_row, cf_row: rows of x, before and after.
            least: smallest |difference| in x that is described; the paper's Eq. 9 has 0.001.

        Codes are spelled out.
        """
        before, after = (self.to_units(row[None]).iloc[0] for row in (query_row, cf_row))
        is_large = ((cf_row - query_row).abs() >= least).tolist()
        return [
            f"{f} {self._format(before[f], after[f])} -> {self._format(after[f], before[f])}"
            for f, large in zip(self.features, is_large, strict=True)
            if large and before[f] != after[f]
        ]

    def _format(self, value: float, other: float) -> str:
        """Write a value with as many decimals as tell it from `other`, or as a code."""
        if value == round(value):
            code = self.layout.codes.get(int(value))
            return f"{int(value)} ({code})" if code else f"{int(value)}"
        digits = next((d for d in range(2, 9) if round(value, d) != round(other, d)), 9)
        return f"{value:.{digits}f}"


def split_rows(n: int, sizes: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Return the row numbers of each split, ascending.

    Args:
        n: rows of the table.
        sizes: rows of (train and validation, test); None: a quarter is test.

    Raises ValueError if a split would be empty or the sizes exceed n.
    """
    training, test = sizes or (n - round(n / 4), round(n / 4))
    validation = round(training / 10)
    if min(training - validation, validation, test) < 1 or training + test > n:
        raise ValueError(f"{n} rows are too few to split into {', '.join(SPLITS)}")
    hashes = [hashlib.sha256(f"row {i}".encode()).digest() for i in range(n)]
    order = np.array(sorted(range(n), key=hashes.__getitem__))[: training + test]
    drawn = (order[test + validation :], order[test : test + validation], order[:test])
    return {split: np.sort(rows) for split, rows in zip(SPLITS, drawn, strict=True)}


def make_table(
    frame: pd.DataFrame,
    y: np.ndarray,
    ids: np.ndarray,
    split: str,
    layout: Layout,
    source: str,
    sizes: tuple[int, int] | None = None,
) -> Table:
    """Return one split of the whole table `frame`, scaled by its training rows.

    `frame` has the layout's features as columns; y and ids are (N,); `sizes` as in `split_rows`.
    """
    units, rows = check_values(frame, layout, whole=True), split_rows(len(frame), sizes)
    train = units[rows["train"]]
    low, high = train.min(0), train.max(0)
    lowest = np.where(np.isin(train, list(layout.codes)), high, train).min(0)
    y, ids = (torch.from_numpy(t[rows[split]].astype(np.int64)) for t in (y, ids))
    limits = map(torch.from_numpy, (low, high, lowest))
    empty = Table(torch.empty(0), y, ids, NAMES, source, layout, *limits)
    return replace(empty, x=empty.scale(units[rows[split]]))
