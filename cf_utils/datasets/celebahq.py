"""CelebAMask-HQ: 30,000 faces of 1024 x 1024 pixels with CelebA's attributes and masks of 18 parts.

Layout: <root>/CelebAMask-HQ or <root> itself, with
- `CelebA-HQ-img/<idx>.jpg`,
- `CelebAMask-HQ-attribute-anno.txt` (two blanks after the name),
- `CelebA-HQ-to-CelebA-mapping.txt` (idx orig_idx orig_file, any number of blanks),
- for masks `CelebAMask-HQ-mask-anno/<idx // 2000>/<5-digit idx>_<part>.png`, 512 x 512 pixels.

An image is in the split of the CelebA image that the mapping names. The partition file is read from
this folder or from <root>/celeba. Without one, CelebA's published boundaries are used; they are the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cf_utils.datasets import celeba, images
from cf_utils.datasets.base import SPLITS, OnDisk, Status, describe_problem, report_status

PLACES = ("CelebAMask-HQ", "celebahq", ".")
PICTURES, ATTRIBUTES = "CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt"
MAPPING, MASKS = "CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ-mask-anno"
LAST_OF_SPLIT = (162_770, 182_637, 202_599)  # CelebA's file numbers: train, validation, test
PARTS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)


def load(
    root: str = "",
    split: str = "test",
    attribute: str | None = "Smiling",
    size: int = 256,
    broken: str = "error",
) -> OnDisk:
    """Load one split of the faces: x (3, size, size) in [0, 1]; ids are idx, the file's number.

    Args:
        root: folder of the official files.
        split: train, validation or test.
        attribute: y (N,) is 0 or 1 for this attribute; None: y (N, 40) holds all of them.
        size: pixels per side.
        broken: "error", or "skip" to leave out truncated images.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    images.check_split("celebahq", root, split, stand_in=celeba.STAND_IN)
    images.check_size(size)
    folder = _find_folder(root)
    path = folder / ATTRIBUTES
    columns, names, values = celeba.read_attributes("celebahq", path)
    ids = celeba.parse_numbers("celebahq", path, names)
    rows = _find_rows(root, folder, ids, split)
    y, class_names = celeba.choose_labels(columns, values[rows], attribute)
    names = [names[i] for i in rows]
    change = partial(images.resize_and_crop, size=size)
    pictures = folder / PICTURES
    return images.make_split("celebahq", pictures, names, y, ids[rows], class_names, change, broken)


def status(root: str = "") -> Status:
    """Report what `load(root)` would find: the text files, and the first and last test image."""

    def look() -> str:
        data = load(root)
        images.check_first_and_last(data)
        folder = _find_folder(root)
        without = "" if (folder / MASKS).is_dir() else ", without masks"
        return f"official files in {folder}, {len(data):,} test images{without}"

    return report_status("celebahq", look)


def load_masks(root: str, ids: Sequence[int] | Tensor, size: int = 256) -> Tensor:
    """Load the masks of faces, (B, 18, size, size) bool: one plane per part of `PARTS`.

    Masks are resized by the nearest pixel. The plane of a part without a file is empty. Raises
    FileNotFoundError for a face without any mask.
    """
    images.check_size(size)
    folder = _find_folder(root) / MASKS
    out = torch.zeros(len(ids), len(PARTS), size, size, dtype=torch.bool)
    for row, idx in enumerate(torch.as_tensor(ids).tolist()):
        place = folder / str(idx // 2000)
        files = {k: place / f"{idx:05d}_{part}.png" for k, part in enumerate(PARTS)}
        files = {k: f for k, f in files.items() if f.exists()}
        if not files:
            problem = f"no mask {idx:05d}_<part>.png there"
            raise FileNotFoundError(describe_problem("celebahq", place, problem))
        for k, file in files.items():
            mask = images.decode("celebahq", file, "L")
            mask = mask.resize((size, size), Image.Resampling.NEAREST)
            out[row, k] = torch.from_numpy(np.array(mask) > 0)
    return out


def read_mapping(path: Path) -> dict[int, str]:
    """Read idx of CelebA-HQ -> file name in CelebA. Raises ValueError that names a wrong line."""
    text = path.read_text(encoding="utf-8-sig")
    head, *lines = [line.split() for line in text.splitlines() if line.strip()] or [[]]
    if head != ["idx", "orig_idx", "orig_file"]:
        problem = f"line 1 is {' '.join(head)!r}, expected 'idx orig_idx orig_file'"
        raise ValueError(describe_problem("celebahq", path, problem))
    out = {}
    for at, fields in enumerate(lines, 2):
        if len(fields) != 3 or not fields[0].isdigit():
            problem = f"line {at}: {' '.join(fields)!r}, expected idx, orig_idx, orig_file"
            raise ValueError(describe_problem("celebahq", path, problem))
        out[int(fields[0])] = fields[2]
    return out


def _find_folder(root: str) -> Path:
    return images.find_folder("celebahq", root, PLACES, PICTURES, ATTRIBUTES, MAPPING)


def _find_rows(root: str, folder: Path, ids: Tensor, split: str) -> list[int]:
    """Return the positions of a split's images among `ids`."""
    path = folder / MAPPING
    original, parts = read_mapping(path), _read_partition(folder, Path(root))
    rows = []
    for i, idx in enumerate(ids.tolist()):
        if idx not in original:
            problem = f"no line for image {idx}, which {ATTRIBUTES} lists"
            raise ValueError(describe_problem("celebahq", path, problem))
        if _find_part(original[idx], parts, path) == SPLITS.index(split):
            rows.append(i)
    return rows


def _read_partition(folder: Path, root: Path) -> dict[str, int] | None:
    for place in (folder, *(root / p for p in celeba.PLACES)):
        for name in celeba.PARTITIONS:
            if (place / name).exists():
                return celeba.read_partition("celebahq", place / name)
    return None


def _find_part(file: str, parts: dict[str, int] | None, path: Path) -> int:
    if parts is not None:
        return celeba.find_part(file, parts, "celebahq", path)
    number = int(celeba.parse_numbers("celebahq", path, [file]))
    if not 1 <= number <= LAST_OF_SPLIT[-1]:
        raise ValueError(describe_problem("celebahq", path, f"{file} is no image of CelebA"))
    return sum(number > last for last in LAST_OF_SPLIT)
