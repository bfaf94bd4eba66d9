"""The runner: what is refused before any work, failures, locks, shards, kills, what runs again."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from cf_utils import cli, core
from cf_utils.core import files
from cf_utils.harness import (
    dependencies,
    folders,
    job,
    locks,
    notebooks,
    parameters,
    plan,
    publish,
    report,
    results,
    terminal,
)
from cf_utils.harness import run as runner
from cf_utils.models import checkpoints
from tests.workplace import (
    LIGHT,
    PLAIN,
    execute_here,
    fork,
    make_notebook,
    make_profile,
    wait_for_end,
)

DEMO = {"profile": "demo"}
pytestmark = pytest.mark.usefixtures("project")


def run(*arguments: str) -> int:
    return cli.main(["run", *arguments])


@pytest.fixture
def here(monkeypatch):
    """Run notebooks in this process, for tests of what surrounds papermill."""
    monkeypatch.setattr(job, "execute", execute_here)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("wanted", ["1", "01", "01_tiny", "notebooks/01_tiny.ipynb"])
def test_a_notebook_is_found_by_number_name_or_path(wanted):
    assert notebooks.find(wanted) == "01_tiny"


@pytest.mark.parametrize(
    "argv, text",
    [
        (["07"], "notebook: got '07', expected one of 01_tiny"),
        (["--one", "7"], "notebook: got '7', expected one of 01_tiny"),
        (["tinny"], "did you mean '01_tiny'?"),
        (["01", "-p", "stepz=3"], "unknown parameter stepz; known are seed, steps, lam"),
        (["01", "-p", "stepz=3"], "did you mean 'steps'?"),
        (["--one", "01", "-p", "colour=red"], "unknown parameter colour"),
        (["--one", "01", "--parameters", '{"stepz": 3}'], "unknown parameter stepz"),
        (["--one", "01", "--parameters", "{"], "--parameters: got '{', expected a JSON object"),
        (["--one", "01", "--parameters", "[1]"], "--parameters: got '[1]', expected a JSON object"),
        (["--one"], "--one: got 0 notebooks, expected one"),
        (["01", "-p", "steps=many"], "steps got 'many' (str), expected int like its default 5"),
        (["01", "-p", "steps=1.5"], "steps got 1.5 (float), expected int"),
        (["01", "-p", "steps=True"], "steps got True (bool), expected int"),
        (["01", "-p", "fast=1"], "fast got 1 (int), expected bool"),
        (["01", "-p", "steps"], "expected NAME=VALUE"),
        (["01", "--profile", "big"], "profile: got 'big', expected one of demo, paper"),
        (["01", "--profile", "papr"], "did you mean 'paper'?"),
        (["01", "--profile", "../../etc"], "profile: got '../../etc'"),
        (["01", "--data", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["01", "--shards", "0"], "--shards: got 0, expected a whole number >= 1"),
        (["01", "--cores", "-1"], "--cores: got -1, expected a whole number >= 1"),
        (["--one", "01", "--shard", "3/2"], "got '3/2', expected k/N"),
        # senseless values
        (["01", "-p", "steps=-5"], "steps got -5, expected at least 1"),
        (["--one", "01", "-p", "steps=0"], "steps got 0, expected at least 1"),
        (["--one", "01", "--parameters", '{"steps": -5}'], "steps got -5, expected at least 1"),
        (["01", "-p", "lam=-0.5"], "lam got -0.5, expected at least 0"),
        (["01", "-p", "lam=1e999"], "lam got inf, expected a finite number"),
        (["01", "-p", "sizes=(1, -2)"], "sizes got (1, -2), expected at least 0"),
        (["01", "-p", "sizes=()"], "sizes got (), expected at least one entry"),
    ],
)
def test_bad_input_is_refused_before_any_work(project, argv, text, capsys):
    assert run(*argv) == 2
    assert text in capsys.readouterr().err
    assert not list(project.rglob("metrics.json")) and not list(project.rglob("owner.json"))


RULED = """seed = 0
n = 250
n_rules = 3
tau = 0.5
patience = 20
table = ""
dataset = "celeba"
device = "auto"
distance = "l1"
explained = "mnist_cnn"
profile = "demo"
data_root = ""
"""


@pytest.mark.parametrize(
    "change, text",
    [
        ("n=-5", "n got -5, expected at least 1"),
        ("n_rules=0", "n_rules got 0, expected at least 1"),
        ("patience=-1", "patience got -1, expected at least 0"),
        ("tau=1.0", "tau got 1.0, expected a probability inside (0, 1)"),
        ("tau=90", "tau got 90, expected a probability inside (0, 1)"),
        ("table=helok", "table: got 'helok', expected one of '', heloc, uci_credit"),
        ("table=helok", "did you mean 'heloc'?"),
        ("dataset=celebs", "dataset: got 'celebs', expected one of celeba, celebahq, bdd"),
        ("device=gpu", "device: got 'gpu', expected auto, cpu, cuda or mps"),
        ("distance=l3", "distance: got 'l3', expected one of l1, l2"),
        ("explained=mnist_cmn", "did you mean 'mnist_cnn'?"),
    ],
)
def test_a_value_without_sense_is_refused_before_a_kernel_starts(project, change, text, capsys):
    make_notebook(project, "02_ruled", parameters=RULED)
    assert run("--one", "02", "-p", change) == 2
    assert text in capsys.readouterr().err
    assert not list(project.rglob("owner.json"))


def test_zero_and_any_seed_are_accepted_where_they_have_a_meaning(project):
    make_notebook(project, "02_ruled", parameters=RULED)
    given, _ = parameters.for_run("02_ruled", "demo", texts=["patience=0", "seed=-1"])
    assert given == {"profile": "demo", "patience": 0, "seed": -1}


@pytest.mark.parametrize(
    "imports, changed, text",
    [
        ("from cf_utils.datasets import mnist", "", "mnist"),
        ("from cf_utils.datasets import credit, tabular", 'table = "heloc"\n', "heloc"),
        ("from cf_utils.harness import cases, results", "", "celeba"),
        ("from cf_utils.harness import cases", 'dataset = "bdd100k"\n', "bdd"),
    ],
)
def test_a_folder_without_the_data_sets_is_refused_before_a_kernel_starts(
    project,
    tmp_path_factory,
    imports,
    changed,
    text,
    capsys,
):
    make_notebook(
        project,
        "02_data",
        ("setup", imports),
        parameters=f'profile = "demo"\ndata_root = ""\n{changed}',
    )
    empty = str(tmp_path_factory.mktemp("empty"))
    for options in (["--data", empty], ["-p", f"data_root={empty}"]):
        assert run("--one", "02", *options) == 2
        said = capsys.readouterr().err
        assert "data_root got" in said and empty in said and text in said
    assert not list(project.rglob("owner.json"))


def test_values_take_the_type_of_their_default():
    texts = ["steps=3", "lam=2", "fast=true", "sizes=(3, 4)", "data_root=7"]
    expected = {"steps": 3, "lam": 2, "fast": True, "sizes": (3, 4), "data_root": "7"}
    assert parameters.parse("01_tiny", texts) == expected
    parameters.check("01_tiny", expected)


def test_a_profile_is_checked_like_the_command_line(project):
    for text, match in (
        ("01_tiny: {stepz: 1}", "unknown parameter stepz"),
        ("01_tiny: {lam: 1e-3}", "lam got '1e-3'"),
        ("01_tiny: {steps: -1}", "steps got -1"),
        ("01_tinny: {steps: 1}", "01_tinny name no notebook"),
        ("01_tiny: {shards: 0}", "shards of 01_tiny"),
    ):
        make_profile(project, text)
        with pytest.raises(ValueError, match=match):
            parameters.for_run("01_tiny", "paper")


def test_data_and_profile_reach_the_parameters(project):
    given, shards = parameters.for_run("01_tiny", "paper", str(project), ["seed=3"])
    assert given == {"steps": 6, "profile": "paper", "data_root": str(project), "seed": 3}
    assert shards == 1
    make_notebook(project, "02_more")
    with pytest.raises(ValueError, match="has no section for 02_more"):
        parameters.for_run("02_more", "paper")


def test_parameters_are_literals_in_one_cell(project):
    make_notebook(project, "02_more", parameters="a: int = 1\nb = a * 2")
    with pytest.raises(ValueError):
        notebooks.defaults("02_more")
    make_notebook(project, "02_more", ("parameters", "c = 1"))
    with pytest.raises(ValueError, match="2 cells are tagged"):
        notebooks.defaults("02_more")


@pytest.mark.parametrize("argv", [["01"], ["--one", "01"]])
def test_an_unwritable_results_folder_is_named_before_any_work(project, argv, monkeypatch, capsys):
    (project / "file").write_text("")  # root may write anywhere, but not below a file
    monkeypatch.setenv("CF_RESULTS_ROOT", str(project / "file" / "results"))
    assert run(*argv) == 2
    assert "cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------- failures, in a real kernel


def test_a_failed_notebook_keeps_its_traceback_and_the_exit_status_says_so(project, capsys):
    make_notebook(project, "02_bad", ("", "before = 1"), ("", "# divide\n1 / 0"), ("", "after = 1"))
    folder = folders.run_folder("demo", "02_bad")
    files.write_json(folder / "metrics.json", {"n": "of an earlier run"})
    assert run("--one", "02") == 1
    message = capsys.readouterr().err
    log = folder / "log" / "notebook.ipynb"
    assert "ZeroDivisionError" in message and str(log) in message and "(# divide)" in message
    assert "Traceback" not in message
    outputs = [o for c in nbformat.read(log, 4).cells for o in c.get("outputs", [])]
    (error,) = [o for o in outputs if o.output_type == "error"]
    assert error.ename == "ZeroDivisionError" and error.traceback
    assert not (folder / "metrics.json").exists() and not (folder / "notebook.ipynb").exists()


def test_a_dead_kernel_is_a_failure(project, capsys):
    make_notebook(project, "02_bad", ("", "import os\nos.kill(os.getpid(), 9)"))
    assert run("--one", "02") == 1
    assert "kernel died" in capsys.readouterr().err


def test_a_kernel_that_did_not_start_is_tried_once_more(monkeypatch, tmp_path):
    import papermill

    calls = []

    def start(*args, **kw):
        calls.append(kw["cwd"])
        if len(calls) < succeeds_at:
            raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", start)
    succeeds_at = 2
    job.execute(None, tmp_path / "log", {}, "x")
    assert len(calls) == 2
    calls, succeeds_at = [], 9
    with pytest.raises(job.JobFailed, match="could not be started"):
        job.execute(None, tmp_path / "log", {}, "x")


def test_ctrl_c_ends_runner_snakemake_and_kernel_without_a_traceback_of_ours(project):
    touch = "import pathlib, time\npathlib.Path('../started').touch()\ntime.sleep(120)"
    make_notebook(project, "02_long", ("", touch))
    command = [sys.executable, "-m", "cf_utils.cli", "run", "02"]
    child = subprocess.Popen(
        command,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )
    until = time.time() + 240
    while not (project / "started").exists() and time.time() < until and child.poll() is None:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # what a terminal does
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "stopped with 0 of 1 notebook done; run the same command again" in said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said  # the kernel's is in the log
    assert not (folders.run_folder("demo", "02_long") / "metrics.json").exists()


# ---------------------------------------------------------------- claims, finish, locks


def test_failed_claims_are_recorded_and_end_with_1_outside_demo(here, capsys):
    assert run("--one", "01", "--profile", "paper", "-p", "steps=11") == 1
    assert "1 claims do not hold: steps" in capsys.readouterr().err
    folder = folders.run_folder("paper", "01_tiny")
    assert files.read_json(folder / "metrics.json")["claims_failed"] == 1
    assert (folder / "figures" / "scores.png").exists()
    assert run("--one", "01", "--profile", "paper", "-p", "steps=11", "--keep-going") == 0
    with pytest.raises(AssertionError, match="steps: 11 is outside"):
        job.run_notebook("01_tiny", "demo", {**DEMO, "steps": 11})


def test_a_notebook_that_never_finishes_its_run_is_a_failure(project, here, capsys):
    make_notebook(project, "02_short")
    assert run("--one", "02") == 1
    assert "run.finish()" in capsys.readouterr().err


def test_a_second_process_waits_and_names_the_first_and_a_kill_frees_the_lock(tmp_path, capsys):
    def hold():
        with locks.lock_file(tmp_path / "lock", "01"):
            (tmp_path / "held").touch()
            time.sleep(60)

    pid = fork(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    killer = fork(lambda: (time.sleep(0.3), os.kill(pid, signal.SIGKILL)))
    began = time.time()
    with locks.lock_file(tmp_path / "lock", "01"):
        assert time.time() - began > 0.2 and wait_for_end(pid) == -9
    assert f"01 is being run by process {pid}; waiting" in capsys.readouterr().err
    wait_for_end(killer)


def test_each_job_gets_another_gpu_and_a_schedulers_choice_is_kept(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with locks.free_gpu() as a, locks.free_gpu() as b:
        assert {a, b} == {"0", "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with locks.free_gpu() as none:
        assert none is None


# ---------------------------------------------------------------- shards, kills


def read_results(folder: Path) -> dict[str, object]:
    """Read what must be equal between two runs: everything but seconds, commit and device."""
    metrics = files.read_json(folder / "metrics.json")
    batches = [
        core.Counterfactuals.load(path.parent)
        for path in sorted(folder.glob("batches/gradual/*/result.json"))
    ]
    names = ("query", "counterfactual", "score", "n_forward", "ids", "path")
    written = [path for kind in ("figures", "tables") for path in (folder / kind).iterdir()]
    return {
        "metrics": {k: v for k, v in metrics.items() if k not in ("seconds", "commit", "device")},
        "claims": files.read_json(folder / "claims.json"),
        "parameters": files.read_json(folder / "parameters.json"),
        "batches": [
            {name: getattr(b, name).tolist() for name in names if getattr(b, name) is not None}
            for b in batches
        ],
        **{path.name: path.read_bytes() for path in written},
    }


@pytest.fixture
def reference(here, monkeypatch, tmp_path_factory):
    """Results of the same notebook, run once elsewhere without any disturbance."""
    monkeypatch.setenv("CF_RESULTS_ROOT", str(tmp_path_factory.mktemp("reference")))
    found = read_results(job.run_notebook("01_tiny", "demo", DEMO))
    monkeypatch.delenv("CF_RESULTS_ROOT")
    return found


def test_joined_shards_equal_one_run_bit_for_bit(reference, monkeypatch):
    shards = [(2, 3), (3, 3), (1, 3)]
    pids = [fork(lambda s=s: job.run_notebook("01_tiny", "demo", DEMO, s)) for s in shards]
    assert [wait_for_end(pid) for pid in pids] == [0, 0, 0]
    folder = folders.run_folder("demo", "01_tiny")
    for k, n in shards:
        own = folder / "shards" / f"{k}-of-{n}"
        assert files.read_json(own / "done.json")["shard"] == [k, n]
        cells = nbformat.read(own / "notebook.ipynb", 4).cells
        assert len(cells) == 4  # parameters, 2 setup, compute
    with monkeypatch.context() as m:
        m.setattr(
            core.Explainer, "__call__", lambda *a, **k: pytest.fail("a batch was computed again")
        )
        assert read_results(job.run_notebook("01_tiny", "demo", DEMO)) == reference


def test_a_single_shard_of_a_notebook_without_compute_cells_is_refused(project, here):
    make_notebook(project, "02_whole", ("", PLAIN))
    with pytest.raises(ValueError, match="has no cell tagged 'compute'"):
        job.run_notebook("02_whole", "demo", DEMO, (1, 2))
    assert not list(project.rglob("owner.json"))


def test_after_five_kills_at_random_moments_the_results_are_equal(reference, monkeypatch):
    search = core.Explainer.__call__

    def slow(*args, **kw):
        time.sleep(0.06)
        return search(*args, **kw)

    monkeypatch.setattr(core.Explainer, "__call__", slow)
    killed, folder, moments = 0, folders.run_folder("demo", "01_tiny"), []
    owner = folder / "owner.json"
    while killed < 5:
        moments.append(random.SystemRandom().uniform(0.03, 0.32))  # seconds after its first file
        print(f"to be killed after {moments[-1]:.3f} s")  # shown if the test fails
        assert len(moments) < 40
        before = owner.read_text() if owner.exists() else None
        pid = fork(lambda: job.run_notebook("01_tiny", "demo", DEMO))
        while not owner.exists() or owner.read_text() == before:
            time.sleep(0.002)
        time.sleep(moments[-1])
        os.kill(pid, signal.SIGKILL)
        if wait_for_end(pid) == -9:
            killed += 1
        else:  # it had finished before the kill
            assert read_results(folder) == reference
            shutil.rmtree(folder)
    assert read_results(job.run_notebook("01_tiny", "demo", DEMO)) == reference


# ---------------------------------------------------------------- Snakemake


def list_jobs(*arguments: str) -> set[str]:
    """Return the jobs that a dry run lists, by what they make: a notebook, a shard or 'report'."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], capture_output=True, text=True, check=True
    )
    lines = re.findall(r"(?m)^\s*output:(.*)$", done.stdout + done.stderr)
    return {"report" if "report.html" in line else line.strip().split("/")[-2] for line in lines}


