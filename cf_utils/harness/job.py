"""One notebook run, or one shard of it: check the parameters, take the lock, call papermill, keep what happened.

`python -m cf_utils.harness.run --one NB` ends here, and so does each rule of workflow/Snakefile.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml

from cf_utils.core import files
from cf_utils.harness import results

SHARD_TAGS = {"parameters", "setup", "compute"}  # the cells that a shard runs


class JobFailed(RuntimeError):
    """A notebook ended with an error; the message names the executed notebook and the failing cell."""


# ---------------------------------------------------------------- which notebook, which parameters


def notebooks() -> dict[str, Path]:
    """Name -> path of all notebooks, in teaching order."""
    return {p.stem: p for p in sorted((results.project() / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def find(wanted: str) -> str:
    """The notebook's name from '1', '01', '01_gradual_mnist' or a path. Raises ValueError that names the known ones."""
    stem, known = Path(wanted).stem, notebooks()
    found = [n for n in known if n == stem or (stem.isdigit() and int(n[:2]) == int(stem))]
    if not found:
        raise ValueError(f"notebook: got {wanted!r}, known are {', '.join(known) or 'none'}")
    return found[0]


def defaults(name: str) -> dict[str, Any]:
    """The literals of the notebook's cell tagged `parameters`: the demo profile.

    Read from the syntax tree, not by papermill's inspection, which misses annotated assignments and knows no values.
    """
    cells = [
        c
        for c in nbformat.read(notebooks()[name], 4).cells
        if "parameters" in c.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"{name}: {len(cells)} cells are tagged 'parameters', expected one")
    found = {}
    for node in ast.parse(cells[0].source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name):
            raise ValueError(
                f"{name}: line {node.lineno} of the parameters cell is no plain `name = literal`"
            )
        found[target.id] = ast.literal_eval(node.value)
    return found


def checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """`given` as it is, or a ValueError: a name the notebook does not have, or a type other than its default's."""
    known = defaults(name)
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(
            f"{name}: unknown parameter {', '.join(unknown)}; known are {', '.join(known)}"
        )
    for key, value in given.items():
        like = type(known[key])
        fits = (
            known[key] is None
            or type(value) is like
            or (like, type(value)) in ((float, int), (tuple, list))
        )
        if not fits:
            raise ValueError(
                f"{name}: parameter {key} got {value!r} ({type(value).__name__}), expected {like.__name__} "
                f"like its default {known[key]!r}"
            )
    return given


def parsed(name: str, texts: list[str]) -> dict[str, Any]:
    """['steps=200', ...] from the command line -> values; a parameter whose default is a text stays text."""
    known, found = defaults(name), {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-p: got {text!r}, expected name=value")
        found[key] = value
        if not isinstance(known.get(key), str):
            with contextlib.suppress(
                ValueError, SyntaxError
            ):  # what is no literal stays text, and is refused as such
                found[key] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    return checked(name, found)


def profile_sections(profile: str) -> dict[str, dict[str, Any]]:
    """Sections of notebooks/profiles/<profile>.yaml by notebook; for demo, which has no file, an empty one for each."""
    known = notebooks()
    folder = results.project() / "notebooks" / "profiles"
    if profile == results.DEMO:
        return {n: {} for n in known}
    if not (path := folder / f"{profile}.yaml").exists():
        there = [results.DEMO, *sorted(p.stem for p in folder.glob("*.yaml"))]
        raise ValueError(f"profile: got {profile!r}, known are {', '.join(there)}")
    sections = {
        n: dict(s or {})
        for n, s in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).items()
    }
    if unknown := sorted(sections.keys() - known.keys()):
        raise ValueError(
            f"{path}: sections {', '.join(unknown)} name no notebook; known are {', '.join(known)}"
        )
    return sections


def settings(
    name: str, profile: str, data: str | None, texts: list[str]
) -> tuple[dict[str, Any], int]:
    """(parameters to pass, number of shards): the profile's section, then --data, then -p."""
    sections = profile_sections(profile)
    if name not in sections:
        raise ValueError(
            f"profile {profile!r} has no section for {name}; it has {', '.join(sections) or 'none'}"
        )
    given = dict(sections[name])
    shards = given.pop("shards", 1)
    if type(shards) is not int or shards < 1:
        raise ValueError(f"{profile}: shards of {name} is {shards!r}, expected a whole number >= 1")
    if data:
        if not Path(data).is_dir():
            raise FileNotFoundError(f"--data: {Path(data).absolute()} is no folder")
        if "data_root" in defaults(name):
            given["data_root"] = str(Path(data).resolve())
    return checked(name, {**given, "profile": profile, **parsed(name, texts)}), shards


