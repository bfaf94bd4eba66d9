"""OSIC Pulmonary Fibrosis Progression: a chest CT and repeated measurements of lung function.

Layout (Kaggle): <root>/osic-pulmonary-fibrosis-progression (or osic, or <root> itself), with
* `train.csv`: Patient, Weeks (from the CT), FVC (ml), Percent, Age, Sex, SmokingStatus,
* `train/<Patient>/<n>.dcm`: one series per patient.
Kaggle's `test/` repeats patients of `train/` and is not read.

Neither file says who died. The label is one of
* "decline": the forced vital capacity (FVC) falls by 10 % or more within a year. Such a fall
  predicts death in pulmonary fibrosis (Richeldi et al., Thorax 2012). Each patient's fall is that
  of a least-squares line through the visits of the first 60 weeks.
* "mortality": death within a year of the CT, the paper's label, from an own `mortality.csv` beside
  `train.csv`: Patient, Weeks (from the CT to death or last contact), Died (0 or 1). A patient who
  left earlier and alive has no label.

Splits: a fifth of the patients, drawn by the SHA-256 of the patient's name, is the split test, a
tenth is validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.datasets import ct_patients, images, table_files
from cf_utils.datasets.base import OnDisk, Status, describe_problem, report_status
from cf_utils.datasets.ct_patients import PatientReader

STAND_IN = "cf_utils.worlds (lung_ct)"
PLACES = ("osic-pulmonary-fibrosis-progression", "osic", "OSIC", ".")
VISITS, OUTCOMES = "train.csv", "mortality.csv"
COLUMNS = ("Patient", "Weeks", "FVC", "Percent", "Age", "Sex", "SmokingStatus")
OUTCOME_COLUMNS = ("Patient", "Weeks", "Died")
CLASSES = {"decline": ("stable", "decline"), "mortality": ("survival", "death")}
UNLABELLED = ("skip", "error")
YEAR = 52  # weeks
FOLLOWED = 60  # weeks after the first visit whose visits enter the line
MIN_VISITS, MIN_WEEKS = 3, 39  # of a line
FALL = 0.10  # share of the FVC at the first visit, from which a fall counts as decline


def load(
    root: str = "",
    split: str = "test",
    label: str = "decline",
    size: int = 256,
    crop: str = "lungs",
    unlabelled: str = "skip",
    exclude: Sequence[str] = (),
    order: str = "position",
    rescale: tuple[float, float] | None = None,
) -> OnDisk:
    """Load one split: x (4, size, size) in [0, 1], four slices from head to feet; ids are patients.

    Reading a patient takes seconds; `.in_memory()` reads each once.

    Args:
        root: folder of the official files.
        split: train, validation or test.
        label: "decline" or "mortality", see above.
        size: pixels per side; the paper has 256.
        crop: "lungs" or "body".
        unlabelled: patients without a label: "skip" leaves them out with a warning, or "error".
        exclude: patients to leave out, for instance with a damaged series.
        order: "position", or "instance" for files without `ImagePositionPatient`.
        rescale: slope and intercept of files that lack them.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    images.check_split("osic", root, split, stand_in=STAND_IN)
    check_choice("label", label, tuple(CLASSES))
    check_choice("unlabelled", unlabelled, UNLABELLED)
    reader = PatientReader("osic", size, crop, order, rescale)
    folder = images.find_folder("osic", root, PLACES, VISITS, "train")
    patients = read_visits(folder / VISITS)["Patient"].unique().tolist()
    ct_patients.check_excluded("osic", exclude, patients)
    names = [patient for patient in patients if assign(patient) == split]
    y = read_labels(folder, label)
    missing = tuple(name for name in names if name not in y and name not in set(exclude))
    if missing and unlabelled == "skip":
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        got = f"{len(missing)} of {len(names)} patients have no label {label!r}"
        warnings.warn(f"osic: {got} and are left out: {listed}", stacklevel=2)
        names = [name for name in names if name not in set(missing)]
    return ct_patients.make_split(
        folder / "train", names, y, CLASSES[label], reader, exclude, missing
    )


