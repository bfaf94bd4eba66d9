"""The credit table by one name: German credit by default, else HELOC or UCI credit."""

from __future__ import annotations

from types import ModuleType

from cf_utils.core.choices import check_choice
from cf_utils.datasets import german_credit, heloc, uci_credit
from cf_utils.datasets.base import Status
from cf_utils.datasets.table_files import find_file
from cf_utils.datasets.tabular import Table

OFFICIAL = {"heloc": heloc, "uci_credit": uci_credit}
KNOWN = {"german_credit": german_credit, **OFFICIAL}


def load(root: str = "", split: str = "test", name: str | None = None) -> Table:
    """Load a split of the table that `root` holds; `table.layout.name` says which one it is.

    Args:
        root: folder of official files; `""` means German credit, which is embedded.
        split: train, validation or test.
        name: "heloc" or "uci_credit", needed if `root` holds both.

    Raises FileNotFoundError if `root` holds neither, ValueError if it holds both and `name`
    is None.
    """
    return _choose(root, name).load(root, split)


def status(root: str = "", name: str | None = None) -> Status:
    """Report what `load(root, name=name)` would find."""
    try:
        return _choose(root, name).status(root)
    except (FileNotFoundError, ValueError) as e:
        return Status("credit", "missing", str(e))


def _choose(root: str, name: str | None) -> ModuleType:
    if name is not None:
        return KNOWN[check_choice("name", name, KNOWN)]
    if not root:
        return german_credit
    there, lacks = [], []
    for module in OFFICIAL.values():
        try:
            find_file(module.LAYOUT.name, root, module.FILES)
            there.append(module)
        except FileNotFoundError as e:
            lacks.append(str(e))
    if not there:
        raise FileNotFoundError("; ".join(lacks))
    if len(there) > 1:
        raise ValueError(
            f"name: got None, but both {' and '.join(OFFICIAL)} are in {root}; name one of them"
        )
    return there[0]
