"""What gradual construction minimises: Eqs. 7, 8 and 12 of Jung et al. (2022), each value with its gradient in closed form.

A search asks for both in every step, and autograd runs thrice the kernels for them; only the classifier's own part is left to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.core import total_variation

TERMS = ("logits", "literal", "mean_abs", "log_probability", "probability")


def distance(
    z: Tensor, x: Tensor, weight: float = 1.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """weight ||z - x||_2 of each item (B,), and its gradient in z (B, ...), 0 where z = x. `out`: memory for the gradient."""
    g = torch.sub(z, x, out=out)
    far = torch.linalg.vector_norm(g.flatten(1), dim=1)
    scale = far.clamp(min=torch.finfo(far.dtype).tiny).reciprocal_().mul_(weight)
    return weight * far, g.mul_(scale.view(-1, *[1] * (z.ndim - 1)))


def pull(
    z: Tensor,
    x: Tensor,
    lam: float,
    eta: float = 0.0,
    beta: float = 2.0,
    out: Tensor | None = None,
    value: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """lam ||z - x||_2 + eta total_variation(z) of each item (B,), or None where no `value` is asked for; and its gradient in
    z (B, ...): what holds a search near x. eta is for images (B, C, H, W)."""
    far, g = distance(z, x, lam, out)
    if eta and beta == 2:
        ends, starts = (slice(1, None), slice(None)), (slice(None, -1), slice(None))
        for last, first in (
            ((..., *ends[::-1]), (..., *starts[::-1])),
            ((..., *ends), (..., *starts)),
        ):
            d = z[last] - z[first]
            if value:
                far.add_(torch.linalg.vector_norm(d.flatten(1), dim=1).square_(), alpha=eta)
            g[last].add_(d, alpha=2 * eta)
            g[first].sub_(d, alpha=2 * eta)
    elif eta:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            rough = eta * total_variation(leaf, beta)
        far += rough.detach()
        g += torch.autograd.grad(rough, leaf, torch.ones_like(rough))[0]
    return far if value else None, g


def class_term(term: str, logits: Tensor, mean: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How far logits (B, K) are from the target's: an entry an item (B,), and its gradient (B, K). `mean` (B, K): the target's
    mean logits. One of `TERMS`: Eq. 7's norm over the class vector, the same as printed, the mean absolute difference of the
    official code, Eq. 12's probability as its log or literally."""
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
