"""Saliency maps and random masks, baselines for an explanation's map of change.

Sources: the gradient as a map is from Simonyan, Vedaldi & Zisserman (2014), section 3. Grad-CAM is
from Selvaraju et al. (ICCV 2017), Eqs. 1 and 2, computed by captum's LayerGradCam.
Deviation: both explain the margin of a class over the best other class, not its logit alone. Behind
`classifiers.OneOutput` one of two logits is always 0, and its own map would be empty.
Both maps are signed. Take `.abs()` for a magnitude; the published Grad-CAM is `.clamp(min=0)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from cf_utils.core import Ids, check_query, device_of, frozen, item_noise
from cf_utils.core.checks import check_logits


def logit_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Logit of class `target` (B,) minus the best other logit, of logits (B, K). (B,)."""
    others = logits.scatter(1, target[:, None], -torch.inf)
    return logits.gather(1, target[:, None])[:, 0] - others.amax(1)


def gradient(classifier: nn.Module, x: Tensor, target: Tensor, batch_size: int = 64) -> Tensor:
    """Gradient of the logit margin with respect to the image, signed.

    Source: Simonyan et al. (2014), for the margin. Items do not influence each other.

    Args: x (B, C, H, W), finite; target (B,) int64, the class to explain (usually the decision).
    Returns: (B, C, H, W), margin per unit of x. Raises ValueError naming the invalid argument.
    """
    _check_call(classifier, x, target)
    parts = []
    with frozen(classifier):
        for images, classes in _batches(classifier, x, target, batch_size):
            images = images.detach().clone().requires_grad_(True)
            margin = logit_margin(classifier(images), classes)
            parts.append(torch.autograd.grad(margin.sum(), images)[0].to(x.device))
    return torch.cat(parts)


def grad_cam(
    classifier: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, batch_size: int = 64
) -> Tensor:
    """Grad-CAM of the logit margin, signed and upsampled bilinearly to the image's size.

    Source: Selvaraju et al. (2017). Each channel of the layer's output is weighted by the mean of
    the margin's derivative with respect to it.

    Args:
        layer: module of the classifier with outputs (B, channels, h, w).
        x: images (B, C, H, W), finite.
        target: (B,) int64, the class to explain.

    Returns: (B, H, W). Raises ValueError naming the invalid argument.
    """
    if not any(layer is module for module in classifier.modules()):
        raise ValueError(
            f"layer: got a {type(layer).__name__} that is no module of the classifier, "
            "expected one of classifier.modules()"
        )
    _check_call(classifier, x, target)
    parts = []
    with frozen(classifier):
        for images, classes in _batches(classifier, x, target, batch_size):
            images = images.detach().clone().requires_grad_(True)
            cam = LayerGradCam(lambda v, c=classes: logit_margin(classifier(v), c), layer)
            attribution = cam.attribute(images)
            assert isinstance(attribution, Tensor)  # captum returns a tuple for several inputs
            parts.append(attribution.to(x.device))
    coarse = torch.cat(parts).detach()
    return F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _batches(
    classifier: nn.Module, x: Tensor, target: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images and classes on the classifier's device."""
    device = device_of(classifier, x.device)
    for images, classes in zip(x.split(size), target.split(size), strict=True):
        yield images.to(device), classes.to(device)


def _check_call(classifier: nn.Module, x: Tensor, target: Tensor) -> None:
    check_query(x, target)
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected images (B, C, H, W)")
    device = device_of(classifier, x.device)
    with frozen(classifier), torch.no_grad():
        check_logits(classifier(x[:1].to(device)).to(x.device), x[:1], target)


def random_mask(mask: Tensor, ids: Ids, seed: int = 0) -> Tensor:
    """Draw a random mask with the same number of pixels as each given mask.

    A mask depends on the seed, the item's id and its number of pixels alone, not on the batch.

    Args: mask (B, 1, H, W) bool; ids: B ids. Returns: (B, 1, H, W) bool.
    """
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool (B, 1, H, W)")
    if len(ids) != len(mask):
        raise ValueError(f"ids: got {len(ids)} for {len(mask)} masks, expected one per mask")
    noise = item_noise(seed, ids, mask.shape[1:], "random mask", "uniform").flatten(1)
    rank = noise.argsort(1).argsort(1)
    n_pixels = mask.flatten(1).sum(1, keepdim=True).cpu()
    return (rank < n_pixels).view(mask.shape).to(mask.device)
