"""What a notebook run leaves behind: metrics, claims, figures, tables, batches of explanations; and how to read them again.

A run writes to <root>/<profile>/<notebook>/, where root is CF_RESULTS_ROOT or results/run. `make publish` copies what readers
need into the tracked results/<profile>/<notebook>/. Files are written whole (io.whole_file), and only by the run that owns the
folder: the runner writes a token beside them, and a kernel that outlived its runner finds another token there and stops.
"""

from __future__ import annotations

import io as memory
import math
import os
import re
import subprocess
import time
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import files

DEMO = "demo"  # the profile of a notebook's own parameters; the one where a failed claim raises
PNG_BYTES = 150_000  # what a published figure may weigh
RESERVED = ("data", "seed", "claims", "claims_failed", "seconds", "device", "commit")


class NotOwner(RuntimeError):
    """Another run has taken over this folder; what this one would write does not belong there any more."""


def project() -> Path:
    """The repository, or CF_PROJECT_ROOT (tests run on a small tree of their own)."""
    return Path(os.environ.get("CF_PROJECT_ROOT") or files.ROOT)


def root() -> Path:
    """Where runs write: CF_RESULTS_ROOT or results/run."""
    return Path(os.environ.get("CF_RESULTS_ROOT") or project() / "results" / "run").resolve()


def run_folder(profile: str, notebook: str) -> Path:
    return root() / profile / notebook


def shard_from_env() -> tuple[int, int]:
    """(k, N) from CF_SHARD="k/N", (1, 1) where it is not set."""
    text = os.environ.get("CF_SHARD") or "1/1"
    if not (found := re.fullmatch(r"(\d+)/(\d+)", text)) or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"CF_SHARD: got {text!r}, expected k/N with 1 <= k <= N")
    return int(found[1]), int(found[2])


def home(folder: Path, shard: tuple[int, int]) -> Path:
    """Where one job keeps its own files: the run's folder, or the shard's folder in it."""
    return folder if shard == (1, 1) else folder / "shards" / f"{shard[0]}-of-{shard[1]}"


def writable(folder: Path) -> None:
    """Raise ValueError, before any work, when nothing can be written to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / ".probe", "")
        (folder / ".probe").unlink(missing_ok=True)  # another shard may have been first
    except OSError as e:
        raise ValueError(
            f"results folder: {folder} cannot be written ({e.strerror}); set CF_RESULTS_ROOT to one that can"
        ) from e


class Run:
    """One run of one notebook. Collects while the notebook runs; `finish()` in the last cell writes metrics and claims."""

    def __init__(self, notebook: str, *, profile: str, seed: int, data: str):
        if data not in ("embedded", "official"):
            raise ValueError(f"data: got {data!r}, expected 'embedded' or 'official'")
        self.notebook, self.profile, self.seed, self.data = (
            _name(notebook),
            _name(profile),
            seed,
            data,
        )
        self.folder, self.shard = run_folder(profile, notebook), shard_from_env()
        writable(self.folder)
        self._token, self._began = os.environ.get("CF_RUN_TOKEN"), time.perf_counter()
        self._metrics: dict[str, float | int | None] = {}
        self._claims: dict[str, dict[str, Any]] = {}
        self._written: set[Path] = set()

    def claim(
        self, name: str, value: float, low: float, high: float, opposite: str | None = None
    ) -> None:
        """Assert low <= value <= high and print a line without the value, so that nbval can compare it.

        A failure raises in the demo profile (unless CF_CLAIMS=record); elsewhere it is recorded, the run goes on, and the
        runner ends non-zero. `opposite`: what a value beyond a bound would mean, for a claim that is one-sided in substance.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"claim {name!r}: got bounds [{low}, {high}], expected finite ones, low < high"
            )
        value = _number(value)
        ok = value is not None and low <= value <= high
        entry = {
            "name": name,
            "value": value,
            "low": _number(low),
            "high": _number(high),
            "opposite": opposite,
            "ok": ok,
        }
        before = self._claims.get(name, entry)
        if any(before[k] != entry[k] for k in ("low", "high", "opposite")):
            raise ValueError(
                f"claim {name!r} was made before with other bounds; give this one another name"
            )
        self._claims[name] = entry
        if not ok and self.profile == DEMO and os.environ.get("CF_CLAIMS") != "record":
            shown = "not a finite number" if value is None else f"{value:.4g}"
            raise AssertionError(f"{name}: {shown} is outside [{low:g}, {high:g}]")
        print(f"{name} in [{low:g}, {high:g}]: {'ok' if ok else 'FAILED'}")

    def metrics(self, **named: float | int | None) -> None:
        """Collect name -> number or None (what is not finite becomes None, null in the file).

        A name may come again with the same value (a cell run twice), not with another one.
        """
        for name, value in named.items():
            if name in RESERVED:
                raise ValueError(f"metrics: {name!r} is written by finish(); use another name")
            value = _number(value, name)
            if name in self._metrics and self._metrics[name] != value:
                raise ValueError(
                    f"metrics: {name!r} is already {self._metrics[name]}, got {value}; use another name"
                )
            self._metrics[name] = value

    def figure(self, name: str, fig: Figure) -> Figure:
        """Write figures/<name>.png, at most 150 KB, and return the figure (end the line with `;` or show it)."""
        content = _png(fig)
        with self._write(self.folder / "figures" / f"{_name(name)}.png") as part:
            part.write_bytes(content)
        return fig

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.csv (the index too, unless it is just row numbers) and return the frame."""
        with self._write(self.folder / "tables" / f"{_name(name)}.csv") as part:
            frame.to_csv(part, index=not isinstance(frame.index, pd.RangeIndex))
        return frame

    def explain(
        self,
        name: str,
        explainer: core.Explainer,
        classifier: nn.Module,
        x: Tensor,
        target: Tensor,
        ids,
        tau: float | None = None,
        batch_size: int = 64,
    ) -> core.Counterfactuals | None:
        """core.explain_in_batches with this run's folder: batches on disk are read, others computed and kept.

        In a shard (CF_SHARD) only its batches are computed and None comes back; the join job finds them all.
        """
        self.check_owner()
        return core.explain_in_batches(
            explainer,
            classifier,
            x,
            target,
            ids,
            tau=tau,
            batch_size=batch_size,
            shard=self.shard,
            desc=name,
            folder=self.folder / "batches" / _name(name),
            before_save=self.check_owner,
        )

    def finish(self) -> dict[str, Any]:
        """Write claims.json and metrics.json, and remove figures and tables left by earlier runs only."""
        failed = [c["name"] for c in self._claims.values() if not c["ok"]]
        metrics = {
            "data": self.data,
            "n": None,
            **self._metrics,
            "seed": self.seed,
            "claims": len(self._claims),
            "claims_failed": len(failed),
            "seconds": round(time.perf_counter() - self._began, 2),
            "device": device(),
            "commit": commit(),
        }
        self.check_owner()
        (self.folder / "metrics.json").unlink(
            missing_ok=True
        )  # an older run's would vouch for the claims written next
        files.write_json(self.folder / "claims.json", list(self._claims.values()))
        for old in [*self.folder.glob("figures/*.png"), *self.folder.glob("tables/*.csv")]:
            if old not in self._written:
                old.unlink()
        self.check_owner()
        files.write_json(
            self.folder / "metrics.json", metrics
        )  # last: who finds it finds everything
        return metrics

    def check_owner(self) -> None:
        """Raise NotOwner when the runner that started this kernel is not the folder's latest. Without a runner: no check."""
        if self._token is None:
            return
        path = home(self.folder, self.shard) / "owner.json"
        owner = files.read_json(path)["token"] if path.exists() else None
        if owner != self._token:
            raise NotOwner(
                f"{path.parent} belongs to another run now; this one (token {self._token}) writes nothing more"
            )

    def _write(self, path: Path):
        self.check_owner()
        self._written.add(path)
        return files.whole_file(path)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", text):
        raise ValueError(
            f"name: got {text!r}, expected letters, digits, '_', '-' and '.' only: it becomes a file's name"
        )
    return text


