"""The agent of DiffExplainer: a linear student of the black box on the codes of the slices.

Source: Fang et al. (MICCAI workshop 2024), section 2.2. A linear layer maps the codes q of a
patient's slices to the teacher's features; the teacher's classification layer, copied and fixed,
maps these to logits. The agent is trained to agree with the teacher, by one of three objectives
(Table 1):

    l1, MSE:  |A(q) - F(x)|, (A(q) - F(x))^2 on the features, averaged over items and features
    KL:       KL(C(x) || A'(q)) of the class probabilities, averaged over items

The covariance of the training codes is kept beside the weights. It turns the agent's weights, a
filter, into the pattern of codes that varies with the score (Haufe et al., NeuroImage 2014, Eq. 6).

Decision: the paper does not say how the codes of the slices are joined. `join="concat"` puts them
side by side, so that each slice has weights of its own; the slices show different levels of the
lung. `join="mean"` averages them: fewer weights, and the order of the slices does not matter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core.checks import check_count
from cf_utils.core.choices import check_choice

JOINS = ("concat", "mean")
OBJECTIVES = ("l1", "mse", "kl")


class Agent(nn.Module):
    """Two linear layers from the codes of a patient's slices to logits.

    Args:
        latent: values d of the code of one slice.
        features: number F of the teacher's features.
        slices: number S of slices per patient.
        outputs: number of classes.
        join: how the codes of the slices are joined, "concat" or "mean".

    Raises ValueError on other values.
    """

    covariance: Tensor  # of the codes (S * d, S * d)

    def __init__(
        self, latent: int, features: int, slices: int = 4, outputs: int = 2, join: str = "concat"
    ):
        super().__init__()
        check_choice("join", join, JOINS)
        for name, n in (("latent", latent), ("features", features), ("slices", slices)):
            check_count(name, n)
        check_count("outputs", outputs, least=2)
        self.latent, self.slices, self.join = latent, slices, join
        self.linear = nn.Linear(latent * (slices if join == "concat" else 1), features)
        self.head = nn.Linear(features, outputs).requires_grad_(False)
        self.register_buffer("covariance", torch.eye(latent * slices))

    def copy_head(self, head: nn.Linear) -> None:
        """Copy the teacher's classification layer; it is never trained.

        Raises ValueError if its shape differs.
        """
        if head.weight.shape != self.head.weight.shape:
            raise ValueError(
                f"head: got weights {tuple(head.weight.shape)}, expected "
                f"{tuple(self.head.weight.shape)} (outputs, features)"
            )
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            self.head.bias.copy_(head.bias)

    def set_covariance(self, codes: Tensor) -> None:
        """Keep the covariance of training codes (N, S * d). Raises ValueError on another shape."""
        self._check(codes, least=2)
        self.covariance.copy_(torch.cov(codes.T))

    def features(self, codes: Tensor) -> Tensor:
        """Return the predicted features (B, F) of codes (B, S * d), slice after slice.

        Raises ValueError on another shape.
        """
        self._check(codes)
        if self.join == "mean":
            codes = codes.unflatten(1, (self.slices, self.latent)).mean(1)
        return self.linear(codes)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the logits (B, outputs) of codes (B, S * d)."""
        return self.head(self.features(codes))

    def _check(self, codes: Tensor, least: int = 0) -> None:
        width = self.slices * self.latent
        if codes.ndim != 2 or codes.shape[1] != width or len(codes) < least:
            raise ValueError(
                f"codes: got shape {tuple(codes.shape)}, expected (B, {width}): {self.slices} "
                f"slices of {self.latent} values each"
            )


def distillation_loss(
    agent: Agent, codes: Tensor, features: Tensor, logits: Tensor, objective: str
) -> Tensor:
    """Return the objective of the agent, a scalar.

    Args:
        codes: (B, S * d).
        features, logits: the teacher's, (B, F) and (B, outputs).
        objective: one of `OBJECTIVES`.
    """
    check_choice("objective", objective, OBJECTIVES)
    found = agent.features(codes)
    if objective == "l1":
        return (found - features).abs().mean()
    if objective == "mse":
        return (found - features).square().mean()
    wanted, own = logits.log_softmax(1), agent.head(found).log_softmax(1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)
