"""The attribute oracles behind the papers' MNAC and CD: VGGFace2's ResNet-50, fine-tuned on the 40 attributes of CelebA.

"celeba" is DiVE's (Rodriguez et al., ICCV 2021), "celebahq" STEEX's (Jacob et al., ECCV 2022); ACE uses both. They give logits
(B, 40) in CelebA's order of attributes for images (B, 3, H, W) in [0, 1], enlarged to 224 x 224 by bicubic interpolation.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.models import pretrained
from cf_utils.models.encoders import caffe_resnet50
from cf_utils.models.weights import fill

_PARTS = {
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
    """`kind`: celeba (BGR less VGGFace2's means in RGB's order, over 255; a layer of 128) or celebahq ((x - 0.5) / 0.5, RGB).

    `twice`: normalise CelebA-HQ's images a second time, as ACE's MNAC (not its CD) does by mistake, to stand beside its values.
    Raises FileNotFoundError that says how to get the file, ValueError that lists what does not fit.
    """

    official_for = ("mnac", "cd")

    def __init__(self, kind: str, twice: bool = False):
        if kind not in ("celeba", "celebahq") or (twice and kind == "celeba"):
            raise ValueError(
                f"kind, twice: got {kind!r}, {twice}, expected 'celeba' without twice, or 'celebahq'"
            )
        super().__init__()
        self.kind, self.twice = kind, twice
        path = pretrained.find(f"{kind}_oracle")
        content = files.read_published(path)
        if kind == "celeba":
            state = {
                f"{part}.{k}": v
                for part in ("feat_extract", "classifier")
                for k, v in content.get(part, {}).items()
            }
        else:
            state = content.get("model_state_dict", content)
        with torch.device("meta"):
            head = (
                [nn.Linear(2048, 128, bias=False), nn.Linear(128, 40)]
                if kind == "celeba"
                else [nn.Linear(2048, 40)]
            )
        self.net = nn.Sequential(caffe_resnet50(), *head)
        state = {_name(k, len(head)): v for k, v in state.items()}
        fill(
            self.net,
            {k: v.flatten(1) if k == "1.weight" and v.ndim == 4 else v for k, v in state.items()},
            path,
        )
        self.register_buffer(
            "mean",
            torch.tensor([131.0912, 103.8827, 91.4953]).view(1, 3, 1, 1) / 255,
            persistent=False,
        )
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "celeba":
            x = x.flip(1) - self.mean
        else:
            for _ in range(1 + self.twice):
                x = (x - 0.5) / 0.5
        return self.net(F.interpolate(x, (224, 224), mode="bicubic", align_corners=False))


def _name(key: str, heads: int) -> str:
    """Caffe's name of a tensor, as 'feat_extract.conv3_2_1x1_reduce_bn.weight', in `net`: '0.layer2.1.bn1.weight'."""
    module, _, kind = key.removeprefix("feat_extract.").rpartition(".")
    if module == "classifier":
        return f"{heads}.{kind}"
    if module == "feat_extract":
        return f"1.{kind}"
    if module.startswith("conv1_7x7_s2"):
        return f"0.{'bn1' if module.endswith('_bn') else 'conv1'}.{kind}"
    found = re.fullmatch(r"conv(\d)_(\d)_(\w+)", module)
    if not found or found[3] not in _PARTS:
        return key  # `fill` will list it
    return f"0.layer{int(found[1]) - 1}.{int(found[2]) - 1}.{_PARTS[found[3]]}.{kind}"
