"""HELOC: FICO's home equity lines of credit (Explainable Machine Learning Challenge, 2018).

Official layout: heloc_dataset_v1.csv in <root>/heloc or <root>: RiskPerformance (Bad or Good),
then 23 features, all whole numbers. Class 1, "approved", is Good; class 0, "refused", is Bad. The
features are the 22 of Gradual Construction's Table 4. It leaves out ExternalRiskEstimate, the
score of another model; `external=True` keeps it.

Codes: -9 no bureau record, -8 no usable value, -7 condition not met (no inquiry, no delinquency).
They stay numbers, as in the paper, so 0 in the scaled x is often a code. `Table.constraints` lets
no changed value fall to a code, and `Table.changes` spells codes out.

Rows with nothing but -9 in the 22 features are dropped: reportedly 588 of 10,459, which leaves
9,871. The paper's 7,402 + 2,468 rows are one fewer. If 9,870 or 9,871 rows remain, the splits have
the paper's sizes, and the row that is drawn last belongs to no split. Otherwise a quarter is test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import Status, describe_problem, report_status
from cf_utils.datasets.table_files import (
    check_columns,
    check_values,
    encode_labels,
    find_file,
    read_csv,
)
from cf_utils.datasets.tabular import SPLITS, Layout, Table, make_table

FILES = ("heloc_dataset_v1.csv", "heloc_dataset_v1 (1).csv", "heloc.csv")
LABEL, EXTERNAL = "RiskPerformance", "ExternalRiskEstimate"
SIZES = (7_402, 2_468)  # Gradual Construction, Table 1
CODES = {-9: "no bureau record", -8: "no usable value", -7: "condition not met"}
# FICO's published monotonicity: +1 if a higher value favours approval, -1 a lower; 0: none.
SENSIBLE = {
    EXTERNAL: 1,
    "MSinceOldestTradeOpen": 1,
    "MSinceMostRecentTradeOpen": 1,
    "AverageMInFile": 1,
    "NumSatisfactoryTrades": 1,
    "NumTrades60Ever2DerogPubRec": -1,
    "NumTrades90Ever2DerogPubRec": -1,
    "PercentTradesNeverDelq": 1,
    "MSinceMostRecentDelq": 1,
    "MaxDelq2PublicRecLast12M": 1,
    "MaxDelqEver": 1,
    "NumTotalTrades": 0,
    "NumTradesOpeninLast12M": -1,
    "PercentInstallTrades": 0,
    "MSinceMostRecentInqexcl7days": 1,
    "NumInqLast6M": -1,
    "NumInqLast6Mexcl7days": -1,
    "NetFractionRevolvingBurden": -1,
    "NetFractionInstallBurden": -1,
    "NumRevolvingTradesWBalance": 0,
    "NumInstallTradesWBalance": 0,
    "NumBank2NatlTradesWHighUtilization": -1,
    "PercentTradesWBalance": 0,
}
COLUMNS = tuple(SENSIBLE)  # in the file's order
# What has "ever" happened cannot be undone.
IMMUTABLE = ("NumTrades60Ever2DerogPubRec", "NumTrades90Ever2DerogPubRec", "MaxDelqEver")
DELINQUENCY = (*CODES, *range(10))
LAYOUT = Layout(
    name="heloc",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=(EXTERNAL, *IMMUTABLE),
    codes=CODES,
    categories={"MaxDelq2PublicRecLast12M": DELINQUENCY, "MaxDelqEver": DELINQUENCY},
)
NOT_EMBEDDED = "no package ships this table; root='' has german_credit in its place"


def load(root: str, split: str = "test", external: bool = False) -> Table:
    """Load one split: x (N, 22) float32, scaled by `train`; y, 1 for Good; ids (row of the file).

    Args:
        root: folder of the official file.
        split: train, validation or test.
        external: keep ExternalRiskEstimate, which makes 23 features.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("split", split, SPLITS)
    return _read_split(root, split, external)[0]


def status(root: str = "") -> Status:
    """Report what `load(root)` would find; reads the table."""

    def look() -> str:
        n = _read_split(root, "test", external=False)[1]
        return f"{_find(root)}: {n:,} rows (the official file: 10,459)"

    return report_status("heloc", look)


def _read_split(root: str, split: str, external: bool) -> tuple[Table, int]:
    """Return a split and the number of rows of the whole file."""
    path = _find(root)
    try:
        frame = read_csv(path)
        return _make_split(frame, split, external), len(frame)
    except ValueError as e:
        raise ValueError(describe_problem("heloc", path, str(e))) from e


def _find(root: str) -> Path:
    if not root:
        raise FileNotFoundError(describe_problem("heloc", None, NOT_EMBEDDED))
    return find_file("heloc", root, FILES)


def _make_split(frame: pd.DataFrame, split: str, external: bool) -> Table:
    check_columns(list(frame.columns), (LABEL, *COLUMNS))
    check_values(frame[list(COLUMNS)], LAYOUT, whole=True)  # every row, also those that are dropped
    y = encode_labels(frame[LABEL], ("Bad", "Good"))
    has_record = (frame[list(COLUMNS[1:])].astype(float) != -9).any(axis=1).to_numpy()
    rows = np.flatnonzero(has_record)
    layout = LAYOUT if external else replace(LAYOUT, features=COLUMNS[1:], immutable=IMMUTABLE)
    sizes = SIZES if 0 <= len(rows) - sum(SIZES) <= 1 else None
    x = frame.loc[has_record, list(layout.features)]
    return make_table(x, y[rows], rows, split, layout, "official", sizes)
