"""Error messages for misspelt names: list the known names and suggest the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def nearest(got: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelt most like `got`, or None if none is similar."""
    spellings = {name.lower(): name for name in known}
    found = difflib.get_close_matches(got.lower(), spellings, n=1)
    return spellings[found[0]] if found else None


def unknown_name(
    argument: str, got: str, known: Iterable[str], spellings: Mapping[str, str] | None = None
) -> ValueError:
    """Build the error for a name that is not known.

    Args:
        argument: the argument that had the value `got`.
        known: all accepted names, in the order in which the message lists them.
        spellings: other spellings to compare with, each mapped to its name in `known`.
    """
    names = list(known)
    options = {name: name for name in names} | dict(spellings or {})
    near = nearest(got, options)
    hint = f"; did you mean {options[near]!r}?" if near else ""
    listed = ", ".join(name or "''" for name in names) or "none"
    return ValueError(f"{argument}: got {got!r}, expected one of {listed}{hint}")


def check_choice(argument: str, got: str, known: Iterable[str]) -> str:
    """Return `got` if it is one of `known`; otherwise raise the error of `unknown_name`."""
    names = list(known)
    if got not in names:
        raise unknown_name(argument, got, names)
    return got
