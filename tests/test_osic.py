"""Four slices of a phantom chest, OSIC in Kaggle's layout, and any folder of series."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from cf_utils.core import files
from cf_utils.datasets import ct_patients, dicom, lung_slices, osic
from cf_utils.datasets.base import SPLITS
from tests.ct_files import APEX, GAP, HEIGHTS, LOWEST, SLICES, chest, write_chest, write_slice

REAL = Path(os.environ.get("CF_LUNG_CT", files.ROOT / "data" / "lung_ct"))


def series(hu=None, spacing=(4.0, 4.0), keep=slice(None), **chests):
    hu = chest(spacing=spacing, **chests) if hu is None else hu
    volume = torch.from_numpy(hu[keep]).float()
    return dicom.Series(volume, torch.from_numpy(HEIGHTS[keep].copy()), spacing)


def expected_rows():
    """The slices of the phantom that are nearest to the wanted heights of its lungs."""
    wanted = [HEIGHTS[APEX] - h * GAP * (LOWEST - APEX) for h in lung_slices.HEIGHTS]
    return [min(range(SLICES), key=lambda k: abs(HEIGHTS[k] - w)) for w in wanted]


def read_markers(x):
    """Which slices x (4, size, size) shows, by the HU of their markers."""
    size = x.shape[-1]
    side = 2 * lung_slices.MARGIN["lungs"] + 216  # mm; lungs of 210 mm on coarse pixels of 4 mm
    row = round(size / 2 - 40 * size / side)
    return [round(v * 1200 - 1000 - 100) for v in x[:, row, size // 2].tolist()]


# ---------------------------------------------------------------- choice of slices


def test_the_chosen_slices_lie_at_the_relative_heights_of_the_lungs():
    """Neither the trachea above the lungs nor gas in the stomach below them counts."""
    rows = expected_rows()
    assert rows == sorted(set(rows)) and rows[0] > APEX and rows[-1] < LOWEST
    x = lung_slices.four_slices(series())
    assert x.shape == (4, 96, 96) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1
    assert read_markers(x) == rows


def test_choose_slices_against_a_loop():
    draw = np.random.default_rng(0)
    for _ in range(50):
        heights = -np.cumsum(draw.uniform(2, 9, 60))
        first, last = draw.integers(2, 8), draw.integers(50, 58)
        area = np.zeros(60)
        area[first : last + 1] = draw.uniform(0.1, 1, last + 1 - first)
        area[[0, -1]] = 0.04  # a trachea, less than a twentieth of the lungs
        got = lung_slices.choose_slices(heights, area)
        for row, relative in zip(got, lung_slices.HEIGHTS, strict=True):
            wanted = heights[first] + relative * (heights[last] - heights[first])
            assert row == min(range(60), key=lambda k: abs(heights[k] - wanted))
        assert lung_slices.choose_slices(heights + 99, 5 * area) == got


def test_choice_depends_on_heights_and_not_on_the_number_of_slices():
    full = lung_slices.four_slices(series())
    ends = (APEX, LOWEST, LOWEST + 1)  # the last one parts lungs and stomach
    keep = sorted({*range(0, SLICES, 2), *ends, *expected_rows()})
    assert torch.equal(lung_slices.four_slices(series(keep=keep)), full)


@pytest.mark.parametrize("crop", lung_slices.CROPS)
def test_resolution_and_place_of_the_patient_change_little(crop):
    coarse = lung_slices.four_slices(series(), 32, crop)
    fine = chest(320, 160, spacing=(1.0, 2.0))
    x = lung_slices.four_slices(series(fine, spacing=(1.0, 2.0)), 32, crop)
    assert (x - coarse).abs().mean() < 0.04
    moved = np.roll(fine, (8, -6), axis=(1, 2))  # whole coarse pixels
    assert torch.equal(lung_slices.four_slices(series(moved, spacing=(1.0, 2.0)), 32, crop), x)


def test_crops_are_squares_in_mm_around_lungs_or_body():
    """Half axes: body 130 x 90 mm, lungs 105 mm sideways; coarse pixels are 2 mm here."""
    hu = chest(160, 320, spacing=(2.0, 1.0))
    volume = series(hu, spacing=(2.0, 1.0))
    for crop, half in (("lungs", 105), ("body", 130)):
        x = lung_slices.four_slices(volume, 160, crop)
        across = x[1, 60]  # a row through both lungs, in front of the centre
        mm = 2 * (half + lung_slices.MARGIN[crop]) / 160
        lung = (across < 0.5).nonzero().flatten()
        inside = lung[(lung > 160 * 0.08) & (lung < 160 * 0.92)] if crop == "body" else lung
        width = (inside.max() - inside.min() + 1) * mm
        y = 19.5 * mm
        slice_half = 45 * np.sqrt(1 - ((expected_rows()[1] - 19.5) / 15) ** 4)
        wanted = 2 * (60 + slice_half * np.sqrt(1 - (y / (1.4 * slice_half)) ** 2))
        assert abs(width - wanted) < 4


def test_values_are_the_lung_window():
    hu = torch.tensor([-1024.0, -1000, -850, -400, 40, 200, 900])
    x = lung_slices.apply_window(hu)
    torch.testing.assert_close(x, torch.tensor([0, 0, 0.125, 0.5, 1040 / 1200, 1, 1]))
    image = lung_slices.four_slices(series())
    assert ((image - 0.125).abs() < 1e-5).float().mean() > 0.2  # lungs
    assert ((image - 1040 / 1200).abs() < 1e-5).float().mean() > 0.2  # soft tissue
    world = pytest.importorskip("cf_utils.worlds.lung_ct")
    back = world.to_hu(x)
    torch.testing.assert_close(back, hu.clamp(-1000, 200), rtol=0, atol=1e-3)


@pytest.mark.parametrize("crop", lung_slices.CROPS)
def test_a_table_behind_the_patient_leaves_no_trace(crop):
    plain, table = chest(), chest(table=True)
    assert (plain != table).any(axis=(1, 2)).all()
    a, b = (lung_slices.four_slices(series(hu), 64, crop) for hu in (plain, table))
    assert torch.equal(a, b)


def blank(row):
    hu = chest()
    hu[row] = 7
    return hu


@pytest.mark.parametrize(
    ("volume", "says"),
    [
        (series(keep=[4, 12, 20]), r"series: got \(3, 80, 80\) .*expected .* S >= 4 slices"),
        (replace(series(), heights=torch.arange(39.0)), "and 39 heights"),
        (series(np.full_like(chest(), np.nan)), "values that are not finite"),
        (series(blank(3)), r"got constant slices \[3\]"),
        (series(np.where(chest() < -400, 0, chest()) + chest(table=True) * 1e-3), "cm3 of lung"),
        (series(keep=slice(0, 22)), "cut off at the bottom"),
        (series(keep=slice(15, 40)), "cut off at the top"),
        (series(keep=[*range(12), *range(26, 40)]), "no slice within .* mm of the carina"),
    ],
)
def test_a_bad_volume_is_refused(volume, says):
    with pytest.raises(ValueError, match=says):
        lung_slices.four_slices(volume)


@pytest.mark.parametrize(
    ("settings", "says"), [({"size": 0}, "size: got 0"), ({"crop": "heart"}, "crop: got 'heart'")]
)
def test_bad_settings_of_a_crop(settings, says):
    with pytest.raises(ValueError, match=says):
        lung_slices.four_slices(series(), **settings)


def test_a_genuine_series_gives_four_lung_slices():
    """TCIA's Lung-PET-CT-Dx A0002, or any chest CT in that folder."""
    patients = sorted(REAL.iterdir()) if REAL.is_dir() else []
    folder = next((p for p in patients if p.is_dir() and any(p.rglob("*.dcm"))), None)
    if folder is None:
        pytest.skip("no genuine series in data/lung_ct")
    read = dicom.read_series(folder)
    assert (read.heights.diff() < 0).all()
    x = ct_patients.PatientReader("ct_folder", 96)(folder)
    dark = ((x > 0.02) & (x < 0.35)).float().mean((1, 2))  # lung
    tissue = ((x > 0.75) & (x < 0.95)).float().mean((1, 2))
    assert (dark > 0.12).all() and (dark < 0.7).all() and (tissue > 0.1).all()


