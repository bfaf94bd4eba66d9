"""All data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from cf_utils.core.choices import check_choice
from cf_utils.datasets import (
    bdd,
    celeba,
    celebahq,
    chexpert,
    german_credit,
    glove,
    heloc,
    imagenet_pairs,
    imdb,
    mnist,
    osic,
    uci_credit,
)
from cf_utils.datasets.base import Status

SETS: dict[str, ModuleType] = {
    "mnist": mnist,
    "imdb": imdb,
    "glove": glove,
    "heloc": heloc,
    "uci_credit": uci_credit,
    "german_credit": german_credit,
    "celeba": celeba,
    "celebahq": celebahq,
    "chexpert": chexpert,
    "osic": osic,
    "bdd": bdd,
    "imagenet_pairs": imagenet_pairs,
}
FETCHABLE = sorted(name for name, module in SETS.items() if hasattr(module, "fetch"))
MATCHED = sorted(name for name, module in SETS.items() if hasattr(module, "write_embedded_rows"))


def statuses(root: str = "", names: Sequence[str] | None = None) -> list[Status]:
    """Return the status of each data set.

    Args:
        root: folder with official data sets; '' means the embedded defaults.
        names: data sets to look at; None means all.
    """
    chosen = [check_choice("data set", name, SETS) for name in names or SETS]
    return [SETS[name].status(root) for name in chosen]


def describe(root: str = "", names: Sequence[str] | None = None) -> list[str]:
    """Return one line per data set: its name, its state, and what was found or how to get it.

    Arguments as in `statuses`.
    """
    found = statuses(root, names)
    return [f"{status.name:<15}{status.state:<10}{status.advice}" for status in found]


def fetch(name: str, root: str) -> None:
    """Download a data set to `root` and verify its checksums. Few licences allow that."""
    check_choice("--fetch", name, FETCHABLE)
    if not root:
        raise ValueError("--data: got none, expected a folder for the files; add --data DIR")
    SETS[name].fetch(root)


def write_embedded_rows(name: str, root: str) -> None:
    """Find the rows of the official data that the embedded default holds, and write their list."""
    check_choice("--embedded-rows", name, MATCHED)
    if not root:
        raise ValueError("--data: got none, expected the folder with the official files")
    SETS[name].write_embedded_rows(root)
