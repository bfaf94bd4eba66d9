"""CheXpert: chest radiographs with labels of 14 observations, read from the reports by a program.

Layout: <root>/CheXpert-v1.0-small (or CheXpert-v1.0, or <root> itself), with
- `train.csv` and `valid.csv`: Path, Sex, Age, Frontal/Lateral, AP/PA and the 14 observations,
- `train/` and `valid/`: `patient00001/study1/view1_frontal.jpg`.

Paths in the CSV files begin with the name of the release. It is left out, so that the folder may
have any name. A label is 1 (present), 0 (absent), -1 (uncertain), or blank (not mentioned).

The official validation set is the split test, because the official test set has no public images.
About a tenth of the training patients, drawn by the SHA-256 of the patient's name, are the split
validation. No patient is in two splits.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.datasets import images, table_files
from cf_utils.datasets.base import OnDisk, Status, describe_problem, report_status

STAND_IN = "cf_utils.worlds (radiographs)"
PLACES = ("CheXpert-v1.0-small", "CheXpert-v1.0", "chexpert", ".")
FILES = {"train": "train.csv", "validation": "train.csv", "test": "valid.csv"}
PREFIX = re.compile(r"CheXpert-v1\.0[^/]*/")
PATIENT = re.compile(r"(?:train|valid)/(patient\d+)/.+")
VIEW = "Frontal/Lateral"
ABOUT = ("Path", "Sex", "Age", VIEW, "AP/PA")  # the columns before the observations
OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion"),
    *("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
)
UNCERTAIN = ("ignore", "zeros", "ones")
BLANK = ("negative", "ignore")
VIEWS = ("frontal", "lateral", "all")
IGNORED = -1  # in y, where all observations are loaded


def load(
    root: str = "",
    split: str = "test",
    observation: str | None = "Cardiomegaly",
    uncertain: str = "ignore",
    blank: str = "negative",
    view: str = "frontal",
    size: int = 128,
    broken: str = "error",
) -> OnDisk:
    """Load one split of the radiographs: x (1, size, size) in [0, 1], resized to a square.

    ids are paths without folder and suffix, such as `patient00001/study1/view1_frontal`.

    Args:
        root: folder of the official files.
        split: train, validation or test.
        observation: y (N,) is 0 or 1 for this observation; None: y (N, 14) holds all of them.
        uncertain: policy for uncertain labels: "ignore", "zeros" (absent) or "ones" (present).
        blank: "negative" (absent) or "ignore", for labels that the report does not mention.
        view: "frontal", "lateral" or "all".
        size: pixels per side.
        broken: "error", or "skip" to leave out truncated images.

    "ignore" leaves out the radiograph. With `observation=None` it sets that entry of y to -1.
    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    images.check_split("chexpert", root, split, stand_in=STAND_IN)
    images.check_size(size)
    check_choice("uncertain", uncertain, UNCERTAIN)
    check_choice("blank", blank, BLANK)
    check_choice("view", view, VIEWS)
    if observation is not None:
        check_choice("observation", observation, OBSERVATIONS)
    folder = images.find_folder("chexpert", root, PLACES, FILES[split])
    rows = read_rows(folder / FILES[split])
    if split != "test":
        rows = rows[rows["patient"].map(is_validation_patient) == (split == "validation")]
    if view != "all":
        rows = rows[rows[VIEW] == view.capitalize()]
    values = apply_policy(rows[list(OBSERVATIONS)].to_numpy(), uncertain, blank)
    if observation is None:
        y, class_names = torch.from_numpy(values), OBSERVATIONS
    else:
        column = values[:, OBSERVATIONS.index(observation)]
        known = column != IGNORED
        rows, y = rows[known], torch.from_numpy(column[known])
        class_names = (f"no {observation}", observation)
    names = rows["file"].tolist()
    ids = [n.partition("/")[2].rpartition(".")[0] for n in names]
    change = partial(images.resize, height=size, width=size)
    return images.make_split(
        "chexpert", folder, names, y, ids, class_names, change, broken, mode="L"
    )


def status(root: str = "") -> Status:
    """Report what `load(root)` would find, the training list, and the first and last test image."""

    def look() -> str:
        data = load(root, uncertain="zeros")
        images.check_first_and_last(data)
        training = images.find_folder("chexpert", root, PLACES, FILES["train"]) / FILES["train"]
        n = len(read_rows(training))
        return f"official files in {data.folder}, {len(data):,} test images, {n:,} for training"

    return report_status("chexpert", look)


def read_rows(path: Path) -> pd.DataFrame:
    """Read `train.csv` or `valid.csv`; one row per radiograph, in the order of the file.

    Columns: those of the file, with observations as float (NaN where blank), and `file` (relative
    to the folder of the CSV) and `patient`.
    Raises ValueError that names the column and the first wrong row.
    """
    try:
        rows = table_files.read_csv(path)
        table_files.check_columns(list(rows.columns), (*ABOUT, *OBSERVATIONS))
        if rows.empty:
            raise ValueError("the file holds no row")
        unknown = ~rows[VIEW].isin(["Frontal", "Lateral"]).to_numpy()
        table_files.check_rows(rows[VIEW], unknown, "expected Frontal or Lateral")
        for name in OBSERVATIONS:
            number = pd.to_numeric(rows[name], errors="coerce")
            wrong = (~number.isin([-1, 0, 1]) & rows[name].notna()).to_numpy()
            table_files.check_rows(rows[name], wrong, "expected 1, 0, -1 or blank")
            rows[name] = number.astype(float)
        inside = rows["Path"].astype(str).str.replace(PREFIX, "", n=1, regex=True)
        patient = inside.str.extract(PATIENT, expand=False)
        expected = "expected CheXpert-v1.0[-small]/{train,valid}/patient<n>/..."
        table_files.check_rows(rows["Path"], patient.isna().to_numpy(), expected)
        table_files.check_rows(rows["Path"], inside.duplicated().to_numpy(), "it comes twice")
    except ValueError as e:  # pandas' errors of a damaged file are ValueErrors, too
        raise ValueError(describe_problem("chexpert", path, str(e))) from e
    return rows.assign(file=inside, patient=patient)


def is_validation_patient(patient: str) -> bool:
    """Return whether a training patient belongs to the split validation."""
    return int(files.sha256(patient)[:8], 16) % 10 == 0


def apply_policy(labels: np.ndarray, uncertain: str, blank: str) -> np.ndarray:
    """Turn labels 1, 0, -1 and NaN into classes, of the same shape, int64.

    Args: uncertain, blank: as in `load`. Returns 0, 1, or `IGNORED`.
    """
    unmentioned = {"negative": 0, "ignore": IGNORED}[blank]
    unsure = {"ignore": IGNORED, "zeros": 0, "ones": 1}[uncertain]
    classes = np.where(np.isnan(labels), unmentioned, labels)
    return np.where(labels == -1, unsure, classes).astype(np.int64)
