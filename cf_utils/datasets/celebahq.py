"""CelebAMask-HQ: 30,000 faces of 1024 x 1024 pixels with CelebA's attributes and masks of 18 parts.

Layout: <root>/CelebAMask-HQ or <root> itself, with `CelebA-HQ-img/<idx>.jpg`, `CelebAMask-HQ-attribute-anno.txt` (two blanks
after the name), `CelebA-HQ-to-CelebA-mapping.txt` (idx orig_idx orig_file, any number of blanks) and, for masks,
`CelebAMask-HQ-mask-anno/<idx // 2000>/<5-digit idx>_<part>.png` (512 x 512; a part that is not visible has no file).

Split: that of the CelebA image which the mapping names. The partition file is taken from here or from <root>/celeba where there
is one; else CelebA's published boundaries stand in, which are the same.
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
from cf_utils.datasets.base import OnDisk, Status, missing

PLACES = ("CelebAMask-HQ", "celebahq", ".")
PICTURES, ATTRIBUTES = "CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt"
MAPPING, MASKS = "CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ-mask-anno"
LAST_OF_SPLIT = (162_770, 182_637, 202_599)  # CelebA's file numbers: train, validation, test
PARTS = (
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)


def load(
    root: str = "",
    split: str = "test",
    attribute: str | None = "Smiling",
    size: int = 256,
    broken: str = "error",
) -> OnDisk:
    """Faces (3, size, size) in [0, 1]; y 0 or 1 for one attribute (N,), or all 40 (N, 40) for `attribute=None`; id: idx.
    Raises FileNotFoundError or ValueError that names the file, and what is wrong with it first."""
    images.check_split("celebahq", root, split, stand_in=celeba.STAND_IN)
    folder = _folder(root)
    path = folder / ATTRIBUTES
    columns, names, values = celeba.attributes("celebahq", path)
    ids = celeba.numbers("celebahq", path, names)
    original = mapping(folder / MAPPING)
    parts = _partition(folder, Path(root))
    rows = []
    for i, idx in enumerate(ids.tolist()):
        if idx not in original:
            raise ValueError(
                missing(
                    "celebahq",
                    folder / MAPPING,
                    f"no line for image {idx}, which {ATTRIBUTES} lists",
                )
            )
        if _part(original[idx], parts, folder / MAPPING) == images.SPLITS.index(split):
            rows.append(i)
    y, class_names = celeba.labels(columns, values[rows], attribute)
    return images.split(
        "celebahq",
        folder / PICTURES,
        [names[i] for i in rows],
        y,
        ids[rows],
        class_names,
        partial(images.short_side_then_crop, size=size),
        broken,
    )


def status(root: str = "") -> Status:
    try:
        images.check_split("celebahq", root, "test", stand_in=celeba.STAND_IN)
        folder = _folder(root)
    except FileNotFoundError as e:
        return Status("celebahq", "missing", str(e))
    return Status(
        "celebahq",
        "present",
        f"official files in {folder}" + ("" if (folder / MASKS).is_dir() else ", without masks"),
    )


def masks(root: str, ids: Sequence[int] | Tensor, size: int = 256) -> Tensor:
    """(B, 18, size, size) bool, a plane for each of `PARTS` (nearest pixel); a part without a file is absent from the face.

    FileNotFoundError where a face has no mask at all.
    """
    folder = _folder(root) / MASKS
    out = torch.zeros(len(ids), len(PARTS), size, size, dtype=torch.bool)
    for row, idx in enumerate(torch.as_tensor(ids).tolist()):
        files = {
            k: folder / str(idx // 2000) / f"{idx:05d}_{part}.png" for k, part in enumerate(PARTS)
        }
        files = {k: f for k, f in files.items() if f.exists()}
        if not files:
            raise FileNotFoundError(
                missing(
                    "celebahq", folder / str(idx // 2000), f"no mask {idx:05d}_<part>.png there"
                )
            )
        for k, file in files.items():
            mask = images.decoded("celebahq", file, "L").resize(
                (size, size), Image.Resampling.NEAREST
            )
            out[row, k] = torch.from_numpy(np.array(mask) > 0)
    return out


def mapping(path: Path) -> dict[int, str]:
    """idx of CelebA-HQ -> file name in CelebA. ValueError that names the first line that is wrong."""
    head, *lines = [
        line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ] or [[]]
    if head != ["idx", "orig_idx", "orig_file"]:
        raise ValueError(
            missing(
                "celebahq", path, f"line 1 is {' '.join(head)!r}, expected 'idx orig_idx orig_file'"
            )
        )
    out = {}
    for at, fields in enumerate(lines, 2):
        if len(fields) != 3 or not fields[0].isdigit():
            raise ValueError(
                missing(
                    "celebahq",
                    path,
                    f"line {at}: {' '.join(fields)!r}, expected idx, orig_idx, orig_file",
                )
            )
        out[int(fields[0])] = fields[2]
    return out


def _folder(root: str) -> Path:
    return images.folder_with("celebahq", root, PLACES, PICTURES, ATTRIBUTES, MAPPING)


def _partition(folder: Path, root: Path) -> dict[str, int] | None:
    places = [
        base / name
        for base in (folder, *(root / p for p in celeba.PLACES))
        for name in celeba.PARTITIONS
    ]
    return next((celeba.partition("celebahq", p) for p in places if p.exists()), None)


def _part(file: str, parts: dict[str, int] | None, path: Path) -> int:
    if parts is not None:
        return celeba.part_of(file, parts, "celebahq", path)
    number = int(celeba.numbers("celebahq", path, [file]))
    if not 1 <= number <= LAST_OF_SPLIT[-1]:
        raise ValueError(missing("celebahq", path, f"{file} is no image of CelebA"))
    return sum(number > last for last in LAST_OF_SPLIT)
