"""Files of tables: find, read and check them. Errors name the column and the first wrong row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cf_utils.datasets.base import describe_problem

if TYPE_CHECKING:
    from cf_utils.datasets.tabular import Layout


def find_file(name: str, root: str, files: Sequence[str]) -> Path:
    """Return the first of `files` in <root>/<name> or <root>.

    Raises FileNotFoundError that says what to do.
    """
    for folder in (Path(root) / name, Path(root)):
        for file in files:
            if (folder / file).is_file():
                return folder / file
    problem = f"none of {list(files)} there or in its folder {name}/"
    raise FileNotFoundError(describe_problem(name, Path(root), problem))


def read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file; blanks around column names are removed."""
    return pd.read_csv(path, encoding="utf-8-sig", index_col=False).rename(columns=str.strip)


def check_columns(found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise ValueError that names the first missing, unknown, repeated or misplaced column."""
    for wrong, problem in (
        ([c for c in expected if c not in found], "is missing"),
        ([c for c in found if c not in expected], "is unknown"),
        ([c for i, c in enumerate(found) if c in found[:i]], "comes twice"),
    ):
        if wrong:
            raise ValueError(f"column {wrong[0]!r} {problem}; expected {list(expected)}")
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a != b:
            raise ValueError(f"columns are reordered: column {i} is {a!r}, expected {b!r}")


def check_rows(column: pd.Series, wrong: np.ndarray, expected: str) -> None:
    """Raise ValueError that names the column and its first wrong row, if any row is wrong (N,)."""
    if wrong.any():
        i = int(wrong.argmax())
        got = f"got {column.iloc[i]!s}; {expected}"
        raise ValueError(f"column {column.name!r}, row {i} (counted from 0): {got}")


def check_values(frame: pd.DataFrame, layout: Layout, whole: bool = False) -> np.ndarray:
    """Return the values (N, F) float64 of a frame with exactly the layout's columns, in its order.

    `whole` refuses fractions, too. Files contain none, but counterfactuals may.
    Raises ValueError for wrong columns, text, missing or infinite values, and unknown categories.
    """
    check_columns(list(frame.columns), layout.features)
    values = np.empty(frame.shape)
    for j, f in enumerate(layout.features):
        given = frame[f]
        column = values[:, j] = pd.to_numeric(given, errors="coerce").to_numpy(np.float64)
        is_bad = ~np.isfinite(column) & given.notna().to_numpy()
        check_rows(given, is_bad, "expected a finite number")
        check_rows(given, np.isnan(column), "a value is missing")
        if whole:
            check_rows(given, column != np.round(column), "expected a whole number")
        if (known := layout.categories.get(f)) is not None:
            expected = f"unknown category, expected one of {list(known)}"
            check_rows(given, ~np.isin(column, known), expected)
    return values


def encode_labels(column: pd.Series, values: tuple[Any, Any]) -> np.ndarray:
    """Return 0 where a label column has values[0] and 1 where it has values[1], (N,) int64.

    Raises ValueError for any other label.
    """
    check_rows(column, ~column.isin(values).to_numpy(), f"expected one of {list(values)}")
    return (column == values[1]).to_numpy(np.int64)
