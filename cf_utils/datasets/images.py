"""Folders of images, read one by one when they are asked for, with PIL, as (3, H, W) float32 in [0, 1].

A listed file that is not there is always an error. A file that is there and cut off (a truncated JPEG) is an error when it is
read, or is left out when the split is made: `broken="skip"` names what it leaves out in `skipped` and warns with the count. It
looks at how a file begins and ends; damage in the middle is an error of its own when the image is read. Resizing and cropping
are torchvision's on PIL images, with the filter that the papers' code uses (it changes FID).
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

from cf_utils.datasets.base import OnDisk, missing

SPLITS = ("train", "validation", "test")
BROKEN = ("error", "skip")


@dataclass(frozen=True)
class Reader:
    """path -> x (3, H, W) float32 in [0, 1] after `change` (PIL RGB image -> PIL image); ValueError that names a bad file."""

    entry: str  # of data/README.md
    change: Callable[[Image.Image], Image.Image]

    def __call__(self, path: Path) -> Tensor:
        image = decoded(self.entry, path)
        try:
            return as_tensor(self.change(image))
        except ValueError as e:
            raise ValueError(missing(self.entry, path, str(e))) from e


def decoded(entry: str, path: Path, mode: str = "RGB") -> Image.Image:
    """The whole image, decoded. FileNotFoundError, or ValueError where it is truncated or no image; both name the file."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except FileNotFoundError as e:
        raise FileNotFoundError(missing(entry, path, "the image is missing")) from e
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as e:  # PIL's words for a broken JPEG, a broken PNG, a broken header
        wrong = f"the image cannot be read: {e}; broken='skip' leaves out files that are cut off"
        raise ValueError(missing(entry, path, wrong)) from e


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def resized(image: Image.Image, height: int, width: int, bicubic: bool = False) -> Image.Image:
    return TF.resize(
        image, [height, width], InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    )


def short_side_then_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` (bilinear), then the central size x size pixels."""
    return TF.center_crop(TF.resize(image, [size]), [size])


def crop_then_resized(image: Image.Image, crop: int, size: int) -> Image.Image:
    """The central crop x crop pixels, then to size x size (bilinear). ValueError on an image smaller than the crop."""
    if min(image.size) < crop:
        raise ValueError(
            f"image: {image.size[0]} x {image.size[1]} pixels, expected at least {crop} x {crop}"
        )
    return resized(TF.center_crop(image, [crop]), size, size)


def split(
    entry: str,
    folder: Path,
    names: Sequence[str],
    y: Tensor,
    ids: Tensor | Sequence[str],
    class_names: Sequence[str],
    change: Callable[[Image.Image], Image.Image],
    broken: str = "error",
) -> OnDisk:
    """An official split of the listed files.

    FileNotFoundError that names the first listed file that is not in `folder`; ValueError on a split without an image.
    """
    if broken not in BROKEN:
        raise ValueError(f"broken: got {broken!r}, expected one of {BROKEN}")
    there: dict[str, set[str]] = {}
    for name in names:
        sub, base = os.path.split(name)
        if sub not in there:
            there[sub] = set(os.listdir(folder / sub)) if (folder / sub).is_dir() else set()
        if base not in there[sub]:
            raise FileNotFoundError(
                missing(entry, folder / name, f"{name} is listed but the image is missing")
            )
    skipped = tuple(n for n in names if not whole(folder / n)) if broken == "skip" else ()
    data = OnDisk(
        folder,
        tuple(names),
        Reader(entry, change),
        y,
        ids if isinstance(ids, Tensor) else tuple(ids),
        tuple(class_names),
        "official",
        skipped,
    )
    if skipped:
        out = set(skipped)
        data = data.take([i for i, n in enumerate(names) if n not in out])
        warnings.warn(
            f"{entry}: {len(skipped)} of {len(names)} images cannot be read and are left out: "
            + ", ".join(skipped[:5])
            + (", ..." if len(skipped) > 5 else ""),
            stacklevel=3,
        )
    if not len(data):
        raise ValueError(missing(entry, folder, "the split holds no image"))
    return data


def whole(path: Path) -> bool:
    """Is the image there to its end? A JPEG or PNG that begins and ends as it must is believed; all else is decoded."""
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
        decoded("", path)
    except ValueError:
        return False
    return True


def folder_with(entry: str, root: str | Path, inside: Sequence[str], *needed: str) -> Path:
    """The first of root/<inside> that holds all that is `needed` (a file, or alternatives with | between them).

    FileNotFoundError that says what the nearest candidate lacks; `root=''` never means a folder.
    """
    tried = [Path(root) / i for i in inside]
    lacks = [[n for n in needed if not any((f / a).exists() for a in n.split("|"))] for f in tried]
    best = min(range(len(tried)), key=lambda i: (len(lacks[i]), not tried[i].is_dir()))
    if lacks[best]:
        raise FileNotFoundError(
            missing(entry, tried[best], " or ".join(lacks[best][0].split("|")) + " is missing")
        )
    return tried[best]


def check_split(
    entry: str, root: str, name: str, splits: Sequence[str] = SPLITS, stand_in: str = ""
) -> None:
    """Refuse an unknown split, and the empty root: nothing of such a set may be shipped."""
    if name not in splits:
        raise ValueError(f"split: got {name!r}, expected one of {tuple(splits)}")
    if not root:
        instead = (
            f"its embedded stand-in is {stand_in}" if stand_in else "it has no embedded stand-in"
        )
        raise FileNotFoundError(
            f"{entry}: root='' means the embedded default, but its terms let no copy ship; {instead}. "
            f"Official files: data/README.md, entry '{entry}'"
        )