@pytest.fixture
def planned(monkeypatch):
    """A function of the runner's arguments that returns the jobs which would run."""

    def jobs(*arguments: str) -> set[str]:
        seen = []
        with monkeypatch.context() as m:
            m.setattr(runner, "_run_snakemake", lambda command, lock: seen.append(command) or 0)
            assert run(*arguments, "--dry-run") == 0
        return list_jobs(*seen[0][3:])

    return jobs


def test_after_a_kill_all_is_done_and_then_only_what_changed(project, planned, capfd):
    lazy = "if not name:\n    from cf_utils import extra"
    make_notebook(project, "01_tiny", ("", lazy), ("compute", "%time\n"), ("", PLAIN))
    make_notebook(project, "02_more", ("", PLAIN))
    make_profile(project, "01_tiny:\n  steps: 6\n02_more:\n  steps: 2\n")
    (project / "cf_utils").mkdir()
    for name, text in (
        ("extra", "from cf_utils.deep import thing"),
        ("deep", "thing = 1"),
        ("other", ""),
    ):
        (project / "cf_utils" / f"{name}.py").write_text(text)
    paper, folder = ["--profile", "paper", "--cores", "2"], folders.run_folder("paper", "01_tiny")
    log = terminal.log_path("paper")

    pid = fork(lambda: (os.setsid(), run(*paper)))  # runner, Snakemake and jobs, killed together
    while not (folder / "owner.json").exists():
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    assert wait_for_end(pid) == -9 and not (folder / "metrics.json").exists()
    assert run(*paper) == 0, capfd.readouterr().err  # nothing to unlock by hand
    found = files.read_json(folder / "metrics.json")
    assert found["n"] == 6 and found["threads"] == "1"  # 2 jobs share 2 cores
    page = (project / "results" / "paper" / "report.html").read_text()
    assert "01 · tiny" in page and "02 · tiny" in page
    said = capfd.readouterr()
    assert re.search(r"(?m)^2 notebooks to run", said.out)
    assert re.search(r"(?m)^2 of 2 · 0[12] tiny · .* s$", said.out)
    assert re.search(r"(?m)^2 of 2 notebooks done in .* s$", said.out)
    assert "DAG" not in said.out + said.err and "rule notebook" in log.read_text()
    assert run(*paper) == 0
    said = capfd.readouterr()
    assert "nothing to do" in said.out and len(said.out.splitlines()) == 1 and not said.err

    (project / "cf_utils" / "other.py").write_text("unused = 1")  # nothing imports it
    make_profile(project, "# a comment\n01_tiny:\n  steps: 6\n02_more:\n  steps: 3\n")
    assert planned(*paper) == {"02_more", "report"}
    # notebook 01 imports a module that imports this one
    (project / "cf_utils" / "deep.py").write_text("thing = 2")
    assert planned(*paper, "1", "--shards", "2") == {"01_tiny", "1-of-2", "2-of-2", "report"}


