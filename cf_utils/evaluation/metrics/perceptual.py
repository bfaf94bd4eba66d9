"""How different do two images look? LPIPS, and the diversity of several explanations of one image.

Source: Zhang et al., LPIPS (CVPR 2018), version 0.1 of the lpips package, whose ImageNet trunk comes from `cf_utils.models.pretrained` and
whose linear layers lie in its wheel: nothing is downloaded. Diversity sigma_L: DiME and ACE, section 4.3.
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

_TRUNKS = {"alex": "alexnet", "vgg": "vgg16"}


def lpips_network(net: str = "alex") -> nn.Module:
    """lpips.LPIPS, frozen, in eval mode. `net`: alex (the authors' choice for judging) or vgg (what sigma_L is reported with)."""
    if net not in _TRUNKS:
        raise ValueError(f"net: got {net!r}, expected one of {tuple(_TRUNKS)}")
    trunk = pretrained.trunk(_TRUNKS[net])
    import lpips

    with (
        torch.device("meta"),
        warnings.catch_warnings(),
    ):  # no time lost on random weights of a whole VGG
        warnings.filterwarnings(
            "ignore", module="torchvision"
        )  # lpips says `pretrained` as torchvision once did
        model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = {f"scaling_layer.{k}": v for k, v in lpips.ScalingLayer().state_dict().items()}
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        state |= files.read_published(path)
    for name in model.state_dict():
        if name.startswith("net."):  # net.slice3.6.weight is features.6.weight
            state[name] = trunk["features." + name.split(".", 2)[2]]
        elif name.startswith("lins."):  # the list of lin0, ...: the same modules once more
            state[name] = state["lin" + name.removeprefix("lins.")]
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def lpips_distance(network: nn.Module, a: Tensor, b: Tensor, batch_size: int = 50) -> Tensor:
    """LPIPS between a and b, images (B, 3, H, W) in [0, 1]. (B,) >= 0, 0 for equal images, lower is closer.

    Blind spot: trained on distortions of photographs; on renderings it is a measure of visible difference, not a calibrated one.
    """
    check_images("a", a)
    check_images("b", b)
    if a.shape != b.shape:
        raise ValueError(f"b: got {tuple(b.shape)}, expected {tuple(a.shape)}, the shape of a")
    place = device_of(network)
    parts = zip(a.split(batch_size), b.split(batch_size), strict=True)
    parts = ((p.to(place, torch.float32), q.to(place, torch.float32)) for p, q in parts)
    return torch.cat([network(p, q, normalize=True).flatten().to(a.device) for p, q in parts])


class VGG19(nn.Module):
    """DiME's perceptual term (its Eq. 4): mean squared difference of what VGG19's first 18 layers see in x and y (B, 3, H, W), in
    [0, 1]. (B,) >= 0. From torchvision's file; FileNotFoundError says how to get it, ValueError what in it does not fit."""

    def __init__(self):
        super().__init__()
        path = pretrained.find("vgg19")
        state = {
            k.removeprefix("features."): v
            for k, v in files.read_published(path).items()
            if k.startswith("features.")
        }
        with torch.device("meta"):
            layers = models.vgg19(weights=None).features[:18]
        state = {k: v.float() for k, v in state.items() if int(k.split(".")[0]) < 18}
        if wrong := files.misfits(state, layers.state_dict()):
            raise ValueError(f"{path} is no VGG19: " + "; ".join(wrong[:8]))
        layers.load_state_dict(state, assign=True)
        self.layers = nn.Sequential(
            *(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in layers)
        )  # none in place
        for name, values in zip(("mean", "std"), IMAGENET_NORM, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = (self.layers((one - self.mean) / self.std) for one in (x, y))
        return (a - b).square().mean((1, 2, 3))


def diversity(
    network: nn.Module, runs: Tensor, valid: Tensor | None = None, batch_size: int = 50
) -> Tensor:
    """sigma_L: mean LPIPS over all pairs of R >= 2 explanations of one image. (B,) >= 0, higher is more diverse.

    runs (R, B, 3, H, W) in [0, 1], the same items in the same order in each run. `valid` (R, B) bool: an item counts where all
    runs have the same verdict, as in the official code, which finds files of one name in one folder of every run; NaN elsewhere,
    so print n = isfinite().sum() with the mean. Official values use `lpips_network("vgg")`.
    Blind spot: noise in the background is diversity too.
    """
    if runs.ndim != 5 or len(runs) < 2:
        raise ValueError(f"runs: got {tuple(runs.shape)}, expected (R, B, 3, H, W) with R >= 2")
    if valid is not None and valid.shape != runs.shape[:2]:
        raise ValueError(f"valid: got {tuple(valid.shape)}, expected {tuple(runs.shape[:2])}")
    pairs = [lpips_distance(network, a, b, batch_size) for a, b in itertools.combinations(runs, 2)]
    mean = torch.stack(pairs).mean(0)
    return (
        mean
        if valid is None
        else torch.where((valid == valid[0]).all(0).to(mean.device), mean, torch.nan)
    )
