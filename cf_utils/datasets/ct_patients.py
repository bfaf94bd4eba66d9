"""Patients with a chest CT each, as four slices; and any folder of DICOM series.

Layout of a folder: <root>/<patient>/ holds the DICOM files of one series, in subfolders or not.
`labels.csv` with a column `Patient` and one column of 0 and 1 per label is optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cf_utils.core.choices import check_choice
from cf_utils.datasets import dicom, images, lung_slices, table_files
from cf_utils.datasets.base import OnDisk, describe_problem

UNKNOWN = -1  # in y, of a folder that is loaded without labels
MIN_GAP = 2.0  # mm between the slices that are read; thin series are read faster


@dataclass(frozen=True)
class PatientReader:
    """Reads the series in a folder as four slices (4, size, size) in [0, 1].

    Raises FileNotFoundError or ValueError that names the folder and says what to do.
    """

    entry: str  # of data/README.md
    size: int = 256  # pixels per side
    crop: str = "lungs"  # or "body"
    order: str = "position"  # or "instance", for files without a position
    rescale: tuple[float, float] | None = None  # slope and intercept of files without them

    def __post_init__(self) -> None:
        images.check_size(self.size)
        check_choice("crop", self.crop, lung_slices.CROPS)
        check_choice("order", self.order, dicom.ORDERS)

    def __call__(self, folder: Path) -> Tensor:
        try:
            series = dicom.read_series(
                folder, order=self.order, rescale=self.rescale, min_gap=MIN_GAP
            )
            return lung_slices.four_slices(series, self.size, self.crop)
        except (FileNotFoundError, ValueError) as e:
            raise type(e)(describe_problem(self.entry, folder, str(e))) from e


def load_folder(
    root: str | Path,
    label: str | None = None,
    size: int = 256,
    crop: str = "lungs",
    exclude: Sequence[str] = (),
    order: str = "position",
    rescale: tuple[float, float] | None = None,
) -> OnDisk:
    """Load a folder with one CT series per patient: x (4, size, size); ids are subfolders' names.

    Args:
        root: folder of the patients' folders.
        label: column of `labels.csv`; None: y is -1 for all.
        size: pixels per side.
        crop: "lungs" or "body".
        exclude: patients to leave out.
        order: "position", or "instance" for files without `ImagePositionPatient`.
        rescale: slope and intercept of files that lack them.

    Raises FileNotFoundError or ValueError that names the file and says what to do, also for a
    patient without a label.
    """
    folder, reader = Path(root), PatientReader("ct_folder", size, crop, order, rescale)
    if not folder.is_dir():
        raise FileNotFoundError(describe_problem("ct_folder", folder, "the folder is missing"))
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    check_excluded("ct_folder", exclude, names)
    if label is None:
        y, classes = dict.fromkeys(names, UNKNOWN), ("unknown",)
    else:
        y, classes = read_labels(folder / "labels.csv", label), (f"no {label}", label)
    return make_split(folder, names, y, classes, reader, exclude)


def read_labels(path: Path, label: str) -> dict[str, int]:
    """Read one column of `labels.csv` as 0 or 1 per patient; ValueError names a wrong row."""
    if not path.is_file():
        raise FileNotFoundError(describe_problem("ct_folder", path, "labels.csv is missing"))
    try:
        rows = table_files.read_csv(path)
        check_choice("column", "Patient", list(rows.columns))
        check_choice("label", label, list(rows.columns))
        table_files.check_rows(rows["Patient"], rows["Patient"].duplicated().to_numpy(), "once")
        number = pd.to_numeric(rows[label], errors="coerce")
        table_files.check_rows(rows[label], ~number.isin([0, 1]).to_numpy(), "expected 0 or 1")
    except ValueError as e:
        raise ValueError(describe_problem("ct_folder", path, str(e))) from e
    return dict(zip(rows["Patient"].astype(str), number.astype(int), strict=True))


def check_excluded(entry: str, exclude: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError that names the first excluded patient who is not in the data set."""
    if unknown := [name for name in exclude if name not in set(names)]:
        raise ValueError(f"exclude: got {unknown[0]!r}, expected one of the patients of {entry}")


def make_split(
    folder: Path,
    names: Sequence[str],
    y: dict[str, int],
    class_names: Sequence[str],
    reader: PatientReader,
    exclude: Sequence[str] = (),
    skipped: Sequence[str] = (),
) -> OnDisk:
    """Make a split of patients.

    Args:
        folder: folder of the patients' folders.
        names: patients, in this order.
        y: label of each patient.
        class_names: one per class.
        reader: reads a patient's folder.
        exclude: patients to leave out.
        skipped: patients that were left out before, for the record.

    Raises ValueError for a patient without a label and for a split without patients,
    FileNotFoundError for a patient without a folder.
    """
    entry, kept = reader.entry, [name for name in names if name not in set(exclude)]
    for name in kept:
        if name not in y:
            problem = f"patient {name} has no label; add it, or leave the patient out by exclude"
            raise ValueError(describe_problem(entry, folder, problem))
        if not (folder / name).is_dir():
            problem = f"the folder of patient {name} is missing"
            raise FileNotFoundError(describe_problem(entry, folder / name, problem))
    if not kept:
        raise ValueError(describe_problem(entry, folder, "the split holds no patient"))
    labels = torch.from_numpy(np.array([y[name] for name in kept], dtype=np.int64))
    left_out = (*skipped, *(name for name in names if name in set(exclude)))
    ids, classes = tuple(kept), tuple(class_names)
    return OnDisk(folder, ids, reader, labels, ids, classes, "official", left_out)