def find_stale(*shards: str) -> set[str]:
    """Return the outputs that a plan of all notebooks makes again: a notebook or a shard."""
    options = plan.Options(shards=int(shards[0]) if shards else None)
    planned = plan.make_plan(list(notebooks.paths()), options)
    return {Path(path).parent.name for path in planned["stale"]}


def test_results_of_other_parameters_are_not_the_workflows(
    project, here, planned, monkeypatch, capfd
):
    make_notebook(project, "01_tiny", ("", PLAIN))  # without a compute cell: runs whole
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # jobs must not need `cf` there
    folder = folders.run_folder("demo", "01_tiny")
    assert run("--shards", "2") == 0, capfd.readouterr().err
    assert planned() == set()
    assert run("--one", "01", "-p", "steps=3") == 0
    assert files.read_json(folder / "metrics.json")["n"] == 3
    assert files.read_json(folder / "parameters.json")["steps"] == 3
    assert planned() == {"01_tiny", "report"}
    assert "01_tiny runs again: it ran with steps=3 instead of 5" in capfd.readouterr().out
    with pytest.raises(ValueError, match="01_tiny: it ran with steps=3 instead of 5"):
        publish.publish("demo", "01_tiny")
    assert "steps=3 instead of 5" in report.write("demo").read_text()
    assert run() == 0, capfd.readouterr().err
    assert files.read_json(folder / "metrics.json")["n"] == 5
    publish.publish("demo", "01_tiny")
    assert "instead of" not in report.write("demo").read_text()


