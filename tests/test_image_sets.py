"""The image sets on small trees in the official layouts, and the errors for damaged trees."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T

from cf_utils.datasets import bdd, celeba, celebahq, chexpert, imagenet_pairs, images, osic
from cf_utils.datasets.catalog import SETS, describe

NAMES = ["5_o_Clock_Shadow", *(f"Attribute_{i}" for i in range(1, 39)), "Young"]
NAMES[31] = "Smiling"
VALUES = np.where(np.random.default_rng(0).random((6, 40)) < 0.5, 1, -1)


def picture(path, size=(178, 218), seed=0):
    """Save a smooth random picture, so that crops differ; JPEG or PNG by the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def truncate(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def attribute_text(names, values, blanks=" ", count=None):
    """Write the official text: 1 takes two places, like -1."""
    rows = [
        f"{n}{blanks}" + " ".join(f"{v:2d}" for v in row)
        for n, row in zip(names, values, strict=True)
    ]
    return "\n".join([str(count or len(rows)), " ".join(NAMES) + " ", *rows]) + "\n"


FILES = [f"{i:06d}.jpg" for i in range(1, 7)]
PARTS = [0, 0, 0, 1, 2, 2]


@pytest.fixture
def faces(tmp_path):
    root = tmp_path / "celeba"
    for i, name in enumerate(FILES):
        picture(root / "img_align_celeba" / name, seed=i)
    (root / "list_attr_celeba.txt").write_text(attribute_text(FILES, VALUES))
    (root / "list_eval_partition.txt").write_text(
        "".join(f"{n} {p}\n" for n, p in zip(FILES, PARTS, strict=True))
    )
    return tmp_path


def kaggle(root):
    """Turn the tree into that of Kaggle's archive: CSV, nested image folder, files in the root."""
    old = root / "celeba"
    rows = [
        ",".join(["image_id", *NAMES]),
        *(",".join([n, *map(str, v)]) for n, v in zip(FILES, VALUES, strict=True)),
    ]
    (root / "list_attr_celeba.csv").write_text("\r\n".join(rows) + "\r\n")
    rows = ["image_id,partition", *(f"{n},{p}" for n, p in zip(FILES, PARTS, strict=True))]
    (root / "list_eval_partition.csv").write_text("\n".join(rows))
    (root / "img_align_celeba").mkdir()
    (old / "img_align_celeba").rename(root / "img_align_celeba" / "img_align_celeba")
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        (old / name).unlink()
    old.rmdir()


def drive(root):
    """Turn the tree into the folders of the authors' drive."""
    old = root / "celeba"
    for new, name in (
        ("Anno", "list_attr_celeba.txt"),
        ("Eval", "list_eval_partition.txt"),
        ("Img", "img_align_celeba"),
    ):
        (old / new).mkdir()
        (old / name).rename(old / new / name)


@pytest.mark.parametrize(
    "layout", [lambda root: None, kaggle, drive], ids=["official", "kaggle", "drive"]
)
def test_celeba(faces, layout):
    layout(faces)
    train, val, test = (celeba.load(str(faces), s) for s in images.SPLITS)
    assert [d.ids.tolist() for d in (train, val, test)] == [[1, 2, 3], [4], [5, 6]]
    assert test.y.tolist() == [int(VALUES[i, 31] == 1) for i in (4, 5)]
    assert celeba.load(str(faces), "train", "Young").y.tolist() == [
        int(v == 1) for v in VALUES[:3, 39]
    ]
    every = celeba.load(str(faces), "train", None)
    np.testing.assert_array_equal(every.y.numpy(), VALUES[:3] == 1)
    assert every.class_names == tuple(NAMES) and train.class_names == ("not Smiling", "Smiling")
    assert train.source == "official" and celeba.status(str(faces)).state == "present"
    x, y, i = train[1]
    assert (x.shape, x.dtype, int(y), int(i)) == (
        (3, 128, 128),
        torch.float32,
        int(VALUES[1, 31] == 1),
        2,
    )
    assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.1


@pytest.mark.parametrize(("crop", "size"), [(178, 128), (150, 128), (178, 64), (150, 64)])
def test_crops_are_those_of_the_papers_code(faces, crop, size):
    """Compare with torchvision's Compose of DiME and ACE (178) and of STEEX (150)."""
    theirs = {
        178: T.Compose([T.Resize(size), T.CenterCrop(size), T.ToTensor()]),
        150: T.Compose([T.CenterCrop(150), T.Resize((size, size)), T.ToTensor()]),
    }
    data = celeba.load(str(faces), "test", crop=crop, size=size)
    with Image.open(data.folder / data.names[0]) as picture_:
        same, other = (theirs[c](picture_.convert("RGB")) for c in (crop, 328 - crop))
    assert torch.equal(data[0][0], same)
    assert (data[0][0] - other).abs().mean() > 0.05  # measured 0.13


def test_items_are_read_lazily_and_batches_equal_items(faces):
    data = celeba.load(str(faces), "train", size=32)
    x, y, ids = data[:]
    for i in range(3):
        assert torch.equal(x[i], data[i][0])
    for rows in ([2, 0], torch.tensor([2, 0])):
        assert torch.equal(data[rows][0], x[[2, 0]]) and data[rows][2].tolist() == [3, 1]
    part = data.take([2, 0]).in_memory()
    assert (
        torch.equal(part.x, x[[2, 0]])
        and part.y.tolist() == y[[2, 0]].tolist()
        and part.ids.tolist() == [3, 1]
    )
    loaded = list(DataLoader(data, batch_size=2))
    assert (
        torch.equal(torch.cat([b[0] for b in loaded]), x)
        and torch.cat([b[2] for b in loaded]).tolist() == ids.tolist()
    )
    truncate(data.folder / data.names[1])
    assert data[0][0].shape == (3, 32, 32)  # nothing was read before
    with pytest.raises(
        ValueError,
        match=r"celeba: the image cannot be read: .*truncated.*000002\.jpg.*data/README\.md",
    ):
        data[1]


def test_a_truncated_jpeg_is_an_error_or_is_skipped_and_counted(faces):
    truncate(faces / "celeba" / "img_align_celeba" / FILES[1])
    data = celeba.load(str(faces), "train")
    assert len(data) == 3 and data.skipped == ()
    with pytest.raises(ValueError, match=FILES[1]):
        data[:]
    with pytest.warns(
        UserWarning, match=f"celeba: 1 of 3 images cannot be read and are left out: {FILES[1]}"
    ):
        data = celeba.load(str(faces), "train", broken="skip")
    assert data.skipped == (FILES[1],)
    assert data[:][2].tolist() == [1, 3] and data.y.tolist() == [
        int(VALUES[i, 31] == 1) for i in (0, 2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert celeba.load(str(faces), "test", broken="skip").skipped == ()


@pytest.mark.parametrize("end", ["jpg", "png"])
def test_is_complete_finds_every_truncation(tmp_path, end):
    path = tmp_path / f"a.{end}"
    picture(path)
    content = path.read_bytes()
    assert images.is_complete(path)
    for cut in (0, 2, 100, len(content) // 2, len(content) - (3 if end == "jpg" else 200)):
        path.write_bytes(content[:cut])
        assert not images.is_complete(path), cut
    path.write_bytes(content + b"some program's trailer")
    assert images.is_complete(path)
    path.write_bytes(b"<html>404</html>")
    assert not images.is_complete(path)


def rewrite(name, change):
    def broken(root):
        path = root / "celeba" / name
        path.write_text(change(path.read_text()))

    return broken


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (
            lambda r: (r / "celeba/img_align_celeba" / FILES[2]).unlink(),
            FileNotFoundError,
            "000003.jpg is listed but",
        ),
        (
            lambda r: (r / "celeba/list_attr_celeba.txt").unlink(),
            FileNotFoundError,
            "list_attr_celeba.txt or list_attr_celeba.csv",
        ),
        (
            lambda r: (r / "celeba/list_eval_partition.txt").unlink(),
            FileNotFoundError,
            "list_eval_partition.txt or",
        ),
        (
            rewrite("list_attr_celeba.txt", lambda t: "7" + t[1:]),
            ValueError,
            "line 1 promises 7 images, 6 lines follow: truncated",
        ),
        (
            rewrite("list_attr_celeba.txt", lambda t: t.split("\n", 1)[1]),
            ValueError,
            "line 1 is '5_o_Clock.*expected the number",
        ),
        (
            rewrite("list_attr_celeba.txt", lambda t: t[:-9]),
            ValueError,
            r"line 8 \(000006.jpg\): 3\d values, expected 40",
        ),
        (
            rewrite("list_attr_celeba.txt", lambda t: t.replace("-1", " 0")),
            ValueError,
            r"line 3 \(000001.jpg\): 40 values.*each 1",
        ),
        (
            rewrite("list_attr_celeba.txt", lambda t: ""),
            ValueError,
            "0 lines, expected 2 of header",
        ),
        (
            rewrite("list_eval_partition.txt", lambda t: t.replace(" 2", " 3")),
            ValueError,
            "line 5: '000005.jpg 3', expected",
        ),
        (
            rewrite("list_eval_partition.txt", lambda t: t.replace("000005", "000009")),
            ValueError,
            "000005.jpg has no line in",
        ),
    ],
)
def test_a_damaged_celeba_tree_is_named_with_the_next_step(faces, wrong, error, says):
    assert celeba.status(str(faces)).state == "present"
    wrong(faces)
    with pytest.raises(error, match=says) as e:
        celeba.load(str(faces), "train")
    assert str(faces) in str(e.value)  # where we looked
    assert "data/README.md, entry 'celeba'" in str(e.value)  # what to do
    if "img_align" not in str(e.value):  # status looks at the texts and at the test images
        state = "missing" if error is FileNotFoundError else "damaged"
        assert celeba.status(str(faces)).state == state


@pytest.mark.parametrize("file", [FILES[4], FILES[5]])
def test_status_looks_at_the_first_and_last_image(faces, file):
    """The test split has images 5 and 6."""
    path = faces / "celeba" / "img_align_celeba" / file
    for damage in (truncate, lambda p: p.write_bytes(b""), lambda p: p.write_text("<html>")):
        damage(path)
        found = celeba.status(str(faces))
        assert found.state == "damaged" and file in found.advice
    path.unlink()
    assert celeba.status(str(faces)).state == "missing"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: lines[:4],
            r"3 images of the partition file have no line \(000004.jpg\): truncated\?",
        ),
        (lambda lines: [*lines, lines[1]], "line 8: 000001.jpg has a line already"),
    ],
)
def test_a_truncated_or_contradictory_csv_is_named(faces, change, says):
    """Unlike the text file it has no count in its first line."""
    kaggle(faces)
    path = faces / "list_attr_celeba.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match=says) as e:
        celeba.load(str(faces), "train")
    assert str(path) in str(e.value)


