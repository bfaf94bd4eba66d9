"""German credit (Hofmann, UCI Statlog): 1,000 applications, in the table that ships with mlba.

GermanCredit.csv.gz is read as a file; the package mlba is never imported. OBS# (1 to 1000) is the
id and no feature. The 30 features are whole numbers: amounts, ordered and unordered codes, and
0/1 columns that were made from categories. RESPONSE 1 (good) is class 1, "approved", 700 rows; 0
is class 0, "refused", 300 rows.

The 0/1 columns of one category are not tied to each other: a search may set NEW_CAR and USED_CAR
to 1.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import (
    Status,
    describe_problem,
    find_package_file,
    report_status,
)
from cf_utils.datasets.table_files import check_columns, encode_labels, find_file, read_csv
from cf_utils.datasets.tabular import SPLITS, Layout, Table, make_table

FILES = ("GermanCredit.csv.gz", "GermanCredit.csv")
IDS, LABEL = "OBS#", "RESPONSE"
# Common sense. 0 for personal traits and for codes without an order (the last code of the
# accounts is "none").
SENSIBLE = {
    "CHK_ACCT": 0,
    "DURATION": -1,
    "HISTORY": 0,
    "NEW_CAR": 0,
    "USED_CAR": 0,
    "FURNITURE": 0,
    "RADIO/TV": 0,
    "EDUCATION": 0,
    "RETRAINING": 0,
    "AMOUNT": -1,
    "SAV_ACCT": 0,
    "EMPLOYMENT": 1,
    "INSTALL_RATE": -1,
    "MALE_DIV": 0,
    "MALE_SINGLE": 0,
    "MALE_MAR_or_WID": 0,
    "CO-APPLICANT": 0,
    "GUARANTOR": 1,
    "PRESENT_RESIDENT": 0,
    "REAL_ESTATE": 1,
    "PROP_UNKN_NONE": -1,
    "AGE": 0,
    "OTHER_INSTALL": -1,
    "RENT": 0,
    "OWN_RES": 1,
    "NUM_CREDITS": 0,
    "JOB": 1,
    "NUM_DEPENDENTS": 0,
    "TELEPHONE": 0,
    "FOREIGN": 0,
}
COLUMNS = tuple(SENSIBLE)  # in the file's order
PERSONAL = ("MALE_DIV", "MALE_SINGLE", "MALE_MAR_or_WID")
IMMUTABLE = ("HISTORY", *PERSONAL, "AGE", "NUM_DEPENDENTS", "FOREIGN")
PURPOSES = ("NEW_CAR", "USED_CAR", "FURNITURE", "RADIO/TV", "EDUCATION", "RETRAINING")
PROPERTY = ("REAL_ESTATE", "PROP_UNKN_NONE", "OTHER_INSTALL", "RENT", "OWN_RES")
FLAGS = (*PURPOSES, *PERSONAL, "CO-APPLICANT", "GUARANTOR", *PROPERTY, "TELEPHONE", "FOREIGN")
N_CODES = {"CHK_ACCT": 4, "HISTORY": 5, "SAV_ACCT": 5, "EMPLOYMENT": 5, "JOB": 4}
LAYOUT = Layout(
    name="german_credit",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=IMMUTABLE,
    categories={f: (0, 1) for f in FLAGS} | {f: range(n) for f, n in N_CODES.items()},
)


def load(root: str = "", split: str = "test") -> Table:
    """Load one split: x (N, 30) float32, scaled by `train`; y, 1 for good; ids (OBS#).

    Args:
        root: folder of the same file; `""` means the table inside mlba.
        split: train (675 rows), validation (75) or test (250).

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("split", split, SPLITS)
    path = find_file("german_credit", root, FILES) if root else _find_embedded()
    try:
        frame = read_csv(path)
        check_columns(list(frame.columns), (IDS, *COLUMNS, LABEL))
        y, ids = encode_labels(frame[LABEL], (0, 1)), frame[IDS].to_numpy(np.int64)
        source = "official" if root else "embedded"
        return make_table(frame[list(COLUMNS)], y, ids, split, LAYOUT, source)
    except (ValueError, OSError, EOFError, zlib.error) as e:
        raise ValueError(describe_problem("german_credit", path, str(e))) from e


def status(root: str = "") -> Status:
    """Report what `load(root)` would find; reads the table."""

    def look() -> str:
        load(root)
        if root:
            return f"{find_file('german_credit', root, FILES)} (its table has 1,000 rows)"
        return "1,000 real applications from mlba; they stand in for heloc and uci_credit"

    return report_status("german_credit", look, "present" if root else "embedded")


def _find_embedded() -> Path:
    return find_package_file("german_credit", "mlba", "csvFiles", FILES[0])
