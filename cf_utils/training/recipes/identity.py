"""The identity encoder of rendered faces: images of one person are close, others are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils import worlds
from cf_utils.models.oracles import IdentityEncoder
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.augment import blur_and_add_noise
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import predict_bytes, render_bytes
from cf_utils.worlds import Factors, World


def sample_people(world: World, n: int, views: int, split: str, seed: int) -> Factors:
    """Sample n persons with `views` images each, one person after the other.

    All images of a person have the identity factors of the first; other factors are independent.
    """
    factors = world.sample(n * views, split, seed=seed)
    first = torch.arange(n).repeat_interleave(views) * views
    values = factors.values.clone()
    for name in world.role("identity"):
        values[:, world.column(name)] = factors[name][first]
    return dataclasses.replace(factors, values=values)


def contrastive_loss(z: Tensor, views: int, temperature: float = 0.1) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al., 2020, L_out), a scalar.

    z: embeddings (n * views, d) of unit length, the views of a person in sequence.
    """
    person = torch.arange(len(z), device=z.device) // views
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    return -logits.log_softmax(1)[(person[:, None] == person) & ~itself].mean()


def equal_error_rate(same: Tensor, other: Tensor) -> tuple[float, float]:
    """Return (threshold, error rate) at which both verification errors are equally frequent.

    same, other: similarities of pairs of one person and of two persons. Errors are pairs of one
        person below the threshold, and pairs of two persons at or above it.
    """
    at = torch.cat([same, other]).sort().values
    low = torch.searchsorted(same.sort().values, at).double() / len(same)
    high = 1 - torch.searchsorted(other.sort().values, at).double() / len(other)
    k = int((low - high).abs().argmin())
    return at[k].item(), (low[k] + high[k]).item() / 2


def measure_verification(
    model: nn.Module, world: World, seed: int, n: int = 300, views: int = 4
) -> dict[str, Any]:
    """Measure how well pairs of test renders are classified as one person or two."""
    z = predict_bytes(model, render_bytes(sample_people(world, n, views, "test", seed)))
    person, similar = torch.arange(len(z)) // views, z @ z.T
    pairs = torch.ones_like(similar, dtype=torch.bool).triu(1)
    is_same = person[:, None] == person
    same, other = similar[pairs & is_same], similar[pairs & ~is_same]
    threshold, error = equal_error_rate(same, other)
    return {
        "test_persons": n,
        "test_views": views,
        "threshold": threshold,
        "equal_error_rate": error,
        "similarity_same": same.mean().item(),
        "similarity_random": other.mean().item(),
    }


class IdentityLearner(nn.Module):
    """An identity encoder with a head that predicts the identity factors, for training only."""

    def __init__(self, encoder: IdentityEncoder, width: int, traits: int):
        super().__init__()
        self.encoder, self.reader = encoder, nn.Linear(width, traits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding (B, width) of unit length and the identity factors (B, traits)."""
        embedding = self.encoder.embed(x)
        return F.normalize(embedding, dim=1), self.reader(embedding)


@recipe("faces_identity", embedded=True)
def faces_identity(root: str, seed: int, folder: Path | None) -> Trained:
    """The identity encoder of rendered faces.

    Images of one person match under any expression, age, hair, pose and light. It is trained by a
    supervised contrastive loss and by predicting the identity factors.
    """
    world, seed_of_oracle = worlds.get("faces"), seed + ORACLE_SEED
    settings = {
        "persons": 2500,
        "views": 4,
        "epochs": 14,
        "persons_a_batch": 32,
        "lr": 3e-3,
        "temperature": 0.1,
        "augmentation": "blur, noise up to 0.05",
    }
    n, views = settings["persons"], settings["views"]
    factors = sample_people(world, n, views, "train", seed_of_oracle)
    x = render_bytes(factors).unflatten(0, (n, views))
    traits = torch.stack([factors[name] for name in world.role("identity")], 1)
    traits = traits.unflatten(0, (n, views))[:, 0]
    spread, mean = traits.std(0), traits.mean(0)
    encoder = channels_last(IdentityEncoder(size=world.size))

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, t = batch
        z, predicted = module(blur_and_add_noise(x.flatten(0, 1).float() / 255))
        expected = ((t - mean) / spread).repeat_interleave(views, 0)
        return contrastive_loss(z, views) + (predicted - expected).square().mean()

    log = loop.fit(
        IdentityLearner(encoder, 64, traits.shape[1]),
        TensorDataset(x, traits),
        [loop.Part(loss, lr=settings["lr"], weight_decay=1e-2)],
        epochs=settings["epochs"],
        batch_size=settings["persons_a_batch"],
        seed=seed_of_oracle,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": {
            "name": "faces (embedded)",
            "split": f"train ({n:,} persons, {views} renders each, seed {seed_of_oracle})",
            "world_sha256": world.sha256(),
        },
        "architecture": {"class": "IdentityEncoder", "arguments": {"size": world.size}},
        "settings": settings,
    }
    return Trained(encoder, card, log, lambda model: measure_verification(model, world, seed))
