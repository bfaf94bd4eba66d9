"""The source of the static site: pages of notebooks, progressions, links, configuration."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import subprocess
import tomllib
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from cf_utils.core import files
from cf_utils.harness import notebooks, site, site_pages, site_progressions, story
from cf_utils.viz import quiz

ROOT = files.ROOT
SCRIPT = "<script>alert(1)</script>"
DRAW = """%matplotlib inline
for kind in ("a", "b"):
    run.figure(f"kind_{kind}", fig)
run.table("scores", frame)
run.figure("last", fig, caption="Caption of last.")"""
CHECK = 'claim("one", 1, 0, 2)'
PRINTED = "one in [0, 2]: ok\ntwo: x in [0, 0.5]: FAILED\n"
WHY = "<details><summary>Why?</summary>Because $x$ is *small*.</details>"


def publish(root, profile: str, *figures: str) -> None:
    """Write a published run of 01_tiny with figures, one table and two claims."""
    folder = root / "results" / profile / "01_tiny"
    for name in figures:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(folder / "figures" / f"{name}.png")
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    captions = [{"name": n, "caption": f"Caption of {n}."} for n in figures]
    files.write_json(folder / "figures.json", captions)
    frame = pd.DataFrame({"my_score": [0.123456, None], "text": [SCRIPT, "b\n\nc"]}, index=[7, 8])
    frame.to_csv(folder / "tables" / "scores.csv")
    bounds = {"low": 0, "high": 0.5, "opposite": None}
    claims = [
        {"name": "two: x", "value": 0.75, "ok": False, **bounds},
        {"name": "one", "value": 1.25, "ok": True, **bounds, "high": 2},
        {"name": "three", "value": None, "ok": False, **bounds},
    ]
    files.write_json(folder / "claims.json", claims)
    files.write_json(
        folder / "metrics.json", {"n": 24, "seconds": 61.4, "data": "embedded", "profile": profile}
    )


@pytest.fixture
def tiny(project):
    """A project whose notebook draws three figures and a table, and checks two claims."""
    stdout = new_output("stream", name="stdout", text=PRINTED)
    cells = [
        new_markdown_cell("# 01 · tiny\n\n**You will be able to** draw.\n\n[Start](../README.md)"),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell(DRAW),
        new_code_cell("1", metadata={"tags": ["slider"]}),
        new_markdown_cell(WHY),
        new_code_cell(CHECK, metadata={"tags": ["keep_output"]}, outputs=[stdout]),
    ]
    nbformat.write(new_notebook(cells=cells), project / "notebooks" / "01_tiny.ipynb")
    (project / "docs").mkdir()
    (project / "docs" / "index.md").write_text("[Read](LICENSE) [more](docs/glossary.md#terms)")
    (project / "docs" / "glossary.md").write_text(
        "# Glossary\n[home](../README.md) [up](../LICENSE)"
    )
    (project / "README.md").write_text("# tiny\n![figure](results/demo/01_tiny/figures/last.png)")
    (project / "LICENSE").write_text("MIT")
    (project / "SECRET").write_text("linked by nobody")
    return project


class Tags(HTMLParser):
    """The attributes of all tags, by tag."""

    def __init__(self, text: str):
        super().__init__()
        self.found: dict[str, list[dict]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.setdefault(tag, []).append(dict(attrs))


# ---------------------------------------------------------------- pages of notebooks


def test_figures_and_tables_follow_their_cell_in_the_order_of_its_calls(tiny):
    publish(tiny, "demo", "kind_b", "kind_a", "last", "other")
    cells = site_pages.build("01_tiny").cells
    at = next(i for i, cell in enumerate(cells) if cell.source == DRAW)
    below = cells[at + 1].source
    order = ["figures/kind_a.png", "figures/kind_b.png", "<table", "figures/last.png"]
    assert [below.index(text) for text in order] == sorted(below.index(text) for text in order)
    assert "figures/last.png\n:alt: Caption of last." in below
    assert "../results/demo/01_tiny/figures/kind_b.png\n:alt: Caption of kind_b." in below
    assert "other.png" not in "".join(cell.source for cell in cells)


def test_a_table_is_one_escaped_html_block_that_a_keyboard_can_scroll(tiny):
    publish(tiny, "demo")
    at = [cell.source for cell in site_pages.build("01_tiny").cells]
    html = at[at.index(DRAW) + 1]
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "\n" not in html.strip().replace("\\n", "")  # an empty line would end it in Markdown
    assert "my score" in html and "Unnamed" not in html and "0.1235" in html
    (region,) = (d for d in Tags(html).found["div"] if d.get("class") == "cf-table")
    assert region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"]


def test_a_long_table_is_cut_and_says_by_how_much():
    html = site_pages.table_html(pd.DataFrame({"a": range(site_pages.MAX_ROWS + 3)}), "long")
    assert html.count("<tr") == site_pages.MAX_ROWS + 1 and "3 more rows" in html


def test_printed_claims_get_the_values_of_the_run_in_the_cell_s_order(tiny):
    publish(tiny, "demo")
    cells = site_pages.build("01_tiny").cells
    checked = next(i for i, cell in enumerate(cells) if cell.source == CHECK)
    shown = re.findall(r"<td>(.*?)</td>", cells[checked + 1].source)
    assert shown == ["one", "1.25", "0 to 2", "yes", "two: x", "0.75", "0 to 0.5", "no"]
    assert cells[checked].outputs == []


def test_claims_that_the_run_does_not_know_stay_as_printed(tiny):
    publish(tiny, "demo")
    files.write_json(tiny / "results" / "demo" / "01_tiny" / "claims.json", [])
    (cell,) = (cell for cell in site_pages.build("01_tiny").cells if cell.source == CHECK)
    assert cell.outputs[0].text == PRINTED


def test_the_demo_s_run_is_shown_and_else_a_larger_one(tiny):
    assert site_pages.published("01_tiny") is None
    assert "no outputs" in site_pages.build("01_tiny").cells[1].source
    for profile in ("paper", "embedded", "demo"):
        publish(tiny, profile, "last")
        assert site_pages.published("01_tiny").parent.name == profile
    note = site_pages.build("01_tiny").cells[1].source
    assert "`demo`: n = 24, embedded data, 61 s" in note and "original/01_tiny.ipynb" in note


def test_set_up_is_folded_and_markdown_in_details_is_read(tiny):
    cells = site_pages.build("01_tiny", "<b>player</b>").cells
    tags = {cell.source: cell.metadata.get("tags", []) for cell in cells}
    assert "hide-input" in tags["seed = 0"] and "hide-input" not in tags[DRAW]
    assert "<summary>Why?</summary>\n\nBecause $x$ is *small*.\n\n</details>" in "\n".join(tags)
    sources = [cell.source.strip() for cell in cells]
    assert sources.index("<b>player</b>") == sources.index("1") + 1  # below the slider


def test_a_quiz_is_shown_with_its_explained_answers(tiny):
    cells = [new_markdown_cell("# 01 · tiny"), new_code_cell('quiz.ask("01")')]
    nbformat.write(new_notebook(cells=cells), tiny / "notebooks" / "01_tiny.ipynb")
    shown = site_pages.build("01_tiny").cells[-1].source
    assert len(quiz.load("01")) >= 5 and "\n" not in shown
    for question in quiz.load("01"):
        assert quiz.mark(question.options[question.answer].why) in shown


def test_every_figure_of_every_published_notebook_is_found_by_its_cell():
    """At most a few figures are named by code that only the run can read."""
    for name in notebooks.paths():
        if (folder := site_pages.published(name)) is None:
            continue
        text = "".join(cell.source for cell in site_pages.build(name).cells)
        shown = set(re.findall(r"figures/(\w+)\.png", text))
        there = {path.stem for path in folder.glob("figures/*.png")}
        assert shown <= there and len(shown) >= 0.6 * len(there), (name, there - shown)


# ---------------------------------------------------------------- progressions


def strips(n=2, tiles=4) -> site_progressions.Strips:
    images = torch.linspace(0, 1, n * tiles).view(n, tiles, 1, 1, 1).expand(-1, -1, 3, 16, 8)
    values = torch.linspace(0, 1, n * tiles).view(n, tiles)
    return site_progressions.Strips("face", "<smile>", images, values)


def test_a_strip_holds_the_images_from_left_to_right():
    images = strips().images[1]
    decoded = Image.open(io.BytesIO(site_progressions.draw(images)))
    assert decoded.size == (4 * 8, 16) and decoded.format == "WEBP"
    for k in range(4):
        grey = decoded.getpixel((8 * k + 4, 8))
        assert max(abs(c - 255 * float(images[k, 0, 0, 0])) for c in grey) < 4


def test_a_player_has_one_value_per_tile_and_describes_each_strip():
    given = strips()
    html = site_progressions.player(given, "../place")
    assert "\n" not in html and "<smile>" not in html
    tags = Tags(html).found
    assert tags["figure"][0]["data-label"] == "<smile>"
    for i, image in enumerate(tags["img"]):
        assert [float(v) for v in image["data-values"].split()] == [
            round(v, 2) for v in given.values[i].tolist()
        ]
        assert image["src"] == f"../place/{i}.webp" and image["data-values"] in image["alt"]
        assert (image["width"], image["height"]) == ("32", "16")


def test_a_notebook_without_progressions_gets_no_player(monkeypatch):
    assert set(site_progressions.SOURCES) <= set(notebooks.paths())
    assert site_progressions.make("01_tiny") == ({}, "")
    monkeypatch.setitem(site_progressions.SOURCES, "01_tiny", strips)
    contents, html = site_progressions.make("01_tiny")
    addresses = [image["src"] for image in Tags(html).found["img"]]
    assert addresses == [f"../{place}" for place in contents] and len(contents) == 2


# ---------------------------------------------------------------- the whole source


def test_links_of_the_source_lead_to_files_of_the_source(tiny, tmp_path):
    publish(tiny, "demo", "last", "fig5_methods")
    target = site.write(tmp_path / "source")
    links = 0
    for path in [*target.rglob("*.md"), *target.glob("notebooks/*.ipynb")]:
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            assert (path.parent / link).exists(), (path, link)
            links += 1
    assert links >= 6
    assert "(../index.md)" in (target / "docs" / "glossary.md").read_text()
    assert (target / "notebooks" / "original" / "01_tiny.ipynb").exists()
    assert (target / "LICENSE").exists() and not (target / "SECRET").exists()
    card = (target / "cards.md").read_text()
    assert "results/demo/01_tiny/figures/fig5_methods.png" in card and ":link: notebooks/01" in card
    assert story.summarise("01_tiny", {}).question in card


def test_an_old_source_is_replaced_and_a_foreign_folder_is_refused(tiny, tmp_path):
    target = site.write(tmp_path / "source")
    (target / "docs" / "old.md").write_text("# old")
    (target / "api").mkdir()
    (target / "api" / "index.rst").write_text("kept by Sphinx")
    (tiny / "docs" / "glossary.md").write_text("[up](../LICENSE)")
    kept, changed = target / "LICENSE", target / "docs" / "glossary.md"
    before = [path.stat().st_mtime_ns for path in (kept, changed)]
    site.write(target)
    assert not (target / "docs" / "old.md").exists() and (target / "api" / "index.rst").exists()
    assert (kept.stat().st_mtime_ns == before[0]) and (changed.stat().st_mtime_ns != before[1])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="target: got"):
        site.write(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


# ---------------------------------------------------------------- configuration


def test_the_extra_site_installs_what_the_configuration_imports():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = {re.split(r"[<>=\[; ]", d)[0] for d in extra["site"]}
    tree = ast.parse((ROOT / "docs" / "conf.py").read_text())
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    used = {*ast.literal_eval(values["extensions"]), ast.literal_eval(values["html_theme"])}
    packages = {
        "myst_nb": "myst-nb",
        "sphinx_design": "sphinx-design",
        "autoapi.extension": "sphinx-autoapi",
        "sphinx_book_theme": "sphinx-book-theme",
    }
    assert {packages.get(name, "sphinx") for name in used} | {"math-core"} <= installed
    assert ast.literal_eval(values["nb_execution_mode"]) == "off"
    assert ast.literal_eval(values["nb_ipywidgets_js"]) == {}  # two scripts of another host


def test_every_formula_of_the_notebooks_becomes_mathml():
    converter = pytest.importorskip("math_core").LatexToMathML()
    formulas = set()
    for name in notebooks.paths():
        text = "\n\n".join(
            c.source for c in notebooks.read(name).cells if c.cell_type == "markdown"
        )
        formulas |= set(re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL))
        text = re.sub(r"\$\$(.+?)\$\$", "", text, flags=re.DOTALL)
        formulas |= set(re.findall(r"(?<!\\)\$([^$\n]+)\$", text))
    assert len(formulas) > 100
    for formula in formulas:
        assert "<math" in converter.convert_with_local_state(formula, displaystyle=False)


def test_make_has_the_targets_and_github_deploys_what_make_builds():
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "make site " in help_text and "make site-check" in help_text
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("make site" in step.get("run", "") for step in steps)
    (upload,) = (s for s in steps if "upload-pages-artifact" in s.get("uses", ""))
    assert f"SITE := {upload['with']['path']}\n" in (ROOT / "Makefile").read_text()
    assert any("deploy-pages" in step.get("uses", "") for step in steps)


@pytest.fixture(scope="module")
def configuration():
    """The module docs/conf.py, if the packages of the extra `site` are installed."""
    pytest.importorskip("sphinx")
    pytest.importorskip("math_core")
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_equation_of_a_docstring_is_code_and_its_sections_stay(configuration):
    text = "Text.\n\n    y = a * b\n\n    z = |c|\n\nMore.\n\nArgs:\n    a: one\n\n    b: two"
    lines = text.splitlines()
    configuration.prepare_docstring(None, "", "", None, None, lines)
    assert lines[2:4] == ["::", ""] and lines.count("::") == 1
    assert [line for i, line in enumerate(lines) if i not in (2, 3)] == text.splitlines()


def test_the_text_of_a_docstring_is_escaped_outside_of_code(configuration):
    lines = ["|x| is *not* `*bold*`, a_b and c_ are names."]
    configuration.prepare_docstring(None, "", "", None, None, lines)
    assert lines == [r"\|x\| is \*not\* `*bold*`, a_b and c\_ are names."]


def warnings_of(text: str) -> list[str]:
    """Return what docutils reports about a text in reStructuredText."""
    from docutils.core import publish_doctree
    from docutils.nodes import system_message

    settings = {"report_level": 5, "halt_level": 6, "default_role": "literal"}
    tree = publish_doctree(text, settings_overrides=settings)
    return [node.astext() for node in tree.findall(system_message)] + tree.parse_messages


def test_lists_and_described_names_of_a_docstring_are_lists_without_warnings(configuration):
    text = (
        "Decisions:\n* one goes\n  on and *on*\n* two\nThen text.\n\n"
        "Text.\nrole: of a `Part`s\nkind, shares: a longer text that goes\n    on\n"
    )
    lines = text.splitlines()
    assert warnings_of(text)
    configuration.prepare_docstring(None, "", "", None, None, lines)
    assert warnings_of("\n".join(lines)) == []
    assert [line for line in lines if line.startswith("*")] == [
        "* one goes",
        "* two",
        "* `role`: of a `Part`\\ s",
        "* `kind, shares`: a longer text that goes",
    ]
    assert r"  on and \*on\*" in lines and "Then text." in lines and "  on" in lines


def test_a_formula_becomes_mathml_of_its_kind(configuration):
    block, inline = (configuration.to_mathml(r"\frac{a}{b}", block=b) for b in (True, False))
    assert 'display="block"' in block and "<mfrac>" in block and 'display="block"' not in inline