def _number(value, name: str = "value") -> float | int | None:
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, Real):
        raise ValueError(f"{name}: got {type(value).__name__}, expected one number or None")
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, bool | int) else float(value)


def _png(fig: Figure) -> bytes:
    """PNG at dpi 100; over the limit with 256 colours, then smaller, until it fits.

    Never under 128 colours: a face takes on hues then that its image does not have. Good colours take a second each time, so a
    quick choice of them tells which sizes are not worth it.
    """
    buffer = memory.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    if buffer.tell() <= PNG_BYTES:
        return buffer.getvalue()
    full = Image.open(buffer).convert("RGB")
    for scale, colours in [(1, 256), (0.85, 256)] + [(0.85**k, 128) for k in range(1, 12)]:
        size = (round(full.width * scale), round(full.height * scale))
        image = full if scale == 1 else full.resize(size, Image.Resampling.LANCZOS)
        quick, buffer = memory.BytesIO(), memory.BytesIO()
        image.quantize(colours, method=Image.Quantize.FASTOCTREE).save(quick, "PNG")
        if quick.tell() > PNG_BYTES:  # good colours weigh more
            continue
        image.quantize(colours, kmeans=2).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= PNG_BYTES:
            return buffer.getvalue()
    raise ValueError(
        f"a figure of {full.width} x {full.height} pixels does not fit in {PNG_BYTES} bytes; draw fewer panels"
    )


def device() -> str:
    """What torch would run on: 'cpu', 'mps' or the GPU's name."""
    kind = core.pick_device().type
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def commit() -> str | None:
    """The checked-out commit, with '-dirty' where code or notebooks differ from it; None outside a git repository."""

    def git(*args: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *args], cwd=project(), capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if not (head := git("rev-parse", "--short=12", "HEAD")):
        return None
    return head + ("-dirty" if git("status", "--porcelain", "--", "cf_utils", "notebooks") else "")


# ---------------------------------------------------------------- reading


def reported(paper: str | None = None, table: str | None = None) -> pd.DataFrame:
    """The papers' own figures (results/reported/<paper>.csv): paper, table, dataset, task, method, metric, value, sd, note."""
    tables = sorted(
        f
        for f in (project() / "results" / "reported").glob("*.csv")
        if f.stem not in ("claims", "beside")
    )
    if paper is not None:
        if paper not in (known := [f.stem for f in tables]):
            raise ValueError(f"paper: got {paper!r}, known are {known}")
        tables = [f for f in tables if f.stem == paper]
    frame = pd.concat([pd.read_csv(f, dtype={"table": str}) for f in tables], ignore_index=True)
    if table is not None:
        if table not in (known := sorted(frame["table"].unique())):
            raise ValueError(f"table: got {table!r}, known are {known}")
        frame = frame[frame["table"] == table].reset_index(drop=True)
    return frame


def published(profile: str, notebook: str) -> dict[str, Any]:
    """metrics.json of a published run (results/<profile>/<notebook>/). FileNotFoundError where none was published."""
    path = project() / "results" / profile / notebook / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run the notebook in this profile, then `make publish`"
        )
    return files.read_json(path)
