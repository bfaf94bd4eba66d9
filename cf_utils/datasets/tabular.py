"""What the tables of credit decisions share: scaling, units, constraints by name, and the checks on what comes in.

Gradual Construction (Jung et al., Pattern Recognition 2022), section 4.4: features scaled to [0, 1] by the training rows. Here
the rows of `train` alone set minimum and maximum; nothing is clipped, so a validation or test row may lie outside [0, 1], and
every row comes back to its own units exactly. In every table class 0 is "refused" and class 1 is "approved".

Splits. A quarter of the rows is `test` (the paper's share), a tenth of the rest `validation`, what remains `train`: train and
validation together are the paper's training part. Rows are drawn by the SHA-256 of their number: no library's generator can
change the split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core import Constraints
from cf_utils.datasets.base import InMemory, missing

NAMES = ("refused", "approved")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """What is known of a table before it is read. All features of the tables here are whole numbers."""

    name: str
    features: tuple[str, ...]
    sensible: Mapping[
        str, int
    ]  # direction in which a change speaks for approval: +1, -1, 0 = no such direction
    immutable: tuple[str, ...]  # what an applicant cannot change: a default for `constraints`
    categories: Mapping[str, Sequence[int]]  # features with these values only
    codes: Mapping[int, str] = field(default_factory=dict)  # values that stand for the lack of one


@dataclass(frozen=True, eq=False)
class Table(InMemory):
    """A split of a table: x (N, F) float32, scaled by the training rows; y (N,), 0 refused, 1 approved; ids (N,)."""

    layout: Layout
    low: Tensor = field(repr=False)  # (F,) float64: smallest training value, in units
    high: Tensor = field(repr=False)  # (F,) float64: largest
    lowest: Tensor = field(repr=False)  # (F,) float64: smallest training value that is no code

    @property
    def features(self) -> tuple[str, ...]:
        return self.layout.features

    @property
    def sensible(self) -> Tensor:
        """(F,) int64: +1 where a rise speaks for approval, -1 where a fall does, 0 where neither."""
        return torch.tensor([self.layout.sensible[f] for f in self.features])

    @property
    def span(self) -> Tensor:
        """(F,) float64: units that make 1 in x (1 for a feature with one value only)."""
        return torch.where(self.high > self.low, self.high - self.low, 1.0)

    def to_units(self, x: Tensor) -> pd.DataFrame:
        """Rows (N, F) of x in the data's units. What is a whole number up to float32's rounding becomes one; nothing else is
        rounded, so an amount that a search left between two whole numbers is seen as that."""
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != len(self.features):
            raise ValueError(
                f"x: got {tuple(getattr(x, 'shape', ()))}, expected (N, {len(self.features)})"
            )
        x = x.detach().cpu().double()
        units = x * self.span + self.low
        whole = units.round()
        units = torch.where(
            (units - whole).abs() <= 1.2e-7 * self.span * x.abs().clamp(min=1), whole, units
        )
        frame = pd.DataFrame(units.numpy(), columns=list(self.features))
        return frame.astype({f: np.int64 for f in frame if (frame[f] % 1 == 0).all()})

    def from_units(self, frame: pd.DataFrame) -> Tensor:
        """x (N, F) float32 of applications in the data's units; columns as in `features`, in that order.

        Raises ValueError that names column and first row: missing, unknown or reordered columns, text or NaN in a number
        column, a value that is no category of its feature.
        """
        return self._scaled(numbers(frame, self.layout))

    def _scaled(self, units: np.ndarray) -> Tensor:
        return ((torch.from_numpy(units) - self.low) / self.span).float()

    def constraints(
        self,
        immutable: Sequence[str] = (),
        only_up: Sequence[str] = (),
        only_down: Sequence[str] = (),
        integer: bool = True,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> Constraints:
        """Constraints by feature name. Each value stays in the range of the training rows, codes left out (a changed value is
        advice, and no one can be advised to have no record), or in `ranges` {feature: (low, high)}, in units. `integer` keeps
        whole numbers whole."""
        groups = {
            "immutable": immutable,
            "only_up": only_up,
            "only_down": only_down,
            "ranges": tuple(ranges or ()),
        }
        for name, given in groups.items():
            if isinstance(given, str):
                raise ValueError(
                    f"{name}: got the text {given!r}, expected a sequence of feature names"
                )
            if unknown := [f for f in given if f not in self.features]:
                raise ValueError(
                    f"{name}: unknown feature {unknown[0]!r}, expected names out of {list(self.features)}"
                )
        if both := sorted(set(only_up) & set(only_down)):
            raise ValueError(f"only_up, only_down: {both} are in both; name them immutable instead")
        low, high = self.lowest.clone(), self.high.clone()
        for f, (a, b) in (ranges or {}).items():
            if not a <= b:
                raise ValueError(f"ranges: {f} from {a} to {b}, expected low <= high")
            low[self.features.index(f)], high[self.features.index(f)] = a, b
        named = {
            k: torch.tensor([f in groups[k] for f in self.features])
            for k in ("immutable", "only_up", "only_down")
        }
        step = 1 / self.span if integer else torch.zeros(len(self.features))
        return Constraints(
            low=((low - self.low) / self.span).float(),
            high=((high - self.low) / self.span).float(),
            step=step.float(),
            **named,
        )

    def changes(self, query_row: Tensor, cf_row: Tensor, least: float = 0.0) -> list[str]:
        """What differs between two rows (F,) of x, in units: "NetFractionRevolvingBurden 51 -> 38". `least`: smallest
        |difference| in x that is told (0.001 is the threshold of the paper's Eq. 9); codes are spelled out."""
        before, after = (self.to_units(row[None]).iloc[0] for row in (query_row, cf_row))
        far = ((cf_row - query_row).abs() >= least).tolist()
        return [
            f"{f} {self._told(before[f], after[f])} -> {self._told(after[f], before[f])}"
            for f, tell in zip(self.features, far, strict=True)
            if tell and before[f] != after[f]
        ]

    def _told(self, value: float, other: float) -> str:
        if value == round(value):
            code = self.layout.codes.get(int(value))
            return f"{int(value)} ({code})" if code else f"{int(value)}"
        digits = next((d for d in range(2, 9) if round(value, d) != round(other, d)), 9)
        return f"{value:.{digits}f}"


def numbers(frame: pd.DataFrame, layout: Layout, whole: bool = False) -> np.ndarray:
    """Checked values (N, F) float64 of a frame with exactly the layout's columns, in its order; see `Table.from_units`.
    `whole` refuses fractions too (a file; a counterfactual may hold them)."""
    check_columns(list(frame.columns), layout.features)
    out = np.empty(frame.shape)
    for j, f in enumerate(layout.features):
        column = out[:, j] = pd.to_numeric(frame[f], errors="coerce").to_numpy(np.float64)
        refuse(
            frame[f], ~np.isfinite(column) & frame[f].notna().to_numpy(), "expected a finite number"
        )
        refuse(frame[f], np.isnan(column), "a value is missing")
        if whole:
            refuse(frame[f], column != np.round(column), "expected a whole number")
        if (known := layout.categories.get(f)) is not None:
            refuse(
                frame[f],
                ~np.isin(column, known),
                f"unknown category, expected one of {list(known)}",
            )
    return out


def refuse(column: pd.Series, wrong: np.ndarray, said: str) -> None:
    """ValueError that names the column and its first wrong row."""
    if wrong.any():
        i = wrong.argmax()
        raise ValueError(
            f"column {column.name!r}, row {i} (counted from 0): got {column.iloc[i]!s}; {said}"
        )


def check_columns(found: Sequence[str], expected: Sequence[str]) -> None:
    """ValueError that names the first column that is missing, unknown, doubled or out of its place."""
    for wrong, said in (
        ([c for c in expected if c not in found], "is missing"),
        ([c for c in found if c not in expected], "is unknown"),
        ([c for i, c in enumerate(found) if c in found[:i]], "comes twice"),
    ):
        if wrong:
            raise ValueError(f"column {wrong[0]!r} {said}; expected {list(expected)}")
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a != b:
            raise ValueError(f"columns are reordered: column {i} is {a!r}, expected {b!r}")


def find(name: str, root: str, files: Sequence[str]) -> Path:
    """The first of `files` in <root>, <root>/<name>; FileNotFoundError with the next step."""
    tried = [Path(root) / name, Path(root)]
    for folder in tried:
        for file in files:
            if (folder / file).is_file():
                return folder / file
    raise FileNotFoundError(
        missing(name, tried[-1], f"none of {list(files)} there or in its folder {name}/")
    )


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, encoding="utf-8-sig", index_col=False).rename(columns=str.strip)


