"""CelebA: aligned faces of 178 x 218 pixels with 40 attributes, from the official text files or Kaggle's csv.

Layout: <root>/celeba or <root> itself, with `img_align_celeba/` (Kaggle's archive nests it twice), `list_attr_celeba.txt` (line 1
the count, line 2 the 40 names, then `file -1 1 ...`) or `.csv`, and `list_eval_partition.txt` or `.csv` (0 train, 1 validation,
2 test). The text files may lie in `Anno/` and `Eval/`, the images in `Img/`, as the authors' drive has them.

The papers cut differently and the classifier's accuracy depends on it: `crop=178` is DiME's and ACE's (shorter side to `size`,
then the centre), `crop=150` that of STEEX, DiVE and progressive exaggeration (the central 150 pixels, then to `size`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk, Status, missing

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
    """Faces (3, size, size) in [0, 1]; y 0 or 1 for one attribute (N,), or all 40 (N, 40) for `attribute=None`; id: the number
    in the file name. Raises FileNotFoundError or ValueError that names the file, and what is wrong with it first."""
    images.check_split("celeba", root, split, stand_in=STAND_IN)
    if crop not in CROPS:
        raise ValueError(f"crop: got {crop}, expected one of {CROPS}")
    folder = images.folder_with(
        "celeba", root, PLACES, *map("|".join, (ATTRIBUTES, PARTITIONS, IMAGES))
    )
    path = found(folder, ATTRIBUTES)
    columns, names, values = attributes("celeba", path)
    parts = partition("celeba", found(folder, PARTITIONS))
    number = images.SPLITS.index(split)
    rows = [i for i, n in enumerate(names) if part_of(n, parts, "celeba", path) == number]
    if lost := sorted(parts.keys() - set(names)):
        wrong = f"{len(lost):,} images of the partition file have no line ({lost[0]}): cut off?"
        raise ValueError(missing("celeba", path, wrong))
    y, class_names = labels(columns, values[rows], attribute)
    pictures = found(folder, IMAGES)
    pictures = pictures / pictures.name if (pictures / pictures.name).is_dir() else pictures
    change = (
        partial(images.crop_then_resized, crop=crop, size=size)
        if crop == 150
        else partial(images.short_side_then_crop, size=size)
    )
    names = [names[i] for i in rows]
    return images.split(
        "celeba", pictures, names, y, numbers("celeba", path, names), class_names, change, broken
    )


def status(root: str = "") -> Status:
    try:
        images.check_split("celeba", root, "test", stand_in=STAND_IN)
        folder = images.folder_with(
            "celeba", root, PLACES, *map("|".join, (ATTRIBUTES, PARTITIONS, IMAGES))
        )
    except FileNotFoundError as e:
        return Status("celeba", "missing", str(e))
    return Status("celeba", "present", f"official files in {folder}")


def found(folder: Path, names: tuple[str, ...]) -> Path:
    return next(folder / n for n in names if (folder / n).exists())


def attributes(entry: str, path: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """(attribute names, file names, values (N, names) int64 in {0, 1}) of a text file or a csv; any number of blanks parts two
    fields (CelebAMask-HQ has two after the name). ValueError that names the first line that is wrong."""
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    comma, heads = (",", 1) if path.suffix == ".csv" else (None, 2)
    if len(lines) < heads:
        raise ValueError(
            missing(entry, path, f"{len(lines)} lines, expected {heads} of header and one an image")
        )
    if not comma and not lines[0].strip().isdigit():
        raise ValueError(
            missing(entry, path, f"line 1 is {lines[0][:40]!r}, expected the number of images")
        )
    columns = [c.strip() for c in lines[heads - 1].split(comma)][
        heads % 2 :
    ]  # a csv's first column is the file
    names, rows, seen = [], [], set()
    for at, line in enumerate(lines[heads:], heads + 1):
        name, *values = (v.strip() for v in line.split(comma))
        if len(values) != len(columns) or values.count("1") + values.count("-1") != len(columns):
            raise ValueError(
                missing(
                    entry,
                    path,
                    f"line {at} ({name}): {len(values)} values, expected {len(columns)}, each 1 or -1",
                )
            )
        names.append(name)
        if name in seen:
            raise ValueError(missing(entry, path, f"line {at}: {name} has a line already"))
        seen.add(name)
        rows.append(bytes(v == "1" for v in values))
    if not comma and int(lines[0]) != len(rows):
        raise ValueError(
            missing(
                entry,
                path,
                f"line 1 promises {int(lines[0]):,} images, {len(rows):,} lines follow: cut off?",
            )
        )
    values = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), len(columns))
    return tuple(columns), names, torch.from_numpy(values.astype(np.int64))


def partition(entry: str, path: Path) -> dict[str, int]:
    """File name -> 0 train, 1 validation, 2 test, from `file 0` lines or a csv with a header."""
    parts = {}
    for at, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields = line.replace(",", " ").split()
        if not fields or (at == 1 and fields[0] == "image_id"):
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise ValueError(
                missing(
                    entry, path, f"line {at}: {line[:60]!r}, expected a file name and 0, 1 or 2"
                )
            )
        parts[fields[0]] = int(fields[1])
    return parts


def part_of(name: str, parts: dict[str, int], entry: str, path: Path) -> int:
    if name not in parts:
        raise ValueError(missing(entry, path, f"{name} has no line in the partition file"))
    return parts[name]


def labels(
    columns: tuple[str, ...], values: Tensor, attribute: str | None
) -> tuple[Tensor, tuple[str, ...]]:
    """(y, class names): one attribute as 0 or 1, or all of them side by side."""
    if attribute is None:
        return values, columns
    if attribute not in columns:
        raise ValueError(f"attribute: got {attribute!r}, expected None or one of {columns}")
    return values[:, columns.index(attribute)], (f"not {attribute}", attribute)


def numbers(entry: str, path: Path, names: list[str]) -> Tensor:
    """The number in each file name, as id."""
    try:
        return torch.tensor([int(n.partition(".")[0]) for n in names], dtype=torch.int64)
    except ValueError as e:
        raise ValueError(missing(entry, path, f"a file name is no number: {e}")) from e
