"""A throw-away project: tiny notebooks, processes to kill, and a stand-in for papermill."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """seed = 0
steps = 5
lam = 1.0
fast = False
sizes = (1, 2)
profile = "demo"
data_root = ""
"""
SETUP = """import torch, pandas as pd
from matplotlib.figure import Figure
from cf_utils.harness import results
from tests.conftest import make_explainer, make_net, make_queries
run = results.Run(name, profile=profile, seed=seed, data="embedded")
net = make_net()
x, target = make_queries(net, n=14)"""
COMPUTE = """explain = make_explainer(steps=steps)
cfs = run.explain("gradual", explain, net, x, target, torch.arange(14), batch_size=2)"""
REST = """fig = Figure(figsize=(2, 2))
fig.add_subplot().plot(cfs.score.float())
run.figure("scores", fig, caption="The score rises with the number of the item.")
run.table("items", cfs.to_frame().drop(columns="seconds"))
run.metrics(n=len(cfs), validity=cfs.valid.double().mean(), score=cfs.score.sum())
run.claim("steps", steps, 1, 10)
run.finish()"""
LIGHT = """from cf_utils.harness import results
run = results.Run(name, profile=profile, seed=seed, data="embedded")
run.metrics(n=steps)
run.claim("steps", steps, 0, 9)
run.finish()"""
# for a real kernel, which does not have to import torch for it
PLAIN = """import json, os, pathlib
folder = pathlib.Path(os.environ["CF_RESULTS_ROOT"], profile, name)
metrics = {"data": "embedded", "n": steps, "claims": 0, "claims_failed": 0, "seconds": 1}
metrics |= {"device": "cpu", "commit": None, "threads": os.environ.get("OMP_NUM_THREADS")}
folder.joinpath("claims.json").write_text("[]")
folder.joinpath("metrics.json").write_text(json.dumps(metrics))"""


def make_notebook(
    root: Path, name: str, *cells: tuple[str, str], parameters: str = PARAMETERS
) -> Path:
    """Write notebooks/<name>.ipynb in `root`; its cells know their notebook as `name`.

    Args:
        cells: (tag, source) of each cell after parameters and setup; '' means no tag.
    """
    code = [("parameters", parameters), ("setup", f"name = {name!r}"), *cells]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [new_code_cell(text, metadata={"tags": [tag] if tag else []}) for tag, text in code]
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {name[:2]} · tiny"), *made]), path)
    return path


def make_profile(root: Path, text: str, name: str = "paper") -> None:
    """Write notebooks/profiles/<name>.yaml in `root`."""
    (root / "notebooks" / "profiles").mkdir(parents=True, exist_ok=True)
    (root / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one notebook that explains 14 items in batches of 2, and a paper profile."""
    monkeypatch.setenv("CF_PROJECT_ROOT", str(tmp_path))
    for name in ("CF_RESULTS_ROOT", "CF_RUN_TOKEN", "CF_SHARD", "CF_CLAIMS"):
        monkeypatch.delenv(name, raising=False)
    make_notebook(tmp_path, "01_tiny", ("setup", SETUP), ("compute", COMPUTE), ("", REST))
    make_profile(tmp_path, "01_tiny:\n  steps: 6\n")
    return tmp_path


def execute_here(
    notebook: nbformat.NotebookNode, log: Path, given: dict[str, Any], label: str
) -> None:
    """Stand in for job.execute: run the cells in this process; like papermill, write the log."""
    nbformat.write(notebook, log)
    space: dict[str, Any] = {}
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= given


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process, in which torch is loaded; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def wait_for_end(pid: int, within: float = 30) -> int:
    """Wait for a fork and return its exit status; -9 if it was killed."""
    end = time.time() + within
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"the fork still ran after {within} s")


def kill_at_rename(work: Callable[[], object], nth: int, when: str) -> int:
    """Run `work` in a fork that is killed just before or after its nth rename.

    Returns the exit status: 0 if there were fewer renames.
    """

    def child():
        real, count = os.replace, 0

        def replace(a, b):
            nonlocal count
            count += 1
            if (count, when) == (nth, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)
            if (count, when) == (nth, "after"):
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace
        work()

    return wait_for_end(fork(child))