def lines(path: Path) -> int:
    """Lines of a text file that are not blank."""
    with open(path, "rb") as f:
        return sum(bool(line.strip()) for line in f)


def binary(column: pd.Series, values: tuple) -> np.ndarray:
    """(N,) int64: 0 where the label column holds values[0], 1 where values[1]; ValueError on anything else."""
    refuse(column, ~column.isin(values).to_numpy(), f"expected one of {list(values)}")
    return (column == values[1]).to_numpy(np.int64)


def parts(n: int, sizes: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Row numbers of each split, ascending. sizes: rows of (train and validation, test); without it a quarter is test."""
    training, test = sizes or (n - round(n / 4), round(n / 4))
    validation = round(training / 10)
    if min(training - validation, validation, test) < 1 or training + test > n:
        raise ValueError(f"{n} rows are too few to split")
    order = np.array(sorted(range(n), key=lambda i: hashlib.sha256(f"row {i}".encode()).digest()))[
        : training + test
    ]
    return {
        "test": np.sort(order[:test]),
        "validation": np.sort(order[test : test + validation]),
        "train": np.sort(order[test + validation :]),
    }


def table(
    frame: pd.DataFrame,
    y: np.ndarray,
    ids: np.ndarray,
    split: str,
    layout: Layout,
    source: str,
    sizes: tuple[int, int] | None = None,
) -> Table:
    """One split of the whole table `frame` (its columns are the layout's features), scaled by its training rows."""
    units, rows = numbers(frame, layout, whole=True), parts(len(frame), sizes)
    train = units[rows["train"]]
    low, high = train.min(0), train.max(0)
    lowest = np.where(np.isin(train, list(layout.codes)), high, train).min(0)
    y, ids = (torch.from_numpy(t[rows[split]].astype(np.int64)) for t in (y, ids))
    out = Table(
        torch.empty(0), y, ids, NAMES, source, layout, *map(torch.from_numpy, (low, high, lowest))
    )
    return replace(out, x=out._scaled(units[rows[split]]))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {SPLITS}")
