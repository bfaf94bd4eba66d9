"""The loss of gradual construction, Eqs. 7, 8 and 12 of Jung et al. (2022), and its gradient.

The default terms have closed-form gradients, so that only the classifier needs autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.core import total_variation
from cf_utils.explainers.shared.search import per_item

TERMS = ("logits", "literal", "mean_abs", "log_probability", "probability")


def distance(
    z: Tensor, x: Tensor, weight: float = 1.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weight ||z - x||_2 per item, (B,), and its gradient in z (B, ...), 0 where z = x.

    `out`: memory for the gradient.
    """
    gradient = torch.sub(z, x, out=out)
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    scale = length.clamp(min=torch.finfo(length.dtype).tiny).reciprocal_().mul_(weight)
    return weight * length, gradient.mul_(per_item(scale, z))


def proximity_term(
    z: Tensor,
    x: Tensor,
    lam: float,
    eta: float = 0.0,
    beta: float = 2.0,
    out: Tensor | None = None,
    with_value: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return lam ||z - x||_2 + eta total_variation(z, beta) per item, and its gradient in z.

    Args:
        z, x: inputs (B, ...); images (B, C, H, W) if eta > 0.
        out: memory for the gradient.
        with_value: False may leave the total variation out of the value, which saves time.

    Returns: value (B,), gradient (B, ...).
    """
    value, gradient = distance(z, x, lam, out)
    if eta and beta == 2:
        _add_squared_differences(z, eta, gradient, value if with_value else None)
    elif eta:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            roughness = eta * total_variation(leaf, beta)
        value += roughness.detach()
        gradient += torch.autograd.grad(roughness, leaf, torch.ones_like(roughness))[0]
    return value, gradient


def _add_squared_differences(z: Tensor, eta: float, gradient: Tensor, value: Tensor | None) -> None:
    """Add eta times the total variation for beta = 2 to `value`, and its gradient to `gradient`."""
    after, before, every = slice(1, None), slice(None, -1), slice(None)
    for last, first in (
        ((..., every, after), (..., every, before)),  # along rows
        ((..., after, every), (..., before, every)),  # along columns
    ):
        difference = z[last] - z[first]
        if value is not None:
            norm = torch.linalg.vector_norm(difference.flatten(1), dim=1)
            value.add_(norm.square_(), alpha=eta)
        gradient[last].add_(difference, alpha=2 * eta)
        gradient[first].sub_(difference, alpha=2 * eta)


def class_term(term: str, logits: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class term of the loss per item, (B,), and its gradient in the logits, (B, K).

    Args:
        term: `logits`, Eq. 7 with the norm over the class vector; `literal`, Eq. 7 as printed;
            `mean_abs`, the mean absolute difference of the official code; `log_probability`,
            minus the log of Eq. 12's probability; `probability`, minus that probability.
        logits: of the current inputs, (B, K).
        mean: the target's mean logits, (B, K).
        target: wanted class per item, (B,).
    """
    if term == "logits":
        return distance(logits, mean)
    with torch.enable_grad():
        z = logits.detach().requires_grad_(True)
        if term == "literal":
            loss = (z - mean).sum(1).abs()
        elif term == "mean_abs":
            loss = (z - mean).abs().mean(1)
        else:
            loss = -z.log_softmax(1).gather(1, target[:, None])[:, 0]
            loss = loss if term == "log_probability" else -(-loss).exp()
    return loss.detach(), torch.autograd.grad(loss, z, torch.ones_like(loss))[0]
