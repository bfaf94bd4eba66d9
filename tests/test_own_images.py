"""A folder of one's own images: classes, sizes and channels against the files' pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from cf_utils.datasets import own_images


def write(path, height=6, width=8, channels=3, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels.reshape(height, width, -1)).permute(2, 0, 1).float() / 255


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    pixels = [write(tmp_path / name, seed=i) for i, name in enumerate(("shoe/a.png", "bag/z.png"))]
    data = own_images.load(tmp_path)
    x, y, ids = data[:]
    assert data.class_names == ("bag", "shoe") and ids == ("bag/z.png", "shoe/a.png")
    assert y.tolist() == [0, 1]
    torch.testing.assert_close(x, torch.stack(pixels[::-1]))


def test_a_flat_folder_has_no_classes(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "results").mkdir()  # holds no image
    data = own_images.load(tmp_path)
    assert data.class_names == () and data.y.tolist() == [-1] and data.names == ("a.png",)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_found_or_converted(tmp_path, channels):
    pixels = write(tmp_path / "a.png", channels=channels)
    torch.testing.assert_close(own_images.load(tmp_path)[:][0][0], pixels)
    other = own_images.load(tmp_path, channels=4 - channels)[:][0][0]
    assert other.shape == (4 - channels, 6, 8)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R 601, as PIL
    expected = pixels.expand(3, -1, -1) if channels == 1 else (weights * pixels).sum(0)[None]
    torch.testing.assert_close(other, expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("size", [(6, 4), (12, 16), (3, 9), 7])
def test_any_size_is_covered_without_distortion(tmp_path, size):
    """A gradient along one axis keeps its slope relative to the scale."""
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 30, (6, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    height, width = size if isinstance(size, tuple) else (size, size)
    x = own_images.load(tmp_path, size=size)[:][0]
    assert x.shape == (1, 1, height, width)
    scale = max(height / 6, width / 8)
    middle = 255 * x[0, 0, height // 2, 1:-1]
    if len(middle) > 6:
        slope = (middle[2:-2].diff()).mean()
        assert slope == pytest.approx(30 / scale, rel=0.15)
    assert (x - x.flip(2)).abs().max() < 1e-6  # rows are equal


def test_a_size_that_only_crops_keeps_the_middle_pixels(tmp_path):
    pixels = write(tmp_path / "a.png")
    x = own_images.load(tmp_path, size=(6, 4))[:][0][0]
    torch.testing.assert_close(x, pixels[:, :, 2:6])


def test_wrong_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        own_images.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no image"):
        own_images.load(tmp_path)
    write(tmp_path / "a" / "1.png")
    with pytest.raises(ValueError, match="channels: got 2, expected 1"):
        own_images.load(tmp_path, channels=2)
    with pytest.raises(ValueError, match="size: got 0"):
        own_images.load(tmp_path, size=0)
    write(tmp_path / "b" / "2.png", 9, 9)
    with pytest.raises(ValueError, match=r"size: got images of several sizes \(1.png: 6 x 8, 2"):
        own_images.load(tmp_path)
    write(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"also loose.png; move it into a class"):
        own_images.load(tmp_path, size=4)


def test_a_truncated_image_is_named_or_skipped(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"b\.png"):
        own_images.load(tmp_path, size=6)[:]
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read"):
        assert own_images.load(tmp_path, size=6, broken="skip").names == ("a.png",)
