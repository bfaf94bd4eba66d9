"""The code printed in README.md and CONTRIBUTING.md runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from cf_utils.core.files import ROOT


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def run_code(code: str, folder, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, with `folder` before the project on the path."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_the_first_example_runs_and_has_at_most_eight_lines_of_code(tmp_path):
    (code,) = python_blocks("README.md")
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 8
    done = run_code(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") >= 10  # of 16: valid and reached of eight digits


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 400


@pytest.fixture
def toy(tmp_path):
    """The method and the test of CONTRIBUTING.md, in a package that shadows the explainers."""
    method, test, _, cell = python_blocks("CONTRIBUTING.md")
    alias = "fixed_direction"
    (tmp_path / f"{alias}.py").write_text(method)
    redirect = f"import sys, {alias}; sys.modules['cf_utils.explainers.{alias}'] = {alias}\n"
    (tmp_path / "conftest.py").write_text(redirect)
    (tmp_path / f"test_{alias}.py").write_text(test)
    return tmp_path, redirect + cell


def test_the_method_of_contributing_passes_its_test(toy):
    folder, _ = toy
    code = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '.']))"
    done = run_code(code, folder)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_the_cell_of_contributing_flips_digits(toy):
    folder, cell = toy
    done = run_code(cell + "\nprint(int(cfs.reached.sum()))", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "6"