# ---------------------------------------------------------------- OSIC

PATIENTS = [f"ID{i:05d}637202177411956430" for i in range(30)]
HEAD = ",".join(osic.COLUMNS)


def part(patient):
    """The rule of the split, from the standard library."""
    tenth = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 10
    return "test" if tenth in (0, 1) else "validation" if tenth == 2 else "train"


def write_visits(root, falls, weeks=(0, 12, 26, 39, 52)):
    """Write train.csv: patient i loses the share falls[i] of 3,000 ml within 52 weeks."""
    rows = [
        f"{patient},{week - 4},{3000 * (1 - fall * week / 52)},80.5,70,Male,Ex-smoker"
        for patient, fall in zip(PATIENTS, falls, strict=False)
        for week in weeks
    ]
    (root / "train.csv").write_text("\n".join([HEAD, *rows]) + "\n")


FALLS = [0.02 * (i % 8) for i in range(30)]  # 0 to 0.14, thrice and more


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "osic-pulmonary-fibrosis-progression"
    for patient in PATIENTS:
        (folder / "train" / patient).mkdir(parents=True)
    write_visits(folder, FALLS)
    return tmp_path


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_chest(tmp_path_factory.mktemp("phantom"))


def test_decline_and_splits(root):
    loaded = {split: osic.load(str(root), split) for split in SPLITS}
    for split, data in loaded.items():
        assert list(data.ids) == [p for p in PATIENTS if part(p) == split] and len(data)
        wanted = [int(FALLS[PATIENTS.index(p)] >= 0.1) for p in data.ids]
        assert data.y.tolist() == wanted and data.class_names == ("stable", "decline")
        assert data.source == "official" and data.y.dtype == torch.int64
    assert len({*loaded["train"].y.tolist()}) == 2


