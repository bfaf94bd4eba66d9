"""Training images that are balanced over the bins of a classifier's output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cf_utils.core import frozen
from cf_utils.core.choices import check_choice
from cf_utils.models.classifiers import predict
from cf_utils.training.progress import report


class BalancedImages(Dataset):
    """Images with the classifier's output, drawn so that all its bins are equally frequent.

    Item i is (x, p) of a random image whose output lies in bin i mod K. The draw uses torch's
    global generator.

    Args:
        data: items whose first entry is an image (C, H, W) in [0, 1].
        p: the classifier's probability of class 1 for each image, (N,).
        bins: number K of bins.
        length: number of items of one epoch.
        empty: what to do about bins without images: "error", or "skip" to leave them out.

    Raises ValueError, naming the empty bins.
    """

    def __init__(self, data: Dataset, p: Tensor, bins: int, length: int, empty: str = "error"):
        check_choice("empty", empty, ("error", "skip"))
        own = (p * bins).long().clamp(0, bins - 1)
        rows = [(own == k).nonzero().flatten() for k in range(bins)]
        if missing := ", ".join(f"{k} (of {bins})" for k in range(bins) if not len(rows[k])):
            if empty == "error":
                raise ValueError(
                    f"p: got no image in bin {missing}; use more images, fewer bins, or "
                    "empty='skip' to train without these bins"
                )
            report(f"training without images in bin {missing}")
        self.data, self.p, self.length = data, p, length
        self.rows = [r for r in rows if len(r)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rows = self.rows[i % len(self.rows)]
        at = int(rows[int(torch.randint(len(rows), ()))])
        return self.data[at][0], self.p[at]


def classifier_outputs(classifier: nn.Module, x: Tensor) -> Tensor:
    """Return the classifier's probability of class 1, (N,), for images uint8 (N, C, H, W)."""
    with frozen(classifier):
        logits = torch.cat([predict(classifier, batch.float() / 255) for batch in x.split(500)])
    return logits.softmax(1)[:, 1]
