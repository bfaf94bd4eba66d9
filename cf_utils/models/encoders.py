"""Frozen encoders of images, whose features metrics compare.

A metric has its official name (FID, FVA, S3, ...) only through the network that defines it, with its published weights from
data/weights (`models.pretrained` says how to get them): `official_for` lists those names. Encoders map images (B, 3, H, W) in
[0, 1] to (B, D); each docstring says how the encoder prepares an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from cf_utils.core import files
from cf_utils.models import pretrained
from cf_utils.models.array_pickle import read_arrays
from cf_utils.models.image_classifiers import IMAGENET_NORM
from cf_utils.models.weights import fill


class Trunk(nn.Module):
    """ImageNet's AlexNet (D = 256) or VGG16 (D = 512): the last rectified layer, averaged over the picture.

    A picture whose shorter side has under 128 pixels is enlarged to that (bilinear, shape kept): at 64 AlexNet sees 3 x 3 places.
    """

    official_for: tuple[str, ...] = ()

    def __init__(self, name: str = "alexnet"):
        super().__init__()
        state = pretrained.load_trunk(name)
        with torch.device("meta"):
            layers = getattr(models, name)(weights=None).features[
                :-1
            ]  # without the pooling at the end
        layers.load_state_dict(
            {k.removeprefix("features."): v for k, v in state.items()}, assign=True
        )
        self.layers = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers))
        _constants(self, *IMAGENET_NORM)

    def forward(self, x: Tensor) -> Tensor:
        if (short := min(x.shape[2:])) < 128:
            size = [round(s * 128 / short) for s in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.layers((x - self.mean) / self.std).mean((2, 3))


class Inception(nn.Module):
    """pytorch-fid's InceptionV3 (D = 2048), stretched to 299 x 299 and scaled by its own code. Only the published file fits."""

    official_for = ("fid", "kid", "sfid")

    def __init__(self):
        super().__init__()
        from pytorch_fid import inception  # here: only those who have the file need it

        state = files.read_published(pretrained.find("inception"))
        # its constructor loads the weights from the network, unchecked; it gets those of the checked file instead
        with mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
            self.net = inception.InceptionV3([3])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0].flatten(1)


class FaceNet(nn.Module):
    """VGGFace2's ResNet-50 in the layout of `resnet50_ft` (D = 2048, pool5): FVA and FS, verified above a cosine of 0.5.

    The shorter side is resized to 224; BGR in 0 to 255 less the means (91.4953, 103.8827, 131.0912). The network is Caffe's:
    strides in the first convolution of a block, pooling that rounds up. ACE's code resizes in 8 bits, we in float.
    """

    official_for = ("fva", "fs")
    threshold = 0.5

    def __init__(self):
        super().__init__()
        path = pretrained.find("vggface2")
        state = read_arrays(path.read_bytes())
        self.net = caffe_resnet50()
        fill(
            self.net,
            {k: torch.tensor(v) for k, v in state.items() if not k.startswith("fc.")},
            path,
        )
        _constants(self, [m / 255 for m in (91.4953, 103.8827, 131.0912)], [1 / 255] * 3)

    def forward(self, x: Tensor) -> Tensor:
        short = min(x.shape[2:])
        x = F.interpolate(
            x,
            [s * 224 // short for s in x.shape[2:]],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return self.net((x.flip(1) - self.mean) / self.std)


def caffe_resnet50() -> nn.Module:
    """VGGFace2's ResNet-50 up to pool5 (D = 2048), on meta: `fill` it. Torchvision's names, Caffe's strides and pooling."""
    with torch.device("meta"):
        net = models.resnet50(weights=None)
    net.fc, net.maxpool = nn.Identity(), nn.MaxPool2d(3, 2, 0, ceil_mode=True)
    for layer in (net.layer2, net.layer3, net.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return net


class SimSiam(nn.Module):
    """SimSiam's ResNet-50 with its projector's output z (D = 2048), at the image's own size: S3.

    The published file of 100 epochs at batch size 256, whose predictor and optimiser are left out.
    """

    official_for = ("s3",)

    def __init__(self):
        super().__init__()
        path = pretrained.find("simsiam")
        content = files.read_published(path)
        state = {
            k.removeprefix("module.").removeprefix("encoder."): v
            for k, v in content.get("state_dict", content).items()
        }
        with torch.device("meta"):
            self.net = models.resnet50(weights=None)
            self.net.fc = nn.Sequential(
                nn.Linear(2048, 2048, bias=False),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Linear(2048, 2048, bias=False),
                nn.BatchNorm1d(2048),
                nn.ReLU(),
                nn.Linear(2048, 2048),
                nn.BatchNorm1d(2048, affine=False),
            )
        fill(self.net, {k: v for k, v in state.items() if not k.startswith("predictor.")}, path)
        _constants(self, *IMAGENET_NORM)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


ENCODERS = {
    "alexnet": Trunk,
    "vgg16": lambda: Trunk("vgg16"),
    "inception": Inception,
    "vggface2": FaceNet,
    "simsiam": SimSiam,
}


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """A frozen encoder in eval mode. FileNotFoundError names the missing file, the metrics that it is for and how to get it."""
    if name not in ENCODERS:
        raise ValueError(f"name: got {name!r}, expected one of {tuple(ENCODERS)}")
    return ENCODERS[name]().eval().requires_grad_(False).to(device)


def _constants(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        module.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
