"""Marked-up text in notebooks: edited words, tables of texts, source code. All text is escaped."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

import pandas as pd
from IPython.display import HTML, Code
from pandas.io.formats.style import Styler

from cf_utils.viz.plots import FAILED

ADDED = "#1e8449"  # colour of new words


def mark_edits(
    text: str, spans: Sequence[tuple[int, int]], new: Mapping[int, str], around: int | None = None
) -> str:
    """Replace words of a text, each marked as [old → new].

    Args:
        spans: (start, end) of each word in the text.
        new: position of a word in `spans` -> its new word. A position beyond `spans` is padding;
            its new word is appended.
        around: keep only this many characters on both sides of the first change.
    """
    parts, at, first = [], 0, None
    for k in sorted(new):
        start, end = spans[k] if k < len(spans) else (len(text), len(text))
        parts.append(text[at:start] + ("" if k < len(spans) else " "))
        first = sum(map(len, parts)) if first is None else first
        parts.append(f"[{text[start:end] or 'pad'} → {new[k]}]")
        at = end
    whole = "".join([*parts, text[at:]]).replace("<br />", " ")
    if around is None or first is None:
        return whole
    low, high = max(0, first - around), first + around
    return ("…" if low else "") + whole[low:high] + ("…" if high < len(whole) else "")


def highlight_edits(text: str) -> HTML:
    """Show the result of `mark_edits`: old words struck through in red, new ones bold in green."""
    shown = rf"<s style='color:{FAILED}'>\1</s> <b style='color:{ADDED}'>\2</b>"
    coloured = re.sub(r"\[([^\[\]]*) → ([^\[\]]*)\]", shown, escape(text))
    return HTML(f"<p style='max-width:60em'>{coloured}</p>")


def text_table(frame: pd.DataFrame) -> Styler:
    """Show a table of texts, left-aligned with line breaks; cells and labels are escaped."""
    layout = {"text-align": "left", "white-space": "normal"}
    styler = frame.style.format(escape="html").set_properties(**layout)
    return styler.format_index(escape="html", axis=0).format_index(escape="html", axis=1)


def show_source(*things: Callable[..., object]) -> Code:
    """Show the source code of functions or classes as highlighted Python."""
    return Code("\n\n".join(map(inspect.getsource, things)), language="python")
