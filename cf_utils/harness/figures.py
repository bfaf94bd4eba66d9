"""Figures as PNG files that are light enough for a git repository."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from PIL import Image

MAX_BYTES = 150_000  # per published figure
# (scale, colours), tried in this order; palettes below 128 colours visibly distort faces
REDUCTIONS = [(1, 256), (0.85, 256), *((0.85**k, 128) for k in range(1, 12))]


def render_png(figure: Figure, limit: int | None = None) -> bytes:
    """Render a figure as PNG at 100 dpi, in at most `limit` bytes (default: MAX_BYTES).

    A figure that is too heavy gets a palette, and then becomes smaller until it fits.
    Raises ValueError if no reduction suffices.
    """
    limit = MAX_BYTES if limit is None else limit
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    if buffer.tell() <= limit:
        return buffer.getvalue()
    image = Image.open(buffer).convert("RGB")
    for scale, colours in REDUCTIONS:
        content = _reduce(image, scale, colours, limit)
        if content is not None:
            return content
    raise ValueError(
        f"figure: got {image.width} x {image.height} pixels, which do not fit in {limit} bytes; "
        "draw fewer panels"
    )


def _reduce(image: Image.Image, scale: float, colours: int, limit: int) -> bytes | None:
    """Return the image with a scaled size and a palette, or None if it exceeds the limit."""
    if scale != 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    quick = io.BytesIO()
    image.quantize(colours, method=Image.Quantize.FASTOCTREE).save(quick, "PNG")
    if quick.tell() > limit:  # the better palette takes a second and weighs more
        return None
    buffer = io.BytesIO()
    image.quantize(colours, kmeans=2).save(buffer, "PNG", optimize=True)
    return buffer.getvalue() if buffer.tell() <= limit else None
