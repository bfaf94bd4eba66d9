"""Classifiers of images: DenseNet-121 as the papers explain, a small one for the rendered worlds, ResNet-50 for ImageNet.

All map x (B, 3, H, W) in [0, 1] to (B, outputs); normalisation is inside. An output of the DenseNets is the logit of one
yes-or-no label: `classifiers.OneOutput(model, i)` makes label i the two-class classifier that methods take.

`load_published` reads the weights that DiME, ACE and STEEX gave out: DiVE's CelebA classifier with 40 outputs ("celeba"), STEEX's
for CelebAMask-HQ (Male, Smiling, Young: "celebahq") and BDD-OIA (four actions: "bdd"), torchvision's ResNet-50 ("imagenet"). The
three DenseNets expect (x - 0.5) / 0.5. Which crop of CelebA the first was trained on is not known: measure its accuracy on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cf_utils.core import files
from cf_utils.models.weights import channels_last, mismatches

IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_NORM = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PUBLISHED = {  # kind -> the outputs, in the order of the published head
    "celeba": 40,
    "celebahq": ("Male", "Smiling", "Young"),
    "bdd": ("forward", "stop", "left", "right"),
    "imagenet": 1000,
}


class _Normalised(nn.Module):
    """Holds `net` and passes it (x - mean) / std."""

    def __init__(self, net: nn.Module, norm: tuple[tuple[float, ...], tuple[float, ...]]):
        super().__init__()
        self.net = net
        for name, values in zip(("mean", "std"), norm, strict=True):
            value = torch.tensor(values, device="cpu").view(
                1, -1, 1, 1
            )  # a constant: in no file, never on meta
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected images (B, {self.mean.shape[1]}, H, W)"
            )
        return self.net((x - self.mean) / self.std)


class ImageDenseNet(_Normalised):
    """torchvision's DenseNet-121 (Huang et al., 2017) without its ImageNet weights: 7.0 M parameters."""

    def __init__(self, outputs: int = 1):
        super().__init__(models.densenet121(weights=None, num_classes=outputs), HALF_NORM)


class ImageResNet(_Normalised):
    """torchvision's ResNet-50: 25.6 M parameters, 1,000 classes; `datasets.imagenet_pairs.IMAGENET` says which are whose."""

    def __init__(self, outputs: int = 1000):
        super().__init__(models.resnet50(weights=None, num_classes=outputs), IMAGENET_NORM)


class SmallDenseNet(_Normalised):
    """A DenseNet of three blocks for 64 x 64 faces and 128 x 64 roads: 0.36 M parameters, 8 x 8 at the end for 64 pixels.

    SiLU and average pooling instead of ReLU and maximum: a search follows its gradient, which then has no jumps. `pool`: the
    first block sees 16 x 16 instead of 32 x 32, for a quarter of the time.
    """

    def __init__(
        self,
        outputs: int = 1,
        growth: int = 20,
        blocks: tuple[int, ...] = (4, 6, 8),
        first: int = 32,
        pool: bool = False,
    ):
        net = models.DenseNet(growth, tuple(blocks), first, bn_size=3, num_classes=outputs)
        net.features.conv0 = nn.Conv2d(
            3, first, 5, 2, 2, bias=False
        )  # small pictures: no stride of 4 before all else
        net.features.pool0 = nn.AvgPool2d(2) if pool else nn.Identity()
        for module in net.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.SiLU())
        super().__init__(net, HALF_NORM)

    def forward(self, x: Tensor) -> Tensor:
        features, classifier = self.net.features, self.net.classifier
        return classifier(F.silu(features((x - self.mean) / self.std)).mean((2, 3)))


def load_published(path: str | Path, kind: str, device: torch.device | str = "cpu") -> nn.Module:
    """The published classifier in `path` (.pt, .pth, .tar or .safetensors), all its outputs, in eval mode.

    Raises FileNotFoundError, or ValueError that lists the names and shapes that do not fit. Nothing in the file is run.
    """
    if kind not in PUBLISHED:
        raise ValueError(f"kind: got {kind!r}, expected one of {tuple(PUBLISHED)}")
    outputs = PUBLISHED[kind] if isinstance(PUBLISHED[kind], int) else len(PUBLISHED[kind])
    content = files.read_published(path)
    with torch.device("meta"):  # no time lost on first weights that the file replaces
        model = ImageResNet(outputs) if kind == "imagenet" else ImageDenseNet(outputs)
    own = model.net.state_dict()
    state = {
        _name(k): v.to(own[_name(k)].dtype) if _name(k) in own else v for k, v in _flat(content)
    }
    for k, v in own.items():  # a counter that inference does not use, and old files lack
        if k.endswith("num_batches_tracked"):
            state.setdefault(k, torch.zeros(v.shape, dtype=v.dtype))
    if wrong := mismatches(state, own):
        raise ValueError(
            f"{path} is no {kind} classifier, {len(wrong)} names do not fit: "
            + "; ".join(wrong[:8])
            + ("; ..." if len(wrong) > 8 else "")
        )
    model.net.load_state_dict(state, assign=True)
    return channels_last(model).eval().to(device)


def _flat(content: dict, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of a state dict that may lie beside an optimiser's (STEEX) or in two parts (DiVE)."""
    if "model_state_dict" in content:
        content = content["model_state_dict"]
    elif isinstance(content.get("feat_extract"), dict) and isinstance(
        content.get("classifier"), dict
    ):
        content = {k: content[k] for k in ("feat_extract", "classifier")}
    for k, v in content.items():
        if isinstance(v, dict):
            yield from _flat(v, f"{before}{k}.")
        elif isinstance(v, Tensor):
            yield f"{before}{k}", v


def _name(key: str) -> str:
    """torchvision's name: both codes wrap DenseNet-121 twice and put a head of their own beside it."""
    return key.removeprefix("module.").replace("feat_extract.feat_extract.", "", 1)
