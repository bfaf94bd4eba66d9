"""Three pairs of similar ImageNet classes that ACE explains, such as zebra and sorrel.

Layout (torchvision's ImageFolder): <root>/{train,val}/<wnid>/*.JPEG. The official validation images
come as one flat folder and must be sorted into class folders first.

The shorter side is resized to 256 (bilinear), then the central 256 pixels are cropped. y is 0 or 1
within the pair; `IMAGENET` gives their positions among a classifier's 1,000 outputs.
"""

from __future__ import annotations

from functools import partial

import torch

from cf_utils.core.choices import check_choice
from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk, Status, describe_problem, report_status

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
SUFFIXES = (".jpeg", ".jpg", ".png")


def load(
    root: str = "",
    split: str = "validation",
    pair: str = "zebra-sorrel",
    size: int = 256,
    broken: str = "error",
) -> OnDisk:
    """Load both classes of a pair: x (3, size, size) in [0, 1]; ids are file names without suffix.

    Args:
        root: folder of the official files.
        split: train or validation.
        pair: a key of `PAIRS`; y is 0 for its first class, 1 for its second.
        size: pixels per side.
        broken: "error", or "skip" to leave out truncated images.

    Raises FileNotFoundError or ValueError that names the folder and says what to do.
    """
    check_choice("pair", pair, PAIRS)
    images.check_split("imagenet_pairs", root, split, SPLITS)
    images.check_size(size)
    wnids = [IMAGENET[c][0] for c in PAIRS[pair]]
    folder = images.find_folder("imagenet_pairs", root, PLACES[split], *wnids)
    names, y = [], []
    for label, wnid in enumerate(wnids):
        inside = (folder / wnid).iterdir()
        files = sorted(p.name for p in inside if p.suffix.lower() in SUFFIXES)
        if not files:
            problem = "no image in the folder of a class"
            raise FileNotFoundError(describe_problem("imagenet_pairs", folder / wnid, problem))
        names += [f"{wnid}/{f}" for f in files]
        y += [label] * len(files)
    ids = [n.split("/")[1].rpartition(".")[0] for n in names]
    change = partial(images.resize_and_crop, size=size)
    return images.make_split(
        "imagenet_pairs", folder, names, torch.tensor(y), ids, PAIRS[pair], change, broken
    )


def status(root: str = "") -> Status:
    """Report whether all pairs have validation images; checks the first and last of each pair."""

    def look() -> str:
        pairs = [load(root, pair=pair) for pair in PAIRS]
        for data in pairs:
            images.check_first_and_last(data)
        n = sum(map(len, pairs))
        return f"official files in {pairs[0].folder}, {n:,} validation images"

    return report_status("imagenet_pairs", look)
