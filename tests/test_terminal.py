"""What `cf run` prints, with a stand-in for Snakemake; test_run.py has the real one."""

from __future__ import annotations

import sys
import textwrap

import pytest

from cf_utils import cli
from cf_utils.core import files
from cf_utils.harness import folders, job, parameters, report, terminal
from cf_utils.harness import run as runner
from tests.workplace import LIGHT, execute_here, make_notebook

pytestmark = pytest.mark.usefixtures("project")
# Arguments: folder of the profile, then `--dry-run` or nothing. The file "jobs" says what to do.
SNAKEMAKE = """
    import json, pathlib, sys, time

    folder = pathlib.Path(sys.argv[1])
    print("Building DAG of jobs...", flush=True)
    print("Traceback (most recent call last): KeyboardInterrupt", file=sys.stderr, flush=True)
    jobs = json.loads((folder / "jobs").read_text())
    if "--dry-run" in sys.argv:
        for name in jobs:
            print(f"rule notebook:\\n    wildcards: nb={name}\\n")
        print("" if jobs else "Nothing to be done (all requested files are present).")
        sys.exit()
    for name, state in jobs.items():
        if state == "waits":
            while not (folder / "stop").exists():
                time.sleep(0.02)
            break
        (folder / name / "log").mkdir(parents=True, exist_ok=True)
        record = {"token": "new", "state": state, "elapsed": 80.4, "seconds": 80.4}
        record["problem"] = "cell [3] raised\\nthe log is here"
        (folder / name / "log" / "job.json").write_text(json.dumps(record))
        if state == "done":
            (folder / name / "metrics.json").write_text("{}")
            (folder / name / "claims.json").write_text("[]")
    sys.exit("failed" in jobs.values())
"""


@pytest.fixture
def snakemake(project, monkeypatch):
    """Replace Snakemake; a function that sets which jobs it will find: name -> how they end."""
    make_notebook(project, "02_more", ("", LIGHT))
    script, folder = project / "snakemake.py", folders.root() / "demo"
    script.write_text(textwrap.dedent(SNAKEMAKE))
    command = [sys.executable, str(script), str(folder)]
    monkeypatch.setattr(runner, "snakemake_command", lambda path, plan, options: command)
    monkeypatch.setattr(runner, "POLL", 0.05)
    monkeypatch.setattr(report, "write", report.path)
    return lambda **jobs: files.write_json(folder / "jobs", jobs)


def finish(name: str) -> None:
    """Write the records of a notebook that is done."""
    folder = folders.run_folder("demo", name)
    files.write_json(folder / "metrics.json", {})
    files.write_json(folder / "parameters.json", parameters.complete(name, {"profile": "demo"}))


def run(capfd) -> tuple[int, list[str], str]:
    """Run all notebooks; return the exit status, the lines of stdout, and stderr."""
    status = cli.main(["run", "--cores", "1"])
    said = capfd.readouterr()
    return status, said.out.splitlines(), said.err


def test_one_line_per_notebook_an_estimate_and_a_total(snakemake, capfd):
    snakemake(**{"01_tiny": "done", "02_more": "failed"})
    for name, seconds in (("01_tiny", 100), ("02_more", 45)):
        files.write_json(
            folders.published_folder("demo", name) / "metrics.json", {"seconds": seconds}
        )
    status, lines, errors = run(capfd)
    log = terminal.log_path("demo")
    assert (status, errors) == (1, "")
    assert (
        lines[0]
        == f"2 notebooks to run, about 2 min 25 s, judged by earlier runs; the log is {log}"
    )
    assert lines[1] == "1 of 2 · 01 tiny · 1 min 20 s"
    assert lines[2] == "2 of 2 · 02 tiny · failed after 1 min 20 s"
    assert lines[3:5] == ["    cell [3] raised", "    the log is here"]
    assert lines[5].startswith("1 of 2 notebooks done in ")
    assert "02_more: not done" in lines[6] and lines[-1].startswith("report: ")
    chatter = log.read_text()
    assert "Building DAG" in chatter and "KeyboardInterrupt" in chatter
    assert not any("DAG" in line for line in lines)


