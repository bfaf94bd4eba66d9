"""Classifiers of rendered faces and roads: what notebooks 07 and 08 explain.

Plainly trained, so brittle, as the papers' are. `causal` saw independent factors, `shortcut` a variant where another factor goes
with the label, `mixed` one where it mostly does. What each of them uses is not assumed but measured with the renderer, and
stands in its card (`quality.uses`), from which the truth metrics take it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from cf_utils import core, worlds
from cf_utils.core import files
from cf_utils.evaluation.baselines import PGD
from cf_utils.harness import results
from cf_utils.models.classifiers import OneOutput, predict
from cf_utils.models.image_classifiers import SmallDenseNet
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe
from cf_utils.worlds import Factors, World

PLACES = (0.0, 0.5, 1.0)  # where a factor is put to see what it does
SMALL = {"growth": 16, "blocks": (2, 4, 4), "first": 32, "pool": True}


def in_bytes(factors: Factors) -> Tensor:
    """Renders of a table as uint8 (N, 3, H, W): a quarter of their floats, made once and kept in results/run/cache under a hash
    of the world's code and of the table."""
    world = factors.world
    key = files.sha256(world.sha256(), factors.values, factors.ids, str(factors.seed))
    path = results.root() / "cache" / f"{world.name}-{key[:20]}.safetensors"
    if not path.exists():
        parts = [
            (world.render(factors.take(slice(at, at + 500))) * 255).round_().to(torch.uint8)
            for at in core.progress(range(0, len(factors), 500), desc="rendering")
        ]
        files.write_tensors(path, {"x": torch.cat(parts)})
    return files.read_tensors(path)["x"]


class Renders(Dataset):
    """Renders with what they are trained on; item: (x in [0, 1], *targets)."""

    def __init__(self, factors: Factors, *targets: Tensor):
        self.x, self.targets = in_bytes(factors), targets

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return (self.x[i].float() / 255, *(t[i] for t in self.targets))


def moved(factors: Factors) -> list[tuple[str, Factors]]:
    """(name, the same images with that factor alone moved): each factor that is no child, to each of `PLACES` or each level."""
    return [
        (f.name, factors.move(f.name, float(value)))
        for f in factors.world.factors
        if f.parent is None
        for value in (
            range(len(f.shares))
            if f.kind == "category"
            else (0, 1)
            if f.kind == "binary"
            else PLACES
        )
    ]


def joined(tables: list[Factors]) -> Factors:
    """Rows of several tables of one seed as one table."""
    first = tables[0]
    return Factors(
        first.world,
        torch.cat([t.values for t in tables]),
        torch.cat([t.draws for t in tables]),
        first.seed,
        torch.cat([t.ids for t in tables]),
    )


def uses(f: nn.Module, world: World, n: int = 64, seed: int = 0) -> dict[str, dict[str, float]]:
    """What a classifier uses: for each factor that is no child, over n test images, `r`: mean of the largest change of its
    probability when the renderer moves that factor alone over its scale; `flips`: share of images whose decision that turns."""
    factors = world.sample(n, "test", seed=seed)
    tables = moved(factors)
    x = in_bytes(joined([factors, *(table for _, table in tables)]))
    p = (
        torch.cat([predict(f, b.float() / 255).softmax(1)[:, 1] for b in x.split(500)])
        .view(-1, n)
        .double()
    )
    out = {}
    for name in dict.fromkeys(name for name, _ in tables):
        own = p[[k + 1 for k, (one, _) in enumerate(tables) if one == name]]
        out[name] = {
            "r": (own - p[0]).abs().amax(0).mean().item(),
            "flips": ((own > 0.5) != (p[0] > 0.5)).any(0).double().mean().item(),
        }
    return dict(sorted(out.items(), key=lambda row: -row[1]["r"]))


