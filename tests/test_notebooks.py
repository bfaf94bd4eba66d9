"""The form of every notebook; nbval tests that they run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import nbformat
import pytest

from cf_utils.core.files import ROOT
from cf_utils.harness import figures, parameters

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted((ROOT / "notebooks" / "profiles").glob("*.yaml"))
MACHINE = re.compile(r"/home/|/work/|/Users/|/tmp/|/mnt/|[A-Z]:\\\\")
TAGS = {
    "parameters",
    "setup",
    "compute",
    "exercise",
    "solution",
    "nbval-check-output",
    "nbval-skip",
    "keep_output",
    "slider",
}
CHECKED, KEPT = "nbval-check-output", "keep_output"


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def having(notebook, tag: str) -> list:
    return [c for c in notebook.cells if tag in tags(c)]


def calls(source: str, name: str) -> list[ast.Call]:
    """Calls of `name(...)` or `something.name(...)`."""
    return [
        n
        for n in ast.walk(ast.parse(plain(source)))
        if isinstance(n, ast.Call) and getattr(n.func, "id", getattr(n.func, "attr", None)) == name
    ]


def plain(source: str) -> str:
    """Python without IPython's magics."""
    return "\n".join(
        "pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()
    )


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    found = nbformat.read(path, 4)
    nbformat.validate(found)
    return found


