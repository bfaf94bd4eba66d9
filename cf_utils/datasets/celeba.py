"""CelebA: aligned faces of 178 x 218 pixels with 40 attributes.

Layout: <root>/celeba or <root> itself, with
- `img_align_celeba/` (Kaggle's archive nests it twice),
- `list_attr_celeba.txt` (line 1 the count, line 2 the 40 names, then `file -1 1 ...`) or `.csv`,
- `list_eval_partition.txt` or `.csv` (0 train, 1 validation, 2 test).
The text files may lie in `Anno/` and `Eval/` and the images in `Img/`, as on the authors' drive.

The papers crop differently, and the classifier's accuracy depends on it.
- `crop=178` (DiME, ACE): resize the shorter side to `size`, then crop the centre.
- `crop=150` (STEEX, DiVE, progressive exaggeration): crop the central 150 pixels, then resize.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cf_utils.core.choices import check_choice
from cf_utils.datasets import images
from cf_utils.datasets.base import SPLITS, OnDisk, Status, describe_problem, report_status

STAND_IN = "cf_utils.worlds (faces)"
CROPS = (150, 178)
PLACES = ("celeba", "CelebA", ".")
ATTRIBUTES = tuple(f"{d}list_attr_celeba.{e}" for d in ("", "Anno/") for e in ("txt", "csv"))
PARTITIONS = tuple(f"{d}list_eval_partition.{e}" for d in ("", "Eval/") for e in ("txt", "csv"))
IMAGES = ("img_align_celeba", "Img/img_align_celeba")


def load(
    root: str = "",
    split: str = "test",
    attribute: str | None = "Smiling",
    crop: int = 178,
    size: int = 128,
    broken: str = "error",
) -> OnDisk:
    """Load one split of the faces: x (3, size, size) in [0, 1]; ids are the numbers of the files.

    Args:
        root: folder of the official files.
        split: train, validation or test.
        attribute: y (N,) is 0 or 1 for this attribute; None: y (N, 40) holds all of them.
        crop: 178 or 150, see above.
        size: pixels per side.
        broken: "error", or "skip" to leave out truncated images.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    images.check_split("celeba", root, split, stand_in=STAND_IN)
    images.check_size(size)
    if crop not in CROPS:
        raise ValueError(f"crop: got {crop}, expected one of {CROPS}")
    folder = _find_folder(root)
    path = _find_first(folder, ATTRIBUTES)
    columns, names, values = read_attributes("celeba", path)
    parts = read_partition("celeba", _find_first(folder, PARTITIONS))
    number = SPLITS.index(split)
    rows = [i for i, n in enumerate(names) if find_part(n, parts, "celeba", path) == number]
    if lost := sorted(parts.keys() - set(names)):
        problem = f"{len(lost):,} images of the partition file have no line ({lost[0]}): truncated?"
        raise ValueError(describe_problem("celeba", path, problem))
    y, class_names = choose_labels(columns, values[rows], attribute)
    pictures = _find_first(folder, IMAGES)
    pictures = pictures / pictures.name if (pictures / pictures.name).is_dir() else pictures
    names = [names[i] for i in rows]
    ids = parse_numbers("celeba", path, names)
    if crop == 150:
        change = partial(images.crop_and_resize, crop=crop, size=size)
    else:
        change = partial(images.resize_and_crop, size=size)
    return images.make_split("celeba", pictures, names, y, ids, class_names, change, broken)


def status(root: str = "") -> Status:
    """Report what `load(root)` would find: the text files, and the first and last test image."""

    def look() -> str:
        data = load(root)
        images.check_first_and_last(data)
        return f"official files in {_find_folder(root)}, {len(data):,} test images"

    return report_status("celeba", look)


def _find_folder(root: str) -> Path:
    needed = ("|".join(names) for names in (ATTRIBUTES, PARTITIONS, IMAGES))
    return images.find_folder("celeba", root, PLACES, *needed)