def test_only_the_loaded_split_must_exist(faces):
    (faces / "celeba/img_align_celeba" / FILES[0]).unlink()
    assert len(celeba.load(str(faces), "test")) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "val"}, "split: got 'val'"),
        ({"attribute": "Smile"}, "attribute: got 'Smile'.*'Smiling'"),
        ({"crop": 160}, "crop: got 160"),
        ({"broken": "drop"}, "broken: got 'drop'"),
        ({"size": -5}, "size: got -5, expected a whole number >= 1"),
    ],
)
def test_bad_settings_of_celeba(faces, settings, says):
    with pytest.raises(ValueError, match=says):
        celeba.load(str(faces), **settings)
    small = faces / "celeba/img_align_celeba" / FILES[0]
    picture(small, (100, 120))
    with pytest.raises(
        ValueError,
        match=r"image: 100 x 120 pixels, expected at least 150 x 150 \(looked at .*000001.jpg",
    ):
        celeba.load(str(faces), "train", crop=150)[0]


# ---------------------------------------------------------------- CelebAMask-HQ

# One of each of CelebA's splits, at its boundaries.
ORIGINAL = [f"{n}.jpg" for n in ("119614", "162771", "000002", "182638", "202599", "182637")]
HQ_PARTS = [0, 1, 0, 2, 2, 1]


