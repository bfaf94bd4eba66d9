"""Classifiers of digits, reviews and tables, wrappers, and functions that apply any classifier.

Every classifier maps x to logits (B, K), K >= 2, and contains its own normalisation. For captum's
LRP, a classifier may only use Conv2d, ReLU, MaxPool2d and Linear modules, each of them once, and
`flatten(1)` in `forward`. The paper is Jung et al., Gradual Construction, Pattern Recognition 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import hog
from torch import Tensor, nn

from cf_utils import core


def check_digits(x: Tensor) -> None:
    """Raise ValueError unless x is (B, 1, 28, 28).

    A network would accept other sizes near 28 without an error.
    """
    if x.shape[1:] != (1, 28, 28):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected digits (B, 1, 28, 28)")


class MnistCNN(nn.Module):
    """Digit classifier of the paper, section 4.3.1: two convolution sets, three linear layers.

    A set is conv-conv-pool. The paper gives no widths; `a` and `b` are the channels of the sets.
    """

    def __init__(self, a: int = 8, b: int = 16, hidden: int = 128):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, a, 3),
            nn.ReLU(),
            nn.Conv2d(a, a, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3),
            nn.ReLU(),
            nn.Conv2d(b, b, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Linear(b * 16, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 10) of digits x (B, 1, 28, 28) in [0, 1]."""
        check_digits(x)
        return self.head(self.features(x).flatten(1))


class JudgeCNN(nn.Module):
    """Digit classifier that judges counterfactuals and is never explained.

    It shares no design with MnistCNN: strided convolutions, batch norm, SiLU, average pooling.
    """

    def __init__(self, width: int = 24):
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, width, 5, 2),
            *_convolution(width, 2 * width, 3, 1),
            *_convolution(2 * width, 2 * width, 3, 2),
            *_convolution(2 * width, 4 * width, 3, 1),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 10) of digits x (B, 1, 28, 28) in [0, 1]."""
        check_digits(x)
        return self.head(self.layers(x).mean((2, 3)))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.SiLU()]


class HogSVM(nn.Module):
    """Judge without gradients to pixels: one-vs-rest linear SVM on HOG features (skimage)."""

    def __init__(self) -> None:
        super().__init__()
        self.svm = nn.Linear(self.features(torch.zeros(1, 1, 28, 28)).shape[1], 10)

    @staticmethod
    def features(x: Tensor) -> Tensor:
        """Return HOG features (B, 441) of digits (B, 1, 28, 28): 9 orientations, 4 x 4 cells.

        They are normalised over the whole image, so that faint noise weighs less than a stroke.
        """
        images = x.detach().clamp(0, 1).cpu().numpy().astype(np.float64)[:, 0]
        settings = {"orientations": 9, "pixels_per_cell": (4, 4), "cells_per_block": (7, 7)}
        return torch.from_numpy(np.stack([hog(image, **settings) for image in images])).float()

    def forward(self, x: Tensor) -> Tensor:
        """Return the decision values (B, 10) of digits x (B, 1, 28, 28) in [0, 1]."""
        check_digits(x)
        weight = self.svm.weight
        return self.svm(self.features(x).to(weight.device, weight.dtype))


class TextCNN(nn.Module):
    """Review classifier of the paper, section 4.2.1: max-pooled convolutions over word vectors.

    Each of the `widths` has `filters` filters, as in the authors' code. Dropout and one linear
    layer follow. Input x (B, L, d) holds word vectors, zero after the last word. Every review must
    end in at least five zero rows (`glove.embed`); the logits then do not depend on the padding.
    """

    def __init__(
        self,
        d: int = 50,
        filters: int = 100,
        widths: tuple[int, ...] = (3, 4, 5),
        dropout: float = 0.5,
    ):
        super().__init__()
        # d channels and height 1: faster than one channel of height d
        self.convolutions = nn.ModuleList(nn.Conv2d(d, filters, (1, w)) for w in widths)
        self.rectifiers = nn.ModuleList(nn.ReLU() for _ in widths)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(filters * len(widths), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2) of word vectors x (B, L, d)."""
        x = x.transpose(1, 2).unsqueeze(2)  # (B, d, 1, L)
        layers = zip(self.convolutions, self.rectifiers, strict=True)
        pooled = [relu(convolution(x)).amax((2, 3)) for convolution, relu in layers]
        return self.head(self.dropout(torch.cat(pooled, 1)))


class TabularMLP(nn.Module):
    """Table classifier of the paper, section 4.4.1: five linear layers on scaled features.

    The paper gives no widths. Its code shares one layer three times; here each layer has its own.
    """

    def __init__(self, n_features: int, hidden: Sequence[int] = (64, 64, 64, 64)):
        super().__init__()
        if len(hidden) != 4:
            raise ValueError(
                f"hidden: got {list(hidden)}, expected the widths of 4 layers; the fifth gives the "
                "logits"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in zip([n_features, *hidden], hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2) of rows x (B, n_features)."""
        return self.layers(x)

    @torch.no_grad()
    def fold(self, mean: Tensor, std: Tensor) -> None:
        """Fold the normalisation z = (x - mean) / std into the first layer, in place.

        Before the call the network takes z, after it x. mean and std have shape (n_features,).
        """
        first: Any = self.layers[0]
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)


class OneOutput(nn.Module):
    """Binary classifier from output `i` of a sigmoid or multi-label model.

    Its logits are (0, z), where z is the chosen output, so class 1 has probability sigmoid(z).
    """

    def __init__(self, model: nn.Module, i: int = 0):
        super().__init__()
        self.model, self.i = model, i

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 2); the model may give (B, outputs) or (B,)."""
        z = self.model(x)
        z = z[:, self.i] if z.ndim == 2 else z
        return torch.stack([torch.zeros_like(z), z], 1)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Return the logits (N, K) of x (N, ...) in eval mode, batch by batch on the model's device.

    The logits are on the device of x. The mode of every submodule is restored.
    """
    device = core.device_of(model, x.device)
    with core.eval_mode(model):
        return torch.cat([model(batch.to(device)).to(x.device) for batch in x.split(batch_size)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of x (N, ...) that the model assigns to its label y (N,)."""
    return (predict(model, x).argmax(1) == y).float().mean().item()


def majority(votes: Tensor) -> Tensor:
    """Return the majority label (N,) of J judges' decisions (J, N); -1 without a majority.

    A majority has more than half of the votes.
    """
    counts = F.one_hot(votes, int(votes.max()) + 1).sum(0)  # (N, K)
    most, label = counts.max(1)
    return torch.where(2 * most > len(votes), label, -1)
