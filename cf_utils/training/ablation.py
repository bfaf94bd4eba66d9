"""The ablation of Singla et al., Table 6 and Fig. 12: one weight of Eq. 9 changed at a time.

Ten settings on rendered faces of 32 x 32 pixels, where a training is short. All start from the same
autoencoder, trained on reconstruction alone. The explained classifier, the judge and the identity
encoder see the images enlarged to 64 x 64 pixels, the size that they were trained on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils import core, worlds
from cf_utils.core import files
from cf_utils.evaluation.progressions import compatibility_table, consistency_table
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.harness.ablation_record import RECORD
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.balanced import BalancedImages, classifier_outputs
from cf_utils.training.exaggeration import Objective, Weights, joint_parts
from cf_utils.training.exaggeration_rounds import Round, fit_rounds
from cf_utils.training.progress import report
from cf_utils.training.recipes.exaggeration import sample_near
from cf_utils.training.recipes.renders import StoredImages, render_bytes
from cf_utils.training.running_statistics import update_statistics

STEPS = (0.0, 1.0, 10.0, 100.0)  # values of Table 6
PER_EPOCH, BATCH = 6400, 16
EMA = 0.99  # of the weights: the trainings are too short for an average over 1,000 steps
SMALL = {"widths": (16, 32, 64), "blocks": 4, "critic": 8, "critic_blocks": 4}  # of the GAN


class Enlarged(nn.Module):
    """A model of images (B, C, 2 H, 2 W) that takes (B, C, H, W)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.threshold = getattr(model, "threshold", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's output for x, enlarged by bicubic interpolation."""
        return self.model(F.interpolate(x, scale_factor=2.0, mode="bicubic").clamp(0, 1))


def list_settings() -> dict[str, Weights]:
    """Return the ten settings of Table 6 by name; the paper's own comes first."""
    found = {"paper": Weights()}
    for name in ("cgan", "f", "rec"):
        for value in STEPS:
            weights = Weights(**{**asdict(Weights()), name: value})
            if weights not in found.values():
                found[f"{name}={value:g}"] = weights
    return found


def halve(x: Tensor) -> Tensor:
    """Return images uint8 (N, C, H, W) as uint8 (N, C, H / 2, W / 2), by averaging."""
    parts = [F.avg_pool2d(part.float(), 2).round().byte() for part in x.split(1000)]
    return torch.cat(parts)


def run(
    names: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1),
    epochs: int = 3,
    n: int = 12_000,
    n_test: int = 256,
    folder: Path | None = None,
    out: Path = RECORD,
) -> dict[str, Any]:
    """Train and measure the settings, and return the record; what it holds already is kept.

    Args:
        names: keys of `list_settings`; none: all.
        seeds: one training per setting and seed.
        epochs: of 6,400 images, for the warm-up and for each setting.
        n: renders to draw training images from.
        n_test: queries.
        folder: of training states, from which a killed training resumes.
        out: file of the record, written after each training.

    Raises ValueError for an unknown name, or if the record has other settings.
    """
    settings = list_settings()
    if unknown := set(names) - settings.keys():
        raise ValueError(f"names: got {sorted(unknown)}, expected some of {tuple(settings)}")
    size = {"epochs": epochs, "n": n, "n_test": n_test, "size": 32, "batch_size": BATCH, "ema": EMA}
    size |= {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()}
    record = files.read_json(out) if out.exists() else {"settings": size, "rows": []}
    if record["settings"] != size:
        raise ValueError(f"out: {out} holds {record['settings']}, got {size}; pass another file")
    done = {(row["name"], row["seed"]) for row in record["rows"]}
    todo = [(k, s) for s in seeds for k in (names or settings) if (k, s) not in done]
    f = Enlarged(OneOutput(checkpoints.load("faces_smile_causal").model)).eval()
    for name, seed in core.progress(todo, desc="ablation"):
        report(f"ablation: {name}, seed {seed}")
        own = folder and folder / f"{name}-{seed}"
        gan = train_setting(f, settings[name], seed, epochs, n, folder, own)
        row = {"name": name, "seed": seed, "weights": asdict(settings[name])}
        record["rows"].append(row | measure(gan, f, n_test))
        files.write_json(out, record)
    return record


def train_setting(
    f: nn.Module,
    weights: Weights,
    seed: int,
    epochs: int,
    n: int,
    folder: Path | None,
    own: Path | None,
) -> ConditionalGAN:
    """Train one setting; the warm-up of a seed is shared through `folder`."""
    x = halve(render_bytes(sample_near(worlds.get("faces"), "smile", 0.5, n, "independent", seed)))
    data = BalancedImages(StoredImages(x), classifier_outputs(f, x), 10, PER_EPOCH)
    core.seed_everything(seed)
    gan = channels_last(ConditionalGAN(size=32, **SMALL))
    warm = folder and folder / f"warm-up-{seed}"
    common: dict[str, Any] = {"batch_size": BATCH, "ema": EMA}
    fit_rounds(gan, f, data, [Round(epochs, None)], seed=seed, folder=warm, **common)
    rounds = [Round(epochs, weights, lr=4e-4)]
    fit_rounds(gan, f, data, rounds, seed=seed + 7, folder=own, **common)
    return gan.eval()


def train_briefly(
    gan: ConditionalGAN, f: nn.Module, weights: Weights, steps: int = 16, seed: int = 0
) -> ConditionalGAN:
    """Return a copy of a GAN of rendered faces, trained on for a few steps with other weights.

    gan: for images (B, 3, 64, 64). f: the classifier that it explains. weights: of Eq. 9.
    """
    new, device = copy.deepcopy(gan), next(gan.parameters()).device
    x = render_bytes(worlds.get("faces").sample(steps * BATCH, "train", seed=seed))
    p = classifier_outputs(f, x.to(device)).cpu()
    data = TensorDataset(x.float() / 255, p)
    loop.fit(
        Objective(new, f, weights), data, joint_parts(1e-3), epochs=1, batch_size=BATCH, seed=seed
    )
    update_statistics(new, data, seed, n=len(x))
    return new


def measure(gan: ConditionalGAN, f: nn.Module, n: int) -> dict[str, Any]:
    """Measure the columns of Table 6 and the response curve of Fig. 12 on n test faces."""
    world = worlds.get("faces")
    x = halve(render_bytes(world.sample(n, "test"))).float() / 255
    found = Exaggeration(gan=gan).progress(f, x)
    judge = Enlarged(OneOutput(checkpoints.load("faces_attributes").model)).eval()
    face = Enlarged(checkpoints.load("faces_identity").model).eval()
    pair = (found.query, found.images)
    compatible = compatibility_table(pair, f, {"judge": judge})
    consistent = consistency_table(pair, f, x, own=gan, face=face, official=False)
    values = {**compatible["value"].to_dict(), **consistent["value"].to_dict()}
    return {
        "n": n,
        **{k: float(v) if math.isfinite(v) else None for k, v in values.items()},
        "expected": found.expected.mean(0).tolist(),
        "actual": found.actual.mean(0).tolist(),
    }
