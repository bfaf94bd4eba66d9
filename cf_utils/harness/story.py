"""The story of a notebook's results: question, answer, and figures in the order of creation."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cf_utils.harness import notebooks, records

SUMMARIES = Path(__file__).with_name("summaries.yaml")


@dataclass(frozen=True)
class Picture:
    """A figure of a run: its name, its caption (one sentence) and its PNG file."""

    name: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Summary:
    """Question and answer of a notebook; `figure` names the figure that shows the answer best."""

    question: str
    answer: str
    figure: str


def summarise(name: str, metrics: Mapping[str, Any]) -> Summary | None:
    """Return the summary of a notebook with the values of one run; None if it has none.

    A value that the run did not measure becomes an en dash.
    """
    found = yaml.safe_load(SUMMARIES.read_text(encoding="utf-8")).get(name[:2])
    if found is None:
        return None
    answer = re.sub(r"\{(\w+)\}", lambda key: format_value(metrics.get(key[1])), found["answer"])
    return Summary(found["question"], answer, found["figure"])


def format_value(value: Any) -> str:
    """Return a number for a sentence: two decimals, or none for 10 and more and for a count.

    None and texts become an en dash.
    """
    if not isinstance(value, int | float):
        return "–"
    count = value > 1 and value == round(value)
    return f"{value:.0f}" if count or abs(value) >= 10 else f"{value:.2f}"


def list_pictures(name: str, folder: Path) -> list[Picture]:
    """Return the figures of a run in the order in which the notebook made them.

    Names and captions come from figures.json. For a run that is older than captions they come from
    the notebook's code. Figures that neither knows are the last, with a caption made of the name.
    """
    files = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    stored = records.read(folder / "figures.json")
    known = {entry["name"]: entry["caption"] for entry in stored or ()}
    for pattern, caption in captions_in_code(name):
        for stem in files:
            if stem not in known and (match := re.fullmatch(pattern, stem)):
                known[stem] = caption.format_map(match.groupdict())
    known |= {stem: f"{to_words(stem)}." for stem in files if stem not in known}
    return [Picture(stem, text, files[stem]) for stem, text in known.items() if stem in files]


def captions_in_code(name: str) -> list[tuple[str, str]]:
    """Return (pattern of names, caption) of each `run.figure` of a notebook, in their order.

    A variable in the name of a figure is a group of the pattern; the caption refers to it as
    {variable}.
    """
    found = []
    for node in ast.walk(ast.parse(notebooks.code(name))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "run.figure":
            continue
        caption = next((k.value for k in node.keywords if k.arg == "caption"), None)
        if caption is not None:
            pieces = [
                f"(?P<{text}>.+)" if variable else re.escape(text)
                for variable, text in _pieces(node.args[0])
            ]
            text = "".join(f"{{{t}}}" if variable else t for variable, t in _pieces(caption))
            found.append((node.lineno, "".join(pieces), text))
    return [(pattern, text) for _, pattern, text in sorted(found)]


def _pieces(node: ast.expr) -> list[tuple[bool, str]]:
    """Split a string literal into pairs (is a variable, text); other code has no pieces."""
    if isinstance(node, ast.FormattedValue):
        return [(True, ast.unparse(node.value))]
    if isinstance(node, ast.JoinedStr):
        return [piece for part in node.values for piece in _pieces(part)]
    return [(False, str(node.value))] if isinstance(node, ast.Constant) else []


def to_words(name: str) -> str:
    """Turn the name of a file or column into words: "table6_methods" becomes "Table 6 methods"."""
    text = re.sub(r"(?<=[a-z])(?=\d)", " ", name.replace("_", " ")) if "_" in name else name
    text = re.sub(r"^(table|tables|fig|figure) ?(?=\d)", lambda m: f"{m[1]} ", text)
    text = re.sub(r"(?<=\d) (?=\d)", ", ", text)
    return text[:1].upper() + text[1:]
