"""Text in notebooks: whatever a text contains, it is shown as text and never becomes HTML."""

from __future__ import annotations

import json
import re

import pandas as pd

from cf_utils.core import files
from cf_utils.viz import markup

SCRIPT = "great <script>alert(1)</script> & <b>film</b>"


def test_text_table_escapes_cells_and_labels():
    frame = pd.DataFrame({"change": [SCRIPT], "<i>score</i>": [0.25]}, index=[SCRIPT])
    html = markup.text_table(frame).to_html()
    assert "<script" not in html and "<b>" not in html and "<i>" not in html
    assert html.count("great &lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;film") == 2
    assert "&lt;i&gt;score" in html and "0.25" in html
    assert "text-align: left" in html and "white-space: normal" in html


def test_highlighted_edits_escape_the_text_around_them_and_the_words():
    edited = markup.mark_edits(SCRIPT, [(0, 5)], {0: "<u>awful</u>"})
    html = markup.highlight_edits(edited).data
    assert "<script" not in html and "<u>" not in html
    assert re.search(r"<s style='[^']*'>great</s> <b style='[^']*'>&lt;u&gt;awful", html)


def test_notebook_of_reviews_builds_no_table_that_bypasses_the_escaping():
    path = files.ROOT / "notebooks" / "02_gradual_imdb.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert any("markup.text_table(" in source for source in code)
    assert not any("set_properties" in source or "to_html" in source for source in code)


def test_show_source_returns_the_code_that_runs():
    shown = markup.show_source(markup.text_table, markup.mark_edits).data
    assert "def text_table" in shown and "def mark_edits" in shown
