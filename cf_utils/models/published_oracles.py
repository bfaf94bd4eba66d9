"""Attribute oracles behind the papers' MNAC and CD: VGGFace2's ResNet-50, fine-tuned on CelebA.

`celeba` is DiVE's (Rodriguez et al., ICCV 2021), `celebahq` STEEX's (Jacob et al., ECCV 2022). ACE
uses both.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.models import pretrained
from cf_utils.models.encoders import build_caffe_resnet50
from cf_utils.models.weights import fill

_CAFFE_NAMES = {  # Caffe's name of a layer in a block -> torchvision's
    "1x1_reduce": "conv1",
    "1x1_reduce_bn": "bn1",
    "3x3": "conv2",
    "3x3_bn": "bn2",
    "1x1_increase": "conv3",
    "1x1_increase_bn": "bn3",
    "1x1_proj": "downsample.0",
    "1x1_proj_bn": "downsample.1",
}


class PublishedOracle(nn.Module):
    """Logits (B, 40) of CelebA's attributes for images (B, 3, H, W) in [0, 1].

    Images are normalised and then resized to 224 x 224 (bicubic). `celeba` subtracts VGGFace2's
    means in RGB order from channels in BGR order, as the published code does. `celebahq` uses
    (x - 0.5) / 0.5.

    Args:
        kind: `celeba` or `celebahq`.
        normalise_twice: normalise CelebA-HQ's images a second time. ACE's MNAC does so by mistake;
            its CD does not.

    Raises FileNotFoundError, saying how to get the file, and ValueError, listing what does not fit.
    """

    official_for = ("mnac", "cd")
    mean: Tensor

    def __init__(self, kind: str, normalise_twice: bool = False):
        if kind not in ("celeba", "celebahq") or (normalise_twice and kind == "celeba"):
            raise ValueError(
                f"kind, normalise_twice: got {kind!r}, {normalise_twice}, expected 'celeba' with "
                "False, or 'celebahq'"
            )
        super().__init__()
        self.kind, self.normalise_twice = kind, normalise_twice
        path = pretrained.find(f"{kind}_oracle")
        with torch.device("meta"):
            head = [nn.Linear(2048, 40)]
            if kind == "celeba":
                head = [nn.Linear(2048, 128, bias=False), nn.Linear(128, 40)]
        self.net = nn.Sequential(build_caffe_resnet50(), *head)
        state = _read_state(files.read_published(path), kind)
        state = {_own_name(name, len(head)): value for name, value in state.items()}
        if "1.weight" in state and state["1.weight"].ndim == 4:  # a 1 x 1 convolution
            state["1.weight"] = state["1.weight"].flatten(1)
        fill(self.net, state, f"{path} is no oracle of {kind}")
        means = torch.tensor([131.0912, 103.8827, 91.4953]).view(1, 3, 1, 1)
        self.register_buffer("mean", means / 255, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 40), in CelebA's order of attributes."""
        if self.kind == "celeba":
            x = x.flip(1) - self.mean
        else:
            for _ in range(1 + self.normalise_twice):
                x = (x - 0.5) / 0.5
        return self.net(F.interpolate(x, (224, 224), mode="bicubic", align_corners=False))


def _read_state(content: dict[str, Any], kind: str) -> dict[str, Tensor]:
    if kind == "celebahq":
        return content.get("model_state_dict", content)
    parts = ("feat_extract", "classifier")
    return {f"{part}.{k}": v for part in parts for k, v in content.get(part, {}).items()}


def _own_name(name: str, n_head: int) -> str:
    """Translate Caffe's name of a tensor into that of `PublishedOracle.net`.

    `feat_extract.conv3_2_1x1_reduce_bn.weight` becomes `0.layer2.1.bn1.weight`.
    """
    module, _, kind = name.removeprefix("feat_extract.").rpartition(".")
    if module == "classifier":
        return f"{n_head}.{kind}"
    if module == "feat_extract":
        return f"1.{kind}"
    if module.startswith("conv1_7x7_s2"):
        return f"0.{'bn1' if module.endswith('_bn') else 'conv1'}.{kind}"
    found = re.fullmatch(r"conv(\d)_(\d)_(\w+)", module)
    if not found or found[3] not in _CAFFE_NAMES:
        return name  # `fill` will list it
    return f"0.layer{int(found[1]) - 1}.{int(found[2]) - 1}.{_CAFFE_NAMES[found[3]]}.{kind}"
