"""The report and the gallery: order, captions, verdicts, folding; in Chromium, layout, sorting."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cf_utils import cli
from cf_utils.core import files
from cf_utils.harness import folders, gallery, pages, report, results, story, verdicts
from tests.workplace import make_notebook

CODE = """for name in "AB":
    run.figure(f"pair_{name}", fig, caption=f"Two items of {name}, side by side.")
run.figure("answer", draw(fig),
           caption="The answer of the method "
                   "beside the query.")"""
PUBLISHED = sorted(files.ROOT.glob("results/*/[0-9][0-9]_*/metrics.json"))


def draw(seed: int, photograph: bool = False) -> Figure:
    fig = Figure(figsize=(4, 3))
    ax = fig.add_subplot()
    if photograph:
        ax.imshow(np.random.default_rng(seed).random((200, 200, 3)))
    else:
        ax.plot(range(seed + 2))
    return fig


@pytest.fixture
def done(project):
    """A run of notebook 01 with three figures, two tables, a claim and the paper's statements."""
    make_notebook(project, "01_tiny", ("", CODE))
    reported = project / "results" / "reported"
    reported.mkdir(parents=True)
    head = "paper,table,dataset,task,method,metric,value,sd,note\n"
    rows = "tiny,Table 6,HELOC,loan,our_method,L1,4.5,1.5,\ntiny,Table 6,HELOC,loan,cem,L1,9,,\n"
    (reported / "tiny.csv").write_text(head + rows)
    (reported / "beside.csv").write_text(
        "paper,table,dataset,task,method,metric,notebook,key\n"
        "tiny,Table 6,HELOC,loan,our_method,L1,01_tiny,l1_mean\n"
        "tiny,Table 6,HELOC,loan,cem,L1,01_tiny,l1_cem\n"
    )
    (reported / "claims.csv").write_text(
        "paper,claim,where,notebook,cell,outcome\n"
        "tiny,Few changes,Fig. 5,01_tiny,steps,partly: on digits alone\n"
        "tiny,Faster <b>,section 4,01_tiny,none,not found here\n"
    )
    run = results.Run("01_tiny", profile="demo", seed=0, data="embedded")
    for k, name in enumerate(("pair_B", "pair_A", "answer")):
        run.figure(name, draw(k), caption=f"A line that rises, of {name.replace('_', ' ')}.")
    frame = pd.DataFrame({"a_b": [1.5, None], "empty_one": [None, None]}, index=["x", "y"])
    run.table("table6_methods", frame)
    run.table("plain", pd.DataFrame({"name": ["<i>"], "n": [3.0]}))
    run.metrics(n=14, l1_mean=4.25, share_of_x=0.5, share_of_x_n=9)
    run.claim("steps", 0.5, 0, 9, opposite="none")
    run.finish()
    return run.folder