@pytest.fixture
def finished(project, here):
    """The results of a project's only notebook, as a job leaves them."""
    make_notebook(project, "01_tiny", ("compute", ""), ("", LIGHT))
    return job.run_notebook("01_tiny", "demo", DEMO)


def test_results_of_a_notebook_run_by_hand_are_not_the_workflows(finished, capsys):
    assert find_stale() == set()
    exec(LIGHT, {"name": "01_tiny", "profile": "demo", "seed": 0, "steps": 4})
    assert find_stale() == {"01_tiny"}
    assert "its parameters are unknown" in capsys.readouterr().out
    with pytest.raises(ValueError, match="its parameters are unknown"):
        publish.publish("demo", "01_tiny")


def test_only_a_checkpoint_that_the_notebook_loaded_makes_it_stale(
    finished, monkeypatch, tmp_path_factory, capsys
):
    folder = tmp_path_factory.mktemp("checkpoints")
    monkeypatch.setattr(checkpoints, "FOLDER", folder)
    files.write_json(folder / "used.json", {"quality": 1})
    files.write_json(finished / "checkpoints.json", {"used": files.sha256(folder / "used.json")})
    inputs = dependencies.input_files("01_tiny")
    files.write_json(folder / "new.json", {})
    assert find_stale() == set() and dependencies.input_files("01_tiny") == inputs
    files.write_json(folder / "used.json", {"quality": 2})
    assert find_stale() == {"01_tiny"}
    assert "checkpoint used has changed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics.json", "claims.json", "parameters.json", "owner.json"])