@pytest.fixture
def hq(tmp_path):
    root = tmp_path / "CelebAMask-HQ"
    names = [f"{i}.jpg" for i in (0, 1, 2, 3, 2000, 2001)]
    for i, name in enumerate(names):
        picture(root / "CelebA-HQ-img" / name, (320, 320), seed=i)
    text = attribute_text(names, VALUES, "  ")  # two blanks, as in the file
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    rows = [f"{n[:-4]:<12}{int(o[:-4]) - 1:<9}{o}" for n, o in zip(names, ORIGINAL, strict=True)]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx         orig_idx     orig_file\n" + "\n".join(rows) + "\n"
    )
    for idx, part in ((2, "skin"), (2, "hair"), (2000, "skin")):
        mask = np.zeros((512, 512), np.uint8)
        mask[:, : 256 if part == "skin" else 128] = 255
        path = root / "CelebAMask-HQ-mask-anno" / str(idx // 2000) / f"{idx:05d}_{part}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return tmp_path


def test_celebahq_splits_through_the_mapping(hq):
    for root in (hq, hq / "CelebAMask-HQ"):
        splits = [celebahq.load(str(root), s, size=32) for s in images.SPLITS]
        assert [d.ids.tolist() for d in splits] == [[0, 2], [1, 2001], [3, 2000]]
    assert splits[2].y.tolist() == [int(VALUES[i, 31] == 1) for i in (3, 4)]
    x, _, i = splits[2][1]
    assert (x.shape, int(i)) == ((3, 32, 32), 2000)
    assert celebahq.status(str(hq)).state == "present"
    rows = [f"{o},{2 - p}\n" for o, p in zip(ORIGINAL, HQ_PARTS, strict=True)]
    own = "image_id,partition\n" + "".join(rows)
    for place in (hq / "CelebAMask-HQ", hq / "celeba"):  # a partition file overrides the boundaries
        place.mkdir(exist_ok=True)
        (place / "list_eval_partition.csv").write_text(own)
        assert celebahq.load(str(hq), "train").ids.tolist() == [3, 2000]
        (place / "list_eval_partition.csv").unlink()


def test_celebahq_masks(hq):
    m = celebahq.load_masks(str(hq), torch.tensor([2000, 2]), size=64)
    assert m.shape == (2, 18, 64, 64) and m.dtype == torch.bool
    skin, hair = celebahq.PARTS.index("skin"), celebahq.PARTS.index("hair")
    assert m[:, skin, :, :32].all() and not m[:, skin, :, 32:].any()
    assert m[1, hair, :, :16].all() and not m[1, hair, :, 16:].any() and not m[0, hair].any()
    assert m.flatten(2).any(2).sum() == 3
    with pytest.raises(FileNotFoundError, match="no mask 00003_<part>"):
        celebahq.load_masks(str(hq), [3])


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            "CelebA-HQ-to-CelebA-mapping.txt",
            lambda t: t.split("\n", 1)[1],
            "line 1 is '0 119613 119614.jpg', expected 'idx orig_idx",
        ),
        ("CelebA-HQ-to-CelebA-mapping.txt", lambda t: t[:-25], "line 7: '2001', expected idx"),
        (
            "CelebA-HQ-to-CelebA-mapping.txt",
            lambda t: "\n".join(t.splitlines()[:-1]),
            "no line for image 2001",
        ),
        (
            "CelebA-HQ-to-CelebA-mapping.txt",
            lambda t: t.replace("202599.jpg", "202600.jpg"),
            "202600.jpg is no image of CelebA",
        ),
        (
            "CelebAMask-HQ-attribute-anno.txt",
            lambda t: t.replace("6", "30000", 1),
            "promises 30,000 images, 6 lines",
        ),
    ],
)
def test_a_damaged_celebahq_tree_is_named_with_the_next_step(hq, file, change, says):
    path = hq / "CelebAMask-HQ" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=says) as e:
        celebahq.load(str(hq), "test")
    assert str(path) in str(e.value) and "entry 'celebahq'" in str(e.value)
    found = celebahq.status(str(hq))
    assert (found.state, found.advice) == ("damaged", str(e.value))


