"""One job: run a notebook, or one shard of it, under a lock, and keep the executed notebook.

`cf run --one` calls this module; so do the rules `notebook` and `shard` of workflow/Snakefile.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nbformat

from cf_utils.core import files
from cf_utils.harness import folders, notebooks, parameters, provenance, records
from cf_utils.harness.locks import environment, free_gpu, lock_file

# removed before a job starts, so that a failed notebook leaves no earlier run's results
OUTPUTS = ("metrics.json", "claims.json", "checkpoints.json", "notebook.ipynb", "done.json")


class JobFailed(RuntimeError):
    """A notebook ended with an error; the message names the executed notebook and the cell."""


def run_notebook(
    name: str, profile: str, given: Mapping[str, Any], shard: tuple[int, int] = (1, 1)
) -> Path:
    """Run a notebook, or only one shard of its batches; return the folder of the results.

    Args:
        given: parameters that differ from the notebook's own.
        shard: (k, N); with N > 1 only cells tagged parameters, setup and compute run.

    Raises ValueError before any work if a parameter or the folder is wrong. Raises JobFailed if
    the notebook fails; the executed notebook with its traceback is kept as log/notebook.ipynb.
    """
    parameters.check(name, given)
    notebook = notebooks.read(name)
    if shard != (1, 1):
        notebook = _select_shard_cells(name, notebook)
    folder = folders.shard_folder(folders.run_folder(profile, name), shard)
    folders.check_writable(folder)
    label = (
        f"{name} ({profile})" if shard == (1, 1) else f"{name} {shard[0]}/{shard[1]} ({profile})"
    )
    lock = folders.root() / ".locks" / f"{profile}-{name}-{shard[0]}-of-{shard[1]}.lock"
    with lock_file(lock, label):
        began = time.time()
        token = _take_over(folder)
        files.write_json(folder / "parameters.json", parameters.complete(name, given))
        log = folder / "log" / "notebook.ipynb"
        print(f"{label} started; its log is {log}", flush=True)
        with _recorded_state(folder, token):
            with free_gpu() as gpu, _kernel_environment(token, shard, gpu):
                execute(notebook, log, dict(given), label)
            _keep_results(folder, log, shard, label, round(time.time() - began, 2))
    print(f"{label} done in {time.time() - began:.0f} s", flush=True)
    return folder


def state_file(folder: Path) -> Path:
    """Return the record of the last job in a folder, which `terminal` reads.

    It holds token, state ("running", "done" or "failed"), elapsed (seconds, None while it runs),
    problem (of a failed job) and seconds (of the last job that was done, or None).
    """
    return folder / "log" / "job.json"


@contextlib.contextmanager
def _recorded_state(folder: Path, token: str) -> Iterator[None]:
    """Record that a job runs, then that it is done or how it failed."""
    began, path = time.time(), state_file(folder)
    seconds = (records.read(path) or {}).get("seconds")

    def write(state: str, **more: Any) -> None:
        now = {"token": token, "state": state, "elapsed": None, "seconds": seconds}
        files.write_json(path, now | more)

    path.parent.mkdir(exist_ok=True)
    write("running")
    try:
        yield
    except (JobFailed, OSError) as e:
        write("failed", elapsed=round(time.time() - began, 2), problem=str(e))
        raise
    took = round(time.time() - began, 2)
    write("done", elapsed=took, seconds=took)


def _select_shard_cells(name: str, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Keep the cells that a shard runs. Raises ValueError if none of them computes anything."""
    if not notebooks.can_be_sharded(notebook):
        raise ValueError(
            f"shard: {name} has no cell tagged 'compute', so it cannot be divided into shards; "
            "run it whole"
        )
    notebook.cells = [c for c in notebook.cells if notebooks.has_tag(c, *notebooks.SHARD_TAGS)]
    return notebook


def _take_over(folder: Path) -> str:
    """Make this job the owner of the folder, remove earlier results, and return its token."""
    token = uuid.uuid4().hex
    owner = {"token": token, "pid": os.getpid(), "host": socket.gethostname()}
    files.write_json(folder / "owner.json", owner)
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    return token


def _kernel_environment(
    token: str, shard: tuple[int, int], gpu: str | None
) -> AbstractContextManager[None]:
    """Return a context with the environment variables that `results.Run` reads in the kernel."""
    return environment(
        CF_RUN_TOKEN=token,
        CF_HEADLESS="1",
        CF_SHARD=f"{shard[0]}/{shard[1]}",
        CF_RESULTS_ROOT=str(folders.root()),
        CUDA_VISIBLE_DEVICES=gpu or os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _keep_results(
    folder: Path, log: Path, shard: tuple[int, int], label: str, seconds: float
) -> None:
    """Move the executed notebook out of log/, and mark a shard as done."""
    if shard == (1, 1) and not (folder / "metrics.json").exists():
        raise JobFailed(
            f"{label}: the notebook ran but wrote no metrics.json; "
            "call run.finish() in its last cell"
        )
    with files.whole_file(folder / "notebook.ipynb") as part:
        shutil.copyfile(log, part)
    log.unlink()
    if shard != (1, 1):
        done = {"shard": list(shard), "seconds": seconds, "commit": provenance.commit()}
        files.write_json(folder / "done.json", done)


def execute(notebook: nbformat.NotebookNode, log: Path, given: dict[str, Any], label: str) -> None:
    """Execute a notebook with papermill and write it to `log`.

    A kernel that does not start is tried once more, because two kernels can get the same port.
    Raises JobFailed if a cell fails or the kernel dies.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                notebook,
                str(log),
                given,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=120,
                cwd=str(folders.project() / "notebooks"),
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no warning about plain TCP
            )
            return
        except papermill.PapermillExecutionError as e:
            first = next(iter(e.source.strip().splitlines()), "")
            raise JobFailed(
                f"{label}: cell [{e.exec_count}] ({first[:60]}) raised {e.ename}: {e.evalue}\n"
                f"the executed notebook with its traceback is {log}"
            ) from e
        except DeadKernelError as e:
            raise JobFailed(
                f"{label}: the kernel died (out of memory?); the notebook as far as it ran is {log}"
            ) from e
        except RuntimeError as e:
            if attempt == 2 or not _is_failed_start(e):
                raise JobFailed(f"{label}: the kernel could not be started: {e}") from e
            print(
                f"{label}: the kernel did not start ({e}); trying once more",
                file=sys.stderr,
                flush=True,
            )


def _is_failed_start(error: RuntimeError) -> bool:
    pattern = "before replying|didn't respond|Address already in use"
    return re.search(pattern, str(error)) is not None


def failed_claims(folder: Path) -> list[str]:
    """Return the names of the claims in claims.json that do not hold."""
    return [
        claim["name"] for claim in records.read(folder / "claims.json") or [] if not claim["ok"]
    ]