@pytest.fixture
def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_widgets_are_opened_by_knobs_interact_alone(notebook):
    """A headless run that opens a widget by itself may never end (see `viz.knobs`)."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = calls(cell.source, "interact") + calls(cell.source, "interact_manual")
            assert {ast.unparse(call.func) for call in found} <= {"knobs.interact"}, cell.source
            assert "slider" not in tags(cell) or found, cell.source


def test_there_are_notebooks_with_distinct_numbers():
    numbers = [p.stem[:2] for p in NOTEBOOKS]
    assert "00" in numbers and len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", p.stem) for p in NOTEBOOKS)


def test_the_title_says_what_it_needs_and_how_long_it_takes(path, notebook):
    title = notebook.cells[0]
    assert title.cell_type == "markdown" and title.source.startswith(f"# {path.stem[:2]} · ")
    for word in ("**You will be able to**", "**Needs**", "**Time**", "**Runs**"):
        assert word in title.source, word


def test_the_first_cells_are_title_parameters_imports(notebook, code):
    assert notebook.cells[1] is code[0] and "parameters" in tags(code[0])
    assert notebook.cells[2] is code[1] and "setup" in tags(code[1])
    imports = [
        n
        for c in code
        for n in ast.walk(ast.parse(plain(c.source)))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    here = [
        n
        for n in ast.walk(ast.parse(plain(code[1].source)))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    assert len(imports) == len(here), "imports outside the imports cell"


def test_one_cell_of_parameters_holds_nothing_but_literals_with_comments(notebook):
    (cell,) = having(notebook, "parameters")
    names = {}
    for node in ast.parse(cell.source).body:
        assert (
            isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
        )
        names[node.targets[0].id] = ast.literal_eval(node.value)
    assert all("#" in line for line in cell.source.splitlines())
    assert names["profile"] == "demo" and names["data_root"] == "" and names["seed"] == 0


def test_the_results_go_under_the_notebooks_own_name(path, code):
    (made,) = [c for cell in code for c in calls(cell.source, "Run")]
    assert ast.literal_eval(made.args[0]) == path.stem
    assert calls(code[-1].source, "finish"), "run.finish() belongs in the last cell"
    assert sum(len(calls(c.source, "finish")) for c in code) == 1


def test_only_checked_cells_have_outputs_and_counts_and_they_are_text(code):
    for c in code:
        checked = CHECKED in tags(c)
        assert checked == (KEPT in tags(c)), c.source
        assert bool(c.outputs) == checked, c.source
        assert not checked or c.execution_count, c.source
        assert all(o.output_type == "stream" and o.name == "stdout" for o in c.outputs), c.source


def test_every_claim_stands_in_a_checked_cell_and_every_checked_line_is_a_claim_that_holds(code):
    n = 0
    for c in code:
        made = calls(c.source, "claim")
        n += len(made)
        assert bool(made) == (CHECKED in tags(c)), c.source
        lines = "".join(o.text for o in c.outputs).splitlines()
        assert all(re.fullmatch(r".+ in \[\S+, \S+\]: ok", line) for line in lines), lines
        assert len(lines) >= len(made), c.source
    assert n >= 3


def test_every_figure_has_a_caption_of_its_own(code):
    made = [c for cell in code for c in calls(cell.source, "figure") if c.args]
    captions = [ast.unparse(k.value) for c in made for k in c.keywords if k.arg == "caption"]
    assert len(captions) == len(set(captions)) == len(made)
    for text in captions:
        figures.check_caption(str(ast.literal_eval(text.removeprefix("f"))))


def test_cells_are_short_and_know_no_machine(code, notebook):
    for c in code:
        lines = c.source.splitlines()
        assert len(lines) <= 25 and max(map(len, lines), default=0) <= 130, c.source
        assert "!pip" not in c.source and "%pip" not in c.source and "sys.path" not in c.source
    assert not [c.source for c in notebook.cells if MACHINE.search(c.source)]
    assert not [o for c in code for o in c.outputs if MACHINE.search(str(o))]


def test_tags_are_known_and_every_cell_has_an_id(notebook):
    ids = [c.get("id") for c in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids)
    assert {t for c in notebook.cells for t in tags(c)} <= TAGS


def test_an_exercise_is_stub_folded_solution_and_check(notebook):
    stubs, solutions = having(notebook, "exercise"), having(notebook, "solution")
    assert len(stubs) == len(solutions) >= 1
    cells = notebook.cells
    for stub, solution in zip(stubs, solutions, strict=True):
        at = cells.index(solution)
        assert cells.index(stub) < at
        assert any(CHECKED in tags(c) for c in cells[at + 1 : at + 4]), (
            "a solution is checked by a claim right after it"
        )
        assert solution.metadata.get("jupyter", {}).get("source_hidden"), "solutions come folded"
        names = [
            {n.name for n in ast.parse(c.source).body if isinstance(n, ast.FunctionDef)}
            for c in (stub, solution)
        ]
        assert names[0] and names[0] <= names[1]
        for function in (n for n in ast.parse(stub.source).body if isinstance(n, ast.FunctionDef)):
            assert ast.get_docstring(function), function.name
        assert (
            "raise NotImplementedError(" in stub.source
            and "NotImplementedError" not in solution.source
        )


def test_the_file_is_small_and_clean(path, notebook):
    assert path.stat().st_size < 80_000
    assert "image/png" not in path.read_text(encoding="utf-8")
    assert notebook.metadata.get("papermill") is None and not notebook.metadata.get("widgets")
    assert not [c for c in notebook.cells if not c.source.strip()], "empty cells"


def test_links_between_notebooks_use_names_that_the_design_knows(notebook):
    for link in re.findall(
        r"\]\(([^)#\s]+\.ipynb)\)",
        "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"),
    ):
        assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", link), link
        assert (
            int(link[:2]) > max(int(p.stem[:2]) for p in NOTEBOOKS)
            or (ROOT / "notebooks" / link).exists()
        ), link


def test_the_checked_outputs_survive_nbstripout(path, notebook):
    """What a commit hook leaves is what is committed."""
    done = subprocess.run(
        [sys.executable, "-m", "nbstripout", "--keep-count", "-t", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    stripped = nbformat.reads(done.stdout, 4)
    for before, after in zip(notebook.cells, stripped.cells, strict=True):
        assert before.source == after.source and before.get("outputs") == after.get("outputs"), (
            before.source
        )


@pytest.mark.parametrize("profile", [p.stem for p in PROFILES])
def test_a_profile_names_only_existing_notebooks_and_known_parameters_of_the_right_type(profile):
    for name in parameters.profile_sections(profile):  # refuses an unknown notebook
        given, shards = parameters.for_run(
            name, profile
        )  # refuses an unknown parameter, or another type
        assert shards >= 1 and given["profile"] == profile
