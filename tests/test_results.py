"""Results of a run: its files, its claims, and that a kill leaves no half-written file."""

from __future__ import annotations

import io
import itertools
import json
import math

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from torch import nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.harness import claims, figures, folders, job, parameters, publish, report, results
from cf_utils.models import checkpoints
from cf_utils.models.cards import Card
from tests.conftest import make_explainer, make_net, make_queries
from tests.workplace import (
    LIGHT,
    execute_here,
    kill_at_rename,
    make_notebook,
)

CAPTION = "Random numbers fill the square."


@pytest.fixture
def run(project):
    return results.Run("01_tiny", profile="demo", seed=0, data="embedded")


def noisy(size: float = 8) -> Figure:
    fig = Figure(figsize=(size, size))
    fig.add_subplot().imshow(np.random.default_rng(0).random((400, 400, 3)))
    return fig


# ---------------------------------------------------------------- claims and metrics


def test_a_claim_prints_its_bounds_but_not_the_value(run, capsys):
    run.claim("change", 0.123456, 0.1, 10)
    assert capsys.readouterr().out == "change in [0.1, 10]: ok\n"


@pytest.mark.parametrize("value", [11.0, -1, math.nan, math.inf, None])
def test_a_failed_claim_raises_in_demo_and_is_recorded_elsewhere(run, value, monkeypatch, capsys):
    with pytest.raises(AssertionError, match=r"^change: .* is outside \[0, 10\]"):
        run.claim("change", value, 0, 10)
    other = results.Run("01_tiny", profile="paper", seed=0, data="official")
    other.claim("change", value, 0, 10, opposite="it shrinks")
    assert "FAILED" in capsys.readouterr().out
    assert other.finish()["claims_failed"] == 1
    (entry,) = files.read_json(other.folder / "claims.json")
    assert (entry["name"], entry["ok"], entry["opposite"]) == ("change", False, "it shrinks")
    assert job.failed_claims(other.folder) == ["change"]
    monkeypatch.setenv("CF_CLAIMS", "record")
    run.claim("change 2", value, 0, 10)  # and in demo, when the ranges are being measured


@pytest.mark.parametrize(
    "low, high", [(0, math.inf), (-math.inf, 1), (math.nan, 1), (1, 0), (1, 1)]
)
def test_bounds_are_finite_and_in_order(run, low, high):
    with pytest.raises(ValueError, match="expected finite ones with low < high"):
        run.claim("x", 0.5, low, high)


def test_the_same_claim_may_come_again_but_not_with_other_bounds(run):
    run.claim("x", 1, 0, 2)
    run.claim("x", 1.5, 0, 2)  # a cell that was run twice
    with pytest.raises(ValueError, match="other bounds"):
        run.claim("x", 1, 0, 3)


