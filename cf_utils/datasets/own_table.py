"""Your own table: a data frame becomes a `Table` with scaling, units and constraints by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from torch import Tensor

from cf_utils.core import Ids
from cf_utils.datasets.table_files import check_rows, check_values
from cf_utils.datasets.tabular import Layout, Table

MAX_CLASSES = 100  # a label with more values than this is no class


def table_from_frame(
    frame: pd.DataFrame,
    label: str | None,
    *,
    immutable: Sequence[str] = (),
    monotone: Mapping[str, int] | None = None,
    integer: Sequence[str] | None = None,
    like: Table | None = None,
    name: str = "own table",
) -> Table:
    """Make a table from all rows of a frame, scaled to [0, 1] by their minimum and maximum.

    Args:
        frame: one row per item, one numeric column per feature, and the label.
        label: column of the class, of any type; None: classes are unknown, and y is -1.
        immutable: features that cannot change.
        monotone: feature -> +1 (may only rise) or -1 (may only fall).
        integer: features that hold whole numbers; None: those that are whole in every row.
        like: a table whose features, scaling, classes and constraints are used instead, for
            instance that of the training rows.
        name: of the table, for messages.

    Returns the table. Ids are the frame's index if its entries are distinct whole numbers or
    texts, else row numbers. `Table.stated_constraints` makes the constraints.

    Raises ValueError that names the argument, or the column and its first wrong row: text, missing
    or infinite values, unknown names, a fraction in an integer feature, too few or many classes.
    """
    if not isinstance(frame, pd.DataFrame) or not len(frame):
        got = f"{len(frame)} rows" if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise ValueError(f"frame: got {got}, expected a pandas DataFrame with at least one row")
    if label is not None and label not in frame:
        raise ValueError(f"label: got {label!r}, expected one of {list(frame.columns)}")
    columns = frame.drop(columns=[] if label is None else [label])
    if like is not None:
        units = check_values(columns, like.layout)
        y = _encode(frame, label, like.class_names)
        return replace(like, x=like.scale(units), y=y, ids=_ids(frame.index))
    features = tuple(str(column) for column in columns.columns)
    columns = _to_numbers(columns.set_axis(list(features), axis=1))
    layout = Layout(
        name=name,
        features=features,
        sensible=dict.fromkeys(features, 0),
        immutable=tuple(immutable),
        categories={},
        integer=_find_integer(columns, integer),
        monotone=_check_monotone(monotone or {}),
    )
    units = check_values(columns, layout)
    classes = () if label is None else _find_classes(frame[label])
    low, high = (torch.from_numpy(bound) for bound in (units.min(0), units.max(0)))
    y = _encode(frame, label, classes)
    table = Table(torch.empty(0), y, _ids(frame.index), classes, "own", layout, low, high, low)
    table.stated_constraints()  # raises ValueError for unknown names
    return replace(table, x=table.scale(units))


def _to_numbers(columns: pd.DataFrame) -> pd.DataFrame:
    """Return the columns as numbers; truth values become 0 and 1. Raises ValueError for text."""
    if not len(columns.columns):
        raise ValueError("frame: got no column besides the label, expected at least one feature")
    for name, column in columns.items():
        if not types.is_numeric_dtype(column):  # truth values count as numeric
            example = next(iter(column.dropna()), None)
            raise ValueError(
                f"column {name!r}: got {column.dtype} such as {example!r}, expected numbers; "
                "encode it first, for example with pandas.get_dummies, or drop it"
            )
    return columns.astype({c: np.int64 for c in columns if types.is_bool_dtype(columns[c])})


def _find_integer(columns: pd.DataFrame, integer: Sequence[str] | None) -> tuple[str, ...]:
    """Return the features that hold whole numbers; check those that the user names."""
    fractions = {f: (columns[f] != columns[f].round()).to_numpy(bool) for f in columns}
    if integer is None:
        return tuple(f for f in columns if not fractions[f].any())
    if unknown := [f for f in integer if f not in columns]:
        raise ValueError(
            f"integer: got the unknown feature {unknown[0]!r}, expected names out of "
            f"{list(columns)}"
        )
    for f in integer:
        check_rows(columns[f], fractions[f], "expected a whole number, because integer names it")
    return tuple(integer)


def _check_monotone(monotone: Mapping[str, int]) -> dict[str, int]:
    for feature, way in monotone.items():
        if way not in (1, -1):
            raise ValueError(
                f"monotone: got {way!r} for {feature!r}, expected +1 (may only rise) or -1 (may "
                "only fall)"
            )
    return dict(monotone)


def _find_classes(column: pd.Series) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the label's values."""
    check_rows(column, column.isna().to_numpy(), "expected a class")
    values = sorted(column.unique().tolist(), key=lambda value: (type(value).__name__, value))
    if not 2 <= len(values) <= MAX_CLASSES:
        raise ValueError(
            f"label: got {len(values)} distinct values in column {column.name!r}, expected 2 to "
            f"{MAX_CLASSES} classes"
        )
    return tuple(map(str, values))


def _encode(frame: pd.DataFrame, label: str | None, classes: Sequence[str]) -> Tensor:
    """Return the number of each row's class, int64 (N,); -1 without a label."""
    if label is None:
        return torch.full((len(frame),), -1)
    known = {name: i for i, name in enumerate(classes)}
    numbers = frame[label].astype(object).map(lambda value: known.get(str(value), -1))
    y = numbers.to_numpy(np.int64)
    check_rows(frame[label], y < 0, f"unknown class, expected one of {list(classes)}")
    return torch.tensor(y)


def _ids(index: pd.Index) -> Ids:
    values: list[Any] = index.tolist()
    if index.is_unique and types.is_integer_dtype(index):
        return torch.tensor(values, dtype=torch.int64)
    if index.is_unique and all(isinstance(value, str) for value in values):
        return tuple(values)
    return torch.arange(len(index))
