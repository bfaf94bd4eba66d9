"""CT series of DICOM files as volumes in Hounsfield units, read by pydicom.

The slices of a series are ordered by `ImagePositionPatient`, projected onto the normal of the image
plane, because file names and instance numbers need not follow the anatomy. All errors name the
file or folder and the tag.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from torch import Tensor, from_numpy

from cf_utils.core.choices import check_choice

AIR = -1024.0  # HU of padding; no CT value is lower
ORDERS = ("position", "instance")
GEOMETRY = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
RESCALE = ("RescaleSlope", "RescaleIntercept")
TAGS = [
    *("SeriesInstanceUID", "SeriesDescription", "Modality", "InstanceNumber", "RescaleType"),
    *("ImagePositionPatient", "SliceThickness", "NumberOfFrames", *GEOMETRY, *RESCALE),
]
TYPES = ("HU", "US", "")  # RescaleType; GDCM writes US (unspecified) where the tag was missing
SAME = 1e-2  # mm; two slices at a smaller distance lie at the same height
AXIAL = 0.8  # smallest |z| of the normal: the gantry may be tilted by 37 degrees


@dataclass(frozen=True, eq=False)
class Series:
    """An axial CT series, seen from the feet: the patient's right is at the left of the image.

    hu: (S, H, W) float32, Hounsfield units of at least -1024. Slices run from head to feet, rows
        from front to back, columns from the patient's right to the left.
    heights: (S,) float64, mm along the patient's axis; they fall from slice to slice.
    spacing: mm between rows and between columns.
    """

    hu: Tensor
    heights: Tensor
    spacing: tuple[float, float]


def read_series(
    folder: str | Path,
    series: str | None = None,
    order: str = "position",
    rescale: tuple[float, float] | None = None,
    min_gap: float = 0.0,
) -> Series:
    """Read the axial CT series in a folder and its subfolders.

    Args:
        folder: its DICOM files; other files are ignored.
        series: SeriesInstanceUID; None: the folder must hold a single series.
        order: "position", or "instance" for files without `ImagePositionPatient`. Slices then
            follow `InstanceNumber` from head to feet, at a distance of `SliceThickness`.
        rescale: slope and intercept of files without these tags; None makes them an error.
        min_gap: mm; slices that are closer than this to the previous one are not read.

    Raises FileNotFoundError for a folder without DICOM files. Raises ValueError for mixed series,
    slices of different geometry or at the same height, a missing tag, a compressed file whose
    decoder is not installed (it names the package), damaged pixels, and a constant slice.
    """
    headers, heights = order_slices(folder, series, order)
    keep = thin_out(heights, min_gap)
    slices = [_read_slice(headers[i], rescale) for i in keep]
    hu, spacing = _turn(np.stack(slices), headers[0])
    return Series(from_numpy(hu), from_numpy(heights[keep]), spacing)


def order_slices(
    folder: str | Path, series: str | None = None, order: str = "position"
) -> tuple[list[pydicom.Dataset], np.ndarray]:
    """Return headers and heights (S,) in mm of a series, from head to feet, without pixels.

    Arguments and errors as in `read_series`.
    """
    check_choice("order", order, ORDERS)
    headers = select_series(folder, series)
    _check_geometry(headers, order)
    position = _height if order == "position" else _instance_height
    heights = np.array([position(header) for header in headers])
    at = np.argsort(-heights, kind="stable")
    headers, heights = [headers[i] for i in at], heights[at]
    same = np.flatnonzero(np.diff(heights) > -SAME)
    if len(same):
        pair = [_name(headers[i]) for i in (same[0], same[0] + 1)]
        raise ValueError(
            f"{folder}: got two slices at a height of {heights[same[0]]:g} mm ({pair[0]} and "
            f"{pair[1]}), expected one per height; keep one of the reconstructions"
        )
    return headers, heights


def find_series(folder: str | Path) -> dict[str, list[pydicom.Dataset]]:
    """Return the headers of all DICOM files below a folder by SeriesInstanceUID.

    Raises FileNotFoundError if there are none, ValueError for a file `*.dcm` that is not DICOM.
    """
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        except (InvalidDicomError, EOFError, ValueError) as e:
            if path.suffix.lower() == ".dcm":
                raise ValueError(f"{path}: got no DICOM file, expected one ({e})") from e
            continue
        if "Rows" in header:  # a DICOMDIR has no image
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
    if not found:
        raise FileNotFoundError(f"{folder}: got no DICOM image, expected a series")
    return found


def select_series(folder: str | Path, series: str | None = None) -> list[pydicom.Dataset]:
    """Return the headers of one series; raise ValueError that lists the series if it is unclear."""
    found = find_series(folder)
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    if series in found:
        return found[series]
    listed = ", ".join(
        f"{uid} ({len(headers)} slices, {headers[0].get('SeriesDescription', 'no description')})"
        for uid, headers in found.items()
    )
    got = "mixed series" if series is None else f"no series {series!r}"
    raise ValueError(f"{folder}: got {got}: {listed}; expected one; pass series=UID to choose it")


def thin_out(heights: np.ndarray, min_gap: float) -> list[int]:
    """Return the rows of falling heights (S,) that are at least `min_gap` mm below the last."""
    keep = [0]
    for i, height in enumerate(heights):
        if i and heights[keep[-1]] - height >= min_gap - SAME:
            keep.append(i)
    return keep


def check_decoder(path: str | Path, syntax: Any) -> None:
    """Raise ValueError that names the package to install, unless a transfer syntax can be read.

    syntax: UID of the transfer syntax.
    """
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as e:
        raise ValueError(f"{path}: got transfer syntax {syntax.name}, expected one of CT") from e
    if decoder.is_available:
        return
    needs = decoder.missing_dependencies
    # pydicom calls the package python-gdcm by the name of its module
    package = " ".join(re.findall(r"([\w-]+)>=", needs[0])).replace("gdcm", "python-gdcm")
    raise ValueError(
        f"{path}: got transfer syntax {syntax.name}, expected one with an installed decoder; "
        f"install it with `pip install {package}` (any of these serves: {'; '.join(needs)})"
    )


def to_hounsfield(
    header: pydicom.Dataset, pixels: np.ndarray, rescale: tuple[float, float] | None = None
) -> np.ndarray:
    """Return stored pixels (H, W) in Hounsfield units, float32; padding and less is -1024.

    rescale: slope and intercept where the tags are missing; None makes that an error.
    """
    tags = [header.get(name) for name in RESCALE]
    for name, value in zip(RESCALE, tags, strict=True):
        if value is None and rescale is None:
            raise ValueError(
                f"{_name(header)}: got no {name}, expected a number, without which the values are "
                "not Hounsfield units; pass rescale=(slope, intercept) if you know them"
            )
    slope, intercept = (
        float(r if tag is None else tag) for tag, r in zip(tags, rescale or (0.0, 0.0), strict=True)
    )
    if slope == 0 or header.get("RescaleType", "HU") not in TYPES:
        got = f"slope {slope:g} and type {header.get('RescaleType', 'HU')!r}"
        raise ValueError(f"{_name(header)}: got {got}, expected Hounsfield units")
    hu = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if (padding := header.get("PixelPaddingValue")) is not None:
        # a negative padding value may be stored as the unsigned number with the same bits
        hu[pixels == np.int64(padding).astype(pixels.dtype)] = AIR
    return np.maximum(hu, np.float32(AIR))


def _read_slice(header: pydicom.Dataset, rescale: tuple[float, float] | None) -> np.ndarray:
    """Read the pixels of a file in Hounsfield units (H, W)."""
    path = _name(header)
    whole = pydicom.dcmread(path)
    check_decoder(path, whole.file_meta.TransferSyntaxUID)
    try:
        pixels = whole.pixel_array
    except (ValueError, RuntimeError, AttributeError, KeyError, OSError) as e:
        raise ValueError(f"{path}: got pixels that cannot be read, expected an image ({e})") from e
    if pixels.min() == pixels.max():
        raise ValueError(f"{path}: got a constant slice of {pixels.min()}, expected an image")
    return to_hounsfield(whole, pixels, rescale)


def _check_geometry(headers: Sequence[pydicom.Dataset], order: str) -> None:
    """Raise ValueError unless all slices are axial CT of the same size, spacing and orientation."""
    needed = (*GEOMETRY, "ImagePositionPatient") if order == "position" else (*GEOMETRY[:3],)
    needed += () if order == "position" else ("InstanceNumber",)
    first = headers[0]
    for header in headers:
        for name in needed:
            if header.get(name) is None:
                hint = "; pass order='instance'" if name.startswith("Image") else ""
                raise ValueError(f"{_name(header)}: got no {name}, expected it in every file{hint}")
        if header.get("Modality", "CT") != "CT" or int(header.get("NumberOfFrames") or 1) != 1:
            got = f"{header.get('Modality', 'CT')} of {header.get('NumberOfFrames') or 1} frames"
            raise ValueError(f"{_name(header)}: got {got}, expected CT with one slice per file")
        for name in GEOMETRY:
            a, b = (np.atleast_1d(h.get(name, 0)).astype(float) for h in (first, header))
            if a.shape != b.shape or not np.allclose(a, b, atol=1e-3):
                raise ValueError(
                    f"{_name(header)}: got {name} {b.tolist()}, expected {a.tolist()} as in "
                    f"{_name(first)}; the folder mixes series"
                )
    if abs(_normal(first)[2]) < AXIAL:
        got = np.round(_orientation(first).ravel(), 2).tolist()
        raise ValueError(f"{_name(first)}: got orientation {got}, expected axial slices")


def _orientation(header: pydicom.Dataset) -> np.ndarray:
    """Return the directions in which columns and rows are counted, (2, 3), in patient axes."""
    cosines = header.get("ImageOrientationPatient") or [1, 0, 0, 0, 1, 0]
    return np.array(cosines, dtype=float).reshape(2, 3)


def _normal(header: pydicom.Dataset) -> np.ndarray:
    """Return the unit normal (3,) of the image plane."""
    normal = np.cross(*_orientation(header))
    return normal / np.linalg.norm(normal)


def _height(header: pydicom.Dataset) -> float:
    """Return the position along the normal that points to the head, in mm."""
    normal = _normal(header)
    position = np.array(header.ImagePositionPatient, dtype=float)
    return float(position @ normal * np.sign(normal[2]))


def _instance_height(header: pydicom.Dataset) -> float:
    """Return the height in mm of a file that has no position; instance 0 is at the head."""
    return -float(header.InstanceNumber) * float(header.get("SliceThickness") or 1.0)


def _turn(hu: np.ndarray, header: pydicom.Dataset) -> tuple[np.ndarray, tuple[float, float]]:
    """Turn slices (S, H, W) so that rows run to the back and columns to the patient's left."""
    across, down = _orientation(header)
    spacing = tuple(float(mm) for mm in header.PixelSpacing)
    if abs(across[0]) < abs(across[1]):
        hu, across, down, spacing = hu.swapaxes(1, 2), down, across, spacing[::-1]
    hu = hu[:, :, ::-1] if across[0] < 0 else hu
    hu = hu[:, ::-1] if down[1] < 0 else hu
    return np.ascontiguousarray(hu), (spacing[0], spacing[1])


def _name(header: pydicom.Dataset) -> str:
    return str(getattr(header, "filename", None) or "data set")
