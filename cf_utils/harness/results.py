"""Results of a notebook run: metrics, claims, figures, tables and batches of explanations.

A run writes to <root>/<profile>/<notebook>/ (see `folders`). Every file appears whole or not at
all. Only the run that owns the folder may write there: the runner leaves a token beside the
results. A kernel that outlived its runner finds another token there, and stops.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from contextlib import AbstractContextManager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

from cf_utils import core
from cf_utils.core import files
from cf_utils.harness import figures, folders, provenance, records
from cf_utils.models import checkpoints

RESERVED = ("data", "seed", "claims", "claims_failed", "seconds", "device", "commit")


class NotOwner(RuntimeError):
    """Another run has taken over this folder, so this one must not write there any more."""


class Run:
    """One run of one notebook.

    It collects metrics and claims while the notebook runs; `finish` in the last cell writes them.
    Where a person runs the cells (`core.interactive`, asked when the run is created), a cell may
    run again with other values: claims warn instead of raising, and metrics are overwritten.

    Args:
        notebook: name of the notebook, as in its file name.
        profile: "demo" or the name of a file in notebooks/profiles.
        seed: seed of all random draws, written into metrics.json.
        data: "embedded" or "official".
    """

    def __init__(self, notebook: str, *, profile: str, seed: int, data: str) -> None:
        if data not in ("embedded", "official"):
            raise ValueError(f"data: got {data!r}, expected 'embedded' or 'official'")
        self.notebook, self.profile, self.seed, self.data = notebook, profile, seed, data
        self.interactive = core.interactive()
        self.folder = folders.run_folder(profile, notebook)
        self.shard = folders.shard_from_environment()
        folders.check_writable(self.folder)
        self._token, self._began = os.environ.get("CF_RUN_TOKEN"), time.perf_counter()
        self._metrics: dict[str, float | int | None] = {}
        self._claims: dict[str, dict[str, Any]] = {}
        self._captions: dict[str, str] = {}
        self._written: set[Path] = set()

    def claim(
        self, name: str, value: float, low: float, high: float, opposite: str | None = None
    ) -> None:
        """Check that low <= value <= high, and print a line without the value.

        nbval compares the printed line, which is the same in every run. Where a person runs the
        cells, a failed claim warns and names `opposite`. Elsewhere it raises AssertionError in the
        demo profile (unless CF_CLAIMS=record). In other profiles it is recorded, the notebook goes
        on, and the runner ends with a non-zero status.

        Args:
            opposite: the finding that a value beyond a bound would show. For claims of which only
                one bound matters.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"claim {name!r}: got bounds [{low}, {high}], expected finite ones with low < high"
            )
        value = _number(value)
        bounds = {"low": _number(low), "high": _number(high), "opposite": opposite}
        ok = value is not None and low <= value <= high
        before = self._claims.get(name, bounds)
        if not self.interactive and any(before[key] != bounds[key] for key in bounds):
            raise ValueError(
                f"claim {name!r} was made before with other bounds; give this one another name"
            )
        self._claims[name] = {"name": name, "value": value, **bounds, "ok": ok}
        if not ok:
            shown = "not a finite number" if value is None else f"{value:.4g}"
            self._report_failure(f"{name}: {shown} is outside [{low:g}, {high:g}]", opposite)
        print(f"{name} in [{low:g}, {high:g}]: {'ok' if ok else 'FAILED'}")

    def _report_failure(self, text: str, opposite: str | None) -> None:
        """Warn where a person runs the cells; elsewhere raise in the demo profile."""
        if self.interactive:
            hint = f". It may mean: {opposite}" if opposite else ""
            warnings.warn(text + hint, stacklevel=3)
        elif self.profile == folders.DEMO and os.environ.get("CF_CLAIMS") != "record":
            raise AssertionError(text)

    def metrics(self, **named: float | int | None) -> None:
        """Collect numbers by name; None and numbers that are not finite become null in the file.

        A repeated name must have the same value, except in a kernel that a person plays in, where
        the new value replaces the old one. Raises ValueError otherwise, for a reserved name, and
        for a value that is not one number.
        """
        for name, value in named.items():
            if name in RESERVED:
                raise ValueError(f"metrics: {name!r} is written by finish(); use another name")
            value = _number(value, name)
            known = name in self._metrics and not self.interactive
            if known and self._metrics[name] != value:
                raise ValueError(
                    f"metrics: {name!r} is already {self._metrics[name]}, got {value}; "
                    "use another name"
                )
            self._metrics[name] = value

    def figure(self, name: str, fig: Figure, *, caption: str) -> Figure:
        """Write figures/<name>.png, in at most 150 kB, and return the figure.

        Args:
            caption: one sentence that says what to see in the figure (see `check_caption`). It is
                the figure's alt text, and stands below it in the gallery and in the report.
        """
        caption = figures.check_caption(caption)
        content = figures.render_png(fig)
        with self._write(f"figures/{folders.check_file_name(name)}.png") as part:
            part.write_bytes(content)
        self._captions[name] = caption
        figures.set_alt_text(fig, caption)
        return fig

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.csv and return the frame; an index of row numbers is left out."""
        with self._write(f"tables/{folders.check_file_name(name)}.csv") as part:
            frame.to_csv(part, index=not isinstance(frame.index, pd.RangeIndex))
        return frame

    def explain(
        self,
        name: str,
        explainer: core.Explainer,
        classifier: nn.Module,
        x: Tensor,
        target: Tensor,
        ids: core.Ids | None,
        tau: float | None = None,
        batch_size: int = 64,
    ) -> core.Counterfactuals | None:
        """Explain in batches that are kept in this run's folder, see `core.explain_in_batches`.

        Stored batches are read instead of computed. A shard (CF_SHARD) computes only its own
        batches and returns None; the job that joins the shards finds all of them.
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
            folder=self.folder / "batches" / folders.check_file_name(name),
            before_save=self.check_owner,
        )

    def finish(self) -> dict[str, Any]:
        """Write metrics.json, claims.json, figures.json and checkpoints.json; return the metrics.

        figures.json lists name and caption of each figure, in the order in which they were made.
        Figures and tables that only an earlier run wrote are removed, also half-written ones of a
        run that was killed. A notebook that was not started by the runner leaves no
        parameters.json: its parameters are unknown.
        """
        metrics = self._all_metrics()
        self.check_owner()
        (self.folder / "metrics.json").unlink(missing_ok=True)  # written last: results are whole
        if self._token is None:
            (self.folder / "parameters.json").unlink(missing_ok=True)
        files.write_json(self.folder / "claims.json", list(self._claims.values()))
        captions = [{"name": name, "caption": text} for name, text in self._captions.items()]
        files.write_json(self.folder / "figures.json", captions)
        files.write_json(self.folder / "checkpoints.json", checkpoints.loaded())
        for path in [*self.folder.glob("figures/*.png*"), *self.folder.glob("tables/*.csv*")]:
            if path not in self._written:
                path.unlink(missing_ok=True)
        self.check_owner()
        files.write_json(self.folder / "metrics.json", metrics)
        return metrics

    def _all_metrics(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "n": None,
            **self._metrics,
            "seed": self.seed,
            "claims": len(self._claims),
            "claims_failed": sum(not claim["ok"] for claim in self._claims.values()),
            "seconds": round(time.perf_counter() - self._began, 2),
            "device": provenance.device(),
            "commit": provenance.commit(),
        }

    def check_owner(self) -> None:
        """Raise NotOwner if another job has taken over the folder since this kernel was started.

        A notebook that was not started by the runner is not checked.
        """
        if self._token is None:
            return
        path = folders.shard_folder(self.folder, self.shard) / "owner.json"
        owner = (records.read(path) or {}).get("token")
        if owner != self._token:
            raise NotOwner(
                f"{path.parent} belongs to another run now; "
                f"this one (token {self._token}) writes nothing more"
            )

    def _write(self, name: str) -> AbstractContextManager[Path]:
        self.check_owner()
        path = self.folder / name
        self._written.add(path)
        return files.whole_file(path)


