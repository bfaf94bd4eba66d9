"""Configuration of the static site: `make site`. Its source is written by cf_utils.harness.site.

No page asks another host for anything: formulas are MathML, and all scripts and fonts are local.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "Counterfactual explanations"
version = release = PROJECT["version"]
language = "en"
html_title = project
html_context = {"default_mode": "auto"}  # light or dark, as the system
html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "use_download_button": False,  # a page's note offers the notebook without our outputs
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the sidebar has the search
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
templates_path = ["_templates"]
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = [("progression.js", {"defer": "defer"})]
html_copy_source = False
html_show_copyright = False

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx.ext.napoleon",
    "autoapi.extension",
]
exclude_patterns = ["README.md", "cards.md", "extra", "notebooks/original"]
default_role = "code"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # otherwise pages with widgets load two scripts from another host
html_math_renderer = "mathml"
suppress_warnings = [
    "myst.header",
    "misc.highlighting_failure",
    "ref.python",  # a field's type may name several objects
    "autoapi.python_import_resolution",  # of constants that one statement assigns
]

autoapi_dirs = [str(ROOT / "cf_utils")]
autoapi_root = "api"
autoapi_add_toctree_entry = False
autoapi_keep_files = True  # reads the source again only when it has changed
autoapi_options = ["members", "undoc-members", "show-module-summary"]
autoapi_member_order = "bysource"


def to_mathml(latex: str, block: bool) -> str:
    """Return a formula as MathML. Raises LatexError for what the converter does not know."""
    return LatexToMathML().convert_with_local_state(latex, displaystyle=block)


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(to_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula on its own line; a keyboard can scroll it if it is wide."""
    formula = to_mathml(node.astext(), block=True)
    self.body.append(f'<div class="cf-formula" tabindex="0" role="group">{formula}</div>')
    raise nodes.SkipNode


SECTIONS = ("Args:", "Raises:", "Yields:", "Attributes:")  # napoleon reads their items


def escape_text(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside of `code` and a list's marker."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"(?!^\* )([|*]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in parts[2::2]]  # `Part`s
    return "".join(parts)


def list_fields(block: list[str]) -> list[str]:
    """Return lines of a docstring without empty ones, with "name: text" as items of a list.

    They are read as such if one of them goes on in an indented line. They may stand, indented by
    four spaces, below a line that ends in a colon.
    """
    head, rest = block[0], block[1:]
    if rest and head.endswith(":") and all(line.startswith("    ") for line in rest):
        if head in SECTIONS:
            return block
        listed = list_fields([line[4:] for line in rest])
        if listed[0].startswith("* "):  # a field of reStructuredText or a paragraph
            head = ":returns:" if head == "Returns:" else head
            return [head, "", *("    " + line for line in listed)]
        return block
    named = [bool(re.match(r"\w+(, \w+)*: \S", line)) for line in block]
    goes_on = [line.startswith("  ") for line in block]
    if not any(a and b for a, b in zip(named, goes_on[1:], strict=False)):
        return block
    out = []
    for line, is_named, is_continued in zip(block, named, goes_on, strict=True):
        line = "  " + line.lstrip() if is_continued else line
        out.append(re.sub(r"^([^:]+)", r"* `\1`", line) if is_named else line)
    return out


def set_off_lists(lines: list[str]) -> list[str]:
    """Return the lines of a docstring with an empty line before and after each list."""
    out: list[str] = []
    for empty, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        inside = False
        for line in group if empty else list_fields(list(group)):
            starts = line.startswith("* ")
            if out and out[-1].strip() and (starts if not inside else line[:1] not in "* "):
                out.append("")
            inside = starts or (inside and line.startswith("  "))
            out.append(line)
    return out


def mark_equations(lines: list[str]) -> list[str]:
    """Return the lines of a docstring with its indented equations as literal blocks, escaped.

    Our docstrings set equations off by four spaces after an empty line. Sections such as "Args:"
    are indented without an empty line and stay.
    """
    out: list[str] = []
    before, literal = "", False  # the last line that is not empty
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal and out and not out[-1].strip():
            literal = not before.startswith("    ")
            out += ["::", ""] if literal else []
        literal = literal and (indented or not line.strip())
        out.append(line if literal else escape_text(line))
        before = line if line.strip() else before
    return out


def prepare_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]):
    """Write a docstring, in place, as the reStructuredText that it looks like."""
    lines[:] = mark_equations(set_off_lists(lines))


# what the theme and MyST-NB name otherwise than it reads, or not at all
NAMES = {
    ' aria-label="Toggle hidden content"': "",
    'pst-js-only" title="Search" aria-label="Search"': 'pst-js-only" title="Search"',
    '<summary><span class="toctree-toggle"': (
        '<summary aria-label="Pages of this part"><span class="toctree-toggle"'
    ),
}


def name_controls(app: Sphinx, error: Exception | None):
    """Let buttons and folded parts of all pages be named by their visible text, or name them."""
    for path in [] if error else sorted(Path(app.outdir).rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        named = reduce(lambda page, pair: page.replace(*pair), NAMES.items(), text)
        if named != text:
            path.write_text(named, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register the formulas, the docstrings, and the files that are no pages."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )
    app.connect(
        "autodoc-process-docstring", prepare_docstring, priority=400
    )  # before napoleon's 500
    app.connect("build-finished", name_controls)
    app.config.html_extra_path = [str(Path(app.srcdir) / "extra")]