def test_decline_is_the_slope_of_the_first_60_weeks():
    draw = np.random.default_rng(1)
    for _ in range(40):
        weeks = np.sort(draw.choice(np.arange(-5, 130), 9, replace=False))
        fvc = 2500 - draw.uniform(2, 9) * (weeks - weeks[0]) + draw.normal(0, 90, 9)
        rows = pd.DataFrame({"Patient": "A", "Weeks": weeks, "FVC": fvc})
        t = weeks - weeks[0]
        used = t <= 60
        if used.sum() < 3 or t[used].max() < 39:
            assert osic.decline(rows) == {}
            continue
        slope, first = np.linalg.lstsq(np.c_[t[used], np.ones(used.sum())], fvc[used])[0]
        assert osic.decline(rows) == {"A": int(-52 * slope / first >= 0.1)}


@pytest.mark.parametrize(("last", "fall", "label"), [(40, 0.11, 1), (60, 0.095, 0)])
def test_decline_is_scaled_to_a_year(last, fall, label):
    weeks = np.array([0, last // 2, last])
    rows = pd.DataFrame({"Patient": "A", "Weeks": weeks, "FVC": 3000 * (1 - fall * weeks / 52)})
    assert osic.decline(rows) == {"A": label}


def test_mortality_within_a_year_with_censoring(root):
    folder = root / "osic-pulmonary-fibrosis-progression"
    with pytest.raises(FileNotFoundError, match=r"mortality\.csv is missing; Kaggle's files do"):
        osic.load(str(root), label="mortality")
    cases = [(10, 1, 1), (52, 1, 1), (53, 1, 0), (53, 0, 0), (52, 0, None), (10, 0, None)]
    rows = [f"{p},{w},{d}" for p, (w, d, _) in zip(PATIENTS, cases * 5, strict=True)]
    (folder / "mortality.csv").write_text("\n".join(["Patient,Weeks,Died", *rows]))
    truth = {p: y for p, (*_, y) in zip(PATIENTS, cases * 5, strict=True)}
    with pytest.warns(UserWarning, match="patients have no label 'mortality' and are left out"):
        data = osic.load(str(root), "train", "mortality")
    known = [p for p in PATIENTS if part(p) == "train" and truth[p] is not None]
    assert list(data.ids) == known and data.y.tolist() == [truth[p] for p in known]
    assert set(data.skipped) == {p for p in PATIENTS if part(p) == "train"} - set(known)
    assert data.class_names == ("survival", "death")


def test_a_patient_without_a_label_is_an_error_or_left_out(root):
    folder = root / "osic-pulmonary-fibrosis-progression"
    alone = next(p for p in PATIENTS if part(p) == "test")
    rows = pd.read_csv(folder / "train.csv")
    rows = rows[(rows["Patient"] != alone) | (rows["Weeks"] < 30)]  # followed for 26 weeks
    rows.to_csv(folder / "train.csv", index=False)
    with pytest.raises(ValueError, match=f"osic: patient {alone} has no label"):
        osic.load(str(root), unlabelled="error")
    with pytest.warns(UserWarning, match=f"no label 'decline' and are left out: {alone}"):
        data = osic.load(str(root))
    assert alone not in data.ids and data.skipped == (alone,)
    left_out = osic.load(str(root), unlabelled="error", exclude=[alone])
    assert left_out.ids == data.ids and left_out.skipped == (alone,)
    with pytest.raises(ValueError, match="exclude: got 'ID1'"):
        osic.load(str(root), exclude=["ID1"])


def test_patients_are_read_lazily_as_four_slices(root, phantom):
    data = osic.load(str(root), size=48)
    for name in data.names[:2]:
        (data.folder / name).rmdir()
        (data.folder / name).symlink_to(phantom)
    x, y, patient = data[0]
    assert torch.equal(x, lung_slices.four_slices(dicom.read_series(phantom), 48))
    assert (y, patient) == (data.y[0], data.ids[0])
    (
        batch,
        *_,
    ) = next(iter(DataLoader(data.take([1, 0]), batch_size=2, num_workers=0)))
    assert torch.equal(batch, torch.stack([x, x]))
    body = osic.load(str(root), size=48, crop="body").take([0]).in_memory()
    assert body.x.shape == (1, 4, 48, 48) and not torch.equal(body.x[0], x)
    with pytest.raises(FileNotFoundError, match=r"osic: .*no DICOM image.*entry 'osic'"):
        data[2]


def test_status_reads_the_first_and_last_patient(root, phantom):
    data = osic.load(str(root))
    assert osic.status(str(root)).state == "missing"  # folders without files
    for name in (data.names[0], data.names[-1]):
        (data.folder / name).rmdir()
        (data.folder / name).symlink_to(phantom)
    found = osic.status(str(root))
    assert found.state == "present" and f"{len(data)} test patients of 30" in found.advice
    (data.folder / data.names[0]).unlink()
    write_chest(data.folder / data.names[0], 40, 40, (8.0, 8.0), RescaleSlope=None)
    found = osic.status(str(root))
    assert found.state == "damaged" and "got no RescaleSlope" in found.advice


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",70,", ",70,,", None),
        ("Percent", "Percentage", "column 'Percent' is missing"),
        (",-4,", ",week,", r"column 'Weeks', row 0 .*: got week; expected a number"),
        (",3000.0,", ",-1,", r"column 'FVC', row 0 .*: got -1.*; expected a positive number"),
        (PATIENTS[0], "", r"column 'Patient', row 0 .*expected one"),
    ],
)
def test_a_damaged_table_is_named(root, old, new, says):
    path = root / "osic-pulmonary-fibrosis-progression" / "train.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    if says is None:
        return
    with pytest.raises(ValueError, match=says) as e:
        osic.load(str(root))
    assert str(path) in str(e.value) and "data/README.md, entry 'osic'" in str(e.value)