def _find_first(folder: Path, names: tuple[str, ...]) -> Path:
    return next(folder / n for n in names if (folder / n).exists())


def read_attributes(entry: str, path: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """Read the attributes of all images from a text file or a CSV.

    Fields of a text file are separated by any number of blanks.
    Returns: (attribute names, N file names, values (N, names) int64 in {0, 1}).
    Raises ValueError that names the first wrong line.
    """
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    is_csv = path.suffix == ".csv"
    heads = 1 if is_csv else 2
    _check_head(entry, path, lines, heads)
    columns = [c.strip() for c in lines[heads - 1].split("," if is_csv else None)]
    columns = columns[1:] if is_csv else columns  # the first column of a CSV is the file
    names, rows, seen = [], [], set()
    for at, line in enumerate(lines[heads:], heads + 1):
        name, *values = [v.strip() for v in line.split(",")] if is_csv else line.split()
        if len(values) != len(columns) or values.count("1") + values.count("-1") != len(columns):
            got = f"line {at} ({name}): {len(values)} values"
            problem = f"{got}, expected {len(columns)}, each 1 or -1"
            raise ValueError(describe_problem(entry, path, problem))
        if name in seen:
            problem = f"line {at}: {name} has a line already"
            raise ValueError(describe_problem(entry, path, problem))
        seen.add(name)
        names.append(name)
        rows.append("".join(values).replace("-1", "0"))
    if not is_csv and int(lines[0]) != len(rows):
        promised = f"line 1 promises {int(lines[0]):,} images"
        problem = f"{promised}, {len(rows):,} lines follow: truncated?"
        raise ValueError(describe_problem(entry, path, problem))
    digits = np.frombuffer("".join(rows).encode(), np.uint8).reshape(len(rows), len(columns))
    return tuple(columns), names, torch.from_numpy((digits == ord("1")).astype(np.int64))


def _check_head(entry: str, path: Path, lines: list[str], heads: int) -> None:
    if len(lines) < heads:
        problem = f"{len(lines)} lines, expected {heads} of header and one per image"
        raise ValueError(describe_problem(entry, path, problem))
    if heads == 2 and not lines[0].strip().isdigit():
        problem = f"line 1 is {lines[0][:40]!r}, expected the number of images"
        raise ValueError(describe_problem(entry, path, problem))


def read_partition(entry: str, path: Path) -> dict[str, int]:
    """Read file name -> 0 train, 1 validation, 2 test: lines `file 0`, or a CSV with a header."""
    parts = {}
    for at, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields = line.replace(",", " ").split()
        if not fields or (at == 1 and fields[0] == "image_id"):
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            problem = f"line {at}: {line[:60]!r}, expected a file name and 0, 1 or 2"
            raise ValueError(describe_problem(entry, path, problem))
        parts[fields[0]] = int(fields[1])
    return parts


def find_part(name: str, parts: dict[str, int], entry: str, path: Path) -> int:
    """Return the part of an image; raise ValueError if the partition file does not list it."""
    if name not in parts:
        problem = f"{name} has no line in the partition file"
        raise ValueError(describe_problem(entry, path, problem))
    return parts[name]


def choose_labels(
    columns: tuple[str, ...], values: Tensor, attribute: str | None
) -> tuple[Tensor, tuple[str, ...]]:
    """Return (y, class names): one attribute, (N,) of 0 and 1, or all of them, (N, attributes)."""
    if attribute is None:
        return values, columns
    check_choice("attribute", attribute, columns)
    return values[:, columns.index(attribute)], (f"not {attribute}", attribute)


def parse_numbers(entry: str, path: Path, names: list[str]) -> Tensor:
    """Return the number in each file name, (N,) int64; it is the id of an image."""
    try:
        return torch.tensor([int(n.partition(".")[0]) for n in names], dtype=torch.int64)
    except ValueError as e:
        problem = f"a file name is no number: {e}"
        raise ValueError(describe_problem(entry, path, problem)) from e
