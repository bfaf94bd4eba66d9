"""Drawing by signed distances, vectorised over images: shapes, soft edges, relief, colours.

Lengths are in canvas units (the height is 2), distances are negative inside. Only +, -, *, /, sqrt, min, max, floor and
look-ups are used: IEEE 754 rounds them correctly, so a pixel has the same bits whatever its batch, position or thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor


def step(t: Tensor) -> Tensor:
    """Smooth step from 0 (t <= 0) to 1 (t >= 1)."""
    t = t.clamp(0, 1)
    return t * t * (3 - 2 * t)


def ramp(t: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high`."""
    return step((t - low) / (high - low))


def mix(a, b, t):
    return a + (b - a) * t


def inside(d: Tensor, width: Tensor | float) -> Tensor:
    """Coverage of a shape with distance d: 1 inside, 0 outside, smooth over `width` around the edge (one pixel: antialiased)."""
    return step(0.5 - d / width)


def stroke(d: Tensor, half: Tensor | float, px: Tensor | float) -> Tensor:
    """Coverage of a line of half-width `half` around d = 0; one thinner than a pixel keeps its area and gets fainter."""
    half, least = torch.as_tensor(half), torch.as_tensor(0.6 * px)
    wide = torch.maximum(half, least)
    return inside(d.abs() - wide, px) * (half / wide)


def ellipse(x: Tensor, y: Tensor, a, b) -> Tensor:
    """Distance to an axis-parallel ellipse, exact to first order at its edge (the function over its gradient)."""
    u, v = x / a, y / b
    f, u, v = u * u + v * v, u / a, v / b
    return (f - 1) / (2 * (u * u + v * v + 1e-6).sqrt())


def box(x: Tensor, y: Tensor, a, b, corner=0.0) -> Tensor:
    """Distance to an axis-parallel box of half sizes a, b with rounded corners."""
    u, v = x.abs() - a + corner, y.abs() - b + corner
    over = (u.clamp(min=0) * u.clamp(min=0) + v.clamp(min=0) * v.clamp(min=0)).sqrt()
    return over + torch.maximum(u, v).clamp(max=0) - corner


def segment(x: Tensor, y: Tensor, x0, y0, x1, y1) -> tuple[Tensor, Tensor]:
    """Distance to a straight line between two points, and how far along it (0 to 1)."""
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    u, v = x - x0 - t * dx, y - y0 - t * dy
    return (u * u + v * v).sqrt(), t


def bump(x: Tensor, y: Tensor, a, b) -> Tensor:
    """A smooth hill of height 1 with elliptic foot a, b; exactly 0 outside it."""
    u, v = x / a, y / b
    q = (1 - u * u - v * v).clamp(min=0)
    return q * q


def wave(t: Tensor) -> Tensor:
    """Period 1, values in [-1, 1], made of parabolas: a sine without a library's sine."""
    t = t - t.floor()
    return torch.where(t < 0.5, 8 * t * (1 - 2 * t), -8 * (t - 0.5) * (2 - 2 * t))


def slopes(h: Tensor, px: float) -> tuple[Tensor, Tensor]:
    """Central differences of a relief h (N, H, W) in x and y; one-sided at the border."""
    dx, dy = torch.zeros_like(h), torch.zeros_like(h)
    dx[:, :, 1:-1] = (h[:, :, 2:] - h[:, :, :-2]) / (2 * px)
    dy[:, 1:-1] = (h[:, 2:] - h[:, :-2]) / (2 * px)
    return dx, dy


def grain(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Value noise: a lattice (N, rows, columns) of numbers, looked up smoothly at x, y (N, H, W) in lattice cells, repeating."""
    n, rows, columns = values.shape
    x0, y0 = x.floor(), y.floor()
    u, v = step(x - x0), step(y - y0)
    x0, y0, flat = x0.long() % columns, y0.long() % rows, values.reshape(n, -1)
    x1, y1 = (x0 + 1) % columns, (y0 + 1) % rows

    def at(row, column):
        return flat.gather(1, (row * columns + column).flatten(1)).view(x.shape)

    return mix(mix(at(y0, x0), at(y0, x1), u), mix(at(y1, x0), at(y1, x1), u), v)


def palette(colours: Sequence[Sequence[float]], t: Tensor) -> Tensor:
    """Colours (N, 3, 1, 1) at t in [0, 1] along a list of RGB colours."""
    table = torch.tensor(colours)
    at = t.flatten().clamp(0, 1) * (len(table) - 1)
    i = at.floor().long().clamp(max=len(table) - 2)
    return mix(table[i], table[i + 1], (at - i)[:, None])[:, :, None, None]


def grid(height: int, width: int) -> tuple[Tensor, Tensor, float]:
    """Pixel centres x (1, 1, W), y (1, H, 1) and the size of a pixel; y runs from -1 (top) to 1."""
    px = 2 / height
    x = (torch.arange(width) - (width - 1) / 2) * px
    y = (torch.arange(height) - (height - 1) / 2) * px
    return x.view(1, 1, -1), y.view(1, -1, 1), px


def cut_out(p: SimpleNamespace, image: Tensor, keep: Tensor) -> tuple[SimpleNamespace, Tensor]:
    """The least rectangle that holds `keep` (N, H, W) in all images: parameters with their planes cut, and a view of the image.

    Only saves time: what is drawn there must have no coverage outside `keep`."""
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
    """Lay a colour (N, 3, 1 or H, 1 or W) over image (N, 3, H, W) with coverage alpha (N, H, W), in place."""
    image += alpha[:, None] * (colour - image)


def tint(image: Tensor, amount: Tensor, colour: Sequence[float] | Tensor) -> None:
    """Multiply by a colour where amount (N, H, W) is 1, leave as it is where it is 0, in place."""
    if not isinstance(colour, Tensor):
        colour = rgb(*colour)
    image *= 1 + amount[:, None] * (colour - 1)


def rgb(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor((red, green, blue)).view(1, 3, 1, 1)
