"""The black boxes of the papers, and the judges that are not explained.

Every classifier maps x to logits (B, K >= 2) and holds its own normalisation. What captum's LRP must run on uses Conv2d,
ReLU, MaxPool2d and Linear modules, none twice, and `flatten(1)` in forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import hog
from torch import Tensor, nn

from cf_utils import core


def digits(x: Tensor) -> Tensor:
    """x itself; ValueError where it is not (B, 1, 28, 28): other sizes near 28 would pass through a network unnoticed."""
    if x.shape[1:] != (1, 28, 28):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected digits (B, 1, 28, 28)")
    return x


class MnistCNN(nn.Module):
    """Gradual Construction, section 4.3.1: two conv-conv-pool sets, then three fully connected layers. The paper gives no
    widths; these were chosen for a short pass (0.12 ms a digit in a batch of 64 on two cores)."""

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
        return self.head(self.features(digits(x)).flatten(1))


class JudgeCNN(nn.Module):
    """A judge's network: unlike MnistCNN in kernel size, strided convolutions, batch norm, SiLU and average pooling."""

    def __init__(self, width: int = 24):
        super().__init__()
        sizes = [
            (1, width, 5, 2),
            (width, 2 * width, 3, 1),
            (2 * width, 2 * width, 3, 2),
            (2 * width, 4 * width, 3, 1),
        ]
        self.layers = nn.Sequential(
            *(
                m
                for i, o, k, s in sizes
                for m in (nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU())
            )
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(digits(x)).mean((2, 3)))


class HogSVM(nn.Module):
    """A judge without gradients: one-against-rest linear SVM on HOG features (skimage), so nothing in it was ever tuned by
    back-propagation to pixels."""

    def __init__(self):
        super().__init__()
        self.svm = nn.Linear(self.features(torch.zeros(1, 1, 28, 28)).shape[1], 10)

    @staticmethod
    def features(x: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B, 441): 9 orientations, 4 x 4 cells, normalised over the whole image (normalised block by block,
        faint noise on black weighs as much as a stroke, which no reader would say)."""
        images = x.detach().clamp(0, 1).cpu().numpy().astype(np.float64)[:, 0]
        rows = [
            hog(i, orientations=9, pixels_per_cell=(4, 4), cells_per_block=(7, 7)) for i in images
        ]
        return torch.from_numpy(np.stack(rows)).float()

    def forward(self, x: Tensor) -> Tensor:
        w = self.svm.weight
        return self.svm(self.features(digits(x)).to(w.device, w.dtype))


class TextCNN(nn.Module):
    """Gradual Construction, section 4.2.1: three convolution widths over word vectors, each max-pooled over the review, dropout,
    one fully connected layer. x (B, L, d) word vectors, zero after the last word; every review ends in at least five zero rows
    (`glove.embed`), so that how far it is padded changes nothing. 100 filters a width as in the authors' code."""

    def __init__(
        self,
        d: int = 50,
        filters: int = 100,
        widths: tuple[int, ...] = (3, 4, 5),
        dropout: float = 0.5,
    ):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(d, filters, (1, w)) for w in widths
        )  # d channels: faster than one
        self.rectifiers = nn.ModuleList(nn.ReLU() for _ in widths)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(filters * len(widths), 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)  # (B, d, 1, L)
        pooled = [
            relu(conv(x)).amax((2, 3))
            for conv, relu in zip(self.convolutions, self.rectifiers, strict=True)
        ]
        return self.head(self.dropout(torch.cat(pooled, 1)))


class TabularMLP(nn.Module):
    """Gradual Construction, section 4.4.1: five fully connected layers on a table's scaled features. The paper gives no widths
    (its code ties one layer of 10 x 10 three times); here each layer has its own weights."""

    def __init__(self, n_features: int, hidden: Sequence[int] = (64, 64, 64, 64)):
        super().__init__()
        if len(hidden) != 4:
            raise ValueError(
                f"hidden: got {list(hidden)}, expected the widths of 4 layers; the fifth gives the logits"
            )
        sizes = [n_features, *hidden]
        self.layers = nn.Sequential(
            *(m for i, o in zip(sizes, hidden, strict=False) for m in (nn.Linear(i, o), nn.ReLU())),
            nn.Linear(hidden[-1], 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    @torch.no_grad()
    def fold(self, mean: Tensor, std: Tensor) -> None:
        """Make the network of z = (x - mean) / std one of x, in place: normalisation ends up inside the first layer."""
        first = self.layers[0]
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)


class OneOutput(nn.Module):
    """Turn output `i` of a sigmoid or multi-label model into logits (0, z): probability of class 1 is sigmoid(z)."""

    def __init__(self, model: nn.Module, i: int = 0):
        super().__init__()
        self.model, self.i = model, i

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        z = z[:, self.i] if z.ndim == 2 else z
        return torch.stack([torch.zeros_like(z), z], 1)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Logits (N, K) in eval mode, batch by batch on the model's device; they come back on that of x."""
    device = core.device_of(model, x.device)
    with core.eval_mode(model):
        return torch.cat([model(batch.to(device)).to(x.device) for batch in x.split(batch_size)])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (predict(model, x).argmax(1) == y).float().mean().item()


def majority(votes: Tensor) -> Tensor:
    """Majority of judges' decisions (J, N) -> (N,); -1 where no label has more than half of the votes."""
    counts = F.one_hot(votes, int(votes.max()) + 1).sum(0)  # (N, K)
    top, label = counts.max(1)
    return torch.where(2 * top > len(votes), label, -1)