# ---------------------------------------------------------------- locks, GPUs, environment


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[int]:
    """Hold the lock file `path`, waiting for who has it; yields its descriptor.

    The kernel of the operating system drops the lock with the process, however it ends: nothing to unlock by hand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "(just starting)"
            print(
                f"{what} is being run by process {owner}; waiting for it",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def one_gpu() -> Iterator[str | None]:
    """The number of a GPU that no other job of ours uses, or None where there is no choice or a scheduler has chosen."""
    import torch

    n = torch.cuda.device_count()
    if n < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
        yield None
        return
    folder = (
        Path(tempfile.gettempdir()) / f"cf-utils-gpus-{os.getuid()}"
    )  # of the machine, not of a results folder
    folder.mkdir(exist_ok=True)
    while True:
        for i in range(n):
            with open(folder / f"{i}.lock", "a") as slot:
                try:
                    fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield str(i)
                return
        time.sleep(1)


@contextlib.contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """Environment variables for the kernel, which inherits ours; None removes one; back as they were afterwards."""
    before = {k: os.environ.get(k) for k in changes}

    def put(values: dict[str, str | None]) -> None:
        for k, v in values.items():
            os.environ.pop(k, None) if v is None else os.environ.__setitem__(k, v)

    put(changes)
    try:
        yield
    finally:
        put(before)


# ---------------------------------------------------------------- the run


def run_one(
    name: str, profile: str, parameters: dict[str, Any], shard: tuple[int, int] = (1, 1)
) -> Path:
    """Run a notebook, or its cells tagged parameters, setup and compute for a shard; return where its files are.

    Raises ValueError before any work when a parameter or the folder is wrong, JobFailed when the notebook fails: the
    executed notebook with its traceback is then kept as log/notebook.ipynb.
    """
    checked(name, parameters)
    folder = results.home(results.run_folder(profile, name), shard)
    label = name if shard == (1, 1) else f"{name} {shard[0]}/{shard[1]}"
    results.writable(folder)
    with held(
        results.root() / ".locks" / f"{profile}-{name}-{shard[0]}-of-{shard[1]}.lock",
        f"{label} ({profile})",
    ):
        token, began = uuid.uuid4().hex, time.time()
        files.write_json(
            folder / "owner.json",
            {"token": token, "pid": os.getpid(), "host": socket.gethostname()},
        )
        for stale in (
            "metrics.json",
            "claims.json",
            "notebook.ipynb",
            "done.json",
        ):  # a failed run shall not look done
            (folder / stale).unlink(missing_ok=True)
        log = folder / "log" / "notebook.ipynb"
        log.parent.mkdir(exist_ok=True)
        notebook = nbformat.read(notebooks()[name], 4)
        if shard != (1, 1):
            notebook.cells = [
                c for c in notebook.cells if SHARD_TAGS & set(c.metadata.get("tags", []))
            ]
            if not any("compute" in c.metadata.get("tags", []) for c in notebook.cells):
                raise ValueError(
                    f"{name}: no cell is tagged 'compute', so it cannot be run in shards"
                )
        print(f"{label} ({profile}) started; its log is {log}", flush=True)
        with (
            one_gpu() as gpu,
            environment(
                CF_RUN_TOKEN=token,
                CF_HEADLESS="1",
                CF_SHARD=f"{shard[0]}/{shard[1]}",
                CF_RESULTS_ROOT=str(results.root()),
                CUDA_VISIBLE_DEVICES=gpu
                if gpu is not None
                else os.environ.get("CUDA_VISIBLE_DEVICES"),
            ),
        ):
            execute(notebook, log, parameters, label)
        if shard == (1, 1) and not (folder / "metrics.json").exists():
            raise JobFailed(
                f"{label}: the notebook ran, but wrote no metrics.json; its last cell has to call run.finish()"
            )
        with files.whole_file(folder / "notebook.ipynb") as part:
            shutil.copyfile(log, part)
        log.unlink()
        if shard != (1, 1):
            seconds = round(time.time() - began, 2)
            files.write_json(
                folder / "done.json",
                {"shard": list(shard), "seconds": seconds, "commit": results.commit()},
            )
    print(f"{label} ({profile}) done in {time.time() - began:.0f} s", flush=True)
    return folder


def execute(
    notebook: nbformat.NotebookNode, log: Path, parameters: dict[str, Any], label: str
) -> None:
    """papermill, with one more try when the kernel could not start (two kernels can be given the same port)."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                notebook,
                str(log),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=120,
                cwd=str(results.project() / "notebooks"),
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )  # it warns of plain TCP
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
            if attempt == 2 or not re.search(
                "before replying|didn't respond|Address already in use", str(e)
            ):
                raise JobFailed(f"{label}: the kernel could not be started: {e}") from e
            print(
                f"{label}: the kernel did not start ({e}); once more", file=sys.stderr, flush=True
            )


def failed_claims(folder: Path) -> list[str]:
    """Names of the claims that did not hold, from claims.json."""
    path = folder / "claims.json"
    return [c["name"] for c in files.read_json(path) if not c["ok"]] if path.exists() else []
