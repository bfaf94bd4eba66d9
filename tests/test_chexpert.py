"""CheXpert on small trees in its official layout, and the errors for damaged trees."""

from __future__ import annotations

import csv
import hashlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cf_utils.datasets import chexpert, images
from cf_utils.datasets.chexpert import ABOUT, OBSERVATIONS
from tests.test_image_sets import picture, truncate

SMALL = "CheXpert-v1.0-small"
CYCLE = ("1.0", "0.0", "-1.0", "")  # labels of the rows, in turn
PATIENTS = [f"patient{i:05d}" for i in range(1, 61)]


def in_validation(patient):
    """The rule of the split, from the standard library."""
    return int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) % 10 == 0


def study(part, patient, at, sides):
    """Rows of one study: one view per side, the label of column j shifted by j."""
    rows = []
    for view, side in enumerate(sides, 1):
        labels = [CYCLE[(at + view + j) % 4] for j in range(len(OBSERVATIONS))]
        path = f"{part}/{patient}/study{at % 2 + 1}/view{view}_{side.lower()}.jpg"
        rows.append([path, "Female", "68", side, "AP" if side == "Frontal" else "", *labels])
    return rows


TRAIN = [
    row
    for at, patient in enumerate(PATIENTS)
    for row in study("train", patient, at, ["Frontal", "Lateral"] if at % 3 else ["Frontal"])
]
VALID = [
    ["valid/patient64541/study1/view1_frontal.jpg", "Male", "73", "Frontal", "AP"] + ["1.0"] * 14,
    ["valid/patient64541/study1/view2_lateral.jpg", "Male", "73", "Lateral", ""] + ["1.0"] * 14,
    ["valid/patient64542/study1/view1_frontal.jpg", "Male", "70", "Frontal", "PA"] + ["0.0"] * 14,
]


