"""Configuration of the static site: `make site`. Its source is written by cf_utils.harness.site.

No page asks another host for anything: formulas are MathML, and all scripts and fonts are local.
"""

from __future__ import annotations

import re
import tomllib
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
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

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


def escape_text(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([|*]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def prepare_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]):
    """Mark the indented equations of a docstring as literal blocks, and escape its text, in place.

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
    lines[:] = out


def name_by_text(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any):
    """Let folded cells be named by their visible text: MyST-NB gives them another name."""
    if "body" in context:
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")


def setup(app: Sphinx) -> None:
    """Register the formulas, the docstrings, and the files that are no pages."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )
    app.connect(
        "autodoc-process-docstring", prepare_docstring, priority=400
    )  # before napoleon's 500
    app.connect("html-page-context", name_by_text)
    app.config.html_extra_path = [str(Path(app.srcdir) / "extra")]
