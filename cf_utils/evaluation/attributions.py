"""Relevance maps of images: from a progression, and of the methods that the paper compares it with.

Source: Singla et al., Progressive Exaggeration (ICLR 2020), section 4.3, Figs. 4c and 5. Each map
is (B, H, W), restricted to positive values and scaled to a largest value of 1. Gradient and
Grad-CAM are in `metrics.saliency`. Integrated gradients (Sundararajan et al., 2017) are captum's.

captum's layer-wise relevance propagation (LRP) lacks SiLU, mean pooling in `forward` and
concatenation. `lrp` implements the epsilon rule (Bach et al., 2015) for any network of linear
operations and activation functions, by its equivalence to a gradient in which each activation
function has the slope output / input (Ancona et al., ICLR 2018, proposition 1).

All explain the margin of a class over the best other one, as in `metrics.saliency`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cf_utils.core import Ids, check_query, device_of, frozen, item_noise
from cf_utils.evaluation.metrics import saliency

# activation functions with f(0) = 0, by the name under which torch dispatches them
ACTIVATIONS = (
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "celu", "selu", "hardtanh"),
    *("silu", "gelu", "tanh", "hardswish", "mish"),
)
REFUSED = (
    *("sigmoid", "softmax", "log_softmax", "softplus", "exp", "log", "prelu", "pow", "square"),
    *("layer_norm", "group_norm", "instance_norm", "scaled_dot_product_attention"),
)
PRODUCTS = ("mul", "__mul__", "matmul", "__matmul__", "bmm", "div", "__truediv__", "einsum")


def change_map(absent: Tensor, present: Tensor) -> Tensor:
    """|x_{delta -> 1} - x_{delta -> 0}|, summed over channels and scaled to [0, 1].

    Args: absent, present (B, C, H, W): the ends of a progression. Returns: (B, H, W).
    """
    if absent.shape != present.shape or absent.ndim != 4:
        raise ValueError(
            f"absent, present: got {tuple(absent.shape)}, {tuple(present.shape)}, expected two "
            "(B, C, H, W)"
        )
    return normalise((present - absent).abs().sum(1))


def normalise(maps: Tensor) -> Tensor:
    """Set negative relevance to 0, and scale each map (B, H, W) to a largest value of 1.

    A map without positive relevance becomes 0 everywhere.
    """
    positive = maps.clamp(min=0)
    largest = positive.flatten(1).amax(1)[:, None, None]
    return torch.where(largest > 0, positive / largest, 0)


def fill_like(x: Tensor, baseline: float | Tensor) -> Tensor:
    """Return the images `baseline`, or images like x (B, C, H, W) that have this value everywhere.

    Raises ValueError for images of another shape.
    """
    if not isinstance(baseline, Tensor):
        return torch.full_like(x, baseline)
    if baseline.shape != x.shape:
        raise ValueError(
            f"baseline: got shape {tuple(baseline.shape)}, expected {tuple(x.shape)}, that of x"
        )
    return baseline


def integrated_gradients(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    baseline: float | Tensor = 0.5,
    steps: int = 50,
    batch_size: int = 50,
) -> Tensor:
    """Integrated gradients of the margin, signed. Its sum is the margin minus the baseline's.

    Args:
        x: images (B, C, H, W); target (B,) int64, the class to explain.
        baseline: where the path begins, a value of all pixels or images like x. Deviation:
            mid-grey, which is 0 behind the usual normalisation; the paper suggests black, which
            gives dark pixels no relevance.

    Returns: (B, C, H, W).
    """
    check_query(x, target)
    device, parts = device_of(classifier, x.device), []
    with frozen(classifier):
        method = IntegratedGradients(lambda v, t: saliency.logit_margin(classifier(v), t))
        batches = (part.split(batch_size) for part in (x, fill_like(x, baseline), target))
        for images, start, classes in zip(*batches, strict=True):
            attribution: Any = method.attribute(
                images.detach().to(device),
                start.detach().to(device),
                additional_forward_args=(classes.to(device),),
                n_steps=steps,
                internal_batch_size=batch_size,
            )
            parts.append(attribution.detach().to(x.device))
    return torch.cat(parts).to(x.dtype)


class _EpsilonRule(TorchFunctionMode):
    """Gives each activation function the slope f(z) / (z + epsilon sign z) in the backward pass."""

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        changing = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        if name in REFUSED or (name in PRODUCTS and len(changing) > 1):
            raise ValueError(
                f"classifier: its operation {name} has no epsilon rule; expected linear operations "
                f"and {', '.join(ACTIVATIONS)}"
            )
        if name not in ACTIVATIONS:
            return func(*args, **kwargs)
        z = args[0]
        with torch.no_grad():
            stable = z + torch.where(z >= 0, self.epsilon, -self.epsilon)
            slope = func(z.clone(), *args[1:], **kwargs) / stable
        return z * slope


def lrp(
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    baseline: float = 0.5,
    epsilon: float = 1e-6,
    batch_size: int = 50,
) -> Tensor:
    """Layer-wise relevance propagation of the margin with the epsilon rule, signed.

    Without biases, the sum over an image is its margin; biases take their share. Max pooling passes
    all relevance to the largest input. Epsilon acts at activation functions.

    Args:
        x: images (B, C, H, W); target (B,) int64, the class to explain.
        baseline: pixel value that carries no relevance, mid-grey as in `integrated_gradients`.
        epsilon: > 0, stabiliser, in the units of the activations.

    Returns: (B, C, H, W). Raises ValueError naming an operation that the rule does not cover, such
        as sigmoid gates, attention and normalisation by the item's own statistics.
    """
    check_query(x, target)
    if not epsilon > 0:
        raise ValueError(f"epsilon: got {epsilon}, expected over 0")
    device, parts = device_of(classifier, x.device), []
    with frozen(classifier):
        for images, classes in zip(x.split(batch_size), target.split(batch_size), strict=True):
            images = images.detach().to(device).requires_grad_(True)
            with _EpsilonRule(epsilon):
                logits = classifier(images)
            margin = saliency.logit_margin(logits, classes.to(device))
            (slope,) = torch.autograd.grad(margin.sum(), images)
            parts.append(((images.detach() - baseline) * slope).to(x.device))
    return torch.cat(parts)


def rival_maps(
    classifier: nn.Module, layer: nn.Module, x: Tensor, target: Tensor, ids: Ids, seed: int = 0
) -> dict[str, Tensor | str]:
    """Maps of gradient, integrated gradients, Grad-CAM and LRP, and a random map.

    The gradient is the largest |value| over channels (Simonyan et al., 2014), the others are sums
    over channels.

    Args: layer: module for Grad-CAM, with outputs (B, channels, h, w); ids: B ids.
    Returns: per method (B, H, W) in [0, 1], or the reason why it cannot explain this classifier.
    """
    works: dict[str, Callable[[], Tensor]] = {
        "gradient": lambda: saliency.gradient(classifier, x, target).abs().amax(1),
        "integrated gradients": lambda: integrated_gradients(classifier, x, target).sum(1),
        "Grad-CAM": lambda: saliency.grad_cam(classifier, layer, x, target),
        "LRP": lambda: lrp(classifier, x, target).sum(1),
        "random": lambda: item_noise(seed, ids, x.shape[2:], "random map", "uniform").to(x),
    }
    check_query(x, target, ids)
    maps: dict[str, Tensor | str] = {}
    for name, work in works.items():
        try:
            maps[name] = normalise(work())
        except ValueError as e:
            maps[name] = str(e)
    return maps
