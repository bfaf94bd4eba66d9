"""What `cf run` prints: what will run and for how long, one line per notebook, and the total.

Every job keeps a record of its state in log/job.json of its folder. The runner reads the records
while Snakemake works, so that it also sees jobs on other machines. All else is in the log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cf_utils.harness import folders, job, notebooks, records

TAIL = 12  # lines of the log that are shown


def say_duration(seconds: float) -> str:
    """Return a duration as "45 s", "1 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(n: int) -> str:
    """Return "1 notebook" or "9 notebooks"."""
    return f"{n} notebook" + "s" * (n != 1)


def log_path(profile: str) -> Path:
    """Return the file with all that Snakemake, the jobs and their kernels print."""
    return folders.root() / profile / "workflow.log"


def recorded_seconds(profile: str, name: str) -> float | None:
    """Return how long a notebook took when it last ran here, else when it was published.

    None if it did neither.
    """
    here = folders.run_folder(profile, name)
    published = folders.published_folder(profile, name)
    for path in (job.state_file(here), here / "metrics.json", published / "metrics.json"):
        seconds = (records.read(path) or {}).get("seconds")
        if isinstance(seconds, int | float) and seconds > 0:
            return float(seconds)
    return None


def estimate(seconds: Sequence[float], slots: int) -> float:
    """Return about how many seconds jobs of these durations take, `slots` of them at a time."""
    return max(sum(seconds) / slots, *seconds)


class Progress:
    """Prints a line for each notebook that ends while the workflow runs.

    Args:
        names: the notebooks that may run.
        plan: of `plan.make_plan`.
        cores: CPU cores that the jobs share.
    """

    def __init__(self, names: Sequence[str], plan: Mapping[str, Any], cores: int) -> None:
        self.names, self.profile = list(names), plan["profile"]
        self.slots = max(1, cores // plan["threads"])
        self.shards = {name: plan["jobs"][name]["shards"] for name in names}
        self.ended: list[str] = []
        self._began = time.time()
        self._seen = {path: record.get("token") for path, _, record in self._records()}
        self._live = False  # whether the last line is the one that changes
        self._expected: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.time() - self._began

    def announce(self, names: Sequence[str]) -> None:
        """Say how many notebooks will run, and for how long, as far as durations are recorded."""
        self.names = list(names)
        times = {name: recorded_seconds(self.profile, name) for name in self.names}
        known = [seconds for seconds in times.values() if seconds is not None]
        new = [name[:2] for name, seconds in times.items() if seconds is None]
        if not self.names:
            print("no notebook has to run; the report is written again", flush=True)
            return
        text = count(len(self.names)) + " to run"
        if known:
            self._expected = estimate(known, self.slots)
            text += f", about {say_duration(self._expected)}, judged by earlier runs"
        if known and new:
            text += f" (none of {', '.join(new)} yet)"
        elif new:
            text += "; no earlier run tells how long"
        print(f"{text}; the log is {log_path(self.profile)}", flush=True)

    def look(self) -> None:
        """Print what has ended since the last call; in a terminal, also what is running."""
        running = []
        for path, label, record in self._records():
            if record.get("token") == self._seen.get(path):
                continue
            if record["state"] == "running":
                running.append(label[:2])
                continue
            self._seen[path] = record["token"]
            self._print(label, record)
        if running and sys.stdout.isatty():
            about = f" of about {say_duration(self._expected)}" if self._expected else ""
            text = f"running {', '.join(dict.fromkeys(running))} · {say_duration(self.seconds)}"
            print(f"\r\x1b[K{text}{about}", end="", flush=True)
            self._live = True

    def finish(self, status: int) -> None:
        """Print the total, and the end of the log if Snakemake failed before any job ended."""
        self.look()
        self.clear()
        done = sum(self._is_done(name) for name in self.names)
        if self.names:
            total = f"{done} of {count(len(self.names))} done in {say_duration(self.seconds)}"
            print(total, flush=True)
        if status and not self.ended:
            path = log_path(self.profile)
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            print("\n".join(lines[-TAIL:]), file=sys.stderr)

    def say_stopped(self) -> str:
        """Return the sentence after Ctrl-C."""
        self.look()
        self.clear()
        done = sum(self._is_done(name) for name in self.names)
        return (
            f"stopped with {done} of {count(len(self.names))} done; "
            "run the same command again to go on from there"
        )

    def _is_done(self, name: str) -> bool:
        record = records.read(job.state_file(folders.run_folder(self.profile, name))) or {}
        return name in self.ended and record.get("state") == "done"

    def clear(self) -> None:
        """Remove the line that says what is running."""
        if self._live:
            print("\r\x1b[K", end="", flush=True)
            self._live = False

    def _records(self) -> Iterator[tuple[Path, str, dict[str, Any]]]:
        """Yield path, notebook or notebook and shard, and content of each job's record."""
        for name, n in self.shards.items():
            folder = folders.run_folder(self.profile, name)
            shards = [(k, n) for k in range(1, n + 1)] if n > 1 else []
            for shard in [*shards, (1, 1)]:
                path = job.state_file(folders.shard_folder(folder, shard))
                suffix = "" if shard == (1, 1) else f" {shard[0]}/{shard[1]}"
                yield path, name + suffix, records.read(path) or {}

    def _print(self, label: str, record: Mapping[str, Any]) -> None:
        name, _, shard = label.partition(" ")
        if not shard and name not in self.ended:
            self.ended.append(name)
        place = f"shard {shard}" if shard else f"{self.ended.index(name) + 1} of {len(self.names)}"
        title, took = notebooks.title(name).replace(" · ", " ", 1), say_duration(record["elapsed"])
        failed = record["state"] == "failed"
        self.clear()
        print(f"{place} · {title} · {'failed after ' * failed}{took}", flush=True)
        if failed:
            print("    " + record["problem"].replace("\n", "\n    "), flush=True)
