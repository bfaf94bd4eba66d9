"""The black box of DiffExplainer: a DenseNet on the slices of a patient's CT.

Source: Fang et al., "DiffExplainer: Unveiling Black Box Models Via Counterfactual Generation",
MICCAI workshop 2024, section 3.2: DenseNet-121 on four slices, two classes. `network="small"` is a
DenseNet of few blocks, for images of about 100 pixels.

The network is split where its agent takes over: `classify(features(x))`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cf_utils.core.checks import check_count
from cf_utils.core.choices import check_choice
from cf_utils.models.image_classifiers import ImageDenseNet, Normalised, build_small_densenet

NETWORKS = ("small", "densenet121")


class Teacher(Normalised):
    """DenseNet that classifies patients, slices as channels: x (B, slices, H, W) in [0, 1].

    Args:
        slices: number of slices per patient.
        outputs: number of classes, at least 2.
        network: "small", or "densenet121" (torchvision's, without pretrained weights).
        growth, blocks, first, pool: of the small network, see `build_small_densenet`.

    Raises ValueError on other values.
    """

    def __init__(
        self,
        slices: int = 4,
        outputs: int = 2,
        network: str = "small",
        growth: int = 16,
        blocks: tuple[int, ...] = (2, 4, 4),
        first: int = 32,
        pool: bool = True,
    ):
        check_choice("network", network, NETWORKS)
        check_count("slices", slices)
        check_count("outputs", outputs, least=2)
        if network == "small":
            net = build_small_densenet(outputs, growth, blocks, first, pool, slices)
        else:
            net = ImageDenseNet(outputs, slices).net
        super().__init__(net, ((0.5,) * slices, (0.5,) * slices))
        self.activation = nn.SiLU() if network == "small" else nn.ReLU()

    @property
    def head(self) -> nn.Linear:
        """The classification layer, (B, n_features) -> (B, outputs)."""
        net: Any = self.net
        return net.classifier

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.head.in_features

    @property
    def layer(self) -> nn.Module:
        """The last layer with spatial outputs (B, n_features, h, w), for class activation maps."""
        net: Any = self.net
        return net.features

    def features(self, x: Tensor) -> Tensor:
        """Return the features (B, n_features) of x: the pooled activations before the last layer.

        Raises ValueError unless x has the shape (B, slices, H, W).
        """
        self.check(x)
        return self.activation(self.layer((x - self.mean) / self.std)).mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (B, outputs) of features (B, n_features)."""
        return self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, outputs) of x (B, slices, H, W) in [0, 1]."""
        return self.classify(self.features(x))