def test_damaged_outcomes_and_missing_folders_are_named(root):
    folder = root / "osic-pulmonary-fibrosis-progression"
    for text, says in (
        (f"{PATIENTS[0]},5,2", r"column 'Died', row 0 .*expected 0 or 1"),
        (f"{PATIENTS[0]},5,1\n{PATIENTS[0]},5,1", r"column 'Patient', row 1 .*it comes twice"),
        ("", "the file holds no row"),
    ):
        (folder / "mortality.csv").write_text(f"Patient,Weeks,Died\n{text}\n")
        with pytest.raises(ValueError, match=says):
            osic.load(str(root), label="mortality")
    gone = osic.load(str(root)).names[1]
    (folder / "train" / gone).rmdir()
    with pytest.raises(FileNotFoundError, match=f"the folder of patient {gone} is missing"):
        osic.load(str(root))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "valid"}, "split: got 'valid'"),
        ({"label": "death"}, "label: got 'death'"),
        ({"unlabelled": "drop"}, "unlabelled: got 'drop'"),
        ({"crop": "heart"}, "crop: got 'heart'"),
        ({"order": "name"}, "order: got 'name'"),
        ({"size": 0}, "size: got 0"),
    ],
)
def test_bad_settings(root, settings, says):
    with pytest.raises(ValueError, match=says):
        osic.load(str(root), **settings)


