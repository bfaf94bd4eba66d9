"""UCI's default of credit card clients (Yeh and Lien, 2009): 30,000 clients in Taiwan, 23 features.

Official layout, in <root>/uci_credit or <root>: "default of credit card clients.xls" (sheet Data;
two header rows, X1 to X23 and Y, then the names), or a CSV with the same names. The label's name
may have blanks, dots or underscores. ID is the id of a row and no feature. Class 1, "approved",
is no default; class 0, "refused", is default next month. So the file's label is reversed.

PAY_0 and PAY_2 to PAY_6 (there is no PAY_1) are months of delay from September back to April: -2 no
consumption, -1 paid in full, 0 the minimum paid, 1 to 8 months late. Amounts are in NT dollars.
EDUCATION 0, 5, 6 and MARRIAGE 0 occur; UCI does not document them.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import xlrd
from xlrd.compdoc import CompDocError

from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import Status, describe_problem, report_status
from cf_utils.datasets.table_files import check_columns, encode_labels, find_file, read_csv
from cf_utils.datasets.tabular import SPLITS, Layout, Table, make_table

FILES = (
    "default of credit card clients.xls",
    "UCI_Credit_Card.csv",
    "default of credit card clients.csv",
)
LABELS = ("default payment next month", "default.payment.next.month", "default_payment_next_month")
# Common sense: better clients have higher limits, delays are bad signs, payments good ones.
SENSIBLE = {
    "LIMIT_BAL": 1,
    "SEX": 0,
    "EDUCATION": 0,
    "MARRIAGE": 0,
    "AGE": 0,
    **{f"PAY_{m}": -1 for m in (0, 2, 3, 4, 5, 6)},
    **{f"BILL_AMT{m}": 0 for m in range(1, 7)},
    **{f"PAY_AMT{m}": 1 for m in range(1, 7)},
}
COLUMNS = tuple(SENSIBLE)  # in the file's order
LAYOUT = Layout(
    name="uci_credit",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=("SEX", "EDUCATION", "MARRIAGE", "AGE"),
    categories={"SEX": (1, 2), "EDUCATION": range(7), "MARRIAGE": range(4)},
)
# What xlrd raises for a damaged file.
XLS_ERRORS = (AssertionError, IndexError, struct.error, xlrd.XLRDError, CompDocError)
NOT_EMBEDDED = "no package ships this table; root='' has german_credit in its place"


def load(root: str, split: str = "test") -> Table:
    """Load one split: x (N, 23) float32, scaled by `train`; y, 1 for no default; ids (ID).

    Args:
        root: folder of the official file.
        split: train (20,250 rows), validation (2,250) or test (7,500), as in the paper.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("split", split, SPLITS)
    return _read_split(root, split)[0]


def status(root: str = "") -> Status:
    """Report what `load(root)` would find; reads the table."""

    def look() -> str:
        n = _read_split(root, "test")[1]
        return f"{_find(root)}: {n:,} rows (the official file: 30,000)"

    return report_status("uci_credit", look)


def _read_split(root: str, split: str) -> tuple[Table, int]:
    """Return a split and the number of rows of the whole file."""
    path = _find(root)
    try:
        frame = _read(path)
        return _make_split(frame, split), len(frame)
    except (ValueError, *XLS_ERRORS) as e:
        raise ValueError(describe_problem("uci_credit", path, str(e))) from e


def _find(root: str) -> Path:
    if not root:
        raise FileNotFoundError(describe_problem("uci_credit", None, NOT_EMBEDDED))
    return find_file("uci_credit", root, FILES)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return read_csv(path)
    return pd.read_excel(path, header=1, engine="xlrd").rename(columns=lambda c: str(c).strip())


def _make_split(frame: pd.DataFrame, split: str) -> Table:
    label = next((c for c in frame if c in LABELS), LABELS[0])
    check_columns(list(frame.columns), ("ID", *COLUMNS, label))
    ids = pd.to_numeric(frame["ID"], errors="coerce")
    if not ids.is_unique or ids.isna().any() or (ids % 1 != 0).any():
        raise ValueError("column 'ID': expected distinct whole numbers")
    y = 1 - encode_labels(frame[label], (0, 1))
    return make_table(frame[list(COLUMNS)], y, ids.to_numpy(np.int64), split, LAYOUT, "official")
