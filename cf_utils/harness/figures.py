"""Figures as PNG files that are light enough for a git repository, and their captions."""

from __future__ import annotations

import io
import re
from typing import Any

import IPython
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import KDTree

CAPTION_LENGTH = (20, 160)  # characters

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
    _quantise(image, colours).save(buffer, "PNG", optimize=True)
    return buffer.getvalue() if buffer.tell() <= limit else None


def _quantise(image: Image.Image, colours: int) -> Image.Image:
    """Return the image with a palette in which rare colours have their share.

    Colours count by the cube root of their number of pixels. By the number itself, the lamps of a
    road would lose their colour to the asphalt. Colours are in steps of 8, or of less if there are
    few, as in a grey image. Those of over 1 % of the pixels, such as white, stay exactly as they
    are.
    """
    pixels = np.asarray(image).reshape(-1, 3)
    exact, inverse, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    common = exact if len(exact) <= colours else exact[counts > len(pixels) / 100][: colours // 4]
    palette = np.concatenate([common, _find_palette(pixels, colours - len(common))])
    nearest = KDTree(palette).query(exact)[1].astype(np.uint8)
    reduced = Image.fromarray(nearest[inverse].reshape(image.height, image.width))
    reduced.putpalette(palette.flatten().tolist())
    return reduced


def _find_palette(pixels: np.ndarray, colours: int) -> np.ndarray:
    """Return at most `colours` colours (P, 3) for pixels (N, 3), by the rule of `_quantise`."""
    if colours == 0:
        return pixels[:0]
    for bits in (3, 2, 1, 0):
        _, first, counts = np.unique(pixels >> bits, axis=0, return_index=True, return_counts=True)
        if len(first) >= 4 * colours:
            break
    weighed = np.repeat(pixels[first], np.ceil(np.cbrt(counts)).astype(int), axis=0)
    found = Image.fromarray(weighed[None]).quantize(colours, kmeans=2)
    return np.array(found.getpalette(), dtype=np.uint8).reshape(-1, 3)[:colours]


def check_caption(caption: str) -> str:
    """Return a caption in one line. Raises ValueError unless it is one sentence.

    A caption says what to see in the figure. It has 20 to 160 characters, and ends in "." or "?".
    """
    text = " ".join(caption.split()) if isinstance(caption, str) else ""
    low, high = CAPTION_LENGTH
    if not low <= len(text) <= high or text[-1] not in ".?" or re.search(r"[.?!] +[A-Z]", text):
        raise ValueError(
            f"caption: got {caption!r}, expected one sentence of {low} to {high} characters that "
            "says what to see in the figure"
        )
    return text


def set_alt_text(figure: Figure, caption: str) -> None:
    """Make IPython show a figure with its caption as alt text (metadata `alt` of the image)."""
    figure.set_label(caption)
    shell = IPython.get_ipython()
    formatter = shell.display_formatter.formatters["image/png"] if shell else None
    if formatter is None or Figure not in formatter.type_printers:
        return
    draw = formatter.type_printers[Figure]
    if not isinstance(draw, _WithAltText):
        formatter.for_type(Figure, _WithAltText(draw))


class _WithAltText:
    """A formatter of figures that adds their label to the metadata of the image."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __call__(self, figure: Figure) -> Any:
        found = self.draw(figure)
        data, metadata = found if isinstance(found, tuple) else (found, {})
        label = figure.get_label()
        return (data, {**metadata, "alt": str(label)}) if label else found
