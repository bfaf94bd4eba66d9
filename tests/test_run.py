"""The runner: bad input is refused before any work, kills and orphans do no harm, shards equal one run, nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from cf_utils import core
from cf_utils.core import files
from cf_utils.harness import job, results
from cf_utils.harness import run as runner
from tests.workplace import (
    PLAIN,
    ended,
    execute_here,
    fork,
    make_notebook,
    make_profile,
    project,  # noqa: F401 (a fixture)
)

DEMO = {"profile": "demo"}
pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture
def here(monkeypatch):
    """Notebooks run in this process: these tests are about what stands around papermill."""
    monkeypatch.setattr(job, "execute", execute_here)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("wanted", ["1", "01", "01_tiny", "notebooks/01_tiny.ipynb"])
def test_a_notebook_is_found_by_number_name_or_path(wanted):
    assert job.find(wanted) == "01_tiny"


@pytest.mark.parametrize(
    "argv, text",
    [
        (["07"], "notebook: got '07', known are 01_tiny"),
        (["--one", "7"], "notebook: got '7', known are 01_tiny"),
        (["01", "-p", "stepz=3"], "unknown parameter stepz; known are seed, steps, lam"),
        (["--one", "01", "-p", "colour=red"], "unknown parameter colour"),
        (["--one", "01", "--parameters", '{"stepz": 3}'], "unknown parameter stepz"),
        (["01", "-p", "steps=many"], "steps got 'many' (str), expected int like its default 5"),
        (["01", "-p", "steps=1.5"], "steps got 1.5 (float), expected int"),
        (["01", "-p", "steps=True"], "steps got True (bool), expected int"),
        (["01", "-p", "fast=1"], "fast got 1 (int), expected bool"),
        (["01", "-p", "steps"], "expected name=value"),
        (["01", "--profile", "big"], "profile: got 'big', known are demo, paper"),
        (["01", "--data", "/no/such/folder"], "/no/such/folder is no folder"),
        (["01", "--shards", "0"], "expected whole numbers >= 1"),
        (["--one", "01", "--shard", "3/2"], "got '3/2', expected k/N"),
    ],
)
def test_bad_input_is_refused_before_any_work(project, argv, text, capsys):  # noqa: F811
    assert runner.main(argv) == 2
    assert text in capsys.readouterr().err
    assert not list(project.rglob("metrics.json")) and not list(project.rglob("owner.json"))


def test_values_take_their_defaults_type():
    found = job.parsed("01_tiny", ["steps=3", "lam=2", "fast=true", "sizes=(3, 4)", "data_root=7"])
    assert found == {"steps": 3, "lam": 2, "fast": True, "sizes": (3, 4), "data_root": "7"}


def test_a_profile_is_checked_like_the_command_line(project):  # noqa: F811
    for text, match in (
        ("01_tiny: {stepz: 1}", "unknown parameter stepz"),
        ("01_tiny: {lam: 1e-3}", "lam got '1e-3'"),
        ("01_tinny: {steps: 1}", "01_tinny name no notebook"),
        ("01_tiny: {shards: 0}", "shards of 01_tiny"),
    ):
        make_profile(project, text)
        with pytest.raises(ValueError, match=match):
            job.settings("01_tiny", "paper", None, [])


def test_data_and_profile_reach_the_parameters(project):  # noqa: F811
    given, shards = job.settings("01_tiny", "paper", str(project), ["seed=3"])
    assert (
        given == {"steps": 6, "profile": "paper", "data_root": str(project), "seed": 3}
        and shards == 1
    )
    with pytest.raises(ValueError, match="has no section for 02_more"):
        make_notebook(project, "02_more")
        job.settings("02_more", "paper", None, [])


def test_parameters_are_literals_in_one_cell(project):  # noqa: F811
    make_notebook(project, "02_more", parameters="a: int = 1\nb = a * 2")
    with pytest.raises(ValueError):
        job.defaults("02_more")
    make_notebook(project, "02_more", ("parameters", "c = 1"))
    with pytest.raises(ValueError, match="2 cells are tagged"):
        job.defaults("02_more")


@pytest.mark.parametrize("argv", [["01"], ["--one", "01"]])
def test_an_unwritable_results_folder_is_named_before_any_work(project, argv, monkeypatch, capsys):  # noqa: F811
    (project / "file").write_text("")
    monkeypatch.setenv(
        "CF_RESULTS_ROOT", str(project / "file" / "results")
    )  # root may write anywhere, but not below a file
    assert runner.main(argv) == 2
    assert "cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------- failures, in a real kernel


def test_a_failed_notebook_keeps_its_traceback_and_the_exit_status_says_so(project, capsys):  # noqa: F811
    make_notebook(project, "02_bad", ("", "before = 1"), ("", "# divide\n1 / 0"), ("", "after = 1"))
    folder = results.run_folder("demo", "02_bad")
    files.write_json(folder / "metrics.json", {"n": "of an earlier run"})
    assert runner.main(["--one", "02"]) == 1
    message = capsys.readouterr().err
    log = folder / "log" / "notebook.ipynb"
    assert "ZeroDivisionError" in message and str(log) in message and "(# divide)" in message
    outputs = [
        o
        for c in nbformat.read(log, 4).cells
        for o in c.get("outputs", [])
        if o.output_type == "error"
    ]
    assert outputs[0].ename == "ZeroDivisionError" and outputs[0].traceback
    assert not (folder / "metrics.json").exists() and not (folder / "notebook.ipynb").exists()


def test_a_dead_kernel_is_no_success(project, capsys):  # noqa: F811
    make_notebook(project, "02_bad", ("", "import os\nos.kill(os.getpid(), 9)"))
    assert runner.main(["--one", "02"]) == 1
    assert "kernel died" in capsys.readouterr().err


def test_a_kernel_that_did_not_start_is_tried_once_more(monkeypatch, tmp_path):
    import papermill

    calls = []

    def start(*args, **kw):
        calls.append(kw["cwd"])
        if len(calls) < fail:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", start)
    fail = 2
    job.execute(None, tmp_path / "log", {}, "x")
    assert len(calls) == 2
    calls, fail = [], 9
    with pytest.raises(job.JobFailed, match="could not be started"):
        job.execute(None, tmp_path / "log", {}, "x")


# ---------------------------------------------------------------- claims, finish, locks


def test_failed_claims_are_written_and_end_non_zero_outside_demo(here, capsys):
    assert runner.main(["--one", "01", "--profile", "paper", "-p", "steps=11"]) == 1
    assert "1 claims do not hold: steps" in capsys.readouterr().err
    folder = results.run_folder("paper", "01_tiny")
    assert (
        files.read_json(folder / "metrics.json")["claims_failed"] == 1
        and (folder / "figures" / "scores.png").exists()
    )
    assert runner.main(["--one", "01", "--profile", "paper", "-p", "steps=11", "--keep-going"]) == 0
    with pytest.raises(AssertionError, match="steps: 11 is outside"):
        job.run_one("01_tiny", "demo", {**DEMO, "steps": 11})


def test_a_notebook_that_never_finishes_its_run_is_no_success(project, here, capsys):  # noqa: F811
    make_notebook(project, "02_short")
    assert runner.main(["--one", "02"]) == 1
    assert "run.finish()" in capsys.readouterr().err


def test_a_second_process_waits_and_names_the_first_and_a_kill_frees_the_lock(tmp_path, capsys):
    def hold():
        with job.held(tmp_path / "lock", "01"):
            (tmp_path / "held").touch()
            time.sleep(60)

    pid = fork(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    killer = fork(lambda: (time.sleep(0.3), os.kill(pid, signal.SIGKILL)))
    began = time.time()
    with job.held(tmp_path / "lock", "01"):
        assert time.time() - began > 0.2 and ended(pid) == -9
    assert f"01 is being run by process {pid}; waiting" in capsys.readouterr().err
    ended(killer)


def test_gpus_are_given_out_one_by_one_and_a_scheduler_is_not_overruled(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with job.one_gpu() as a, job.one_gpu() as b:
        assert {a, b} == {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with job.one_gpu() as none:
        assert none is None


# ---------------------------------------------------------------- shards, kills


def kept(folder: Path) -> dict[str, object]:
    """What must be equal between two runs: all of it but seconds, commit and device."""
    metrics = {
        k: v
        for k, v in files.read_json(folder / "metrics.json").items()
        if k not in ("seconds", "commit", "device")
    }
    parts = [
        core.Counterfactuals.load(p.parent)
        for p in sorted(folder.glob("batches/gradual/*/result.json"))
    ]
    tensors = [
        {
            n: getattr(p, n).tolist()
            for n in ("query", "counterfactual", "score", "n_forward", "ids", "path")
            if getattr(p, n) is not None
        }
        for p in parts
    ]
    written = {
        p.name: p.read_bytes() for kind in ("figures", "tables") for p in (folder / kind).iterdir()
    }
    return {
        "metrics": metrics,
        "claims": files.read_json(folder / "claims.json"),
        "batches": tensors,
        **written,
    }


@pytest.fixture
def reference(here, monkeypatch, tmp_path_factory):
    """The same notebook, run once without any disturbance, elsewhere."""
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path_factory.mktemp("reference")))
    found = kept(job.run_one("01_tiny", "demo", DEMO))
    monkeypatch.delenv("CF_RESULTS_ROOT")
    return found


def test_shards_and_their_join_equal_one_run_bit_for_bit(reference, monkeypatch):
    shards = [(2, 3), (3, 3), (1, 3)]
    pids = [
        fork(lambda s=s: job.run_one("01_tiny", "demo", DEMO, s)) for s in shards
    ]  # at the same time
    assert [ended(p) for p in pids] == [0, 0, 0]
    folder = results.run_folder("demo", "01_tiny")
    for k, n in shards:
        own = folder / "shards" / f"{k}-of-{n}"
        assert files.read_json(own / "done.json")["shard"] == [k, n]
        assert (
            len(nbformat.read(own / "notebook.ipynb", 4).cells) == 4
        )  # parameters, 2 setup, compute
    computed = core.Explainer.__call__
    monkeypatch.setattr(
        core.Explainer, "__call__", lambda *a, **k: pytest.fail("the join computed a batch again")
    )
    assert kept(job.run_one("01_tiny", "demo", DEMO)) == reference
    monkeypatch.setattr(core.Explainer, "__call__", computed)


def test_a_notebook_without_compute_cells_cannot_be_cut_into_shards(project, here):  # noqa: F811
    make_notebook(project, "02_whole", ("", PLAIN))
    with pytest.raises(ValueError, match="no cell is tagged 'compute'"):
        job.run_one("02_whole", "demo", DEMO, (1, 2))


def test_killed_at_five_random_moments_it_resumes_and_ends_equal(reference, monkeypatch):
    search = core.Explainer.__call__

    def slow(*args, **kw):
        time.sleep(0.06)
        return search(*args, **kw)

    monkeypatch.setattr(core.Explainer, "__call__", slow)
    killed, folder, moments = 0, results.run_folder("demo", "01_tiny"), []
    while killed < 5:
        moments.append(
            random.SystemRandom().uniform(0.03, 0.32)
        )  # seconds from the first sign of life
        print(f"to be killed after {moments[-1]:.3f} s")  # shown where this fails
        assert len(moments) < 40
        before = (folder / "owner.json").read_text() if (folder / "owner.json").exists() else None
        pid = fork(lambda: job.run_one("01_tiny", "demo", DEMO))
        while not (folder / "owner.json").exists() or (folder / "owner.json").read_text() == before:
            time.sleep(0.002)
        time.sleep(moments[-1])
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == -9:
            killed += 1
        else:  # little was left: it was quicker
            assert kept(folder) == reference
            shutil.rmtree(folder)
    assert kept(job.run_one("01_tiny", "demo", DEMO)) == reference


# ---------------------------------------------------------------- Snakemake


def would_run(*argv: str) -> set[str]:
    """The jobs that a dry run lists, by what they make: 'NB' or 'report'."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *argv], capture_output=True, text=True, check=True
    )
    lines = [
        line.split(":", 1)[1]
        for line in (done.stdout + done.stderr).splitlines()
        if line.strip().startswith("output:")
    ]
    return {"report" if "report.html" in line else line.strip().split("/")[-2] for line in lines}


