"""Frozen image encoders; metrics compare their features.

An encoder maps images (B, 3, H, W) in [0, 1] to features (B, D). A metric has its official name
(FID, FVA, S3, ...) only if it uses the network that defines it, with the published weights in
data/weights. `official_for` lists the metrics that an encoder defines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.models import pretrained
from cf_utils.models.array_pickle import read_arrays
from cf_utils.models.image_classifiers import IMAGENET_NORM
from cf_utils.models.weights import fill


class _Encoder(nn.Module):
    """Base of encoders that normalise with constants `mean` and `std` (1, 3, 1, 1)."""

    mean: Tensor
    std: Tensor

    def _register_norm(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)


class Trunk(_Encoder):
    """ImageNet's AlexNet (D = 256) or VGG16 (D = 512): mean of the last ReLU layer over pixels.

    An image whose shorter side is below 128 pixels is enlarged to 128 (bilinear, aspect kept).
    """

    official_for: tuple[str, ...] = ()

    def __init__(self, name: str = "alexnet"):
        super().__init__()
        state = pretrained.load_trunk(name)
        with torch.device("meta"):
            layers = getattr(models, name)(weights=None).features[:-1]  # without the last pooling
        state = {key.removeprefix("features."): value for key, value in state.items()}
        layers.load_state_dict(state, assign=True)
        out_of_place = (nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers)
        self.layers = nn.Sequential(*out_of_place)
        self._register_norm(*IMAGENET_NORM)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, D) of images x."""
        if (short := min(x.shape[2:])) < 128:
            size = [round(side * 128 / short) for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.layers((x - self.mean) / self.std).mean((2, 3))


class Inception(nn.Module):
    """pytorch-fid's InceptionV3 (D = 2048), which resizes to 299 x 299 and scales images itself."""

    official_for = ("fid", "kid", "sfid")

    def __init__(self) -> None:
        super().__init__()
        from pytorch_fid import inception  # imported here: only this encoder needs it

        state = files.read_published(pretrained.find("inception"))
        # the constructor would download its weights; give it those of the verified file
        with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
            self.net = inception.InceptionV3([3])

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2048) of images x."""
        return self.net(x)[0].flatten(1)


class FaceNet(_Encoder):
    """VGGFace2's ResNet-50, `resnet50_ft` (D = 2048, pool5).

    The shorter side is resized to 224. The channels are BGR from 0 to 255 minus VGGFace2's means.
    ACE's code resizes 8-bit images; here the images are floats. Two images count as the same person
    if the cosine of their features exceeds `threshold`.
    """

    official_for = ("fva", "fs")
    threshold = 0.5

    def __init__(self) -> None:
        super().__init__()
        path = pretrained.find("vggface2")
        arrays = read_arrays(path.read_bytes())
        self.net = build_caffe_resnet50()
        state = {k: torch.tensor(v) for k, v in arrays.items() if not k.startswith("fc.")}
        fill(self.net, state, f"{path} does not hold VGGFace2's ResNet-50")
        means = (91.4953, 103.8827, 131.0912)
        self._register_norm([m / 255 for m in means], [1 / 255] * 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2048) of images x."""
        short = min(x.shape[2:])
        size = [side * 224 // short for side in x.shape[2:]]
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return self.net((x.flip(1) - self.mean) / self.std)


def build_caffe_resnet50() -> nn.Module:
    """Build VGGFace2's ResNet-50 up to pool5 (D = 2048) on the meta device, to be filled.

    Names are torchvision's. As in Caffe, the first convolution of a block has the stride, and
    pooling rounds sizes up.
    """
    with torch.device("meta"):
        net: Any = models.resnet50(weights=None)
    net.fc, net.maxpool = nn.Identity(), nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    for layer in (net.layer2, net.layer3, net.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return net


class SimSiam(_Encoder):
    """SimSiam's ResNet-50 with its projector (D = 2048), at the image's own size.

    Weights: the published file of 100 epochs at batch size 256, without predictor and optimiser.
    """

    official_for = ("s3",)

    def __init__(self) -> None:
        super().__init__()
        path = pretrained.find("simsiam")
        content = files.read_published(path)
        with torch.device("meta"):
            net: Any = models.resnet50(weights=None)
            net.fc = _build_projector()
        self.net = net
        state = {}
        for name, value in content.get("state_dict", content).items():
            name = name.removeprefix("module.").removeprefix("encoder.")
            if not name.startswith("predictor."):
                state[name] = value
        fill(self.net, state, f"{path} does not hold SimSiam's ResNet-50")
        self._register_norm(*IMAGENET_NORM)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, 2048) of images x."""
        return self.net((x - self.mean) / self.std)


def _build_projector() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(2048, 2048, bias=False), nn.BatchNorm1d(2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 2048), nn.BatchNorm1d(2048, affine=False))


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": Trunk,
    "vgg16": lambda: Trunk("vgg16"),
    "inception": Inception,
    "vggface2": FaceNet,
    "simsiam": SimSiam,
}


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """Load a frozen encoder in eval mode, one of `ENCODERS`.

    Raises FileNotFoundError that names the missing file, the metrics that need it, and how to get
    it. Raises ValueError for an unknown name.
    """
    return ENCODERS[check_choice("name", name, ENCODERS)]().eval().requires_grad_(False).to(device)
