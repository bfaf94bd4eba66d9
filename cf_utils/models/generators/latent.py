"""The contract of generative models with a latent space."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class LatentModel(nn.Module, ABC):
    """A generative model that encodes an input into a code and decodes a code into an output.

    The first dimension of every tensor counts items, and an item's result does not depend on the
    other items. A subclass implements `encode` and `decode`; both are differentiable.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, *latent_shape) of x (B, ...)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the outputs (B, ...) of codes z (B, *latent_shape)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of x, `decode(encode(x))`, of the same shape."""
        return self.decode(self.encode(x))
