"""CT series in DICOM: order, orientation, Hounsfield units, compression, and damaged folders."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import torch
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from cf_utils.datasets import dicom
from tests.ct_files import AXIAL, OTHER, SERIES, write_slice


def volume(slices=5, rows=6, columns=7, seed=0):
    """HU (S, H, W), whole numbers that differ from voxel to voxel."""
    draw = np.random.default_rng(seed).permutation(slices * rows * columns)
    return draw.reshape(slices, rows, columns).astype(np.float32) - 1000


def write_volume(folder, hu, heights, **tags):
    for k, plane in enumerate(hu):
        write_slice(folder / f"{k}.dcm", plane, (0, 0, heights[k]), number=k + 1, **tags)
    return folder


def test_slices_are_ordered_by_position_and_not_by_name_or_number(tmp_path):
    hu, heights = volume(), np.array([50.0, 47.5, 45.0, 42.5, 40.0])
    shuffle = [3, 0, 4, 2, 1]
    write_volume(tmp_path / "deep" / "er", hu[shuffle], heights[shuffle])
    (tmp_path / "notes.txt").write_text("no DICOM file")
    series = dicom.read_series(tmp_path)
    np.testing.assert_array_equal(series.hu.numpy(), hu)
    assert series.heights.tolist() == heights.tolist() and series.spacing == (4.0, 4.0)
    assert series.hu.dtype == torch.float32


def test_positions_are_projected_onto_the_normal_of_a_tilted_gantry(tmp_path):
    hu, angle = volume(), np.deg2rad(20)
    down = np.array([0.0, np.cos(angle), -np.sin(angle)])
    normal = np.cross([1.0, 0.0, 0.0], down)
    shift = (0.0, 90.0, -60.0, 75.0, 30.0)  # mm inside the plane: z alone gives another order
    heights = 10.0 - 3 * np.arange(5)
    positions = [h * normal + s * down for h, s in zip(heights, shift, strict=True)]
    assert np.argsort([-p[2] for p in positions]).tolist() != list(range(5))
    for k, plane in enumerate(hu):
        write_slice(tmp_path / f"{k}.dcm", plane, positions[k], (1, 0, 0, *down))
    series = dicom.read_series(tmp_path)
    np.testing.assert_array_equal(series.hu.numpy(), hu)
    np.testing.assert_allclose(series.heights.numpy(), heights, atol=1e-6)


AXES = {"x": (1, 0, 0), "-x": (-1, 0, 0), "y": (0, 1, 0), "-y": (0, -1, 0)}


@pytest.mark.parametrize("across", AXES)
@pytest.mark.parametrize("down", AXES)
def test_any_axial_orientation_gives_the_same_volume(tmp_path, across, down):
    """Each voxel is written where its coordinates in the patient lie."""
    if across[-1] == down[-1]:
        pytest.skip("the axes are parallel")
    hu, size = volume(3), {"x": 0.8, "y": 0.5}
    shape = {"x": hu.shape[2], "y": hu.shape[1]}
    lengths = [(shape[down[-1]], size[down[-1]]), (shape[across[-1]], size[across[-1]])]
    (rows, dy), (columns, dx) = lengths
    r, c = np.array(AXES[across], float), np.array(AXES[down], float)
    corner = np.array([0.8 * 6, 0.5 * 5]) * [("-x" in (across, down)), ("-y" in (across, down))]
    for k in range(3):
        plane = np.empty((rows, columns))
        for i in range(rows):
            for j in range(columns):
                x, y, _ = [*corner, 0] + j * dx * r + i * dy * c
                plane[i, j] = hu[k, round(y / 0.5), round(x / 0.8)]
        write_slice(tmp_path / f"{k}.dcm", plane, (*corner, -k), (*r, *c), spacing=(dy, dx))
    series = dicom.read_series(tmp_path)
    np.testing.assert_array_equal(series.hu.numpy(), hu)
    assert series.spacing == (0.5, 0.8) and series.heights.tolist() == [0, -1, -2]


def test_hounsfield_units_follow_slope_intercept_and_padding(tmp_path):
    hu = volume(2)
    for k, plane in enumerate(hu):
        tags = {"RescaleSlope": "2.5", "RescaleIntercept": "-900", "PixelPaddingValue": 30}
        write_slice(tmp_path / f"{k}.dcm", plane, (0, 0, -k), **tags)
    stored = hu.astype(np.float64) + 1024
    expected = np.where(stored == 30, -1024, np.maximum(2.5 * stored - 900, -1024))
    np.testing.assert_array_equal(dicom.read_series(tmp_path).hu.numpy(), expected)
    assert (stored == 30).sum() == 1


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize(("unsigned", "padding"), [(0, -2000), (1, 63536)])
def test_padding_below_air_is_air(tmp_path, unsigned, padding):
    """63536 is -2000 in the other representation; without the tag, it is below the range."""
    hu = volume(1)[0]
    hu[0, 0] = padding - 1024
    tags = {"PixelRepresentation": 1 - unsigned, "PixelPaddingValue": padding}
    write_slice(tmp_path / "1.dcm", hu, **tags)
    hu[0, 0] = -1024
    np.testing.assert_array_equal(dicom.read_series(tmp_path).hu[0].numpy(), hu)
    header = pydicom.dcmread(tmp_path / "1.dcm")
    header.PixelPaddingValue = 63536
    np.testing.assert_array_equal(dicom.to_hounsfield(header, header.pixel_array), hu)


def test_near_slices_are_not_read(tmp_path):
    heights = np.array([10.0, 9.0, 8.0, 7.5, 4.0])
    write_volume(tmp_path, volume(), heights)
    series = dicom.read_series(tmp_path, min_gap=2.0)
    assert series.heights.tolist() == [10, 8, 4]
    np.testing.assert_array_equal(series.hu.numpy(), volume()[[0, 2, 4]])
    assert dicom.read_series(tmp_path).heights.tolist() == heights.tolist()


def test_missing_tags_can_be_given_by_the_caller(tmp_path):
    hu = volume(3)
    tags = dict.fromkeys(
        ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient")
    )
    for k, at in enumerate((2, 0, 1)):
        write_slice(tmp_path / f"{k}.dcm", hu[at], number=at + 4, SliceThickness=5, **tags)
    with pytest.raises(ValueError, match=r"no ImageOrientationPatient.*pass order='instance'"):
        dicom.read_series(tmp_path)
    with pytest.raises(ValueError, match="no RescaleSlope"):
        dicom.read_series(tmp_path, order="instance")
    series = dicom.read_series(tmp_path, order="instance", rescale=(2.0, -1000.0))
    np.testing.assert_array_equal(series.hu.numpy(), np.maximum(2 * (hu + 1024) - 1000, -1024))
    assert series.heights.tolist() == [-20, -25, -30]


def test_mixed_series_are_listed_and_one_can_be_chosen(tmp_path):
    hu, heights = volume(), np.arange(5.0)[::-1]
    write_volume(tmp_path / "a", hu[:3], heights)
    write_volume(tmp_path / "b", hu[3:], heights, SeriesInstanceUID=OTHER, SeriesDescription="B40f")
    with pytest.raises(ValueError, match=r"got mixed series: .*\(3 slices.*\(2 slices, B40f\)"):
        dicom.read_series(tmp_path)
    for uid, part in ((SERIES, hu[:3]), (OTHER, hu[3:])):
        np.testing.assert_array_equal(dicom.read_series(tmp_path, uid).hu.numpy(), part)
    with pytest.raises(ValueError, match=r"got no series '1\.2'"):
        dicom.read_series(tmp_path, "1.2")


def second(**changes):
    """Write a second slice, with these arguments of `write_slice`, below a good one."""

    def damage(folder):
        given = {"hu": volume(1)[0], "position": (0, 0, -3.0)} | changes
        write_slice(folder / "second.dcm", **given)

    return damage


def truncate(folder):
    second()(folder)
    path = folder / "second.dcm"
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (second(RescaleSlope=None), "second.dcm: got no RescaleSlope.*pass rescale="),
        (second(RescaleIntercept=None), "second.dcm: got no RescaleIntercept"),
        (second(RescaleSlope=0), "got slope 0 "),
        (second(RescaleType="ED"), "type 'ED', expected Hounsfield units"),
        (second(ImagePositionPatient=None), "no ImagePositionPatient.*pass order='instance'"),
        (second(PixelSpacing=None), "second.dcm: got no PixelSpacing, expected it in every file$"),
        (second(hu=volume(1, 6, 8)[0]), r"got Columns \[8.0\], expected \[7.0\].*mixes series"),
        (second(spacing=(4, 4.5)), r"got PixelSpacing \[4.0, 4.5\].*mixes series"),
        (second(orientation=(1, 0, 0, 0, 0.98, 0.199)), "got ImageOrientationPatient.*mixes"),
        (second(position=(0, 0, 0)), r"two slices at a height of 0 mm .*first.*second.dcm\)"),
        (second(Modality="MR"), "got MR of 1 frames, expected CT"),
        (second(NumberOfFrames=2), "got CT of 2 frames, expected CT with one slice per file"),
        (second(hu=np.full((6, 7), 40)), "second.dcm: got a constant slice of 1064"),
        (truncate, "second.dcm: got pixels that cannot be read"),
        (lambda f: (f / "x.dcm").write_text("text"), "x.dcm: got no DICOM file"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, says):
    write_slice(tmp_path / "first.dcm", volume(1)[0])
    dicom.read_series(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=says):
        dicom.read_series(tmp_path)


def test_other_planes_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="got no DICOM image"):
        dicom.read_series(tmp_path)
    write_slice(tmp_path / "1.dcm", volume(1)[0], orientation=(0, 1, 0, 0, 0, -1))
    with pytest.raises(ValueError, match=r"orientation \[0.0, 1.0.*expected axial slices"):
        dicom.read_series(tmp_path)
    with pytest.raises(ValueError, match="order: got 'name'"):
        dicom.read_series(tmp_path, order="name")


# ---------------------------------------------------------------- compressed transfer syntaxes


def compress(path, syntax):
    """Compress a file in place by GDCM, without loss."""
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compression_without_loss_changes_nothing(tmp_path, syntax):
    hu = np.add.outer(np.arange(48), np.arange(64)) * 17.0 % 2000 - 1000
    for k in range(2):
        write_slice(tmp_path / f"{k}.dcm", hu + k, (0, 0, -k))
        compress(tmp_path / f"{k}.dcm", syntax)
    assert pydicom.dcmread(tmp_path / "0.dcm").file_meta.TransferSyntaxUID == syntax
    series = dicom.read_series(tmp_path)
    np.testing.assert_array_equal(series.hu.numpy(), np.stack([hu, hu + 1]))


def published(name):
    """Path of a file of the package pydicom-data, whose import name is data_store."""
    spec = importlib.util.find_spec("data_store")
    path = Path(spec.origin).parent / "data" / name if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("the package pydicom-data is not installed")
    return path


def test_published_jpeg_2000_equals_its_uncompressed_twin(tmp_path):
    for name in ("693_J2KR.dcm", "693_UNCR.dcm"):
        (tmp_path / name).mkdir()
        shutil.copy(published(name), tmp_path / name)
    packed, plain = (dicom.read_series(tmp_path / n) for n in ("693_J2KR.dcm", "693_UNCR.dcm"))
    assert torch.equal(packed.hu, plain.hu) and packed.hu.shape == (1, 512, 512)
    assert packed.hu.min() == -1024 and 1000 < packed.hu.max() < 3100
    assert packed.spacing == (0.478516, 0.478516) and packed.heights.tolist() == [47.0]


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Expected explicit VR")
def test_published_lossless_jpeg_is_read_or_its_decoder_is_named(tmp_path, monkeypatch):
    """The syntax of the compressed series of OSIC; the file also has a damaged sequence."""
    shutil.copy(published("bad_sequence.dcm"), tmp_path)
    decoder = get_decoder(JPEGLosslessSV1)
    if decoder.is_available:
        series = dicom.read_series(tmp_path)
        assert series.hu.shape == (1, 512, 512) and -1024 <= series.hu.min() < -900
        assert 200 < series.hu.max() < 3100
    libjpeg = "pylibjpeg - requires pylibjpeg>=2.0 and pylibjpeg-libjpeg>=2.1"
    for needs, package in (
        (["gdcm - requires gdcm>=3.0.10", libjpeg], "python-gdcm"),
        ([libjpeg], "pylibjpeg pylibjpeg-libjpeg"),
    ):  # as pydicom reports them
        missing = SimpleNamespace(is_available=False, missing_dependencies=needs)
        monkeypatch.setattr(dicom, "get_decoder", lambda syntax, missing=missing: missing)
        says = f"bad_sequence.dcm: got transfer syntax JPEG Lossless.*`pip install {package}`"
        with pytest.raises(ValueError, match=says):
            dicom.read_series(tmp_path)


@pytest.mark.parametrize(
    ("syntax", "says"),
    [
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000.*`pip install pylibjpeg pylibjpeg-"),
        ("1.2.840.10008.1.2.4.100", "transfer syntax MPEG2.*expected one of CT"),
    ],
)
def test_a_syntax_without_decoder_is_an_error_before_decoding(tmp_path, syntax, says):
    if importlib.util.find_spec("openjpeg"):
        pytest.skip("the decoder is installed")
    data = write_slice(tmp_path / "1.dcm", volume(1)[0], AXIAL[:3])
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "1.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match=says):
        dicom.read_series(tmp_path)
