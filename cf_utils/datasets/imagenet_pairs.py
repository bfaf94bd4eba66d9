"""Three pairs of ImageNet classes that ACE tells apart: <root>/{train,val}/<wnid>/*.JPEG, torchvision's ImageFolder layout.

Shorter side to 256 (bilinear), then the central 256 pixels. y is 0 or 1 within the pair; `IMAGENET` has the outputs of a
classifier of 1,000 classes. The validation images come as one flat folder: they must be sorted into class folders first.
"""

from __future__ import annotations

from functools import partial

import torch

from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk, Status, missing

IMAGENET = {  # class -> (wnid, output of a classifier of 1,000 classes)
    "zebra": ("n02391049", 340),
    "sorrel": ("n02389026", 339),
    "cheetah": ("n02130308", 293),
    "cougar": ("n02125311", 286),
    "Egyptian cat": ("n02124075", 285),
    "Persian cat": ("n02123394", 283),
}
PAIRS = {
    "zebra-sorrel": ("zebra", "sorrel"),
    "cheetah-cougar": ("cheetah", "cougar"),
    "egyptian-persian": ("Egyptian cat", "Persian cat"),
}
SPLITS = ("train", "validation")
PLACES = {
    "train": ("imagenet/train", "train"),
    "validation": ("imagenet/val", "val", "imagenet/validation", "validation"),
}


def load(
    root: str = "",
    split: str = "validation",
    pair: str = "zebra-sorrel",
    size: int = 256,
    broken: str = "error",
) -> OnDisk:
    """Images (3, size, size) in [0, 1] of both classes; y 0 (first) or 1 (second of the pair); id: the file's name without its
    end. Raises FileNotFoundError or ValueError that names the folder, and what is wrong with it first."""
    if pair not in PAIRS:
        raise ValueError(f"pair: got {pair!r}, expected one of {tuple(PAIRS)}")
    images.check_split("imagenet_pairs", root, split, SPLITS)
    wnids = [IMAGENET[c][0] for c in PAIRS[pair]]
    folder = images.folder_with("imagenet_pairs", root, PLACES[split], *wnids)
    names, y = [], []
    for label, wnid in enumerate(wnids):
        files = sorted(
            p.name
            for p in (folder / wnid).iterdir()
            if p.suffix.lower() in (".jpeg", ".jpg", ".png")
        )
        if not files:
            raise FileNotFoundError(
                missing("imagenet_pairs", folder / wnid, "no image in the folder of a class")
            )
        names += [f"{wnid}/{f}" for f in files]
        y += [label] * len(files)
    ids = [n.split("/")[1].rpartition(".")[0] for n in names]
    return images.split(
        "imagenet_pairs",
        folder,
        names,
        torch.tensor(y),
        ids,
        PAIRS[pair],
        partial(images.short_side_then_crop, size=size),
        broken,
    )


def status(root: str = "") -> Status:
    try:
        images.check_split("imagenet_pairs", root, "validation", SPLITS)
        wnids = [wnid for wnid, _ in IMAGENET.values()]
        folder = images.folder_with("imagenet_pairs", root, PLACES["validation"], *wnids)
    except FileNotFoundError as e:
        return Status("imagenet_pairs", "missing", str(e))
    return Status("imagenet_pairs", "present", f"official files in {folder}")
