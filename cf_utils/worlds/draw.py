"""Drawing with signed distances, vectorised over images: shapes, soft edges, relief, colours.

Lengths are in canvas units (the image height is 2); distances are negative inside a shape. Only +,
-, *, /, sqrt, min, max, floor and look-ups are used. IEEE 754 rounds these correctly, so a pixel
has the same bits in any batch, position or thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor


def step(t: Tensor) -> Tensor:
    """Return the smooth step from 0 (t <= 0) to 1 (t >= 1)."""
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


def ramp(t: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return the smooth step from 0 at `low` to 1 at `high`."""
    return step((t - low) / (high - low))


def mix(a: Tensor | float, b: Tensor | float, t: Tensor | float) -> Tensor:
    """Interpolate linearly from a (t = 0) to b (t = 1)."""
    return a + (b - a) * t


def inside(d: Tensor, width: Tensor | float) -> Tensor:
    """Return the coverage of a shape with signed distance d: 1 inside, 0 outside.

    The edge is smooth over `width`; a width of one pixel gives an antialiased edge.
    """
    return step(0.5 - d / width)


def stroke(d: Tensor, half: Tensor | float, px: Tensor | float) -> Tensor:
    """Return the coverage of a line of half-width `half` around d = 0.

    A line thinner than a pixel keeps its area and becomes fainter.
    """
    half, least = torch.as_tensor(half), torch.as_tensor(0.6 * px)
    wide = torch.maximum(half, least)
    return inside(d.abs() - wide, px) * (half / wide)


def ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Return the signed distance to an axis-parallel ellipse with half axes a, b.

    It is exact to first order at the edge: the implicit function divided by its gradient's norm.
    """
    u, v = x / a, y / b
    f, u, v = u * u + v * v, u / a, v / b
    return (f - 1) / (2 * (u * u + v * v + 1e-6).sqrt())


def box(x: Tensor, y: Tensor, a: float, b: float, corner: Tensor | float = 0.0) -> Tensor:
    """Return the signed distance to an axis-parallel box, half sizes a, b, with round corners."""
    u, v = x.abs() - a + corner, y.abs() - b + corner
    over = (u.clamp(min=0) * u.clamp(min=0) + v.clamp(min=0) * v.clamp(min=0)).sqrt()
    return over + torch.maximum(u, v).clamp(max=0) - corner


def segment(
    x: Tensor,
    y: Tensor,
    x0: Tensor | float,
    y0: Tensor | float,
    x1: Tensor | float,
    y1: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Return the distance to the line between two points, and the position along it in [0, 1]."""
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    u, v = x - x0 - t * dx, y - y0 - t * dy
    return (u * u + v * v).sqrt(), t


def bump(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Return a smooth hill of height 1 over an ellipse with half axes a, b; exactly 0 outside."""
    u, v = x / a, y / b
    q = (1 - u * u - v * v).clamp(min=0)
    return q * q


def wave(t: Tensor) -> Tensor:
    """Return a sine-like wave of period 1 with values in [-1, 1].

    It consists of parabolas, because IEEE 754 does not fix the rounding of a sine.
    """
    t = t - t.floor()
    return torch.where(t < 0.5, 8 * t * (1 - 2 * t), -8 * (t - 0.5) * (2 - 2 * t))


def slopes(h: Tensor, px: float) -> tuple[Tensor, Tensor]:
    """Return central differences of a relief h (N, H, W) in x and y; 0 at the border."""
    dx, dy = torch.zeros_like(h), torch.zeros_like(h)
    dx[:, :, 1:-1] = (h[:, :, 2:] - h[:, :, :-2]) / (2 * px)
    dy[:, 1:-1] = (h[:, 2:] - h[:, :-2]) / (2 * px)
    return dx, dy


def grain(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return value noise (N, H, W): a periodic lattice of numbers, interpolated smoothly.

    values: the lattice (N, rows, columns). x, y: positions (N, H, W) in units of lattice cells.
    """
    n, rows, columns = values.shape
    x0, y0 = x.floor(), y.floor()
    u, v = step(x - x0), step(y - y0)
    x0, y0, flat = x0.long() % columns, y0.long() % rows, values.reshape(n, -1)
    x1, y1 = (x0 + 1) % columns, (y0 + 1) % rows

    def at(row, column):
        return flat.gather(1, (row * columns + column).flatten(1)).view(x.shape)

    return mix(mix(at(y0, x0), at(y0, x1), u), mix(at(y1, x0), at(y1, x1), u), v)


def palette(colours: Sequence[Sequence[float]], t: Tensor) -> Tensor:
    """Return colours (N, 3, 1, 1) at position t in [0, 1] along a list of RGB colours."""
    table = torch.tensor(colours)
    at = t.flatten().clamp(0, 1) * (len(table) - 1)
    i = at.floor().long().clamp(max=len(table) - 2)
    return mix(table[i], table[i + 1], (at - i)[:, None])[:, :, None, None]


def grid(height: int, width: int) -> tuple[Tensor, Tensor, float]:
    """Return pixel centres x (1, 1, W) and y (1, H, 1), from -1 (top) to 1, and the pixel size."""
    px = 2 / height
    x = (torch.arange(width) - (width - 1) / 2) * px
    y = (torch.arange(height) - (height - 1) / 2) * px
    return x.view(1, 1, -1), y.view(1, -1, 1), px


def cut_out(p: SimpleNamespace, image: Tensor, keep: Tensor) -> tuple[SimpleNamespace, Tensor]:
    """Crop to the smallest rectangle that contains `keep` (N, H, W) in all images.

    Returns the parameters with their planes cropped, and a view of the image. This only saves time:
    a shape that is drawn there must have no coverage outside `keep`.
    """
    rows, columns = (keep.any(0).any(k).nonzero().flatten() for k in (1, 0))
    if not len(rows):
        rows = columns = torch.zeros(1, dtype=torch.int64)
    cut = (
        slice(None),
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
    planes = {
        k: v[cut]
        for k, v in vars(p).items()
        if isinstance(v, Tensor) and v.shape[1:] == keep.shape[1:]
    }
    return SimpleNamespace(**(vars(p) | planes)), image[(slice(None), *cut)]


def paint(image: Tensor, alpha: Tensor, colour: Tensor) -> None:
    """Blend a colour over image (N, 3, H, W) in place, with coverage alpha (N, H, W).

    The colour has the shape (N, 3, 1 or H, 1 or W).
    """
    image += alpha[:, None] * (colour - image)


def tint(image: Tensor, amount: Tensor, colour: Sequence[float] | Tensor) -> None:
    """Multiply image (N, 3, H, W) by a colour in place.

    The effect is full where amount (N, H, W) is 1, and none where it is 0.
    """
    if not isinstance(colour, Tensor):
        colour = rgb(*colour)
    image *= 1 + amount[:, None] * (colour - 1)


def rgb(red: float, green: float, blue: float) -> Tensor:
    """Return a colour as a tensor (1, 3, 1, 1)."""
    return torch.tensor((red, green, blue)).view(1, 3, 1, 1)
