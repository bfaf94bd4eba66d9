"""Readers of yes-or-no labels, and of who it is: the attribute oracles and the identity encoder (`cf_utils.models.oracles`), from other
draws than any classifier's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils import worlds
from cf_utils.models import classifiers, oracles
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe
from cf_utils.training.recipes.readers import OTHER, roughened
from cf_utils.training.recipes.renders import Renders, in_bytes
from cf_utils.worlds import Factors, World


def _attributes(name: str, seed: int, folder: Path | None, n: int, epochs: int):
    """A reader of all labels of a world, from another seed's draws than any classifier's."""
    world = worlds.get(name)
    factors, names = (
        world.sample(n, "train", seed=seed + OTHER),
        [label.name for label in world.labels],
    )

    def labels(table):
        return torch.stack([label(table) for label in world.labels], 1)

    def loss(module, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(module(roughened(x)), y.float())

    model = channels_last(oracles.AttributeOracle(names, world.size))
    log = loop.fit(
        model,
        Renders(factors, labels(factors)),
        [loop.Part(loss, lr=3e-3, weight_decay=2e-2)],
        epochs=epochs,
        batch_size=64,
        seed=seed + OTHER,
        folder=folder,
    )
    test = world.sample(2000, "test", seed=seed)
    right = (
        torch.cat([classifiers.predict(model, b.float() / 255) for b in in_bytes(test).split(500)])
        > 0
    ) == labels(test)
    card = {
        "data": {
            "name": f"{name} (embedded)",
            "split": f"train ({n:,} renders, independent, seed {seed + OTHER})",
            "world_sha256": world.sha256(),
        },
        "architecture": {
            "class": "AttributeOracle",
            "arguments": {"names": names, "size": world.size},
        },
        "settings": {
            "n": n,
            "epochs": epochs,
            "batch_size": 64,
            "lr": 3e-3,
            "augmentation": "blur, noise up to 0.05",
        },
    }
    return (
        model,
        card,
        log
        | {
            "quality": {
                "test_n": 2000,
                "test_accuracy": dict(zip(names, right.double().mean(0).tolist(), strict=True)),
            }
        },
    )


@recipe("faces_attributes", embedded=True)
def faces_attributes(root, seed, folder):
    """The attribute oracle of rendered faces (for MNAC and CD): the world's eight labels."""
    return _attributes("faces", seed, folder, n=10_000, epochs=9)


@recipe("roads_attributes", embedded=True)
def roads_attributes(root, seed, folder):
    """The independent judge of rendered roads (for COUT): action, and the world's other labels."""
    return _attributes("roads", seed, folder, n=12_000, epochs=9)


def people(world: World, n: int, views: int, split: str, seed: int) -> Factors:
    """n persons with `views` images each, one after the other: the identity factors of a person's first image, all else drawn."""
    factors = world.sample(n * views, split, seed=seed)
    first = torch.arange(n).repeat_interleave(views) * views
    values = factors.values.clone()
    for name in world.role("identity"):
        values[:, world.column(name)] = factors[name][first]
    return dataclasses.replace(factors, values=values)


def contrast(z: Tensor, views: int, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al., 2020, L_out): z (n views, d) of length 1, a person's views in sequence."""
    who, self = (
        torch.arange(len(z), device=z.device) // views,
        torch.eye(len(z), dtype=torch.bool, device=z.device),
    )
    logits = (z @ z.T / temperature).masked_fill(self, -torch.inf)
    return -logits.log_softmax(1)[(who[:, None] == who) & ~self].mean()


def equal_error(same: Tensor, other: Tensor) -> tuple[float, float]:
    """(threshold, error rate) where as many pairs of one person fall under the threshold as of two persons reach it."""
    at = torch.cat([same, other]).sort().values
    low = torch.searchsorted(same.sort().values, at).double() / len(same)
    high = 1 - torch.searchsorted(other.sort().values, at).double() / len(other)
    k = int((low - high).abs().argmin())
    return at[k].item(), (low[k] + high[k]).item() / 2


def verification(model: nn.Module, world: World, seed: int, n: int = 300, views: int = 4) -> dict:
    """How well pairs of test renders are told to show one person or two."""
    x = in_bytes(people(world, n, views, "test", seed))
    z = torch.cat([classifiers.predict(model, b.float() / 255) for b in x.split(500)])
    who, similar = torch.arange(len(z)) // views, z @ z.T
    pairs = torch.ones_like(similar, dtype=torch.bool).triu(1)
    same, other = (similar[pairs & (who[:, None] == who)], similar[pairs & (who[:, None] != who)])
    threshold, error = equal_error(same, other)
    return {
        "test_persons": n,
        "test_views": views,
        "threshold": threshold,
        "equal_error_rate": error,
        "similarity_same": same.mean().item(),
        "similarity_random": other.mean().item(),
    }


class Learner(nn.Module):
    """An identity encoder and a head that reads the identity factors from the same numbers."""

    def __init__(self, encoder: oracles.IdentityEncoder, width: int, traits: int):
        super().__init__()
        self.encoder, self.reader = encoder, nn.Linear(width, traits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.encoder.embed(x)
        return F.normalize(raw, dim=1), self.reader(raw)


@recipe("faces_identity", embedded=True)
def faces_identity(root, seed, folder):
    """The identity encoder of rendered faces: images of one person match under any expression, age, hair, pose and light. Learnt
    by a supervised contrastive loss, and by reading the identity factors beside it (that head is not kept)."""
    world, n, views, epochs = worlds.get("faces"), 2500, 4, 14
    factors = people(world, n, views, "train", seed + OTHER)
    x = in_bytes(factors).unflatten(0, (n, views))
    traits = torch.stack([factors[name] for name in world.role("identity")], 1).unflatten(
        0, (n, views)
    )[:, 0]
    spread, mean = traits.std(0), traits.mean(0)
    encoder = channels_last(oracles.IdentityEncoder(size=world.size))

    def loss(module, batch):
        x, t = batch
        z, read = module(roughened(x.flatten(0, 1).float() / 255))
        return (
            contrast(z, views)
            + (read - ((t - mean) / spread).repeat_interleave(views, 0)).square().mean()
        )

    log = loop.fit(
        Learner(encoder, 64, traits.shape[1]),
        TensorDataset(x, traits),
        [loop.Part(loss, lr=3e-3, weight_decay=1e-2)],
        epochs=epochs,
        batch_size=32,
        seed=seed + OTHER,
        folder=folder,
    )
    card = {
        "data": {
            "name": "faces (embedded)",
            "split": f"train ({n:,} persons, {views} renders each, seed {seed + OTHER})",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "IdentityEncoder", "arguments": {"size": world.size}},
        "settings": {
            "persons": n,
            "views": views,
            "epochs": epochs,
            "persons_a_batch": 32,
            "lr": 3e-3,
            "temperature": 0.1,
            "augmentation": "blur, noise up to 0.05",
        },
    }
    return encoder, card, log | {"quality": verification(encoder, world, seed)}
