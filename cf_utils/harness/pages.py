"""Pages that stand alone in one HTML file: templates, tables, and pictures as data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from cf_utils.harness.story import to_words
from cf_utils.harness.verdicts import format_number

FOLDER = Path(__file__).parent
FEW_COLOURS = 4096  # a picture with fewer is a plot, which is smaller without loss


@dataclass(frozen=True)
class Data:
    """A picture as a data address, with its size in pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Table:
    """A table to show: headings, rows of texts, and how many rows are left out."""

    columns: list[str]
    rows: list[list[str]]
    more: int


def render(template: str, **context: Any) -> str:
    """Render a template of this folder; texts are escaped and unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def encode_picture(png: bytes, quality: int = 80, scale: float = 1.0) -> Data:
    """Return a PNG picture as WebP data.

    Args:
        quality: of a photograph, 1 to 100; a plot is stored without loss.
        scale: of width and height, over 0 to 1.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if scale != 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    plot = scale == 1 and image.getcolors(FEW_COLOURS) is not None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=plot, quality=quality, method=4)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Data(f"data:image/webp;base64,{text}", image.width, image.height)


def make_table(frame: pd.DataFrame, max_rows: int) -> Table:
    """Return a frame as texts: headings are words, columns without any value are left out."""
    frame = frame.dropna(axis="columns", how="all")
    columns = ["" if str(c).startswith("Unnamed:") else to_words(str(c)) for c in frame.columns]
    rows = [[_to_text(value) for value in row] for row in frame.head(max_rows).values.tolist()]
    return Table(columns, rows, max(0, len(frame) - max_rows))


def read_table(path: Path, max_rows: int) -> Table | str:
    """Read a CSV file as a table; return a sentence if it is empty or damaged."""
    try:
        frame = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return "No rows."
    except (pd.errors.ParserError, UnicodeDecodeError):
        return "This file cannot be read."
    return make_table(frame, max_rows) if len(frame) else "No rows."


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return format_number(value)
    return "" if value is None or value == "None" else str(value)
