"""BDD100K and BDD-OIA: driving scenes of 1280 x 720 pixels, read at 512 x 256 (bicubic).

The size and the filter are those of the papers' code.

BDD100K, `part="100k"` or `"10k"`: <root>/bdd100k or <root> itself, with
`images/{100k,10k}/{train,val,test}/*.jpg`; the older `seg/images/{train,val}` of the 10k subset
is found, too. These images have no actions, so y is -1. ACE explains the 100k validation set and
trains its prior on the 10k subset.

BDD-OIA, `part="oia"`: <root>/lastframe (or BDD-OIA/lastframe, or <root> itself) with `data/*.jpg`
and `{train,val,test}_25k_images_actions.json`. The annotation of an image is the one at position
images[].id. Its category holds 0 or 1 for forward, stop, left and right. Some files have a fifth
entry, confusing; images with a 1 there are dropped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cf_utils.core.choices import check_choice
from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk, Status, describe_problem, report_status

STAND_IN = "cf_utils.worlds (roads)"
ACTIONS = ("forward", "stop", "left", "right")
FILE = {"train": "train", "validation": "val", "test": "test"}
OIA = ("lastframe", "BDD-OIA/lastframe", "bdd_oia/lastframe", "BDD-OIA", ".")
BDD100K = {
    "100k": ("bdd100k/images/100k", "images/100k"),
    "10k": ("bdd100k/images/10k", "images/10k", "bdd100k/seg/images", "seg/images"),
}


def load(
    root: str = "",
    split: str = "validation",
    part: str = "oia",
    action: str | None = "forward",
    size: tuple[int, int] = (256, 512),
    broken: str = "error",
) -> OnDisk:
    """Load one split of the scenes: x (3, *size) in [0, 1]; ids are file names without suffix.

    Args:
        root: folder of the official files.
        split: train, validation or test.
        part: "oia", "100k" or "10k", see above.
        action: only for "oia". y (N,) is 1 if the driver may take this action; None: y (N, 4)
            holds all four.
        size: height and width in pixels.
        broken: "error", or "skip" to leave out truncated images.

    Raises FileNotFoundError or ValueError that names the file and says what to do.
    """
    check_choice("part", part, ("oia", *BDD100K))
    if action is not None:
        check_choice("action", action, ACTIONS)
    images.check_split("bdd", root, split, stand_in=STAND_IN)
    images.check_size(size)
    if part == "oia":
        folder, names, actions = _read_oia(root, split)
        y = actions if action is None else actions[:, ACTIONS.index(action)]
        class_names = ACTIONS if action is None else _name_classes(action)
    else:
        folder = images.find_folder("bdd", root, BDD100K[part], FILE[split]) / FILE[split]
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
        y, class_names = torch.full((len(names),), -1), _name_classes("forward")
    ids = [Path(n).stem for n in names]
    change = partial(images.resize, height=size[0], width=size[1], bicubic=True)
    return images.make_split("bdd", folder, names, y, ids, class_names, change, broken)


def _name_classes(action: str) -> tuple[str, str]:
    return "slow down" if action == "forward" else f"not {action}", action


def status(root: str = "") -> Status:
    """Report what `load(root)` would find; checks the first and last validation image per part."""

    def look() -> str:
        images.check_split("bdd", root, "validation", stand_in=STAND_IN)
        places = {"oia": [f"{p}/{_actions_file('validation')}" for p in OIA]}
        places |= {part: [f"{p}/val" for p in inside] for part, inside in BDD100K.items()}
        there = [
            k for k, inside in places.items() if any((Path(root) / i).exists() for i in inside)
        ]
        found = []
        for part in there or ["oia"]:
            data = load(root, part=part)
            images.check_first_and_last(data)
            found.append(f"{part}: {len(data):,} validation images")
        return f"{', '.join(found)} in {root}"

    return report_status("bdd", look)


def _actions_file(split: str) -> str:
    return f"{FILE[split]}_25k_images_actions.json"


def _read_oia(root: str, split: str) -> tuple[Path, list[str], Tensor]:
    """Return (image folder, N file names in order, actions (N, 4) int64 of 0 and 1)."""
    file = _actions_file(split)
    folder = images.find_folder("bdd", root, OIA, "data", file)
    path = folder / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = sorted((i["file_name"], int(i["id"])) for i in content["images"])
        categories = [list(a["category"]) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError) as e:
        problem = f"no list of images and annotations: {type(e).__name__} {e}"
        raise ValueError(describe_problem("bdd", path, problem)) from e
    names, actions = [], []
    for name, at in entries:
        if not 0 <= at < len(categories):
            problem = f"{name}: annotation {at} of {len(categories)}"
            raise ValueError(describe_problem("bdd", path, problem))
        category = categories[at]
        if len(category) not in (4, 5) or any(c not in (0, 1) for c in category):
            problem = f"{name}: category {category}, expected 4 or 5 of 0 or 1"
            raise ValueError(describe_problem("bdd", path, problem))
        is_confusing = len(category) == 5 and category[4] == 1
        if not is_confusing:
            names.append(name)
            actions.append([int(c) for c in category[:4]])
    table = torch.tensor(actions, dtype=torch.int64).reshape(-1, len(ACTIONS))
    return folder / "data", names, table