def _number(value: Any, name: str = "value") -> float | int | None:
    """Convert one number, or a tensor or array of one, to Python; None if it is not finite."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, Real):
        raise ValueError(f"{name}: got {type(value).__name__}, expected one number or None")
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, bool | int) else float(value)


def reported(paper: str | None = None, table: str | None = None) -> pd.DataFrame:
    """Read the figures that the papers report, from results/reported/<paper>.csv.

    Args:
        paper: name of the file without ending; None reads all papers.
        table: name of a table, such as "Table 6"; None keeps all tables.

    Returns columns paper, table, dataset, task, method, metric, value, sd, note. Raises ValueError
    for an unknown paper or table.
    """
    folder = folders.project() / "results" / "reported"
    paths = sorted(p for p in folder.glob("*.csv") if p.stem not in ("claims", "beside"))
    if paper is not None:
        if paper not in (known := [path.stem for path in paths]):
            raise ValueError(f"paper: got {paper!r}, known are {known}")
        paths = [path for path in paths if path.stem == paper]
    frames = [pd.read_csv(path, dtype={"table": str}) for path in paths]
    frame = pd.concat(frames, ignore_index=True)
    if table is not None:
        if table not in (known := sorted(frame["table"].unique())):
            raise ValueError(f"table: got {table!r}, known are {known}")
        frame = frame[frame["table"] == table].reset_index(drop=True)
    return frame