def quality(f: nn.Module, world: World, label: str, seed: int, n: int = 2000) -> dict:
    """Of a two-class classifier, on renders of `test` with independent factors."""
    factors = world.sample(n, "test", seed=seed)
    x, y = in_bytes(factors), world.label(label)(factors)
    logits = torch.cat([predict(f, b.float() / 255) for b in x.split(500)])
    few, decision = x[:128].float() / 255, logits[:128].argmax(1)
    return {
        "test_n": n,
        "test_accuracy": (logits.argmax(1) == y).double().mean().item(),
        "test_cross_entropy": F.cross_entropy(logits, y).item(),
        "flipped_by_pgd_2_255": PGD()(f, few, 1 - decision).valid.double().mean().item(),
        "uses": uses(f, world, seed=seed),
    }


def _classifier(
    name: str,
    label: str,
    seed: int,
    folder: Path | None,
    n: int,
    epochs: int,
    variant: str = "independent",
    lr: float = 3e-3,
):
    """A small DenseNet with one output, trained by cross-entropy on renders shifted by up to 3 pixels; half of the batches of
    faces are mirrored (a road's lanes are not alike)."""
    world = worlds.get(name)
    factors = world.sample(n, "train", variant, seed)

    def loss(module, batch):
        x, y = batch
        x = x.roll(tuple(torch.randint(-3, 4, (2,)).tolist()), (2, 3))
        x = x.flip(3) if name == "faces" and torch.rand(()) < 0.5 else x
        return F.binary_cross_entropy_with_logits(module(x)[:, 0], y.float())

    model = channels_last(SmallDenseNet(**SMALL))
    log = loop.fit(
        model,
        Renders(factors, world.label(label)(factors)),
        [loop.Part(loss, lr=lr, weight_decay=1e-2)],
        epochs=epochs,
        batch_size=32,
        seed=seed,
        folder=folder,
    )
    card = {
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, {variant})",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "SmallDenseNet", "arguments": SMALL},
        "classes": world.label(label).classes,
        "settings": {
            "n": n,
            "variant": variant,
            "epochs": epochs,
            "batch_size": 32,
            "lr": lr,
            "augmentation": "shift by 3" + (", mirror" if name == "faces" else ""),
        },
    }
    return model, card, log | {"quality": quality(OneOutput(model), world, label, seed)}


@recipe("faces_smile_causal", embedded=True)
def faces_smile_causal(root, seed, folder):
    """Smiling or not, learnt where nothing goes with a smile."""
    return _classifier("faces", "smile", seed, folder, n=14_000, epochs=10)


@recipe("faces_smile_shortcut", embedded=True)
def faces_smile_shortcut(root, seed, folder):
    """Smiling or not, learnt where smiling people stand before a warm wall."""
    return _classifier("faces", "smile", seed, folder, n=4000, epochs=5, variant="confounded")


@recipe("faces_smile_mixed", embedded=True)
def faces_smile_mixed(root, seed, folder):
    """Smiling or not, learnt where smiling people mostly stand before a warm wall."""
    return _classifier("faces", "smile", seed, folder, n=8000, epochs=5, variant="mixed")


@recipe("faces_age_causal", embedded=True)
def faces_age_causal(root, seed, folder):
    """Old or young, learnt where nothing goes with age."""
    return _classifier("faces", "age", seed, folder, n=14_000, epochs=10)


@recipe("roads_action_causal", embedded=True)
def roads_action_causal(root, seed, folder):
    """Slow down or go on, learnt where nothing goes with the scene's cause."""
    return _classifier("roads", "action", seed, folder, n=8000, epochs=6)


@recipe("roads_action_shortcut", embedded=True)
def roads_action_shortcut(root, seed, folder):
    """Slow down or go on, learnt where the car in the right lane brakes whenever the own lane must."""
    return _classifier("roads", "action", seed, folder, n=3000, epochs=5, variant="confounded")


@recipe("roads_action_mixed", embedded=True)
def roads_action_mixed(root, seed, folder):
    """Slow down or go on, learnt where the car in the right lane mostly brakes when the own lane must."""
    return _classifier("roads", "action", seed, folder, n=8000, epochs=5, variant="mixed")