# ---------------------------------------------------------------- BDD


@pytest.fixture
def scenes(tmp_path):
    for i, name in enumerate(("0000f77c-6257be58", "ffffabcd-00000001")):
        picture(tmp_path / "bdd100k/images/100k/val" / f"{name}.jpg", (320, 180), seed=i)
    picture(tmp_path / "bdd100k/seg/images/train" / "00000000-00000002.jpg", (320, 180))
    (tmp_path / "bdd100k/images/100k/val" / "notes.txt").write_text("not an image")
    order = {"c.jpg": 3, "a.jpg": 0, "b.jpg": 2, "d.jpg": 1}  # id: position of the annotation
    for i, name in enumerate(order):
        picture(tmp_path / "lastframe/data" / name, (320, 180), seed=i)
    # d is confusing; b has four numbers.
    categories = [[1, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0, 0]]
    content = {
        "images": [{"file_name": n, "id": i} for n, i in order.items()],
        "annotations": [{"id": 9 - i, "category": c} for i, c in enumerate(categories)],
    }
    (tmp_path / "lastframe/val_25k_images_actions.json").write_text(json.dumps(content))
    return tmp_path


def test_oia_annotations_go_by_position_and_confusing_ones_are_dropped(scenes):
    data = bdd.load(str(scenes))
    assert data.ids == ("a", "b", "c")
    assert data.y.tolist() == [1, 0, 1] and data.class_names == ("slow down", "forward")
    every = bdd.load(str(scenes), action=None)
    assert (
        every.y.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
        and every.class_names == bdd.ACTIONS
    )
    x, _, ids = data[[2, 0]]
    assert x.shape == (2, 3, 256, 512) and ids == ("c", "a")
    with Image.open(data.folder / "a.jpg") as picture_:
        theirs = T.ToTensor()(
            T.Resize((256, 512), T.InterpolationMode.BICUBIC)(picture_.convert("RGB"))
        )
    assert torch.equal(data[0][0], theirs)
    assert bdd.load(str(scenes / "lastframe"), size=(32, 64))[0][0].shape == (3, 32, 64)
    kept = data.take([1]).in_memory()
    assert kept.ids == ("b",) and kept[[0]][2] == ("b",)


