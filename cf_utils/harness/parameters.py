"""Parameters of a notebook run: from the profile and the command line, checked before any work."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cf_utils.core.choices import nearest, unknown_name
from cf_utils.harness import folders, notebooks, parameter_rules


def check(name: str, given: Mapping[str, Any]) -> None:
    """Check parameters for a notebook: their names, their types, and their values.

    Raises ValueError for a name that the notebook does not have, a type other than the default's,
    or a value that makes no sense (see `parameter_rules`).
    """
    known = notebooks.defaults(name)
    if unknown := sorted(given.keys() - known.keys()):
        near = nearest(unknown[0], known)
        raise ValueError(
            f"{name}: unknown parameter {', '.join(unknown)}; known are {', '.join(known)}"
            + (f"; did you mean {near!r}?" if near else "")
        )
    for key, value in given.items():
        if not _has_type_of(known[key], value):
            raise ValueError(
                f"{name}: parameter {key} got {value!r} ({type(value).__name__}), expected "
                f"{type(known[key]).__name__} like its default {known[key]!r}"
            )
    parameter_rules.check_values(name, {**known, **given})


def _has_type_of(default: Any, value: Any) -> bool:
    if default is None or type(value) is type(default):
        return True
    return (type(default), type(value)) in ((float, int), (tuple, list))


def parse(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Parse texts such as "steps=200" into values for the notebook `name`.

    A parameter whose default is a text stays a text. The values are not checked.
    """
    known, found = notebooks.defaults(name), {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-p: got {text!r}, expected NAME=VALUE")
        found[key] = value
        if isinstance(known.get(key), str):
            continue
        literal = {"true": "True", "false": "False"}.get(value, value)
        with contextlib.suppress(ValueError, SyntaxError):  # stays a text, which `check` refuses
            found[key] = ast.literal_eval(literal)
    return found


def parse_json(text: str) -> dict[str, Any]:
    """Parse the JSON object of --parameters."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"--parameters: got {text!r}, expected a JSON object ({e})") from e
    if not isinstance(found, dict):
        raise ValueError(f"--parameters: got {text!r}, expected a JSON object")
    return found


def profiles() -> list[str]:
    """Return the names of all profiles, demo first."""
    folder = folders.project() / "notebooks" / "profiles"
    return [folders.DEMO, *sorted(path.stem for path in folder.glob("*.yaml"))]


def check_profile(profile: str) -> None:
    """Raise ValueError, with the nearest known name, for a profile that does not exist."""
    if profile not in (known := profiles()):
        raise unknown_name("profile", profile, known)


def profile_sections(profile: str) -> dict[str, dict[str, Any]]:
    """Return the parameters that a profile sets, by notebook.

    They stand in notebooks/profiles/<profile>.yaml. The demo profile has no file: it sets nothing,
    for every notebook. Raises ValueError for an unknown profile or notebook.
    """
    check_profile(profile)
    known = notebooks.paths()
    if profile == folders.DEMO:
        return {name: {} for name in known}
    path = folders.project() / "notebooks" / "profiles" / f"{profile}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if unknown := sorted(content.keys() - known.keys()):
        raise ValueError(
            f"{path}: sections {', '.join(unknown)} name no notebook; known are {', '.join(known)}"
        )
    return {name: dict(section or {}) for name, section in content.items()}


def profile_parameters(name: str, profile: str) -> tuple[dict[str, Any], int]:
    """Return what a profile passes to a notebook, and into how many shards it divides it.

    Raises ValueError if the profile has no section for the notebook.
    """
    sections = profile_sections(profile)
    if name not in sections:
        raise ValueError(
            f"profile: {profile!r} has no section for {name}; "
            f"it has {', '.join(sections) or 'none'}"
        )
    given = dict(sections[name])
    shards = given.pop("shards", 1)
    if type(shards) is not int or shards < 1:
        raise ValueError(f"{profile}: shards of {name} is {shards!r}, expected a whole number >= 1")
    return {**given, "profile": profile}, shards


def for_run(
    name: str, profile: str, data: str = "", texts: Sequence[str] = ()
) -> tuple[dict[str, Any], int]:
    """Return the parameters to pass to a notebook, and into how many shards it is divided.

    Args:
        name: the notebook.
        profile: the profile, whose section for the notebook is the start.
        data: folder with official data sets, for the parameter `data_root`.
        texts: "NAME=VALUE" from the command line, which override the profile.

    Raises ValueError or FileNotFoundError if anything is wrong with them.
    """
    given, shards = profile_parameters(name, profile)
    if data:
        if not Path(data).is_dir():
            raise FileNotFoundError(f"--data: {Path(data).absolute()} is not a folder")
        if "data_root" in notebooks.defaults(name):
            given["data_root"] = str(Path(data).resolve())
    given |= parse(name, texts)
    check(name, given)
    parameter_rules.check_data(name, given)
    return given, shards


def complete(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a run, defaults included, as JSON would give them back."""
    return json.loads(json.dumps({**notebooks.defaults(name), **given}))