@pytest.mark.parametrize("content", ["", '{"n": 5', "\0\0\0"])
def test_a_damaged_record_is_named_and_the_notebook_runs_again(finished, name, content, capsys):
    (finished / name).write_text(content)
    assert find_stale() == {"01_tiny"}
    assert f"{name} in {finished} cannot be read" in capsys.readouterr().out
    report.write("demo")
    assert runner.summarise(["01_tiny"], "demo", 0, unchanged=False) == 0
    job.run_notebook("01_tiny", "demo", DEMO)
    assert find_stale() == set() and json.loads((finished / name).read_text()) is not None


@pytest.mark.parametrize("content", ["", '{"token": '])
def test_a_kernel_whose_owner_record_is_damaged_stops(finished, content, monkeypatch):
    monkeypatch.setenv("CF_RUN_TOKEN", "mine")
    (finished / "owner.json").write_text(content)
    with pytest.raises(results.NotOwner, match="belongs to another run"):
        exec(LIGHT, {"name": "01_tiny", "profile": "demo", "seed": 0, "steps": 4})


def test_a_shard_that_is_damaged_or_of_other_parameters_runs_again(finished):
    for k in (1, 2):
        job.run_notebook("01_tiny", "demo", DEMO, (k, 2))
    assert find_stale("2") == set()
    done = finished / "shards" / "1-of-2" / "done.json"
    done.write_text("")
    assert find_stale("2") == {"1-of-2"} and find_stale() == set()
    assert run("--one", "01", "--shard", "1/2", "-p", "steps=3") == 0
    assert find_stale("2") == {"1-of-2"}


