"""Figures of relevance maps beside the image that they belong to (Singla et al., Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from cf_utils.viz.plots import show


def map_grid(
    images: Tensor, maps: Mapping[str, Tensor | str], panel: float = 1.1, first: str = "query"
) -> Figure:
    """Draw images, one per row, and beside each its map by every method, from 0 to 1.

    Args:
        images: (N, C, H, W) in [0, 1].
        maps: method -> maps (N, H, W) in [0, 1], or the reason why there are none; such a column
            stays empty.
        panel: width of an image in inches.
        first: title of the images.
    """
    size = (panel * (1 + len(maps)) + 0.2, panel * len(images) + 0.4)
    fig, axes = plt.subplots(
        len(images), 1 + len(maps), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for line, image, i in zip(axes, images, range(len(images)), strict=True):
        show(line[0], image)
        for ax, found in zip(line[1:], maps.values(), strict=True):
            ax.set(xticks=[], yticks=[])
            if not isinstance(found, str):
                ax.imshow(found[i].cpu().float().numpy(), cmap="magma", vmin=0, vmax=1)
    for ax, name in zip(axes[0], [first, *maps], strict=True):
        missing = isinstance(maps.get(name), str)
        ax.set_title(f"{name}\n(not available)" if missing else name, fontsize=8)
    return fig
