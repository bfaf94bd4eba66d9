"""Promises of the repository: one list of packages, gates, make targets, bounds of claims."""

from __future__ import annotations

import csv
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cf_utils.core import files
from cf_utils.harness import parameters

ROOT = files.ROOT
CLAIMS = sorted((ROOT / "results" / "claims").glob("*.json"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_conda_and_make_install_the_same_from_pyproject():
    wanted = "-e .[embedded,dev]"
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert (
        python == "python" + PROJECT["requires-python"]
        and pip == "pip"
        and from_pip == {"pip": [wanted]}
    )
    assert f"-e '{wanted[3:]}'" in (ROOT / "Makefile").read_text()
    assert {"embedded", "dev"} <= PROJECT["optional-dependencies"].keys()


def test_what_the_notebooks_import_is_installed_by_default():
    names = {re.split(r"[<>=\[; ]", d)[0] for d in PROJECT["dependencies"]}
    assert {"torch", "papermill", "snakemake", "jupyterlab", "pyyaml", "jinja2"} <= names
    assert any(
        d.startswith("scipy") and "<1.18" in d for d in PROJECT["dependencies"]
    )  # pytorch-fid breaks with it


def test_make_has_the_targets_that_the_readme_may_name():
    text = (ROOT / "Makefile").read_text()
    wanted = [
        "demo",
        "paper",
        "embedded",
        "test",
        "lab",
        "bench",
        "report",
        "publish",
        "claims",
        "mutants",
        "weights",
        "help",
    ]
    assert all(re.search(rf"^{t}:.*  ## \S", text, re.MULTILINE) for t in wanted)
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"make {t} " in shown for t in wanted)


def test_hooks_are_local_and_use_tools_that_dev_installs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [h for repo in config["repos"] for h in repo["hooks"]]
    assert {h["language"] for h in hooks} == {"system"}
    installed = {re.split(r"[<>=\[; ]", d)[0] for d in PROJECT["optional-dependencies"]["dev"]}
    provides = {"lint-imports": "import-linter"}  # command -> package
    for hook in hooks:
        command = hook["entry"].split()[0]
        assert provides.get(command, command) in installed, hook["id"]


def test_make_test_and_pre_commit_run_every_gate_and_github_calls_make_test():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^test:.*\blint\b", makefile, re.MULTILINE)
    recipe = makefile.split("\nlint:")[1].split("\n\n")[0]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for gate in ("ruff format", "ruff check", "lint-imports|importlinter", "pyrefly|TYPE_?CHECK"):
        assert re.search(gate, recipe), gate
        assert re.search(gate, hooks), gate
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [s for job in workflow["jobs"].values() for s in job["steps"]]
    assert any("make test" in s.get("run", "") for s in steps)


@pytest.mark.parametrize(
    "profile", sorted(p.stem for p in (ROOT / "notebooks" / "profiles").glob("*.yaml"))
)
def test_profiles_pass_the_runners_own_checks(profile):
    sections = parameters.profile_sections(profile)
    assert sections or profile == "embedded"  # may have no section
    for name, section in sections.items():
        given, shards = parameters.for_run(name, profile)  # refuses what the notebook does not know
        assert given == {k: v for k, v in section.items() if k != "shards"} | {"profile": profile}
        assert shards == section.get("shards", 1)


@pytest.mark.parametrize("file", CLAIMS, ids=lambda p: p.stem)
def test_bounds_of_claims_hold_for_5_seeds_and_are_not_wide_open(file):
    """A bound contains every seed's value and would fail for another finding.

    It is at most 3 times as wide as the seeds' range, or names the opposite finding.
    """
    for name, c in files.read_json(file).items():
        assert c["min"] is not None and c["low"] <= c["min"] <= c["max"] <= c["high"], (name, c)
        assert c["opposite"] or c["high"] - c["low"] <= 3 * (c["max"] - c["min"]), (name, c)


def test_the_papers_claims_name_known_papers_and_notebooks_and_links_name_known_figures():
    reported = ROOT / "results" / "reported"
    with open(reported / "claims.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert all(
        list(r) == ["paper", "claim", "where", "notebook", "cell", "outcome"] and all(r.values())
        for r in rows
    )
    assert {r["paper"] for r in rows} <= {p.stem for p in reported.glob("*.csv")}
    assert all(re.fullmatch(r"\d\d_\w+", r["notebook"]) for r in rows)
    with open(reported / "beside.csv", newline="") as f:
        links = list(csv.DictReader(f))
    keys = ["paper", "table", "dataset", "task", "method", "metric"]
    for link in links:
        with open(reported / f"{link['paper']}.csv", newline="") as f:
            found = [r for r in csv.DictReader(f) if all(r[k] == link[k] for k in keys)]
        assert len(found) == 1, link


def test_published_figures_are_light_and_no_file_names_a_place_on_this_machine():
    home = str(Path.home())
    for path in tracked("*.png"):
        assert path.stat().st_size <= 150_000 or "docs" in path.parts, path
    for path in tracked(
        "*.py",
        "*.md",
        "*.ipynb",
        "*.yml",
        "*.yaml",
        "*.toml",
        "*.json",
        "Makefile",
        ".ci/*",
        "workflow/*",
    ):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) + "/" not in text and (home == "/root" or home + "/" not in text), path


def test_shell_in_ci_and_makefile_parses():
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    subprocess.run(
        ["make", "--dry-run", "demo", "NB=01", "PYTHON=python3", "VENV=/nonexistent/venv"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
