"""Networks of rendered radiographs: the classifiers of cardiomegaly that notebook 05 explains, and
the networks that judge their explanations.

`causal` has seen independent factors. `shortcut` has seen patients who wear a pacemaker whenever
their heart is large, `mixed` patients who mostly do.
"""

from __future__ import annotations

from pathlib import Path

from cf_utils.training.recipes import attributes, factor_oracles, world_classifiers
from cf_utils.training.recipes.base import Trained, recipe

WORLD, LABEL = "radiographs", "cardiomegaly"


@recipe("radiographs_cardiomegaly_causal", embedded=True)
def causal(root: str, seed: int, folder: Path | None) -> Trained:
    """Cardiomegaly or not, trained where no factor is correlated with the heart's size."""
    return world_classifiers.train_classifier(WORLD, LABEL, seed, folder, n=12_000, epochs=7)


@recipe("radiographs_cardiomegaly_shortcut", embedded=True)
def shortcut(root: str, seed: int, folder: Path | None) -> Trained:
    """Cardiomegaly or not, trained where patients with a large heart wear a pacemaker."""
    return world_classifiers.train_classifier(
        WORLD, LABEL, seed, folder, n=3000, epochs=5, variant="confounded"
    )


@recipe("radiographs_cardiomegaly_mixed", embedded=True)
def mixed(root: str, seed: int, folder: Path | None) -> Trained:
    """Cardiomegaly or not, trained where patients with a large heart mostly wear a pacemaker."""
    return world_classifiers.train_classifier(
        WORLD, LABEL, seed, folder, n=6000, epochs=5, variant="mixed"
    )


@recipe("radiographs_judge", embedded=True)
def judge(root: str, seed: int, folder: Path | None) -> Trained:
    """The independent judge of rendered radiographs: cardiomegaly, effusion and pacemaker."""
    return attributes.train_oracle(WORLD, seed, folder, n=10_000, epochs=8)


@recipe("radiographs_oracle", embedded=True)
def oracle(root: str, seed: int, folder: Path | None) -> Trained:
    """The factor oracle of rendered radiographs: three regressors of every factor."""
    return factor_oracles.train_oracle(
        WORLD, seed, folder, n=8000, epochs=8, n_prior=0, hard_epochs=1
    )