def test_only_notebooks_with_a_compute_cell_are_divided_into_shards(project):
    make_notebook(project, "02_whole", ("", PLAIN))
    make_profile(project, "01_tiny: {shards: 3}\n02_whole: {shards: 3}\n")
    for asked, divided in ((None, 3), (2, 2)):
        options = plan.Options("paper", shards=asked)
        jobs = plan.make_plan(["01_tiny", "02_whole"], options)["jobs"]
        assert (jobs["01_tiny"]["shards"], jobs["02_whole"]["shards"]) == (divided, 1)


def test_a_full_disk_hides_neither_the_summary_nor_the_status(
    project,
    monkeypatch,
    capsys,
):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(runner, "find_pending", lambda command, names: names)
    monkeypatch.setattr(runner, "_run_snakemake", lambda command, lock, progress: 1)
    monkeypatch.setattr(report.files, "write_text", _only_for("report.html", full))
    assert run() == 1
    said = capsys.readouterr()
    assert "01_tiny: not done" in said.out
    assert "the report could not be written" in said.out and "No space left" in said.out
    assert "Traceback" not in said.err


def _only_for(name, fail):
    real = files.write_text

    def write_text(path, text):
        return fail(path, text) if Path(path).name == name else real(path, text)

    return write_text


def test_a_full_disk_during_a_job_is_one_line(project, here, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "parameters.json")

    monkeypatch.setattr(job, "_take_over", full)
    assert run("--one", "01") == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and len(said.splitlines()) == 1


def test_the_list_names_the_notebooks(capsys):
    assert run("--list") == 0
    assert "01_tiny" in capsys.readouterr().out


def test_a_notebook_depends_on_the_modules_that_others_import_by_name():
    code = "from cf_utils.models import checkpoints\nfrom cf_utils import worlds"
    found = {path.name for path in dependencies.imported_files(code)}
    assert not found  # the throw-away project has no package
    os.environ.pop("CF_PROJECT_ROOT")
    found = {path.name for path in dependencies.imported_files(code)}
    assert {"autoencoder.py", "diffusion.py", "faces.py", "roads.py"} <= found
    json.dumps([str(path) for path in found])