def write_csv(path, rows, prefix=SMALL, head=(*ABOUT, *OBSERVATIONS)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([head, *([f"{prefix}/{p}", *rest] for p, *rest in rows)])


@pytest.fixture
def root(tmp_path):
    write_csv(tmp_path / SMALL / "train.csv", TRAIN)
    write_csv(tmp_path / SMALL / "valid.csv", VALID)
    for seed, (path, *_) in enumerate(TRAIN + VALID):
        picture(tmp_path / SMALL / path, (39, 32), seed=seed)
    return tmp_path


def expected(split, observation, uncertain, blank, view):
    """Slow reference: (ids, labels) of a split, row by row."""
    ids, labels = [], []
    for path, _, _, side, _, *values in VALID if split == "test" else TRAIN:
        _, patient, *_ = path.split("/")
        if split != "test" and in_validation(patient) != (split == "validation"):
            continue
        if view != "all" and side.lower() != view:
            continue
        value = values[OBSERVATIONS.index(observation)]
        if value == "-1.0":
            label = {"ignore": None, "zeros": 0, "ones": 1}[uncertain]
        elif value == "":
            label = {"negative": 0, "ignore": None}[blank]
        else:
            label = int(float(value))
        if label is not None:
            ids.append(path.removesuffix(".jpg").split("/", 1)[1])
            labels.append(label)
    return ids, labels


@pytest.mark.parametrize("view", chexpert.VIEWS)
@pytest.mark.parametrize("blank", chexpert.BLANK)
@pytest.mark.parametrize("uncertain", chexpert.UNCERTAIN)
def test_labels_follow_the_policies(root, uncertain, blank, view):
    for observation in ("Cardiomegaly", "Support Devices"):
        for split in images.SPLITS:
            data = chexpert.load(str(root), split, observation, uncertain, blank, view, size=16)
            ids, labels = expected(split, observation, uncertain, blank, view)
            assert (list(data.ids), data.y.tolist()) == (ids, labels)
            assert data.class_names == (f"no {observation}", observation)


def test_the_defaults_ignore_uncertain_labels_and_take_blanks_as_absent(root):
    data = chexpert.load(str(root), "train")
    wanted = expected("train", "Cardiomegaly", "ignore", "negative", "frontal")
    assert (list(data.ids), data.y.tolist()) == wanted
    assert len(chexpert.load(str(root))) == 2  # frontal images of valid.csv
    assert data[0][0].shape == (1, 128, 128)


def test_all_observations_at_once_mark_ignored_entries(root):
    every = chexpert.load(str(root), "train", None, blank="ignore")
    assert every.y.shape == (len(every), 14) and every.class_names == OBSERVATIONS
    for column, name in enumerate(OBSERVATIONS):
        one = chexpert.load(str(root), "train", name, blank="ignore")
        known = every.y[:, column] != chexpert.IGNORED
        assert torch.equal(every.y[known, column], one.y)
        assert tuple(i for i, k in zip(every.ids, known, strict=True) if k) == one.ids
    assert set(every.y.unique().tolist()) == {-1, 0, 1}
    filled = chexpert.load(str(root), "train", None, uncertain="ones")
    assert set(filled.y.unique().tolist()) == {0, 1}


def test_no_patient_is_in_two_splits_and_none_is_lost(root):
    loaded = [
        chexpert.load(str(root), s, uncertain="zeros", view="all", size=16) for s in images.SPLITS
    ]
    patients = [{i.split("/")[0] for i in data.ids} for data in loaded]
    assert patients[1] == {p for p in PATIENTS if in_validation(p)} and patients[1]
    assert patients[0] == set(PATIENTS) - patients[1]
    assert not patients[2] & (patients[0] | patients[1])
    assert sum(map(len, loaded)) == len(TRAIN) + len(VALID)
    # the split of a patient does not depend on the other rows of the file
    write_csv(root / SMALL / "train.csv", TRAIN[::-1][: len(TRAIN) // 2])
    half = chexpert.load(str(root), "validation", uncertain="zeros", view="all", size=16)
    assert set(half.ids) < set(loaded[1].ids) | {None} and half.ids


@pytest.mark.parametrize(
    ("folder", "prefix"),
    [
        (SMALL, SMALL),
        ("CheXpert-v1.0", "CheXpert-v1.0"),
        (".", SMALL),
        ("chexpert", "CheXpert-v1.0"),
    ],
)
def test_either_release_is_read_from_any_folder(tmp_path, folder, prefix):
    write_csv(tmp_path / folder / "valid.csv", VALID, prefix)
    write_csv(tmp_path / folder / "train.csv", TRAIN, prefix)
    for path, *_ in VALID:
        picture(tmp_path / folder / path, (39, 32))
    data = chexpert.load(str(tmp_path))
    assert data.ids == (
        "patient64541/study1/view1_frontal",
        "patient64542/study1/view1_frontal",
    )
    assert data.y.tolist() == [1, 0] and data[0][0].std() > 0.1
    found = chexpert.status(str(tmp_path))
    assert found.state == "present" and "2 test images" in found.advice
    assert f"{len(TRAIN)} for training" in found.advice


def test_images_are_grey_squares_read_lazily(root):
    data = chexpert.load(str(root), "train", size=24)
    x, _, ids = data[:]
    assert x.shape == (len(data), 1, 24, 24) and x.dtype == torch.float32
    with Image.open(data.folder / data.names[1]) as image:
        assert image.mode == "RGB"  # the tests' pictures are coloured, the official ones grey
        grey = image.convert("L").resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal((x[1, 0] * 255).round().numpy(), np.asarray(grey))
    assert 0 <= x.min() < 0.3 and 0.7 < x.max() <= 1
    loaded = list(DataLoader(data, batch_size=4))
    assert torch.equal(torch.cat([b[0] for b in loaded]), x)
    part = data.take([2, 0]).in_memory()
    assert torch.equal(part.x, x[[2, 0]]) and part.ids == (ids[2], ids[0])
    truncate(data.folder / data.names[1])
    assert torch.equal(data[0][0], x[0])  # nothing else is read
    with pytest.raises(ValueError, match=r"chexpert: the image cannot be read: .*truncated"):
        data[1]


def test_a_truncated_image_is_an_error_or_is_skipped_and_counted(root):
    data = chexpert.load(str(root), "train", size=16)
    truncate(data.folder / data.names[1])
    with pytest.warns(UserWarning, match=f"chexpert: 1 of {len(data)} images cannot be read"):
        rest = chexpert.load(str(root), "train", size=16, broken="skip")
    assert rest.skipped == (data.names[1],)
    assert rest.ids == data.ids[:1] + data.ids[2:]
    assert torch.equal(rest.y, torch.cat([data.y[:1], data.y[2:]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chexpert.load(str(root), broken="skip").skipped == ()


def edit(name, change):
    def damage(root):
        path = root / SMALL / name
        path.write_text(change(path.read_text()))

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (
            edit("valid.csv", lambda t: t.replace("1.0", "2.0").replace("v2.0", "v1.0")),
            ValueError,
            r"column 'No Finding', row 0 .*: got 2.0; expected 1, 0, -1 or blank",
        ),
        (
            edit("valid.csv", lambda t: t.replace(",PA,0.0,0.0,0.0", ",PA,0.0,0.0,positive")),
            ValueError,
            r"column 'Cardiomegaly', row 2 .*: got positive; expected 1",
        ),
        (
            edit("valid.csv", lambda t: t.replace("Fracture", "Emphysema")),
            ValueError,
            "column 'Fracture' is missing",
        ),
        (
            edit("valid.csv", lambda t: t.replace("Devices", "Devices,Emphysema")),
            ValueError,
            "column 'Emphysema' is unknown",
        ),
        (
            edit("valid.csv", lambda t: t.replace("Lateral,,", "Oblique,,")),
            ValueError,
            r"column 'Frontal/Lateral', row 1 .*: got Oblique; expected Frontal or Lateral",
        ),
        (
            edit("valid.csv", lambda t: t.replace("/patient64542", "/64542")),
            ValueError,
            r"column 'Path', row 2 .*expected CheXpert-v1.0\[-small\]/\{train,valid\}/patient",
        ),
        (
            edit("valid.csv", lambda t: t + t.splitlines()[-1] + "\n"),
            ValueError,
            "column 'Path', row 3 .*it comes twice",
        ),
        (edit("valid.csv", lambda t: t.splitlines()[0]), ValueError, "the file holds no row"),
        (edit("valid.csv", lambda t: ""), ValueError, "No columns to parse"),
        (
            lambda r: (r / SMALL / VALID[2][0]).unlink(),
            FileNotFoundError,
            "view1_frontal.jpg is listed but the image is missing",
        ),
        (
            lambda r: (r / SMALL / "valid.csv").unlink(),
            FileNotFoundError,
            "valid.csv is missing",
        ),
    ],
)
def test_a_damaged_tree_is_named_with_the_next_step(root, damage, error, says):
    assert chexpert.status(str(root)).state == "present"
    damage(root)
    with pytest.raises(error, match=says) as e:
        chexpert.load(str(root))
    assert str(root) in str(e.value) and "data/README.md, entry 'chexpert'" in str(e.value)
    state = "missing" if error is FileNotFoundError else "damaged"
    assert chexpert.status(str(root)).state == state


def test_status_looks_at_the_training_list_and_at_the_test_images(root):
    truncate(root / SMALL / VALID[2][0])
    assert chexpert.status(str(root)).state == "damaged"
    picture(root / SMALL / VALID[2][0])
    edit("train.csv", lambda t: t.replace("Frontal,AP,", "Frontal,AP,7", 1))(root)
    found = chexpert.status(str(root))
    assert found.state == "damaged" and "train.csv" in found.advice
    (root / SMALL / "train.csv").unlink()
    found = chexpert.status(str(root))
    assert found.state == "missing" and "train.csv is missing" in found.advice
    assert len(chexpert.load(str(root))) == 2  # only the loaded split must be there


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "valid"}, "split: got 'valid'"),
        ({"observation": "Cardiomegali"}, "observation: got 'Cardiomegali'.*'Cardiomegaly'"),
        ({"uncertain": "drop"}, "uncertain: got 'drop'"),
        ({"blank": "zeros"}, "blank: got 'zeros'"),
        ({"view": "AP"}, "view: got 'AP'"),
        ({"size": 0}, "size: got 0"),
        ({"broken": "drop"}, "broken: got 'drop'"),
    ],
)
def test_bad_settings(root, settings, says):
    with pytest.raises(ValueError, match=says):
        chexpert.load(str(root), **settings)
