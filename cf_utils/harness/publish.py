"""Publishing: copy what readers need of a run to the tracked results/<profile>/<notebook>/."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cf_utils.core import files
from cf_utils.harness import (
    figures,
    folders,
    gallery,
    notebooks,
    parameters,
    provenance,
    records,
)

PUBLISHED = (
    "figures/*.png",
    "tables/*.csv",
    "figures.json",
    "claims.json",
    "parameters.json",
    "metrics.json",
)


def publish_all(profile: str, wanted: Sequence[str], allow_dirty: bool = False) -> list[Path]:
    """Publish notebooks, by default all that are done; return their folders.

    Every notebook is checked before the first file is copied, see `publish`.
    """
    parameters.check_profile(profile)
    names = notebooks.find_all(wanted)
    if not names:
        names = [
            name
            for name in notebooks.paths()
            if (folders.run_folder(profile, name) / "metrics.json").exists()
        ]
    for name in names:
        check(profile, name, allow_dirty)
    published = [publish(profile, name, allow_dirty) for name in names]
    gallery.write_index()
    return published


def publish(profile: str, name: str, allow_dirty: bool = False) -> Path:
    """Copy metrics, parameters, claims, tables and figures of a run; return the published folder.

    A README.md shows them there (see `gallery`). Figures and tables that the run no longer has are
    removed. Raises FileNotFoundError or ValueError, before anything is copied, for results that
    must not be published (see `check`).
    """
    check(profile, name, allow_dirty)
    source, target = folders.run_folder(profile, name), folders.published_folder(profile, name)
    (target / "metrics.json").unlink(missing_ok=True)  # copied last: marks a complete copy
    for old in [*target.glob("figures/*.png"), *target.glob("tables/*.csv")]:
        if not (source / old.relative_to(target)).exists():
            old.unlink()
    for path in (path for pattern in PUBLISHED for path in sorted(source.glob(pattern))):
        if path.name == "parameters.json":
            files.write_json(target / path.name, _without_place(files.read_json(path)))
            continue
        with files.whole_file(target / path.relative_to(source)) as part:
            shutil.copyfile(path, part)
    gallery.write(profile, name)
    return target


def check(profile: str, name: str, allow_dirty: bool = False) -> None:
    """Raise an error unless the results of a run may be published.

    Raises FileNotFoundError if the notebook is not done. Raises ValueError for results of other
    parameters than the profile's, of uncommitted code (unless `allow_dirty`), or heavy figures.
    """
    folder = folders.run_folder(profile, name)
    metrics = records.read(folder / "metrics.json")
    if not metrics:
        raise FileNotFoundError(
            f"{folder / 'metrics.json'} is missing or damaged; run the notebook first"
        )
    again = f"run `cf run {name[:2]} --profile {profile}` first"
    found = changed_parameters(profile, name)
    if found is None:
        raise ValueError(
            f"{name}: its parameters are unknown, as `cf run` did not start it; {again}"
        )
    if found:
        raise ValueError(f"{name}: it ran with {', '.join(found)}; {again}")
    commit = metrics.get("commit") or ""
    if commit.endswith(provenance.DIRTY) and not allow_dirty:
        raise ValueError(
            f"{name}: commit got {commit}, expected a clean tree; commit your changes and run the "
            "notebook again, or pass --allow-dirty"
        )
    sizes = {path.name: path.stat().st_size for path in folder.glob("figures/*.png")}
    if heavy := [file for file, size in sorted(sizes.items()) if size > figures.MAX_BYTES]:
        raise ValueError(
            f"{name}: {', '.join(heavy)} weigh more than {figures.MAX_BYTES} bytes; "
            "write figures by run.figure()"
        )


def changed_parameters(profile: str, name: str) -> list[str] | None:
    """Return how a run's parameters differ from those of its profile; None if they are unknown.

    The data root is not compared: it differs between machines.
    """
    given, _ = parameters.profile_parameters(name, profile)
    expected = parameters.complete(name, given)
    return records.differences(folders.run_folder(profile, name), expected, records.PLACE)


def _without_place(stored: dict[str, Any]) -> dict[str, Any]:
    """Replace the data root, a folder of this machine, by the word that the Makefile uses."""
    place = stored.get(records.PLACE)
    return {**stored, records.PLACE: "DATA"} if place else stored