def test_metrics_are_strict_json_with_the_required_entries(run):
    run.metrics(n=90, a=torch.tensor(0.5), b=np.float32(2), c=math.nan, d=math.inf, e=None, f=True)
    run.finish()
    found = json.loads((run.folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert {k: found[k] for k in "abcdef"} == {
        "a": 0.5,
        "b": 2.0,
        "c": None,
        "d": None,
        "e": None,
        "f": 1,
    }
    assert (
        found["n"] == 90
        and found["data"] == "embedded"
        and found["seconds"] >= 0
        and found["device"]
        and "commit" in found
    )


def test_metrics_refuse_a_second_value_a_reserved_name_and_non_numbers(run):
    run.metrics(n=1)
    run.metrics(n=1)
    for bad, text in (
        ({"n": 2}, "already 1, got 2"),
        ({"n": None}, "already 1"),
        ({"device": 1}, "written by finish"),
        ({"m": "3"}, "expected one number"),
        ({"m": torch.zeros(2)}, "expected one number"),
    ):
        with pytest.raises(ValueError, match=text):
            run.metrics(**bad)


# ---------------------------------------------------------------- a person who plays

START = """from cf_utils.harness import results
run = results.Run("01_tiny", profile="demo", seed=0, data="embedded")"""
PLAY = """run.claim("change", 12, 0, 10, opposite="it runs away")
run.metrics(n=1)"""
AGAIN = """run.claim("change", 7, 0, 8)
run.metrics(n=2)
print(run.finish()["n"], run.finish()["claims_failed"])"""
HEADLESS = "import os\nos.environ['CF_HEADLESS'] = '1'"


class Player(NotebookClient):
    """Runs cells as a front end whose user can answer `input()`, up to a cell tagged "machine"."""

    async def async_execute_cell(self, cell, *arguments, **named):
        self.kc.allow_stdin = "machine" not in cell.metadata.get("tags", [])
        return await super().async_execute_cell(cell, *arguments, **named)


def play(*cells: str) -> list[tuple[str, str]]:
    """Run cells in one real kernel; a cell that begins with "machine:" is sent by a program.

    Returns each cell's text output, and the name and text of its error or ''.
    """
    book = new_notebook()
    for text in cells:
        tags = ["machine"] if text.startswith("machine:") else []
        source = text.removeprefix("machine:")
        book.cells.append(new_code_cell(source, metadata={"tags": tags}))
    Player(book, kernel_name="python3", timeout=120, allow_errors=True).execute()
    return [_read_outputs(cell) for cell in book.cells]


def _read_outputs(cell: nbformat.NotebookNode) -> tuple[str, str]:
    text = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    errors = [f"{o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error"]
    return text, "".join(errors)


def test_a_person_may_play_but_a_program_is_stopped(project, monkeypatch):
    monkeypatch.delenv("CF_HEADLESS", raising=False)  # of `make test`; the kernel would inherit it
    machine = [f"machine:{text}" for text in (START, PLAY, AGAIN)]
    cells = play(START, PLAY, PLAY, AGAIN, *machine, HEADLESS, START, PLAY)
    outputs, errors = zip(*cells, strict=True)
    assert errors[:4] == ("",) * 4
    for text in outputs[1:3]:  # warned at the second run of the cell, too
        assert "change: 12 is outside [0, 10]. It may mean: it runs away" in text
        assert "change in [0, 10]: FAILED" in text
    assert outputs[3].splitlines() == ["change in [0, 8]: ok", "2 0"]
    assert errors[5] == "AssertionError: change: 12 is outside [0, 10]"
    assert errors[6].startswith("ValueError: claim 'change' was made before with other bounds")
    assert errors[9] == errors[5]  # CF_HEADLESS decides, even where input() would be answered


def test_without_a_kernel_nobody_plays(run):
    assert not run.interactive


# ---------------------------------------------------------------- figures, tables, earlier runs


def test_a_heavy_figure_is_reduced_below_the_limit_and_stays_a_png(run):
    run.figure("noise", noisy(), caption=CAPTION)
    content = (run.folder / "figures" / "noise.png").read_bytes()
    assert content[:4] == b"\x89PNG" and 20_000 < len(content) <= figures.MAX_BYTES


@pytest.mark.parametrize("tint", [(1, 1, 1), (1, 0.8, 0.6)])
def test_a_palette_holds_the_colour_of_a_lamp_of_nine_pixels(tint):
    rng, lamp = np.random.default_rng(0), (0.1, 0.9, 0.2)
    asphalt = np.linspace(0.2, 0.8, 900)[None, :, None] + rng.normal(0, 0.04, (500, 900, 3))
    picture = np.clip(asphalt * np.array(tint), 0, 1)
    picture[200:203, 300:303], picture[:, :40] = lamp, 1
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    content = figures._reduce(image, 1.0, 256, 10**9)
    reduced = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) / 255
    assert np.abs(reduced[201, 301] - lamp).max() < 0.1
    assert (reduced[:, :40] == 1).all()  # white paper stays white
    assert np.abs(reduced - picture).mean() < 0.03


def test_a_palette_keeps_the_levels_of_a_grey_image():
    grey = np.linspace(0, 255, 300).round().astype(np.uint8)[None, :, None]
    image = Image.fromarray(np.broadcast_to(grey, (200, 300, 3)).copy())
    reduced = Image.open(io.BytesIO(figures._reduce(image, 1.0, 256, 10**9))).convert("RGB")
    assert np.abs(np.asarray(reduced).astype(int) - np.asarray(image)).max() <= 1


def test_a_figure_that_cannot_be_reduced_below_the_limit_is_refused(run, monkeypatch):
    monkeypatch.setattr(figures, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"figure: got .* do not fit in 100 bytes"):
        run.figure("noise", noisy(), caption=CAPTION)
    assert not (run.folder / "figures" / "noise.png").exists()


def test_a_heavy_figure_keeps_its_colours(run):
    """A picture of 4,000 colours is too heavy; the reduction changes it by about one level."""
    fig = Figure(figsize=(6, 6))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")
    x = np.random.default_rng(0).random((150, 150, 3)) * 0.2 + np.linspace(0, 0.8, 150)[
        :, None, None
    ] * np.array([1.0, 0.6, 0.3])
    ax.imshow(np.kron(x, np.ones((4, 4, 1))).clip(0, 1), interpolation="nearest")
    run.figure("smooth", fig, caption=CAPTION)
    found = np.asarray(
        Image.open(run.folder / "figures" / "smooth.png")
        .convert("RGB")
        .resize((150, 150), Image.Resampling.BOX)
    )
    wide = x.reshape(30, 5, 30, 5, 3).mean((1, 3)) * 255
    assert np.abs(found.reshape(30, 5, 30, 5, 3).mean((1, 3)) - wide).mean() < 1.1


def test_a_figure_has_the_same_bytes_each_time(run):
    def draw():
        run.figure("f", noisy(2), caption=CAPTION)
        return (run.folder / "figures" / "f.png").read_bytes()

    assert draw() == draw()


def test_captions_are_kept_in_the_order_of_creation(run):
    for name in ("z", "a", "m"):
        run.figure(name, noisy(1), caption=f"Random numbers of figure {name}.")
    run.figure("z", noisy(1), caption="Are these\n random numbers?")  # a cell that runs again
    run.finish()
    found = [(f["name"], f["caption"]) for f in files.read_json(run.folder / "figures.json")]
    assert found == [
        ("z", "Are these random numbers?"),
        ("a", "Random numbers of figure a."),
        ("m", "Random numbers of figure m."),
    ]


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "too short.",
        "no full stop at its end",
        "One sentence. And another one.",
        "x" * 200,
        None,
    ],
)
def test_a_caption_is_one_sentence(run, caption):
    with pytest.raises(ValueError, match=r"caption: got .* expected one sentence"):
        run.figure("f", noisy(1), caption=caption)
    assert not (run.folder / "figures").exists()


