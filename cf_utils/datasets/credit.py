"""The credit table of notebook 03 by one name: German credit where no data root is given, else HELOC or UCI found there."""

from __future__ import annotations

from types import ModuleType

from cf_utils.datasets import german_credit, heloc, uci_credit
from cf_utils.datasets.base import Status
from cf_utils.datasets.tabular import Table

OFFICIAL = {"heloc": heloc, "uci_credit": uci_credit}


def load(root: str = "", split: str = "test", name: str | None = None) -> Table:
    """A split of the table that `root` holds; `table.layout.name` says which. `name`: "heloc" or "uci_credit" where both lie
    there. Raises FileNotFoundError where neither does, ValueError where both do and no name chooses."""
    return _choose(root, name).load(root, split)


def status(root: str = "", name: str | None = None) -> Status:
    try:
        return _choose(root, name).status(root)
    except (FileNotFoundError, ValueError) as e:
        return Status("credit", "missing", str(e))


def _choose(root: str, name: str | None) -> ModuleType:
    known = {"german_credit": german_credit, **OFFICIAL}
    if name is not None:
        if name not in known:
            raise ValueError(f"name: got {name!r}, expected one of {sorted(known)} or None")
        return known[name]
    if not root:
        return german_credit
    there = [m for m in OFFICIAL.values() if m.status(root).state == "present"]
    if not there:
        raise FileNotFoundError(f"{heloc.status(root).advice}; {uci_credit.status(root).advice}")
    if len(there) > 1:
        raise ValueError(
            f"name: both {' and '.join(OFFICIAL)} are in {root}; name the one that is meant"
        )
    return there[0]
