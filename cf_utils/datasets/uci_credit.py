"""UCI's default of credit card clients (Yeh and Lien, 2009): 30,000 clients in Taiwan, 23 features, default next month or not.

Official layout: "default of credit card clients.xls" (sheet Data, two header rows: X1..X23, Y, then the names), or one of the
CSV forms with the same names and the label spelled with blanks, dots or underscores; in the root or in its folder uci_credit/.
ID becomes the row's id and is no feature. Class 1, "approved", is no default; class 0, "refused", is default: the file's label
turned round, so that approval is class 1 in every table.

PAY_0, PAY_2..PAY_6 (there is no PAY_1): months of delay from September back to April, -2 no consumption, -1 paid in full,
0 the minimum paid, 1..8 months late. Amounts in NT dollars. EDUCATION 0, 5, 6 and MARRIAGE 0 occur, undocumented by UCI.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import xlrd
from xlrd.compdoc import CompDocError

from cf_utils.datasets import tabular
from cf_utils.datasets.base import Status, missing
from cf_utils.datasets.tabular import Layout, Table

FILES = (
    "default of credit card clients.xls",
    "UCI_Credit_Card.csv",
    "default of credit card clients.csv",
)
LABELS = ("default payment next month", "default.payment.next.month", "default_payment_next_month")
SENSIBLE = {  # general knowledge: a higher limit was granted to better clients, delay speaks against, paying speaks for
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
IMMUTABLE = ("SEX", "EDUCATION", "MARRIAGE", "AGE")
LAYOUT = Layout(
    name="uci_credit",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=IMMUTABLE,
    categories={"SEX": (1, 2), "EDUCATION": range(7), "MARRIAGE": range(4)},
)
BROKEN = (
    ValueError,
    AssertionError,
    IndexError,
    struct.error,
    xlrd.XLRDError,
    CompDocError,
)  # what xlrd raises on damage
NOT_EMBEDDED = "no package ships this table; data_root='' has german_credit in its place"


def load(root: str, split: str = "test") -> Table:
    """x (N, 23) float32, scaled by the training rows; y, 1 = no default; id (the file's ID). The 30,000 rows give the paper's
    sizes: train 20,250 and validation 2,250 (22,500 in all), test 7,500."""
    tabular.check_split(split)
    if not root:
        raise FileNotFoundError(missing("uci_credit", Path("data_root=''"), NOT_EMBEDDED))
    path = tabular.find("uci_credit", root, FILES)
    try:
        frame = _read(path)
        label = next((c for c in frame if c in LABELS), LABELS[0])
        tabular.check_columns(list(frame.columns), ("ID", *COLUMNS, label))
        ids = pd.to_numeric(frame["ID"], errors="coerce")
        if not ids.is_unique or ids.isna().any() or (ids % 1 != 0).any():
            raise ValueError("column 'ID': expected distinct whole numbers")
        y = 1 - tabular.binary(frame[label], (0, 1))
        return tabular.table(
            frame[list(COLUMNS)], y, ids.to_numpy(np.int64), split, LAYOUT, "official"
        )
    except BROKEN as e:
        raise ValueError(missing("uci_credit", path, str(e))) from e


def status(root: str = "") -> Status:
    if not root:
        return Status(
            "uci_credit", "missing", f"{NOT_EMBEDDED}; data/README.md, entry 'uci_credit'"
        )
    try:
        path = tabular.find("uci_credit", root, FILES)
    except FileNotFoundError as e:
        return Status("uci_credit", "missing", str(e))
    if path.suffix == ".csv":
        rows = tabular.lines(path) - 1
    else:
        try:
            rows = xlrd.open_workbook(path, on_demand=True).sheet_by_index(0).nrows - 2
        except BROKEN as e:
            return Status("uci_credit", "missing", missing("uci_credit", path, str(e)))
    return Status("uci_credit", "present", f"{path}: {rows:,} rows (the official file: 30,000)")


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return tabular.read_csv(path)
    return pd.read_excel(path, header=1, engine="xlrd").rename(columns=lambda c: str(c).strip())
