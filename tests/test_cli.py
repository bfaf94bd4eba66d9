"""The command line: readable help, suggestions, exit statuses, and no traceback for a user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest
import typer

from cf_utils import cli
from cf_utils.datasets import catalog
from cf_utils.models import pretrained
from cf_utils.training import world_card
from cf_utils.training.recipes import session as training
from tests.workplace import LIGHT, make_notebook

COMMANDS = {
    "run": ("--profile", "--data", "--shards", "--one", "demo", "cf run 01"),
    "claims": ("--profile", "cf claims 00"),
    "train": ("--data", "--resume", "torchrun", "cf train mnist_cnn"),
    "tune": ("--method", "--settings", "64", "cf tune faces"),
    "data": ("--fetch", "cf data"),
    "weights": ("--list", "alexnet", "cf weights"),
    "report html": ("--profile",),
    "report gallery": ("--profile",),
    "report publish": ("--allow-dirty", "--profile"),
    "world check": ("16000", "cf world check faces"),
}


@pytest.fixture
def plain(monkeypatch):
    """Help without colours, wide enough that no line is broken."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_summary_options_defaults_and_examples(command, plain, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: cf {command}" in said
    assert all(text in said for text in COMMANDS[command]), said
    found = typer.main.get_command(cli.app)
    for name in command.split():
        found = found.commands[name]
    assert found.params and all(p.help for p in found.params if p.name != "help"), command