def test_bdd100k_has_no_actions(scenes):
    data = bdd.load(str(scenes), part="100k")
    assert data.ids == ("0000f77c-6257be58", "ffffabcd-00000001") and data.y.tolist() == [-1, -1]
    old = bdd.load(str(scenes / "bdd100k"), "train", part="10k")
    assert old.ids == ("00000000-00000002",) and old.class_names == ("slow down", "forward")
    found = bdd.status(str(scenes))
    assert found.state == "present"
    assert "oia: 3 validation images, 100k: 2 validation images in" in found.advice
    truncate(scenes / "bdd100k/images/100k/val/ffffabcd-00000001.jpg")
    found = bdd.status(str(scenes))
    assert found.state == "damaged" and "ffffabcd-00000001.jpg" in found.advice
    with pytest.raises(FileNotFoundError, match=r"bdd: test is missing .*images/100k.*entry 'bdd'"):
        bdd.load(str(scenes), "test", part="100k")
    with pytest.raises(ValueError, match="part: got '20k'"):
        bdd.load(str(scenes), part="20k")
    with pytest.raises(ValueError, match="action: got 'brake'"):
        bdd.load(str(scenes), action="brake")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda c: c["annotations"].pop(), ValueError, "c.jpg: annotation 3 of 3"),
        (
            lambda c: c["annotations"][0].update(category=[1, 0, 1]),
            ValueError,
            r"a.jpg: category \[1, 0, 1\], expected 4 or 5",
        ),
        (lambda c: c.pop("images"), ValueError, "no list of images and annotations: KeyError"),
        (
            lambda c: c["images"].append({"file_name": "e.jpg", "id": 0}),
            FileNotFoundError,
            "e.jpg is listed but the image",
        ),
    ],
)
def test_a_damaged_oia_file_is_named_with_the_next_step(scenes, change, error, says):
    path = scenes / "lastframe/val_25k_images_actions.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(error, match=says) as e:
        bdd.load(str(scenes))
    assert str(scenes) in str(e.value) and "entry 'bdd'" in str(e.value)
    assert bdd.status(str(scenes)).state == ("damaged" if error is ValueError else "missing")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="no list of images"):
        bdd.load(str(scenes))


