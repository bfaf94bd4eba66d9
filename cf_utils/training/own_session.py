"""`cf train prior` and `cf train autoencoder`: models of a folder of one's own images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cf_utils.harness import folders
from cf_utils.training import own_autoencoder, own_prior

TRAIN = {"prior": own_prior.train, "autoencoder": own_autoencoder.train}


def run(
    names: Sequence[str],
    images: str,
    size: int,
    channels: int | None,
    steps: int,
    seed: int,
    resume: str,
    out: str,
) -> None:
    """Train a model, write it to `out` (default: results/run/own), and print its card's sentences.

    Raises ValueError that names the option.
    """
    if len(names) != 1 or names[0] not in TRAIN or not images:
        raise ValueError(
            f"--images: expected with exactly one of {' and '.join(TRAIN)}, and they with it"
        )
    folder = Path(out) if out else folders.root() / "own"
    states = Path(resume) if resume else None
    card = TRAIN[names[0]](images, size, channels, steps, seed, states, folder)
    for ability in ("can", "cannot"):
        for sentence in card.quality[ability]:
            print(f"{ability:7}{sentence}")
    print(folder / f"{names[0]}.safetensors")