def test_only_the_notebooks_with_a_job_are_counted(snakemake, capfd):
    snakemake(**{"02_more": "done"})
    finish("01_tiny")
    status, lines, _ = run(capfd)
    assert status == 0
    assert lines[0].startswith("1 notebook to run; no earlier run tells how long")
    assert lines[1] == "1 of 1 · 02 tiny · 1 min 20 s"


def test_a_second_call_says_in_one_line_that_nothing_is_to_do(snakemake, capfd):
    for name in ("01_tiny", "02_more"):
        finish(name)
    snakemake()
    status, lines, errors = run(capfd)
    assert (status, errors) == (0, "")
    assert lines == [f"nothing to do, all is done; the report is {report.path('demo')}"]
    assert not terminal.log_path("demo").exists()


def test_ctrl_c_ends_with_one_sentence_that_says_how_to_go_on(snakemake, capfd, monkeypatch):
    snakemake(**{"01_tiny": "done", "02_more": "waits"})
    look = terminal.Progress.look

    def interrupt(self):
        look(self)
        if self.ended and not (folders.root() / "demo" / "stop").exists():
            (folders.root() / "demo" / "stop").touch()
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal.Progress, "look", interrupt)
    status, lines, errors = run(capfd)
    assert status == 130 and lines[1] == "1 of 2 · 01 tiny · 1 min 20 s"
    sentence = "stopped with 1 of 2 notebooks done; run the same command again to go on from there"
    assert errors == sentence + "\n"


def test_the_end_of_the_log_is_shown_if_nothing_ran(snakemake, capfd):
    files.write_text(folders.root() / "demo" / "jobs", "broken")
    status, lines, errors = run(capfd)
    assert status == 1 and "JSONDecodeError" in errors
    assert f"log: {terminal.log_path('demo')}" in lines


def test_a_terminal_shows_what_is_running(snakemake, capsys, monkeypatch):
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    plan = {"profile": "demo", "threads": 1, "jobs": {"01_tiny": {"shards": 2}}}
    folder = folders.run_folder("demo", "01_tiny")
    first, second = (job.state_file(folders.shard_folder(folder, (k, 2))) for k in (1, 2))
    files.write_json(second, {"token": "of an earlier run", "state": "done", "elapsed": 1.0})
    progress = terminal.Progress(["01_tiny"], plan, 2)
    state = {"token": "a", "state": "running", "elapsed": None, "seconds": None}
    files.write_json(first, state)
    progress.look()
    assert "\x1b[Krunning 01 · 0 s" in capsys.readouterr().out
    files.write_json(first, state | {"state": "done", "elapsed": 3700.0})
    progress.look()
    progress.look()
    assert capsys.readouterr().out == "\r\x1b[Kshard 1/2 · 01 tiny · 1 h 2 min\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_said_in_two_units(seconds, text):
    assert terminal.say_duration(seconds) == text


def test_the_estimate_is_the_work_per_slot_or_the_longest_job():
    assert terminal.estimate([100, 20, 60], 1) == 180
    assert terminal.estimate([100, 20, 60], 2) == 100
    assert terminal.estimate([60, 60, 60], 2) == 90


def test_a_job_records_its_state_and_the_last_duration(project, monkeypatch):
    monkeypatch.setattr(job, "execute", execute_here)
    make_notebook(project, "01_tiny", ("", LIGHT))
    given = {"profile": "demo"}
    folder = job.run_notebook("01_tiny", "demo", given)
    done = files.read_json(job.state_file(folder))
    assert done["state"] == "done" and 0 < done["seconds"] == done["elapsed"] < 30

    def fail(*arguments):
        states.append(files.read_json(job.state_file(folder))["state"])
        raise job.JobFailed("no kernel")

    states: list[str] = []
    monkeypatch.setattr(job, "execute", fail)
    with pytest.raises(job.JobFailed):
        job.run_notebook("01_tiny", "demo", given)
    failed = files.read_json(job.state_file(folder))
    assert states == ["running"]
    assert (failed["state"], failed["problem"]) == ("failed", "no kernel")
    assert failed["seconds"] == done["seconds"] and failed["token"] != done["token"]
    assert terminal.recorded_seconds("demo", "01_tiny") == done["seconds"]