# ---------------------------------------------------------------- ImageNet pairs


@pytest.fixture
def pairs(tmp_path):
    files = {"n02391049": (2, 9), "n02389026": (1,), "n02130308": (3,)}
    for wnid, numbers in files.items():
        for k in numbers:
            path = tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{k}.jpeg"
            picture(path, (300, 280), seed=k)
            path.rename(path.with_suffix(".JPEG"))
    return tmp_path


def test_imagenet_pairs(pairs, tmp_path):
    data = imagenet_pairs.load(str(pairs))
    assert data.ids == tuple(
        f"ILSVRC2012_val_0000000{i}" for i in (2, 9, 1)
    ) and data.y.tolist() == [0, 0, 1]
    assert data.class_names == ("zebra", "sorrel") and data[0][0].shape == (3, 256, 256)
    assert [imagenet_pairs.IMAGENET[c][1] for c in data.class_names] == [340, 339]
    with pytest.raises(
        FileNotFoundError,
        match=r"n02125311 is missing \(looked at .*/val\).*entry 'imagenet_pairs'",
    ):
        imagenet_pairs.load(str(tmp_path), pair="cheetah-cougar")
    with pytest.raises(ValueError, match="pair: got 'cats'"):
        imagenet_pairs.load(str(tmp_path), pair="cats")
    with pytest.raises(ValueError, match="split: got 'test'"):
        imagenet_pairs.load(str(tmp_path), "test")
    assert imagenet_pairs.status(str(tmp_path)).state == "missing"
    for wnid, _ in imagenet_pairs.IMAGENET.values():
        (tmp_path / "val" / wnid).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match="no image in the folder of a class"):
        imagenet_pairs.load(str(tmp_path), pair="egyptian-persian")
    assert imagenet_pairs.status(str(tmp_path)).state == "missing"  # empty folders are no images
    for k, (wnid, _) in enumerate(imagenet_pairs.IMAGENET.values()):
        picture(tmp_path / "val" / wnid / f"z{k}.png", (300, 280), seed=k)
    found = imagenet_pairs.status(str(tmp_path))
    assert found.state == "present" and "10 validation images" in found.advice
    truncate(tmp_path / "val" / "n02125311" / "z3.png")
    assert imagenet_pairs.status(str(tmp_path)).state == "damaged"


# ---------------------------------------------------------------- all of them

MODULES = {
    "celeba": celeba,
    "celebahq": celebahq,
    "chexpert": chexpert,
    "bdd": bdd,
    "imagenet_pairs": imagenet_pairs,
    "osic": osic,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_tree_is_an_error_and_never_a_fallback(name, tmp_path):
    module = MODULES[name]
    with pytest.raises(
        FileNotFoundError,
        match=rf"{name}: .* is missing \(looked at .*data/README\.md, entry '{name}'",
    ) as e:
        module.load(str(tmp_path))
    assert str(tmp_path) in str(e.value)
    assert module.status(str(tmp_path)).state == "missing"
    with pytest.raises(
        FileNotFoundError, match=rf"{name}: root='' means the embedded default.*entry '{name}'"
    ):
        module.load()
    assert module.status().state == "missing"
    assert SETS[name] is module
    (line,) = describe(str(tmp_path), [name])
    assert line.split()[:2] == [name, "missing"]
