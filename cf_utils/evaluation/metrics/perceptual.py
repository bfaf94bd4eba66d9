"""Perceptual distances (LPIPS, VGG19) and the diversity of several explanations of one image.

Sources: LPIPS is from Zhang et al. (CVPR 2018), version 0.1 of the lpips package. Its ImageNet
trunk comes from `models.pretrained`, its linear layers from the package; nothing is downloaded.
The diversity sigma_L is from DiME and ACE, section 4.3.
"""

from __future__ import annotations

import itertools
import warnings
from importlib import resources

import torch
from torch import Tensor, nn
from torchvision import models

from cf_utils.core import device_of, files
from cf_utils.evaluation.metrics.features import check_images
from cf_utils.models import pretrained
from cf_utils.models.image_classifiers import IMAGENET_NORM
from cf_utils.models.weights import mismatches

_TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}


def lpips_network(net: str = "alex") -> nn.Module:
    """Build lpips.LPIPS, frozen and in eval mode.

    `net`: "alex", the authors' choice for evaluation, or "vgg", with which sigma_L is reported.
    Raises FileNotFoundError if the trunk's weights are missing, ValueError on another `net`.
    """
    if net not in _TRUNKS:
        raise ValueError(f"net: got {net!r}, expected one of {tuple(_TRUNKS)}")
    trunk = pretrained.load_trunk(_TRUNKS[net])
    model = _build_without_weights(net)
    import lpips

    state = {f"scaling_layer.{k}": v for k, v in lpips.ScalingLayer().state_dict().items()}
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        state |= files.read_published(path)
    for name in model.state_dict():
        if name.startswith("net."):  # net.slice3.6.weight is features.6.weight
            state[name] = trunk["features." + name.split(".", 2)[2]]
        elif name.startswith("lins."):  # lins lists the modules lin0, lin1, ... again
            state[name] = state["lin" + name.removeprefix("lins.")]
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _build_without_weights(net: str) -> nn.Module:
    import lpips  # imported here: only LPIPS needs it

    with torch.device("meta"), warnings.catch_warnings():  # meta: skips random initialisation
        warnings.filterwarnings("ignore", module="torchvision")  # lpips uses a deprecated argument
        return lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)


@torch.no_grad()
def lpips_distance(network: nn.Module, a: Tensor, b: Tensor, batch_size: int = 50) -> Tensor:
    """LPIPS between two images. (B,) >= 0, 0 for equal images, lower is closer.

    Source: Zhang et al. (2018). Blind spot: it is calibrated on distorted photographs, not on
    renderings.

    Args: network from `lpips_network`; a, b (B, 3, H, W) in [0, 1].
    """
    check_images("a", a)
    check_images("b", b)
    if a.shape != b.shape:
        raise ValueError(f"b: got {tuple(b.shape)}, expected {tuple(a.shape)}, the shape of a")
    device, distances = device_of(network), []
    for p, q in zip(a.split(batch_size), b.split(batch_size), strict=True):
        p, q = p.to(device, torch.float32), q.to(device, torch.float32)
        distances.append(network(p, q, normalize=True).flatten().to(a.device))
    return torch.cat(distances)


class VGG19(nn.Module):
    """Mean squared difference of two images' features in VGG19's first 18 layers.

    Source: the perceptual term of DiME (Jeanneret et al., 2022), Eq. 4. `forward(x, y)` takes
    images (B, 3, H, W) in [0, 1] and returns (B,) >= 0, 0 for equal images. Uses torchvision's
    weights. Raises FileNotFoundError if they are missing, ValueError if the file does not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        path = pretrained.find("vgg19")
        state = {
            k.removeprefix("features."): v.float()
            for k, v in files.read_published(path).items()
            if k.startswith("features.") and int(k.split(".")[1]) < 18
        }
        with torch.device("meta"):
            layers = nn.Sequential(*list(models.vgg19(weights=None).features.children())[:18])
        if wrong := mismatches(state, layers.state_dict()):
            raise ValueError(f"{path} is no VGG19: " + "; ".join(wrong[:8]))
        layers.load_state_dict(state, assign=True)
        out_of_place = (nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers)
        self.layers = nn.Sequential(*out_of_place)
        for name, values in zip(("mean", "std"), IMAGENET_NORM, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (self.layers((image - self.mean) / self.std) for image in (x, y))
        return (a - b).square().mean((1, 2, 3))


def diversity(
    network: nn.Module, runs: Tensor, valid: Tensor | None = None, batch_size: int = 50
) -> Tensor:
    """sigma_L: mean LPIPS over all pairs of explanations of one image. Higher is more diverse.

    Source: ACE, section 4.3; official values use `lpips_network("vgg")`. Blind spot: noise in the
    background counts as diversity.

    Args:
        runs: (R, B, 3, H, W) in [0, 1], R >= 2 runs over the same items in the same order.
        valid: (R, B) bool. As in the official code, an item counts if it is valid in all runs or
            in none.

    Returns: (B,) >= 0, NaN for items that do not count; report isfinite().sum() as n.
    """
    if runs.ndim != 5 or len(runs) < 2:
        raise ValueError(f"runs: got {tuple(runs.shape)}, expected (R, B, 3, H, W) with R >= 2")
    if valid is not None and valid.shape != runs.shape[:2]:
        raise ValueError(f"valid: got {tuple(valid.shape)}, expected {tuple(runs.shape[:2])}")
    pairs = [lpips_distance(network, a, b, batch_size) for a, b in itertools.combinations(runs, 2)]
    mean = torch.stack(pairs).mean(0)
    if valid is None:
        return mean
    agree = (valid == valid[0]).all(0).to(mean.device)
    return torch.where(agree, mean, torch.nan)