# ---------------------------------------------------------------- any folder


def test_any_folder_of_series_with_and_without_labels(tmp_path, phantom):
    for name in ("b", "a"):
        (tmp_path / name).symlink_to(phantom)
    data = ct_patients.load_folder(tmp_path, size=32)
    assert data.ids == ("a", "b") and data.y.tolist() == [-1, -1]
    assert data[:][0].shape == (2, 4, 32, 32)
    with pytest.raises(FileNotFoundError, match=r"labels\.csv is missing"):
        ct_patients.load_folder(tmp_path, "death")
    (tmp_path / "labels.csv").write_text("Patient,death,emphysema\na,1,0\nb,0,\n")
    labelled = ct_patients.load_folder(tmp_path, "death", size=32)
    assert labelled.y.tolist() == [1, 0] and labelled.class_names == ("no death", "death")
    with pytest.raises(ValueError, match=r"column 'emphysema', row 1 .*expected 0 or 1"):
        ct_patients.load_folder(tmp_path, "emphysema")
    with pytest.raises(ValueError, match="label: got 'fibrosis'"):
        ct_patients.load_folder(tmp_path, "fibrosis")
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match="ct_folder: patient c has no label"):
        ct_patients.load_folder(tmp_path, "death")
    assert ct_patients.load_folder(tmp_path, "death", exclude=["c"]).ids == ("a", "b")
    with pytest.raises(ValueError, match="the split holds no patient"):
        ct_patients.load_folder(tmp_path, exclude=["a", "b", "c"])


def test_a_wrong_number_of_slices_names_the_patient(tmp_path, phantom):
    for k in range(3):
        write_slice(tmp_path / "few" / f"{k}.dcm", chest()[15 + k], (0, 0, HEIGHTS[k]))
    write_chest(tmp_path / "half", skip=range(22, 40))
    data = ct_patients.load_folder(tmp_path)
    for i, says in enumerate(("S >= 4 slices", "cut off at the bottom")):
        with pytest.raises(ValueError, match=rf"ct_folder: .*{says}.*{data.names[i]}\)"):
            data[i]
