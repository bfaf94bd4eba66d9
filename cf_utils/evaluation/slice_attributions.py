"""Attribution maps of classifiers that take the slices of a patient as channels.

The rivals of Fang et al., DiffExplainer (MICCAI workshop 2024), section 3.5. All explain the margin
of a class over the best other one, as in `metrics.saliency`. Saliency, integrated gradients and
occlusion give one map per slice. Class activation maps (CAM) cannot: the first convolution mixes
the slices, so all slices share one map.

Occlusion (Zeiler & Fergus, 2014) and integrated gradients are captum's, which lacks Grad-CAM++
(Chattopadhay, Sarkar, Howlader & Balasubramanian, WACV 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from cf_utils.core import check_query, device_of, frozen
from cf_utils.evaluation.attributions import fill_like, integrated_gradients
from cf_utils.evaluation.metrics import saliency

BLUR = 4  # pixels, standard deviation of the blurred patient, the baseline of the maps


def grad_cam_plus_plus(
    classifier: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, batch_size: int = 64
) -> Tensor:
    """Grad-CAM++ of the margin, >= 0, upsampled bilinearly to the image's size. (B, H, W).

    Args: layer: module with outputs A (B, channels, h, w); x (B, C, H, W); target (B,) int64.
    """
    check_query(x, target)
    device, parts, outputs = device_of(classifier, x.device), [], []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # later layers may work in place

    handle = layer.register_forward_hook(keep)
    try:
        with frozen(classifier), torch.enable_grad():
            for images, classes in zip(x.split(batch_size), target.split(batch_size), strict=True):
                images = images.detach().to(device).requires_grad_(True)
                margin = saliency.logit_margin(classifier(images), classes.to(device))
                a = outputs.pop()
                (g,) = torch.autograd.grad(margin.sum(), a)
                parts.append(weigh_activations(a.detach(), g).to(x.device))
    finally:
        handle.remove()
    coarse = torch.cat(parts)[:, None]
    return F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def weigh_activations(a: Tensor, g: Tensor) -> Tensor:
    """Return the map of Grad-CAM++ at the layer's resolution, (B, h, w) >= 0.

    a: activations (B, channels, h, w); g: the score's gradient in a.
    """
    # Eq. 19: alpha = g^2 / (2 g^2 + sum_ab A_ab g^3), here divided by g^2
    below = 2 + a.sum((2, 3), keepdim=True) * g
    alpha = torch.where((g != 0) & (below != 0), 1 / below, 0)
    # Eq. 10: w = sum_ij alpha relu(g)
    weight = (alpha * g.clamp(min=0)).sum((2, 3), keepdim=True)
    return (weight * a).sum(1).clamp(min=0)


def blur(x: Tensor, sd: int = BLUR) -> Tensor:
    """Return the images x (B, S, H, W) after a Gaussian blur of standard deviation sd pixels.

    As a baseline, they keep the chest and lack the details. Air, the darkest value, would give dark
    lung no relevance.
    """
    return gaussian_blur(x, [6 * sd + 1] * 2, [float(sd)] * 2)


def occlusion(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    window: int = 8,
    stride: int = 8,
    baseline: float | Tensor = 0.0,
    batch_size: int = 64,
) -> Tensor:
    """Fall of the margin when a square of one slice is replaced by `baseline`, signed.

    A voxel's value is the mean over the squares that cover it. (B, S, H, W). Costs one forward pass
    per square. baseline: a value of all voxels, or images like x.
    """
    check_query(x, target)
    device, parts = device_of(classifier, x.device), []
    with frozen(classifier), torch.no_grad():
        method = Occlusion(lambda v, t: saliency.logit_margin(classifier(v), t))
        for image, label, other in zip(x, target, fill_like(x, baseline), strict=True):
            attribution: Any = method.attribute(
                image[None].to(device),
                sliding_window_shapes=(1, window, window),
                strides=(1, stride, stride),
                baselines=other[None].to(device),
                additional_forward_args=(label[None].to(device),),
                perturbations_per_eval=batch_size,
            )
            parts.append(attribution.to(x))
    return torch.cat(parts)


def attribution_maps(
    classifier: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, **occluding: Any
) -> dict[str, Tensor | str]:
    """Return per method a map of amounts (B, S, H, W), or the reason why it has none.

    Saliency, integrated gradients and occlusion are absolute values; CAMs their positive part. The
    baseline of integrated gradients and occlusion is `blur(x)`.

    Args:
        classifier: maps x to logits (B, K).
        layer: its module for the CAMs, with outputs (B, channels, h, w).
        x: patients (B, S, H, W) in [0, 1]; target (B,) int64, the class to explain.
        occluding: settings of `occlusion`.
    """
    check_query(x, target)
    base = blur(x)

    def share(cam: Tensor) -> Tensor:
        return cam.clamp(min=0)[:, None].expand_as(x)

    works: dict[str, Callable[[], Tensor]] = {
        "saliency": lambda: saliency.gradient(classifier, x, target).abs(),
        "integrated gradients": lambda: integrated_gradients(classifier, x, target, base).abs(),
        "occlusion": lambda: occlusion(classifier, x, target, baseline=base, **occluding).abs(),
        "Grad-CAM": lambda: share(saliency.grad_cam(classifier, layer, x, target)),
        "Grad-CAM++": lambda: share(grad_cam_plus_plus(classifier, layer, x, target)),
    }
    maps: dict[str, Tensor | str] = {}
    for name, work in works.items():
        try:
            maps[name] = work()
        except ValueError as e:
            maps[name] = str(e)
    return maps
