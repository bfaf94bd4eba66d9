"""HELOC: FICO's home equity lines of credit (Explainable Machine Learning Challenge, 2018), read from the official CSV.

Official layout: heloc_dataset_v1.csv in the root or in its folder heloc/; RiskPerformance (Bad/Good), then 23 whole numbers.
Class 1, "approved", is Good; class 0, "refused", is Bad. The features are the 22 of Gradual Construction's Table 4, which
leaves out ExternalRiskEstimate (another model's score); `external=True` gives all 23.

Special codes: -9 no bureau record or no investigation, -8 no usable or valid trades or inquiries, -7 condition not met (no
inquiry, no delinquency). They stay numbers, as in the paper (0.25 in its Table 4 is (0 + 8) / (24 + 8): minimum -8), so a
feature's scaled 0 is often a code. `constraints` puts the least value of a change above them, `changes` spells them out.

Rows. Those with nothing but -9 in the 22 features are dropped: of the official 10,459 rows 588 are said to be such, which
leaves 9,871. The paper's 7,402 + 2,468 are 9,870, one fewer (0.75 of 9,870 is 7,402.5). Where 9,870 or 9,871 rows remain the
paper's sizes are kept exactly, and the last row in the order of the draw is in no split; else a quarter is test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cf_utils.datasets import tabular
from cf_utils.datasets.base import Status, missing
from cf_utils.datasets.tabular import Layout, Table

FILES = ("heloc_dataset_v1.csv", "heloc_dataset_v1 (1).csv", "heloc.csv")
LABEL, EXTERNAL = "RiskPerformance", "ExternalRiskEstimate"
SIZES = (7_402, 2_468)  # the paper's Table 1
CODES = {-9: "no bureau record", -8: "no usable value", -7: "condition not met"}
SENSIBLE = {  # FICO's published monotonicity, turned to approval; 0: none was asked
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
IMMUTABLE = (
    "NumTrades60Ever2DerogPubRec",
    "NumTrades90Ever2DerogPubRec",
    "MaxDelqEver",
)  # "ever": cannot be undone
LAYOUT = Layout(
    name="heloc",
    features=COLUMNS,
    sensible=SENSIBLE,
    immutable=(EXTERNAL, *IMMUTABLE),
    codes=CODES,
    categories={
        "MaxDelq2PublicRecLast12M": (*CODES, *range(10)),
        "MaxDelqEver": (*CODES, *range(10)),
    },
)
NOT_EMBEDDED = "no package ships this table; data_root='' has german_credit in its place"


def load(root: str, split: str = "test", external: bool = False) -> Table:
    """x (N, 22) float32, scaled by the training rows (23 columns with `external`), y, id (row of the file, from 0)."""
    tabular.check_split(split)
    if not root:
        raise FileNotFoundError(missing("heloc", Path("data_root=''"), NOT_EMBEDDED))
    path = tabular.find("heloc", root, FILES)
    try:
        frame = tabular.read_csv(path)
        tabular.check_columns(list(frame.columns), (LABEL, *COLUMNS))
        tabular.numbers(
            frame[list(COLUMNS)], LAYOUT, whole=True
        )  # the whole file, before any row goes
        y = tabular.binary(frame[LABEL], ("Bad", "Good"))
        known = (frame[list(COLUMNS[1:])].astype(float) != -9).any(axis=1).to_numpy()
        rows = np.flatnonzero(known)
        layout = LAYOUT if external else replace(LAYOUT, features=COLUMNS[1:], immutable=IMMUTABLE)
        return tabular.table(
            frame.loc[known, list(layout.features)],
            y[rows],
            rows,
            split,
            layout,
            "official",
            SIZES if 0 <= len(rows) - sum(SIZES) <= 1 else None,
        )
    except ValueError as e:
        raise ValueError(missing("heloc", path, str(e))) from e


def status(root: str = "") -> Status:
    if not root:
        return Status("heloc", "missing", f"{NOT_EMBEDDED}; data/README.md, entry 'heloc'")
    try:
        path = tabular.find("heloc", root, FILES)
    except FileNotFoundError as e:
        return Status("heloc", "missing", str(e))
    return Status(
        "heloc", "present", f"{path}: {tabular.lines(path) - 1:,} rows (the official file: 10,459)"
    )
