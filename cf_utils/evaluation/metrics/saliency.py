"""Saliency maps, the rows that an explanation's map of change stands beside: where does the classifier's score hang on the image?

Source: the gradient as a map is Simonyan, Vedaldi & Zisserman (2014), section 3; Grad-CAM is Selvaraju et al. (ICCV 2017), Eqs. 1
and 2, here by captum's LayerGradCam. Decisions:
* Both explain by how much the logit of a class leads the best other one, not that logit alone: of two classes behind one output
  (`classifiers.OneOutput`) one has a logit that is always 0, and its own map would be empty.
* Both come back signed. Size is `.abs()`, of the gradient summed over channels, as a change is; the published Grad-CAM is
  `.clamp(min=0)`.
* `target` is the class asked about: the decision itself for what a heat map usually shows.
* `random_mask` has an explanation's area and nothing else of it; its pixels are an item's own, whatever its batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from cf_utils.core import check_query, device_of, frozen, item_noise
from cf_utils.core.checks import check_logits


def lead(logits: Tensor, target: Tensor) -> Tensor:
    """By how much the logit of class `target` (B,) leads the best other one, (B,) of logits (B, K)."""
    return logits.gather(1, target[:, None])[:, 0] - logits.scatter(
        1, target[:, None], -torch.inf
    ).amax(1)


def gradient(classifier: nn.Module, x: Tensor, target: Tensor, batch_size: int = 64) -> Tensor:
    """Derivative of the lead of class `target` (B,) by the values of x (B, C, H, W), signed, of x's shape. Rows do not depend on
    each other. Raises ValueError on x that is not finite, and on classes that the classifier does not have."""
    _check(classifier, x, target)
    with frozen(classifier):
        return torch.cat(
            [
                _gradient(classifier, a, c).to(x.device)
                for a, c in _batches(classifier, x, target, batch_size)
            ]
        )


def _gradient(classifier: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(lead(classifier(x), target).sum(), x)[0]


def grad_cam(
    classifier: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, batch_size: int = 64
) -> Tensor:
    """Grad-CAM of the lead of class `target` (B,), signed, upsampled bilinearly to (B, H, W): what `layer` (a module of the
    classifier with output (B, channels, h, w)) holds, each channel times the mean of the lead's derivative by it.

    Raises ValueError on a layer that is not the classifier's, on x that is not finite, and on classes that it does not have.
    """
    if not any(layer is one for one in classifier.modules()):
        raise ValueError(
            f"layer: got a {type(layer).__name__} that is no module of the classifier, expected one that it passes"
        )
    _check(classifier, x, target)
    with frozen(classifier):
        maps = [
            LayerGradCam(lambda v, c=c: lead(classifier(v), c), layer)
            .attribute(a.detach().clone().requires_grad_(True))
            .to(x.device)
            for a, c in _batches(classifier, x, target, batch_size)
        ]
    return F.interpolate(
        torch.cat(maps).detach(), x.shape[2:], mode="bilinear", align_corners=False
    )[:, 0]


def _batches(
    classifier: nn.Module, x: Tensor, target: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """On the classifier's device."""
    place = device_of(classifier, x.device)
    return (
        (a.to(place), c.to(place)) for a, c in zip(x.split(size), target.split(size), strict=True)
    )


def _check(classifier: nn.Module, x: Tensor, target: Tensor) -> None:
    check_query(x, target)
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected images (B, C, H, W)")
    with frozen(classifier), torch.no_grad():
        check_logits(
            classifier(x[:1].to(device_of(classifier, x.device))).to(x.device), x[:1], target
        )


def random_mask(mask: Tensor, ids, seed: int = 0) -> Tensor:
    """As many pixels as each mask (B, 1, H, W) bool has, drawn without return: bool, of its shape. Depends on (seed, id) and the
    number of pixels alone."""
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool (B, 1, H, W)")
    if len(ids) != len(mask):
        raise ValueError(f"ids: got {len(ids)} for {len(mask)} masks, expected one each")
    order = (
        item_noise(seed, ids, mask.shape[1:], "random mask", "uniform")
        .flatten(1)
        .argsort(1)
        .argsort(1)
    )  # ranks
    return (order < mask.flatten(1).sum(1, keepdim=True).cpu()).view(mask.shape).to(mask.device)
