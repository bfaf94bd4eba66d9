"""All data sets by name."""

from __future__ import annotations

from cf_utils.datasets import (
    bdd,
    celeba,
    celebahq,
    german_credit,
    glove,
    heloc,
    imagenet_pairs,
    imdb,
    mnist,
    uci_credit,
)

SETS = {
    "mnist": mnist,
    "imdb": imdb,
    "glove": glove,
    "heloc": heloc,
    "uci_credit": uci_credit,
    "german_credit": german_credit,
    "celeba": celeba,
    "celebahq": celebahq,
    "bdd": bdd,
    "imagenet_pairs": imagenet_pairs,
}
FETCHABLE = sorted(
    name for name, module in SETS.items() if hasattr(module, "fetch")
)  # licences let only these be fetched