@pytest.fixture
def snakemake(monkeypatch):
    """The command that the runner gives to Snakemake, as a dry run."""

    def command(argv: list[str]) -> set[str]:
        seen = []
        with monkeypatch.context() as m:
            m.setattr(
                runner.subprocess,
                "run",
                lambda c, **kw: seen.append(c) or subprocess.CompletedProcess(c, 0),
            )
            runner.main([*argv, "--dry-run"])
        return would_run(*seen[0][3:])

    return command


def test_killed_whole_then_done_then_only_what_changed(project, snakemake, capfd):  # noqa: F811
    make_notebook(
        project,
        "01_tiny",
        ("", "if not name:\n    from cf_utils import extra"),
        ("compute", "%time\n"),
        ("", PLAIN),
    )
    make_notebook(project, "02_more", ("", PLAIN))
    make_profile(project, "01_tiny:\n  steps: 6\n02_more:\n  steps: 2\n")
    (project / "cf_utils").mkdir()
    for name, text in (
        ("extra", "from cf_utils.deep import thing"),
        ("deep", "thing = 1"),
        ("other", ""),
    ):
        (project / "cf_utils" / f"{name}.py").write_text(text)
    paper, folder = ["--profile", "paper", "--cores", "2"], results.run_folder("paper", "01_tiny")

    pid = fork(
        lambda: (os.setsid(), runner.main(paper))
    )  # runner, Snakemake and jobs, killed in the middle
    while not (folder / "owner.json").exists():
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    assert ended(pid) == -9 and not (folder / "metrics.json").exists()
    assert runner.main(paper) == 0, capfd.readouterr().err  # nothing to unlock by hand
    found = files.read_json(folder / "metrics.json")
    assert found["n"] == 6 and found["threads"] == "1"  # 2 jobs share 2 cores
    page = (project / "results" / "paper" / "report.html").read_text()
    assert "01 · tiny" in page and "02 · tiny" in page
    capfd.readouterr()
    assert runner.main(paper) == 0
    assert "all is done" in capfd.readouterr().out

    (project / "cf_utils" / "other.py").write_text("unused = 1")  # imported by nobody
    make_profile(project, "# a comment\n01_tiny:\n  steps: 6\n02_more:\n  steps: 3\n")
    assert snakemake(paper) == {"02_more", "report"}
    (project / "cf_utils" / "deep.py").write_text(
        "thing = 2"
    )  # imported by a module that notebook 01 imports
    assert snakemake([*paper, "1", "--shards", "2"]) == {"01_tiny", "1-of-2", "2-of-2", "report"}


def test_the_list_names_what_there_is(capsys):
    assert runner.main(["--list"]) == 0
    assert "01_tiny" in capsys.readouterr().out
    json.dumps(runner.inputs("01_tiny"))
