"""BDD100K and BDD-OIA: driving scenes of 1280 x 720 pixels, read at 512 x 256 (bicubic, as the papers' code does).

`part="100k"` and `"10k"`: <root>/bdd100k or <root> itself, `images/{100k,10k}/{train,val,test}/*.jpg`; the 10k subset is found in
the old form `seg/images/{train,val}` too. They say nothing on what the driver may do: y is -1. ACE explains the 100k validation
set and trains its prior on the 10k subset.

`part="oia"`: <root>/lastframe (or BDD-OIA/lastframe, or <root> itself) with `data/*.jpg` and
`{train,val,test}_25k_images_actions.json`: an image's annotation is the one at position images[].id; its category is forward,
stop, left, right and in some files a fifth, confusing, whose images are dropped.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from cf_utils.datasets import images
from cf_utils.datasets.base import OnDisk, Status, missing

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
    """Scenes (3, *size), size (height, width), in [0, 1]; id: the file's name without its end.

    part oia: y is 1 where `action` may be taken (N,), or all four (N, 4) for `action=None`; parts 100k, 10k: y is -1, unknown,
    `action` not looked at.
    Raises FileNotFoundError or ValueError that names the file, and what is wrong with it first.
    """
    if part not in (*BDD100K, "oia"):
        raise ValueError(f"part: got {part!r}, expected one of {('oia', *BDD100K)}")
    if action not in (None, *ACTIONS):
        raise ValueError(f"action: got {action!r}, expected None or one of {ACTIONS}")
    images.check_split("bdd", root, split, stand_in=STAND_IN)
    change = partial(images.resized, height=size[0], width=size[1], bicubic=True)
    if part != "oia":
        folder = images.folder_with("bdd", root, BDD100K[part], FILE[split]) / FILE[split]
        names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
        y, class_names = torch.full((len(names),), -1), _answers("forward")
    else:
        folder, names, categories = _oia(root, split)
        all_four = torch.tensor(categories, dtype=torch.int64).reshape(-1, len(ACTIONS))
        y = all_four if action is None else all_four[:, ACTIONS.index(action)]
        class_names = ACTIONS if action is None else _answers(action)
    return images.split(
        "bdd", folder, names, y, [Path(n).stem for n in names], class_names, change, broken
    )


def _answers(action: str) -> tuple[str, str]:
    return "slow down" if action == "forward" else f"not {action}", action


def status(root: str = "") -> Status:
    places = [f"{p}/{FILE['validation']}" for part in BDD100K.values() for p in part]
    here = []
    try:
        images.check_split("bdd", root, "test", stand_in=STAND_IN)
        for label, inside in (("OIA", _actions_files("validation")), ("BDD100K", places)):
            here += [label] if any((Path(root) / i).exists() for i in inside) else []
        if not here:
            images.folder_with(
                "bdd", root, OIA, "data", f"{FILE['validation']}_25k_images_actions.json"
            )
    except FileNotFoundError as e:
        return Status("bdd", "missing", str(e))
    return Status("bdd", "present", f"{' and '.join(here)} in {root}")


def _actions_files(split: str) -> list[str]:
    return [f"{place}/{FILE[split]}_25k_images_actions.json" for place in OIA]


def _oia(root: str, split: str) -> tuple[Path, list[str], list[list[int]]]:
    """(image folder, file names in order, category of each: four of 0 or 1)."""
    file = f"{FILE[split]}_25k_images_actions.json"
    folder = images.folder_with("bdd", root, OIA, "data", file)
    path = folder / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = sorted((i["file_name"], int(i["id"])) for i in content["images"])
        categories = [list(a["category"]) for a in content["annotations"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            missing("bdd", path, f"no list of images and annotations: {type(e).__name__} {e}")
        ) from e
    names, kept = [], []
    for name, at in entries:
        if not 0 <= at < len(categories):
            raise ValueError(missing("bdd", path, f"{name}: annotation {at} of {len(categories)}"))
        category = categories[at]
        if len(category) not in (4, 5) or any(c not in (0, 1) for c in category):
            raise ValueError(
                missing("bdd", path, f"{name}: category {category}, expected 4 or 5 of 0 or 1")
            )
        if len(category) == 5 and category[4] == 1:
            continue
        names.append(name)
        kept.append([int(c) for c in category[:4]])
    return folder / "data", names, kept
