"""Image classifiers: the DenseNet-121 that the papers explain, a small DenseNet, and ResNet-50.

All map x (B, C, H, W) in [0, 1] to (B, outputs) and contain their normalisation. Each output of a
DenseNet is the logit of one label: `classifiers.OneOutput(model, i)` is the binary classifier of
label i, as methods need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.models.weights import channels_last, fill

Norm = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel
IMAGENET_NORM: Norm = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_NORM: Norm = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GREY_NORM: Norm = ((0.5,), (0.5,))
PUBLISHED: dict[str, int | tuple[str, ...]] = {  # kind -> number or names of outputs, in order
    "celeba": 40,
    "celebahq": ("Male", "Smiling", "Young"),
    "bdd": ("forward", "stop", "left", "right"),
    "imagenet": 1000,
}


class Normalised(nn.Module):
    """Network `net` behind the normalisation (x - mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, norm: Norm):
        super().__init__()
        self.net = net
        for name, values in zip(("mean", "std"), norm, strict=True):
            value = torch.tensor(values, device="cpu").view(1, -1, 1, 1)  # never on meta
            self.register_buffer(name, value, persistent=False)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless x has the shape (B, C, H, W), with the network's channels."""
        if x.ndim != 4 or x.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected images (B, {self.mean.shape[1]}, H, W)"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, outputs) of images x (B, C, H, W) in [0, 1]."""
        self.check(x)
        return self.net((x - self.mean) / self.std)


class ImageDenseNet(Normalised):
    """torchvision's DenseNet-121 (Huang et al., 2017) without pretrained weights."""

    def __init__(self, outputs: int = 1, channels: int = 3):
        net = models.densenet121(weights=None, num_classes=outputs)
        if channels != 3:
            net.features.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        super().__init__(net, ((0.5,) * channels, (0.5,) * channels))


class ImageResNet(Normalised):
    """torchvision's ResNet-50; `datasets.imagenet_pairs.IMAGENET` lists which output is which."""

    def __init__(self, outputs: int = 1000):
        super().__init__(models.resnet50(weights=None, num_classes=outputs), IMAGENET_NORM)


def build_small_densenet(
    outputs: int, growth: int, blocks: tuple[int, ...], first: int, pool: bool, channels: int
) -> models.DenseNet:
    """Return torchvision's DenseNet for small images, with SiLU and average pooling.

    growth: channels that a layer adds; blocks: layers per block; first: channels before the first
    block; pool: halve the resolution there; channels: of the input.
    """
    build: Any = models.DenseNet  # its annotation demands four blocks
    net = build(growth, tuple(blocks), first, bn_size=3, num_classes=outputs)
    # small images: a stride of 2 instead of 4 before the first block
    net.features.conv0 = nn.Conv2d(channels, first, 5, 2, 2, bias=False)
    net.features.pool0 = nn.AvgPool2d(2) if pool else nn.Identity()
    for module in net.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return net


class SmallDenseNet(Normalised):
    """DenseNet of few blocks for rendered images, 64 x 64 or 128 x 64 pixels.

    SiLU and average pooling replace ReLU and maximum, so that its gradient is continuous. `pool`
    halves the resolution before the first block, which saves three quarters of the time.
    `channels`: 3 for colours, 1 for grey levels.
    """

    def __init__(
        self,
        outputs: int = 1,
        growth: int = 20,
        blocks: tuple[int, ...] = (4, 6, 8),
        first: int = 32,
        pool: bool = False,
        channels: int = 3,
    ):
        if channels not in (1, 3):
            raise ValueError(f"channels: got {channels}, expected 1 or 3")
        net = build_small_densenet(outputs, growth, blocks, first, pool, channels)
        super().__init__(net, GREY_NORM if channels == 1 else HALF_NORM)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, outputs) of images x (B, channels, H, W) in [0, 1]."""
        self.check(x)
        net: Any = self.net
        features, classifier = net.features, net.classifier
        return classifier(F.silu(features((x - self.mean) / self.std)).mean((2, 3)))


def load_published(
    path: str | Path, kind: str, device: torch.device | str = "cpu"
) -> ImageDenseNet | ImageResNet:
    """Load the published classifier in `path` with all its outputs, in eval mode.

    Args:
        path: a .pt, .pth, .tar or .safetensors file. Nothing in it is run.
        kind: `celeba` (DiVE's classifier, 40 outputs), `celebahq` (STEEX's), `bdd` (BDD-OIA) or
            `imagenet` (torchvision's ResNet-50). It is not known which crop of CelebA the first was
            trained on; measure its accuracy on both.

    Raises FileNotFoundError. Raises ValueError that lists the names and shapes that do not fit.
    """
    head = PUBLISHED[check_choice("kind", kind, PUBLISHED)]
    outputs = head if isinstance(head, int) else len(head)
    content = files.read_published(path)
    with torch.device("meta"):  # saves computing initial weights that the file replaces
        model = ImageResNet(outputs) if kind == "imagenet" else ImageDenseNet(outputs)
    state = {_torchvision_name(name): value for name, value in _tensors_in(content)}
    fill(model.net, state, f"{path} is no {kind} classifier")
    return channels_last(model).eval().to(device)


def _tensors_in(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted name, tensor) of the model's weights in a published file.

    STEEX stores them beside the optimiser's state. DiVE stores two parts, beside other entries.
    """
    parts = ("feat_extract", "classifier")
    if "model_state_dict" in content:
        content = content["model_state_dict"]
    elif all(isinstance(content.get(part), dict) for part in parts):
        content = {part: content[part] for part in parts}
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _tensors_in(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


def _torchvision_name(name: str) -> str:
    """Return torchvision's name of a tensor; both publishers wrap DenseNet-121 twice."""
    return name.removeprefix("module.").replace("feat_extract.feat_extract.", "", 1)