class Page(HTMLParser):
    """Images, headings of tables, and addresses of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.heads, self.addresses, self._in_head = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append(found)
        self._in_head = tag == "th"
        if self._in_head:
            self.heads.append("")
        self.addresses += [found[key] for key in ("src", "href") if key in found]

    def handle_data(self, data):
        if self._in_head:
            self.heads[-1] += data
            self._in_head = False


# ---------------------------------------------------------------- the report


def test_figures_stand_in_the_order_of_creation_with_captions_as_alt_texts(done):
    page = report.write("demo").read_text()
    assert [image["alt"] for image in Page(page).images] == [
        "A line that rises, of pair B.",
        "A line that rises, of pair A.",
        "A line that rises, of answer.",
    ]
    assert page.count("<figcaption>") == 3


def test_tables_have_words_as_headings_and_no_empty_column(done):
    page = report.write("demo").read_text()
    heads = Page(page).heads
    assert {"A b", "Name", "N"} <= set(heads) and "Empty one" not in heads
    assert not [head for head in heads if "_" in head or "Unnamed" in head or not head.strip()]
    assert "None" not in re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)
    assert "&lt;i&gt;" in page and "<i>" not in page and "Table 6 methods" in page


def test_one_table_says_what_holds_and_the_rest_is_folded(done):
    page = report.write("demo").read_text()
    assert page.count(">Holds?</th>") == 2  # the paper's statements, and the folded claims
    shown, *folded = page.split("<details")
    assert shown.count("<table") == 2  # overview and verdicts
    assert "Few changes" in shown and "4.5 ± 1.5" in shown and "≈ partly" in shown
    assert "✗ no" in shown and "Faster &lt;b&gt;" in shown
    assert len(folded) == 4 and not any(part.startswith(" open") for part in folded)
    assert "L1, cem, HELOC (Table 6)" in folded[1] and "Table 6 methods" in folded[2]


def test_the_page_asks_for_nothing(done):
    page = report.write("demo").read_text()
    assert all(a.startswith(("#", "data:")) for a in Page(page).addresses)
    assert "http" not in page and "@import" not in page and "url(" not in page


def test_a_heavy_page_gets_smaller_pictures(done, monkeypatch):
    run = results.Run("01_tiny", profile="demo", seed=0, data="embedded")
    run.figure("heavy", draw(0, photograph=True), caption="Random numbers fill the square.")
    run.finish()
    whole = len(report.write("demo").read_bytes())
    monkeypatch.setattr(report, "MAX_BYTES", whole - 1)
    assert len(report.write("demo").read_bytes()) < whole


def test_the_summary_holds_question_answer_and_best_figure(done, monkeypatch, tmp_path):
    (tmp_path / "s.yaml").write_text(
        '"01": {question: "How many?", answer: "{l1_mean} of {n}, {none}.", figure: pair_A}'
    )
    monkeypatch.setattr(story, "SUMMARIES", tmp_path / "s.yaml")
    page = report.write("demo").read_text()
    top = page[page.index('<div class="summary">') : page.index("<h3>Figures")]
    assert "How many?" in top and "4.25 of 14, –." in top
    assert [image["alt"] for image in Page(top).images] == ["A line that rises, of pair A."]
    assert len(Page(page).images) == 3 and "The figure above" in page


# ---------------------------------------------------------------- story, verdicts


def test_captions_of_an_older_run_come_from_the_notebooks_code(done):
    (done / "figures.json").unlink()
    shutil.copy(done / "figures" / "answer.png", done / "figures" / "not_in_code.png")
    found = story.list_pictures("01_tiny", done)
    assert [(p.name, p.caption) for p in found] == [
        ("pair_A", "Two items of A, side by side."),
        ("pair_B", "Two items of B, side by side."),
        ("answer", "The answer of the method beside the query."),
        ("not_in_code", "Not in code."),
    ]


def test_a_verdict_has_value_unit_and_n_where_the_run_knows_them(done):
    metrics = files.read_json(done / "metrics.json")
    claims = files.read_json(done / "claims.json")
    few, faster, l1 = verdicts.list_verdicts("01_tiny", metrics, claims)
    assert (few.ours, few.n, few.holds) == ("0.5; partly: on digits alone", 9, "partly")
    assert (faster.ours, faster.paper, faster.n, faster.holds) == (
        "not found here",
        "Section 4",
        None,
        "no",
    )
    assert (l1.paper, l1.ours, l1.n, l1.holds) == ("4.5 ± 1.5", "4.25", 14, "other data")
    official = verdicts.list_verdicts("01_tiny", {**metrics, "data": "official"}, claims)
    assert official[2].holds == "-6%"
    assert list(verdicts.list_unmeasured("01_tiny", metrics)["paper"]) == ["9"]


def test_units_and_counters_are_read_from_names():
    units = {"test_accuracy_percent": "%", "seconds_per_image": "s", "share of rows": "share"}
    assert {name: verdicts.unit_of(name) for name in units} == units
    assert verdicts.unit_of("seconds of DiME over those of ACE") == ""
    counts = {"n": 5, "n_dime": 3, "blank_n": 8}
    keys = {"flip_rate_dime": 3, "blank_agreement": 8, "flip_rate": None}
    assert {key: verdicts.count_items(key, counts) for key in keys} == keys


@pytest.mark.parametrize(
    "name, words",
    [
        ("table6_methods", "Table 6 methods"),
        ("tables_1_2_5", "Tables 1, 2, 5"),
        ("fig3_logits", "Fig 3 logits"),
        ("CHK", "CHK"),
    ],
)
def test_names_become_words(name, words):
    assert story.to_words(name) == words


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_a_published_run_has_a_summary_and_a_gallery_with_all_its_figures(path):
    name, metrics = path.parent.name, files.read_json(path)
    summary = story.summarise(name, metrics)
    assert summary is not None and "–" not in summary.answer, name
    pictures = story.list_pictures(name, path.parent)
    assert summary.figure in [picture.name for picture in pictures]
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    assert summary.answer in page
    at = [page.index(f"![{p.caption}](figures/{p.path.name})") for p in pictures]
    assert at == sorted(at) and len(at) == len(list(path.parent.glob("figures/*.png")))
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (path.parent / link).exists(), link


# ---------------------------------------------------------------- the gallery


def test_the_gallery_shows_figures_claims_and_the_paper(done, project, capsys):
    shutil.copytree(done, folders.published_folder("demo", "01_tiny"))
    assert cli.main(["report", "gallery"]) == 0
    readme, index = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert index == project / "results" / "README.md"
    assert "[demo](demo/01_tiny/README.md)" in index.read_text()
    page = readme.read_text()
    first, second = (
        page.index("of pair B.](figures/pair_B.png)"),
        page.index("(figures/pair_A.png)"),
    )
    assert first < second and "1 of 1 claims hold" in page
    assert "| steps | 0.5 | 0 to 9 | yes | none |" in page
    assert "| Few changes | Fig. 5 | 0.5; partly: on digits alone |" in page
    assert gallery.to_markdown(["a"], [["x|y\nz"]]).splitlines()[2] == "| x\\|y z |"


def test_a_gallery_without_published_runs_is_an_error(project):
    with pytest.raises(FileNotFoundError, match="no run is published"):
        gallery.write_all([])


def test_pictures_keep_what_they_show():
    png = (files.ROOT / "results/demo/01_gradual_mnist/figures/fig4_masking.png").read_bytes()
    data = pages.encode_picture(png)
    small = pages.encode_picture(png, 50, 0.5)
    assert data.address.startswith("data:image/webp;base64,") and small.width == round(
        data.width / 2
    )


# ---------------------------------------------------------------- in the browser


@pytest.fixture
def browser(tmp_path):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium or no chromedriver on the PATH")
    from selenium import webdriver

    from tests.test_lab import FLAGS

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'chromium'}"]:
        options.add_argument(flag)
    page = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    page.set_script_timeout(120)
    yield page
    page.quit()


def find_axe() -> str:
    """Return the source of axe-core, '' if it is not installed (`make site-check` installs it)."""
    path = os.environ.get("CF_AXE") or files.ROOT / ".venv/npm/node_modules/axe-core/axe.min.js"
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""


@pytest.mark.browser
def test_in_chromium_the_report_fits_sorts_and_is_accessible(done, browser):
    address = report.write("demo").as_uri()
    axe = find_axe()
    for width, dark in ((390, True), (1280, False)):
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(address)
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        root = "document.documentElement"
        assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
        if axe:
            browser.execute_script(axe)
            found = browser.execute_async_script(
                "axe.run().then(r => arguments[0](r.violations.map(v => [v.impact, v.id])))"
            )
            assert [v for v in found if v[0] in ("serious", "critical")] == []
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert [
        url for url in asked if not url.startswith(("file:", "data:", "chrome:", "about:"))
    ] == []
    sort = (
        "const b = document.querySelectorAll('[aria-label^=Metrics] th button')[1]; b.click();"
        "const rows = [...b.closest('table').tBodies[0].rows];"
        "return rows.map(row => parseFloat(row.cells[1].textContent))"
    )
    values = [v for v in browser.execute_script(sort) if v is not None]
    assert len(values) >= 5 and values == sorted(values)
