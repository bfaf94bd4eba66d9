"""DICOM files of a phantom chest, written with pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES = generate_uid(entropy_srcs=["a series"])
OTHER = generate_uid(entropy_srcs=["another series"])
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SPACING = (4.0, 4.0)
GAP, APEX, LOWEST = 8.0, 5, 34  # mm between slices; first and last slice of the phantom's lungs
SLICES = 40
HEIGHTS = 300.0 - GAP * np.arange(SLICES)


def write_slice(
    path, hu, position=(0.0, 0.0, 0.0), orientation=AXIAL, number=1, spacing=SPACING, **tags
):
    """Write one slice hu (H, W), slope 1 and intercept -1024; a tag of None is left out."""
    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta, data.Modality, data.SeriesInstanceUID = meta, "CT", SERIES
    data.PatientID, data.InstanceNumber = "phantom", number
    data.ImagePositionPatient = [float(p) for p in position]
    data.ImageOrientationPatient, data.PixelSpacing = list(orientation), list(spacing)
    data.Rows, data.Columns = hu.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation, data.RescaleSlope, data.RescaleIntercept = 1, 1, -1024
    stored = np.asarray(hu).round().astype(np.int64) + 1024
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    kind = np.int16 if data.PixelRepresentation else np.uint16
    data.PixelData = stored.astype(kind).tobytes()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return data


def chest(rows=80, columns=80, spacing=SPACING, table=False):
    """Return a phantom (40, H, W) in HU with lungs from slice 5 to 34, and what surrounds them.

    An ellipse of soft tissue with half axes of 130 and 90 mm, two lungs of -850 HU, a marker in
    front of the spine whose HU tells the slice (100 + slice), a trachea that joins the lungs and
    rises out of the chest, and gas in the stomach below them. `table`: a sheet behind the back, at
    a distance of 12 mm.
    """
    y = (np.arange(rows) - (rows - 1) / 2)[:, None] * spacing[0]
    x = (np.arange(columns) - (columns - 1) / 2)[None] * spacing[1]

    def ellipse(cx, cy, a, b):
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1

    hu = np.full((SLICES, rows, columns), -1000.0)
    middle, half = (APEX + LOWEST) / 2, (LOWEST - APEX) / 2
    for k, plane in enumerate(hu):
        plane[ellipse(0, 0, 130, 90)] = 40
        width = 45 * np.sqrt(max(0.0, 1 - ((k - middle) / (half + 0.5)) ** 4))
        for side in (-60, 60):
            if APEX <= k <= LOWEST:
                plane[ellipse(side, 0, width, 1.4 * width)] = -850
        if k < 20:
            plane[ellipse(0, 0, 9 if k < 19 else 40, 9)] = -990
        plane[ellipse(0, -40, 9, 20)] = 100 + k
        if k > LOWEST + 1:
            plane[ellipse(50, -20, 30, 30)] = -950
        if table:
            plane[(y > 102) & (y < 110) & (abs(x) < 150)] = -100
    return hu


def write_chest(folder, rows=80, columns=80, spacing=SPACING, skip=(), **tags):
    """Write the phantom as <n>.dcm, numbered against the anatomy; slices in `skip` are left out."""
    for k, plane in enumerate(chest(rows, columns, spacing)):
        if k not in skip:
            path, position = Path(folder) / f"{SLICES - k}.dcm", (-160.0, -160.0, HEIGHTS[k])
            write_slice(path, plane, position, number=SLICES - k, spacing=spacing, **tags)
    return Path(folder)