def test_a_caption_is_the_alt_text_in_a_notebook(run, monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    select_figure_formats(shell, {"png"})
    first, second = noisy(1), noisy(1)
    run.figure("first", first, caption=CAPTION)
    run.figure("second", second, caption="Other random numbers fill it.")
    for fig, alt in ((first, CAPTION), (second, "Other random numbers fill it.")):
        data, metadata = shell.display_formatter.format(fig)
        assert data["image/png"] and metadata["image/png"] == {"alt": alt}
    assert shell.display_formatter.format(noisy(1))[1] == {}


def test_a_table_keeps_its_index_unless_it_holds_row_numbers(run):
    run.table("a", pd.DataFrame({"v": [1.5]}, index=pd.Index(["ours"], name="method")))
    run.table("b", pd.DataFrame({"v": [1.5]}))
    assert (run.folder / "tables" / "a.csv").read_text() == "method,v\nours,1.5\n"
    assert (run.folder / "tables" / "b.csv").read_text() == "v\n1.5\n"


def test_finish_removes_what_only_an_earlier_run_wrote(run):
    run.table("old", pd.DataFrame({"v": [1]}))
    run.figure("old", noisy(1), caption=CAPTION)
    run.finish()
    for path in ("tables/new.csv", "tables/old.csv", "figures/old.png"):  # of a run that was killed
        (run.folder / f"{path}.part-host-1-0a").touch()
    again = results.Run("01_tiny", profile="demo", seed=0, data="embedded")
    again.table("new", pd.DataFrame({"v": [1]}))
    again.finish()
    assert [p.name for p in (run.folder / "tables").iterdir()] == ["new.csv"]
    assert not list((run.folder / "figures").iterdir())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x"])
def test_names_that_leave_the_folder_are_refused(run, name):
    with pytest.raises(ValueError, match="name: got"):
        run.figure(name, noisy(1), caption=CAPTION)


# ---------------------------------------------------------------- the owner


def test_an_orphaned_kernel_cannot_write_into_its_successors_folder(project, monkeypatch):
    monkeypatch.setenv("CF_RUN_TOKEN", "first")
    run = results.Run("01_tiny", profile="demo", seed=0, data="embedded")
    files.write_json(run.folder / "owner.json", {"token": "first"})
    run.figure("f", noisy(1), caption=CAPTION)  # its own folder: allowed
    net = make_net()
    x, target = make_queries(net, n=2)
    took_over = []

    class Slow(nn.Module):
        """A classifier during whose first call the successor takes over."""

        def forward(self, x):
            if not took_over:
                files.write_json(run.folder / "owner.json", {"token": "second"})
                took_over.append(True)
            return net(x)

    before = sorted(run.folder.rglob("*"))
    with pytest.raises(results.NotOwner):
        run.explain("a", make_explainer(steps=2), Slow(), x, target, torch.arange(2))
    for write in (
        lambda: run.figure("g", noisy(1), caption=CAPTION),
        lambda: run.table("t", pd.DataFrame({"v": [1]})),
        run.finish,
        lambda: run.explain("a", make_explainer(steps=2), net, x, target, torch.arange(2)),
    ):
        with pytest.raises(results.NotOwner, match="belongs to another run"):
            write()
    assert sorted(p for p in run.folder.rglob("*") if p.is_file()) == [
        p for p in before if p.is_file()
    ]


def test_the_owner_check_does_not_change_the_result(run):
    net = make_net()
    x, target = make_queries(net, n=3)
    ours = run.explain("a", make_explainer(steps=3), net, x, target, torch.arange(3), batch_size=2)
    plain = core.explain_in_batches(
        make_explainer(steps=3), net, x, target, torch.arange(3), batch_size=2
    )
    assert (
        torch.equal(ours.counterfactual, plain.counterfactual) and ours.settings == plain.settings
    )


# ---------------------------------------------------------------- kills around each rename


def versions(root, monkeypatch):
    """Return writer -> (write(version), read() -> the version on disk, or an error)."""
    run = lambda v: results.Run("01_tiny", profile="paper", seed=v, data="embedded")  # noqa: E731
    folder = folders.run_folder("paper", "01_tiny")
    monkeypatch.setattr(job, "execute", execute_here)
    frame = lambda v: pd.DataFrame({"v": [v] * 1000})  # noqa: E731
    given, _ = parameters.for_run("01_tiny", "paper")
    parameters_of_the_profile = parameters.complete("01_tiny", given)

    def checkpoint(v):
        net = nn.Linear(3, 3).requires_grad_(False).apply(lambda m: m.weight.fill_(v))
        checkpoints.save("net", net, Card(), root)

    def load_checkpoint():
        net = nn.Linear(3, 3)
        checkpoints.load_weights("net", net, root)
        return int(net.weight[0, 0])

    def explained(v):
        net = make_net()
        x, target = make_queries(net, n=2)
        make_explainer(steps=1, seed=v)(net, x, target, torch.arange(2)).save(root / "cfs")

    def finish(v):
        r = run(v)
        r.metrics(n=v)
        r.claim("v", v, 0, 9)
        r.finish()

    def finished():
        n = files.read_json(folder / "metrics.json")["n"]
        assert (
            files.read_json(folder / "claims.json")[0]["value"] == n
        )  # never one run's metrics with another's claims
        return n

    make_notebook(root, "02_light", ("", LIGHT))

    def ran():
        light = folders.run_folder("paper", "02_light")
        n = files.read_json(light / "metrics.json")["n"]
        json.loads((light / "notebook.ipynb").read_text())
        assert files.read_json(light / "claims.json")[0]["value"] == n
        return n

    def publish_run(v):
        finish(v)
        run(v).table("t", frame(v))
        # the profile's own parameters, as the runner would have left them
        files.write_json(folder / "parameters.json", parameters_of_the_profile)
        publish.publish("paper", "01_tiny")

    def published():
        folder = folders.published_folder("paper", "01_tiny")
        n = files.read_json(folder / "metrics.json")["n"]
        assert pd.read_csv(folder / "tables" / "t.csv").v[0] == n
        assert files.read_json(folder / "parameters.json")["steps"] == 6
        return n

    return {
        "write_text": (
            lambda v: files.write_text(root / "t", str(v) * 9999),
            lambda: int((root / "t").read_text()[:9999][-1]),
        ),
        "write_json": (
            lambda v: files.write_json(root / "j", {"v": v}),
            lambda: files.read_json(root / "j")["v"],
        ),
        "write_tensors": (
            lambda v: files.write_tensors(root / "s", {"v": torch.full((999,), v)}),
            lambda: int(files.read_tensors(root / "s")["v"][-1]),
        ),
        "checkpoints.save": (checkpoint, load_checkpoint),
        "Counterfactuals.save": (explained, lambda: core.Counterfactuals.load(root / "cfs").seed),
        "Run.figure": (
            lambda v: run(v).figure("f", noisy(v), caption=CAPTION),
            lambda: (folder / "figures" / "f.png").stat().st_size and 2,
        ),
        "Run.table": (
            lambda v: run(v).table("t", frame(v)),
            lambda: int(pd.read_csv(folder / "tables" / "t.csv").v.iloc[999]),
        ),
        "Run.finish": (finish, finished),
        "run_notebook": (
            lambda v: job.run_notebook("02_light", "paper", {"steps": v, "profile": "paper"}),
            ran,
        ),
        "publish": (publish_run, published),
        "report": (
            lambda v: report.write("paper"),
            lambda: 2 if report.path("paper").read_text().endswith("</html>") else None,
        ),
        "write_ranges": (
            lambda v: (finish(v), claims.write_ranges("01_tiny", [folder])),
            lambda: files.read_json(root / "results" / "claims" / "01_tiny.json")["v"]["max"],
        ),
    }


@pytest.mark.parametrize(
    "writer",
    [
        "write_text",
        "write_json",
        "write_tensors",
        "checkpoints.save",
        "Counterfactuals.save",
        "Run.figure",
        "Run.table",
        "Run.finish",
        "run_notebook",
        "publish",
        "report",
        "write_ranges",
    ],
)
def test_a_kill_around_any_rename_leaves_the_old_file_the_new_one_or_none(
    project, writer, monkeypatch
):
    write, read = versions(project, monkeypatch)[writer]

    def read_whole():
        try:
            return read()
        except (
            FileNotFoundError,
            ValueError,
        ):  # missing, or refused by the reader with a word on what to do
            return None

    for nth in itertools.count(1):
        write(1)
        if kill_at_rename(lambda: write(2), nth, "before") == 0:
            break
        assert read_whole() in (1, 2, None)
        write(2)  # the next run needs no manual repair
        assert read_whole() == 2
        write(1)
        assert kill_at_rename(lambda: write(2), nth, "after") == -9
        assert read_whole() in (1, 2, None)
        write(2)
        assert read_whole() == 2
    assert nth > 1  # at least one rename was met


# ---------------------------------------------------------------- the papers' figures


def test_reported_figures_can_be_read_by_paper_and_table():
    assert len(results.reported()) == 436
    table = results.reported("gradual-construction", "Table 6")
    row = table[
        (table["dataset"] == "HELOC") & (table["method"] == "gradual") & (table["metric"] == "L1")
    ]
    assert row["value"].tolist() == [1.05] and "note" in table
    for bad in ({"paper": "nobody"}, {"paper": "ace", "table": "Table 99"}):
        with pytest.raises(ValueError, match="known are"):
            results.reported(**bad)


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be written .*CF_RESULTS_ROOT"):
        results.Run("01_tiny", profile="demo", seed=0, data="embedded")


# ---------------------------------------------------------------- publishing and the report


@pytest.fixture
def done(project, monkeypatch):
    """The results folder of notebook 02, which the runner has run in the demo profile."""
    monkeypatch.setattr(job, "execute", execute_here)
    make_notebook(project, "02_light", ("", LIGHT))
    return job.run_notebook("02_light", "demo", {"profile": "demo"})


def test_metrics_stay_flat_and_the_parameters_are_a_file_beside_them(done):
    metrics = files.read_json(done / "metrics.json")
    assert "parameters" not in metrics
    assert not any(isinstance(value, dict | list) for value in metrics.values())
    stored = files.read_json(done / "parameters.json")
    assert stored == parameters.complete("02_light", {"profile": "demo"})
    assert stored["steps"] == 5 and stored["sizes"] == [1, 2]


def test_a_run_records_the_checkpoints_that_it_loaded(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "_LOADED", {})  # other tests of this process load some, too
    checkpoints.load("mnist_cnn")
    run.finish()
    found = files.read_json(run.folder / "checkpoints.json")
    assert found == {"mnist_cnn": files.sha256(checkpoints.FOLDER / "mnist_cnn.json")}


def test_parameters_are_published_without_the_folder_of_this_machine(done, project):
    stored = files.read_json(done / "parameters.json")
    files.write_json(done / "parameters.json", {**stored, "data_root": "/home/somebody/data"})
    target = publish.publish("demo", "02_light")
    assert files.read_json(target / "parameters.json") == {**stored, "data_root": "DATA"}


def test_results_of_uncommitted_code_are_published_only_if_allowed(done):
    metrics = files.read_json(done / "metrics.json")
    files.write_json(done / "metrics.json", {**metrics, "commit": "0123456789ab-dirty"})
    with pytest.raises(ValueError, match="commit got 0123456789ab-dirty, expected a clean tree"):
        publish.publish_all("demo", [])
    assert not folders.published_folder("demo", "02_light").exists()
    (target,) = publish.publish_all("demo", [], allow_dirty=True)
    published = files.read_json(target / "metrics.json")
    assert published == {**metrics, "commit": "0123456789ab-dirty"}  # and no other mark


def test_nothing_is_published_if_one_notebook_is_refused(done, project):
    make_notebook(project, "03_light", ("", LIGHT))
    job.run_notebook("03_light", "demo", {"profile": "demo", "steps": 3})
    with pytest.raises(ValueError, match="03_light: it ran with steps=3 instead of 5"):
        publish.publish_all("demo", [])
    assert not folders.published_folder("demo", "02_light").exists()


def test_a_heavy_figure_is_not_published(done):
    (done / "figures").mkdir()
    (done / "figures" / "heavy.png").write_bytes(b"0" * (figures.MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"heavy\.png weigh more than 150000 bytes"):
        publish.publish("demo", "02_light")


def test_an_empty_or_damaged_table_does_not_stop_the_report(done):
    (done / "tables").mkdir()
    (done / "tables" / "empty.csv").write_text("")
    (done / "tables" / "no_rows.csv").write_text("a,b\n")
    (done / "tables" / "damaged.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    (done / "tables" / "whole.csv").write_text("a,b\n1,2\n")
    page = report.write("demo").read_text()
    assert page.count("No rows.") == 2 and page.count("cannot be read") == 1
    assert "<td>2</td>" in page and "02 · tiny" in page


def test_a_table_without_columns_can_be_written_and_shown(project, monkeypatch):
    run = results.Run("01_tiny", profile="demo", seed=0, data="embedded")
    run.table("none", pd.DataFrame())
    run.finish()
    assert "No rows." in report.write("demo").read_text()


@pytest.mark.parametrize("name", ["metrics.json", "claims.json"])
def test_a_damaged_record_does_not_stop_the_report(done, name):
    (done / name).write_text("")
    page = report.write("demo").read_text()
    assert "02 · tiny" in page
    assert ("cannot be read" in page) == (name == "metrics.json")


@pytest.mark.parametrize("profile", ["../../etc", "..", "nobody", "", "/etc"])
def test_a_report_of_an_unknown_profile_is_refused_and_writes_nothing(project, profile):
    before = sorted(project.parent.rglob("*"))
    for write in (report.write, lambda p: publish.publish_all(p, [])):
        with pytest.raises(ValueError, match="profile: got"):
            write(profile)
    assert sorted(project.parent.rglob("*")) == before
