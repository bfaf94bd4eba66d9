"""The figures that more than one notebook draws. Fixed ranges, one scale a figure with its size written out, failures shown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor
from torchvision.utils import make_grid

from cf_utils import core
from cf_utils.core import Counterfactuals

FAILED = "#c0392b"


def show(ax: Axes, image: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """One image (C, H, W) with a fixed range; grey for one channel."""
    a = image.detach().cpu().float().numpy()
    ax.imshow(
        a[0] if len(a) == 1 else np.moveaxis(a, 0, -1).clip(0, 1), cmap="gray", vmin=low, vmax=high
    )
    ax.set(xticks=[], yticks=[])


def change(ax: Axes, before: Tensor, after: Tensor, scale: float) -> None:
    """Signed change summed over channels: red added, blue removed."""
    ax.imshow(
        (after - before).detach().cpu().float().sum(0).numpy(),
        cmap="RdBu_r",
        vmin=-scale,
        vmax=scale,
    )
    ax.set(xticks=[], yticks=[])


def frame(ax: Axes, colour: str) -> None:
    """A coloured border, to flag a panel without covering it."""
    for side in ax.spines.values():
        side.set(visible=True, color=colour, linewidth=2.5)


def grid(cfs: Counterfactuals, n: int = 8, rows: Sequence[int] | None = None) -> Figure:
    """Query, counterfactual and signed change of n items; red border: the target was not reached."""
    rows = list(range(min(n, len(cfs)))) if rows is None else list(rows)
    scale = max(float((cfs.counterfactual - cfs.query)[rows].abs().sum(1).max()), 1e-6)
    fig, axes = plt.subplots(
        3,
        len(rows),
        figsize=(1.2 * len(rows) + 0.4, 4.0),
        dpi=100,
        squeeze=False,
        layout="constrained",
    )
    for col, i in zip(axes.T, rows, strict=True):
        show(col[0], cfs.query[i])
        show(col[1], cfs.counterfactual[i])
        change(col[2], cfs.query[i], cfs.counterfactual[i], scale)
        col[0].set_title(f"{int(cfs.source[i])} → {int(cfs.target[i])}", fontsize=10)
        if not cfs.reached[i]:
            frame(col[1], FAILED)
    for ax, label in zip(
        axes[:, 0], ("query", "counterfactual", f"change\n(±{scale:.2g})"), strict=True
    ):
        ax.set_ylabel(label, fontsize=9)
    return fig


def methods_grid(
    results: dict[str, Counterfactuals], rows: Sequence[int], agree: dict[str, Tensor] | None = None
) -> Figure:
    """A row a method, a column an item. Red border: not reached. `agree[name]` (B,) bool: what judges see as the target gets a
    tick, the rest a cross."""
    first = next(iter(results.values()))
    size = (1.0 * len(rows) + 1.1, 1.12 * (1 + len(results)) + 0.3)
    fig, axes = plt.subplots(
        1 + len(results), len(rows), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for ax, i in zip(axes[0], rows, strict=True):
        show(ax, first.query[i])
        ax.set_title(f"{int(first.source[i])} → {int(first.target[i])}", fontsize=10)
    axes[0, 0].set_ylabel("query", fontsize=8)
    for line, (name, cfs) in zip(axes[1:], results.items(), strict=True):
        for ax, i in zip(line, rows, strict=True):
            show(ax, cfs.counterfactual[i])
            if not cfs.reached[i]:
                frame(ax, FAILED)
            elif agree is not None:
                good = bool(agree[name][i])
                ax.text(
                    0.97,
                    0.03,
                    "✓" if good else "✗",
                    color="#2ecc71" if good else "#f1c40f",
                    fontsize=11,
                    ha="right",
                    va="bottom",
                    transform=ax.transAxes,
                )
        line[0].set_ylabel(name, fontsize=8)
    return fig


def strip(states: Tensor, titles: Sequence[str], width: float = 1.15) -> Figure:
    """States of a search in a row: (S, C, H, W)."""
    size = (width * len(states), width + 0.45)
    fig, axes = plt.subplots(
        1, len(states), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    for ax, state, title in zip(axes[0], states, titles, strict=True):
        show(ax, state)
        ax.set_title(title, fontsize=8)
    return fig


def mosaic(images: Tensor, columns: int, panel: float) -> Figure:
    """Many images (N, C, H, W) edge to edge in one panel, `panel` inches wide each: 64 panels take tens of seconds to draw."""
    whole = make_grid(
        images.detach().cpu().float(),
        columns,
        padding=max(images.shape[-1] // 32, 1),
        pad_value=1.0,
    )
    width = panel * min(columns, len(images))
    fig = plt.figure(figsize=(width, width * whole.shape[1] / whole.shape[2]), dpi=100)
    ax = fig.add_axes((0, 0, 1, 1))
    show(ax, whole)
    ax.axis("off")
    return fig


def box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str, size: float = 9
) -> None:
    """A rounded box with text in it, in data coordinates."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            w,
            h,
            boxstyle="round,pad=0.02,rounding_size=0.08",
            fc=colour,
            ec="#444444",
            lw=1,
        )
    )
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def edited(
    text: str, spans: Sequence[tuple[int, int]], new: dict[int, str], around: int | None = None
) -> str:
    """`text` with word k of `spans` (start, end) replaced by new[k], marked as [old → new]; what lies beyond the text (a word
    'pad') comes at its end. `around`: only so many characters on both sides of the first change."""
    out, at, first = [], 0, None
    for k in sorted(new):
        start, end = spans[k] if k < len(spans) else (len(text), len(text))
        out.append(text[at:start] + ("" if k < len(spans) else " "))
        first = sum(map(len, out)) if first is None else first
        out.append(f"[{text[start:end] or 'pad'} → {new[k]}]")
        at = end
    whole = "".join([*out, text[at:]]).replace("<br />", " ")
    if around is None or first is None:
        return whole
    low, high = max(0, first - around), first + around
    return ("…" if low else "") + whole[low:high] + ("…" if high < len(whole) else "")


def marked(text: str):
    """What `edited` wrote, for a notebook: old words struck through in red, new ones in green."""
    from html import escape

    from IPython.display import HTML

    new = rf"<s style='color:{FAILED}'>\1</s> <b style='color:#1e8449'>\2</b>"
    shown = re.sub(r"\[([^\[\]]*) → ([^\[\]]*)\]", new, escape(text))
    return HTML(f"<p style='max-width:60em'>{shown}</p>")


def knobs(draw: Callable[..., object], /, manual: bool = False, **controls) -> None:
    """ipywidgets.interact(draw, **controls), or interact_manual, where somebody can move them; nothing in a headless run: a
    widget's messages share the channel on which papermill's client waits for a cell's reply, and it was seen to lose that reply
    and wait for ever (nbclient 0.11, ipykernel 7.4)."""
    if not core.headless():
        import ipywidgets  # here: batch runs need none

        (ipywidgets.interact_manual if manual else ipywidgets.interact)(draw, **controls)


def show_source(*things: object):
    """The source that runs, as highlighted Python in a notebook: what a reader sees is what is called."""
    from IPython.display import Code

    return Code("\n\n".join(map(inspect.getsource, things)), language="python")
