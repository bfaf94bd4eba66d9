"""Your own folder of images, of any size, grey or in colour.

    DIR/<class>/*.png     one folder per class, whose names in alphabetical order are the classes
    DIR/*.png             no classes: y is -1

Files are read in alphabetical order; the id of an image is its path inside the folder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from PIL import Image

from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}
GREY = ("1", "L", "LA", "I", "I;16", "F")


def load(
    folder: str | Path,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    broken: str = "error",
) -> OnDisk:
    """Load a folder of images: x (C, H, W) float32 in [0, 1], y (N,) int64, ids (paths).

    Args:
        size: height and width, or one number for both; the shorter side is resized and the middle
            cut out. None: that of the files, which must then have one common size.
        channels: 1 (grey) or 3 (RGB); None: 1 if the first image is grey.
        broken: "error", or "skip" to leave out truncated files with a warning.

    Raises FileNotFoundError or ValueError that names the argument or the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"images: {folder} is no folder; expected DIR/<class>/*.png")
    classes = sorted(f.name for f in folder.iterdir() if f.is_dir() and _list_images(f))
    files = [file for name in classes or ["."] for file in _list_images(folder / name)]
    if not files:
        raise ValueError(f"images: {folder} holds no image; expected files {', '.join(ENDINGS)}")
    if classes and (loose := _list_images(folder)):
        raise ValueError(
            f"images: {folder} holds class folders and also {loose[0].name}; move it into a class"
        )
    if channels is None:
        channels = 1 if _read_header(files[0])[1] in GREY else 3
    if channels not in MODES:
        raise ValueError(f"channels: got {channels}, expected 1 (grey) or 3 (RGB)")
    height, width = _find_size(folder, files, size)
    number = {name: i for i, name in enumerate(classes)}
    names = [file.relative_to(folder).as_posix() for file in files]
    y = torch.tensor([number.get(file.parent.name, -1) if classes else -1 for file in files])
    change = partial(cover, height=height, width=width)
    mode = MODES[channels]
    data = images.make_split("own images", folder, names, y, names, classes, change, broken, mode)
    return data


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize an image so that it just covers height x width, then cut out the middle."""
    scale = max(height / image.height, width / image.width)
    tall, wide = max(round(image.height * scale), height), max(round(image.width * scale), width)
    if (tall, wide) != (image.height, image.width):
        image = images.resize(image, tall, wide)
    left, top = (wide - width) // 2, (tall - height) // 2
    return image.crop((left, top, left + width, top + height))


def _list_images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS and f.is_file())


def _find_size(
    folder: Path, files: list[Path], size: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Return height and width. Without a size, raise ValueError unless all files agree."""
    if size is not None:
        images.check_size(size)
        return size if isinstance(size, tuple) else (size, size)
    sizes = {_read_header(file)[0]: file for file in files}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ValueError(
            f"size: got images of several sizes ({first.name}: {a[0]} x {a[1]}, {second.name}: "
            f"{b[0]} x {b[1]}); pass the size that the classifier expects"
        )
    return next(iter(sizes))


def _read_header(file: Path) -> tuple[tuple[int, int], str]:
    """Return (height, width) and PIL's mode, without decoding the image."""
    try:
        with Image.open(file) as image:
            return (image.height, image.width), image.mode
    except (OSError, SyntaxError) as e:
        raise ValueError(f"images: {file} cannot be read: {e}") from e
