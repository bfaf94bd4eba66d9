"""Folders of images, which are read one by one with PIL, as (C, H, W) float32 in [0, 1].

A listed file that is missing is always an error. A truncated file is an error when it is read. With
`broken="skip"` truncated files are left out when the split is made, with a warning, and listed in
`skipped`. The check looks only at how a file begins and ends; damage in the middle is an error when
the image is read.

Resizing and cropping are torchvision's on PIL images, with the filter of the papers' code,
because the filter changes FID.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from cf_utils.core import Ids, check_count
from cf_utils.core.choices import check_choice
from cf_utils.datasets.base import SPLITS, OnDisk, describe_problem

BROKEN = ("error", "skip")


@dataclass(frozen=True)
class Reader:
    """Reads a path as x (C, H, W) float32 in [0, 1]; raises ValueError that names a bad file."""

    entry: str  # of data/README.md
    change: Callable[[Image.Image], Image.Image]  # crops and resizes an image of this mode
    mode: str = "RGB"  # PIL's mode: "RGB" (C = 3) or "L" (grey, C = 1)

    def __call__(self, path: Path) -> Tensor:
        image = decode(self.entry, path, self.mode)
        try:
            return to_tensor(self.change(image))
        except ValueError as e:
            raise ValueError(describe_problem(self.entry, path, str(e))) from e


def decode(entry: str, path: Path, mode: str = "RGB") -> Image.Image:
    """Decode a whole image.

    Raises FileNotFoundError, or ValueError for a file that is truncated or no image; both name it.
    """
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except FileNotFoundError as e:
        raise FileNotFoundError(describe_problem(entry, path, "the image is missing")) from e
    except (OSError, SyntaxError, ValueError) as e:  # PIL raises SyntaxError for a broken PNG
        problem = f"the image cannot be read: {e}; broken='skip' leaves out truncated files"
        raise ValueError(describe_problem(entry, path, problem)) from e


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W), a grey one as (1, H, W), float32 in [0, 1]."""
    pixels = np.atleast_3d(np.array(image))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def resize(image: Image.Image, height: int, width: int, bicubic: bool = False) -> Image.Image:
    """Resize to height x width, bilinear or bicubic."""
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    return TF.resize(image, [height, width], mode)


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bilinear), then crop the central size x size pixels."""
    return TF.center_crop(TF.resize(image, [size]), [size])


def crop_and_resize(image: Image.Image, crop: int, size: int) -> Image.Image:
    """Crop the central crop x crop pixels, then resize to size x size (bilinear).

    Raises ValueError for an image smaller than the crop.
    """
    if min(image.size) < crop:
        got = f"{image.size[0]} x {image.size[1]} pixels"
        raise ValueError(f"image: {got}, expected at least {crop} x {crop}")
    return resize(TF.center_crop(image, [crop]), size, size)


def make_split(
    entry: str,
    folder: Path,
    names: Sequence[str],
    y: Tensor,
    ids: Ids,
    class_names: Sequence[str],
    change: Callable[[Image.Image], Image.Image],
    broken: str = "error",
    mode: str = "RGB",
) -> OnDisk:
    """Make an official split of the listed files.

    Args:
        entry: entry of data/README.md, for messages.
        folder: folder of the images.
        names: N files, relative to `folder`.
        y, ids: labels (N,) or (N, labels), and N ids.
        class_names: one per class, or per label.
        change: crops and resizes an image.
        broken: "error", or "skip" to leave out truncated files with a warning.
        mode: "RGB" or "L" (grey).

    Raises FileNotFoundError that names the first missing file, ValueError for a split without
    images.
    """
    check_choice("broken", broken, BROKEN)
    _check_existence(entry, folder, names)
    skipped = tuple(n for n in names if not is_complete(folder / n)) if broken == "skip" else ()
    ids = ids if isinstance(ids, Tensor) else tuple(ids)
    read = Reader(entry, change, mode)
    classes = tuple(class_names)
    data = OnDisk(folder, tuple(names), read, y, ids, classes, "official", skipped)
    if skipped:
        out = set(skipped)
        data = data.take([i for i, n in enumerate(names) if n not in out])
        listed = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        warnings.warn(
            f"{entry}: {len(skipped)} of {len(names)} images cannot be read and are left out: "
            f"{listed}",
            stacklevel=3,
        )
    if not len(data):
        raise ValueError(describe_problem(entry, folder, "the split holds no image"))
    return data


def _check_existence(entry: str, folder: Path, names: Sequence[str]) -> None:
    """Raise FileNotFoundError that names the first listed file that is missing."""
    there: dict[str, set[str]] = {}  # listing a folder once is faster than asking for each file
    for name in names:
        sub, base = os.path.split(name)
        if sub not in there:
            there[sub] = set(os.listdir(folder / sub)) if (folder / sub).is_dir() else set()
        if base not in there[sub]:
            problem = f"{name} is listed but the image is missing"
            raise FileNotFoundError(describe_problem(entry, folder / name, problem))


def is_complete(path: Path) -> bool:
    """Return whether an image is not truncated.

    A JPEG or PNG is complete if it begins and ends as it must; anything else is decoded.
    """
    with open(path, "rb") as f:
        head = f.read(8)
        f.seek(0, os.SEEK_END)
        f.seek(max(f.tell() - 12, 0))
        tail = f.read()
    if (head[:3] == b"\xff\xd8\xff" and tail.endswith(b"\xff\xd9")) or (
        head == b"\x89PNG\r\n\x1a\n" and tail[4:8] == b"IEND"
    ):
        return True
    try:
        decode("", path)
    except ValueError:
        return False
    return True


def check_first_and_last(data: OnDisk) -> None:
    """Raise ValueError if the first or the last image of a split is truncated."""
    entry = data.read.entry if isinstance(data.read, Reader) else data.source
    for name in (data.names[0], data.names[-1]):
        if not is_complete(data.folder / name):
            problem = "the image is truncated or no image"
            raise ValueError(describe_problem(entry, data.folder / name, problem))


def find_folder(entry: str, root: str | Path, inside: Sequence[str], *needed: str) -> Path:
    """Return the first of root/<inside> that holds everything `needed`.

    Each needed name is a file or folder; "a|b" means that either is enough. Raises
    FileNotFoundError that names what is missing from the most complete candidate.
    """
    tried = [Path(root) / i for i in inside]
    lacks = [[n for n in needed if not any((f / a).exists() for a in n.split("|"))] for f in tried]
    best = min(range(len(tried)), key=lambda i: (len(lacks[i]), not tried[i].is_dir()))
    if lacks[best]:
        problem = " or ".join(lacks[best][0].split("|")) + " is missing"
        raise FileNotFoundError(describe_problem(entry, tried[best], problem))
    return tried[best]


def check_split(
    entry: str, root: str, split: str, splits: Sequence[str] = SPLITS, stand_in: str = ""
) -> None:
    """Refuse an unknown split (ValueError) and an empty root (FileNotFoundError).

    The licences of these data sets forbid us to ship a copy, so there is no embedded default.
    `stand_in`: the world that stands in for the data set.
    """
    check_choice("split", split, splits)
    if not root:
        instead = f"its stand-in is {stand_in}" if stand_in else "it has no stand-in"
        raise FileNotFoundError(
            f"{entry}: root='' means the embedded default, but no copy may ship; {instead}. "
            f"Official files: data/README.md, entry '{entry}'"
        )


def check_size(size: int | tuple[int, int]) -> None:
    """Raise ValueError unless a size in pixels is positive."""
    for pixels in size if isinstance(size, tuple) else (size,):
        check_count("size", pixels)