def status(root: str = "") -> Status:
    """Report what `load(root)` would find, and read the first and the last test patient."""

    def look() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = load(root)
        for name in (data.names[0], data.names[-1]):
            data.read(data.folder / name)
        n = len(read_visits(data.folder.parent / VISITS)["Patient"].unique())
        return f"official files in {data.folder.parent}, {len(data):,} test patients of {n:,}"

    return report_status("osic", look)


def assign(patient: str) -> str:
    """Return the split of a patient, which depends on nothing but the name."""
    tenth = int(files.sha256(patient)[:8], 16) % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"


def read_visits(path: Path) -> pd.DataFrame:
    """Read `train.csv`, one row per visit; ValueError names the column and first wrong row."""
    return _read(path, COLUMNS, {"Weeks": "a number", "FVC": "a positive number"})


def read_labels(folder: Path, label: str) -> dict[str, int]:
    """Return 0 or 1 for each patient who has the label.

    Raises FileNotFoundError or ValueError that names the file.
    """
    if label == "decline":
        return decline(read_visits(folder / VISITS))
    path = folder / OUTCOMES
    if not path.is_file():
        problem = f"{OUTCOMES} is missing; Kaggle's files do not say who died"
        raise FileNotFoundError(describe_problem("osic", path, problem))
    rows = _read(path, OUTCOME_COLUMNS, {"Weeks": "a number", "Died": "0 or 1"}, once=True)
    return mortality(rows)


def decline(visits: pd.DataFrame) -> dict[str, int]:
    """Return whether the FVC falls by a tenth or more within a year, per patient.

    visits: Patient, Weeks, FVC. Patients with fewer than three visits, or visits over fewer than 39
    weeks, of the first 60 are left out.
    """
    labels = {}
    for patient, rows in visits.groupby("Patient", sort=False):
        weeks = (rows["Weeks"] - rows["Weeks"].min()).to_numpy(float)
        used = weeks <= FOLLOWED
        if used.sum() < MIN_VISITS or weeks[used].max() < MIN_WEEKS:
            continue
        slope, first = np.polyfit(weeks[used], rows["FVC"].to_numpy(float)[used], 1)
        labels[str(patient)] = int(-slope * YEAR >= FALL * first)
    return labels


def mortality(outcomes: pd.DataFrame) -> dict[str, int]:
    """Return whether a patient died within a year of the CT.

    outcomes: Patient, Weeks, Died. Patients who left within the year and alive are left out.
    """
    within = outcomes["Weeks"] <= YEAR
    died = outcomes["Died"] == 1
    known = outcomes[~within | died]
    y = (within & died)[known.index].astype(int)
    return dict(zip(known["Patient"].astype(str), y, strict=True))


def _read(
    path: Path, columns: Sequence[str], numbers: dict[str, str], once: bool = False
) -> pd.DataFrame:
    """Read a CSV file and check columns, numbers and patients; see `read_visits`."""
    try:
        rows = table_files.read_csv(path)
        table_files.check_columns(list(rows.columns), columns)
        if rows.empty:
            raise ValueError("the file holds no row")
        table_files.check_rows(rows["Patient"], rows["Patient"].isna().to_numpy(), "expected one")
        for name, expected in numbers.items():
            value = pd.to_numeric(rows[name], errors="coerce")
            wrong = ~np.isfinite(value)
            wrong |= (value <= 0) if name == "FVC" else (~value.isin([0, 1]) & (name == "Died"))
            table_files.check_rows(rows[name], wrong.to_numpy(), f"expected {expected}")
            rows[name] = value
        if once:
            again = rows["Patient"].duplicated().to_numpy()
            table_files.check_rows(rows["Patient"], again, "it comes twice")
    except ValueError as e:  # pandas' errors of a damaged file are ValueErrors, too
        raise ValueError(describe_problem("osic", path, str(e))) from e
    return rows.assign(Patient=rows["Patient"].astype(str))