def test_the_list_of_commands_is_complete_and_says_what_each_does(plain, capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in {command.split()[0] for command in COMMANDS}:
        assert re.search(rf"(?m)^│ {name} +[A-Z]\S* \w+.*\.", said), (name, said)
    assert cli.main([]) in (0, 2)  # no command: the same screen
    assert "claims" in capsys.readouterr().out


def test_help_imports_nothing_slow_and_takes_about_a_second():
    code = (
        "import sys; from cf_utils import cli; assert cli.main(['run', '--help']) == 0; "
        "slow = {'torch', 'pandas', 'nbformat', 'snakemake', 'numpy'} & sys.modules.keys(); "
        "print(slow, file=sys.stderr); sys.exit(len(slow))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 5  # measured 0.3 s on an idle machine


@pytest.mark.parametrize(
    "argv, near",
    [
        (["rnu"], "'run'"),
        (["world", "chekc"], "'check'"),
        (["report", "publihs"], "'publish'"),
        (["run", "tinny"], "'01_tiny'"),
        (["run", "--profile", "dmo"], "'demo'"),
        (["claims", "01_tyni"], "'01_tiny'"),
        (["report", "publish", "01_tyni"], "'01_tiny'"),
        (["report", "html", "--profile", "dmo"], "'demo'"),
        (["train", "mnist_cmn"], "'mnist_cnn'"),
        (["tune", "face", "--method", "ace"], "'faces'"),
        (["tune", "faces", "--method", "dmie"], "'dime'"),
        (["tune", "faces", "--method", "ace", "--kind", "casual"], "'causal'"),
        (["data", "mnits"], "'mnist'"),
        (["data", "--fetch", "mnits", "--data", "x"], "'mnist'"),
        (["weights", "alexnt"], "'alexnet'"),
        (["world", "check", "road"], "'roads'"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion_and_status_2(project, argv, near, plain, capsys):
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert re.search(rf"[Dd]id you mean {near}\?", said), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "argv, text",
    [
        (["run", "--profil", "demo"], "--profile"),
        (["run", "--shards", "two"], "'--shards'"),
        (["train"], "checkpoint: got no name"),
        (["train", "mnist_cnn"], "--data: got none, but mnist_cnn"),
        (["tune", "faces"], "--method"),
        (["tune", "faces", "--method", "ace", "--n", "0"], "--n: got 0"),
        (["tune", "faces", "--method", "ace", "--device", "gpu"], "--device: got 'gpu'"),
        (["data", "--fetch", "mnist"], "--data: got none"),
        (["data", "--embedded-rows", "mnist"], "--data: got none"),
        (["data", "--embedded-rows", "celeba", "--data", "x"], "--embedded-rows: got 'celeba'"),
        (["world", "check", "faces", "--n", "0"], "--n: got 0"),
        (["data", "--", "--x"], "--: got --x, expected it only after run or claims"),
    ],
)
def test_bad_input_ends_with_2_and_one_line_that_names_it(project, argv, text, plain, capsys):
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert text in said and "Traceback" not in said
    assert not said.startswith("error: ") or len(said.splitlines()) == 1


def test_a_users_mistake_shows_its_traceback_only_if_asked(project, monkeypatch, capsys):
    monkeypatch.setenv("CF_TRACEBACK", "1")
    assert cli.main(["run", "tinny"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(catalog, "describe", lambda root, names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["data"])


def test_ctrl_c_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupt(root, names):
        raise KeyboardInterrupt

    monkeypatch.setattr(catalog, "describe", interrupt)
    assert cli.main(["data"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_arguments_after_two_dashes_reach_snakemake(project, monkeypatch):
    from cf_utils.harness import run as runner

    seen = []
    monkeypatch.setattr(runner, "_run_snakemake", lambda command, lock: seen.append(command) or 0)
    assert cli.main(["run", "01", "--dry-run", "--", "--executor", "slurm"]) == 0
    assert seen[0][-2:] == ["--executor", "slurm"] and "--dry-run" in seen[0]


def test_the_installed_command_and_the_module_are_the_same():
    for command in ([os.path.join(os.path.dirname(sys.executable), "cf")], ["-m", "cf_utils.cli"]):
        command = [sys.executable, *command] if command[0] == "-m" else command
        done = subprocess.run([*command, "rnu"], capture_output=True, text=True)
        assert done.returncode == 2 and "run" in done.stderr and "Traceback" not in done.stderr


def test_report_and_publish_print_what_they_wrote(project, monkeypatch, capsys):
    from cf_utils.harness import job
    from tests.workplace import execute_here

    monkeypatch.setattr(job, "execute", execute_here)
    make_notebook(project, "01_tiny", ("", LIGHT))
    assert cli.main(["report", "publish", "01"]) == 2
    assert "run the notebook first" in capsys.readouterr().err
    assert cli.main(["run", "--one", "01"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "html"]) == 0
    assert capsys.readouterr().out.strip() == str(project / "results" / "demo" / "report.html")
    assert cli.main(["report", "publish"]) == 0
    assert capsys.readouterr().out.strip() == str(project / "results" / "demo" / "01_tiny")


def test_train_passes_its_arguments_on_and_prints_the_quality(monkeypatch, tmp_path, capsys):
    asked = []

    def make(*given):
        asked.append(given)
        return {"quality": {"accuracy": 0.5}, "training": {"seconds": 3.0}}

    monkeypatch.setattr(training, "make", make)
    out = tmp_path / "out"
    argv = ["train", "mnist_cnn", "mnist_aae", "--data", "d", "--seed", "3", "--out", str(out)]
    assert cli.main([*argv, "--resume", str(tmp_path)]) == 0
    assert asked == [(name, "d", 3, tmp_path / name, out) for name in ("mnist_cnn", "mnist_aae")]
    assert "mnist_cnn {'accuracy': 0.5} 3 s" in capsys.readouterr().out
    assert cli.main(["train", "--list"]) == 0
    assert re.search(r"(?m)^mnist_cnn +present +needs --data$", capsys.readouterr().out)


def test_processes_of_torchrun_share_the_training_without_a_gpu(monkeypatch):
    seen = []

    def make(*given):
        seen.append(os.environ.get("ACCELERATE_USE_CPU"))
        return {"quality": {}, "training": {"seconds": 0.0}}

    monkeypatch.setattr(training, "make", make)
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    for size in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", size)
        training.train(["mnist_cnn"])
    assert seen == [None, "1"] and "ACCELERATE_USE_CPU" not in os.environ


def test_data_shows_the_state_of_each_set(capsys, tmp_path):
    assert cli.main(["data", "mnist", "heloc"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mnist          embedded") and second.startswith(
        "heloc          missing"
    )
    assert cli.main(["data", "--data", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(catalog.SETS)


def test_weights_says_how_to_get_a_file_that_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    assert cli.main(["weights", "vggface2"]) == 2
    assert "How to get it" in capsys.readouterr().err
    assert cli.main(["weights", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(pretrained.FILES)


def test_world_check_writes_the_card_and_ends_with_1_if_a_bound_is_missed(
    monkeypatch, tmp_path, capsys
):
    found = {"checked": {"smile": {"auc_pixels": 0.9}}, "cpu_ms_per_image": 1.0, "seconds": 1.0}
    monkeypatch.setattr(world_card, "FOLDER", tmp_path)
    monkeypatch.setattr(world_card, "check", lambda name, n: {**found, "outside": ["smile: 0.9"]})
    assert cli.main(["world", "check", "faces"]) == 1
    assert "outside: smile: 0.9" in capsys.readouterr().out
    assert (tmp_path / "faces.json").exists()
    monkeypatch.setattr(world_card, "check", lambda name, n: {**found, "outside": []})
    assert cli.main(["world", "check", "faces"]) == 0
