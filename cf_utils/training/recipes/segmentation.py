"""The U-Net that segments heart and lungs in rendered radiographs, trained on the true masks.

The paper trains its U-Net on the masks of the SCR data set, whose terms forbid copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.evaluation.metrics.segmentation import cardiothoracic_ratio, dice
from cf_utils.evaluation.truth.heart_masks import compare_masks, render_pairs
from cf_utils.models.segmentation import UNet
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.augment import blur_and_add_noise
from cf_utils.training.recipes.attributes import ORACLE_SEED
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.renders import Renders
from cf_utils.worlds import Factors, World, radiographs

WIDTHS = (8, 16, 32, 64)


def stack_masks(factors: Factors, organs: tuple[str, ...]) -> Tensor:
    """Return the true masks of some organs, bool (N, organs, H, W)."""
    parts = [radiographs.render_masks(f) for f in split_rows(factors, 500)]
    return torch.cat([torch.cat([part[organ] for organ in organs], 1) for part in parts])


def split_rows(factors: Factors, n: int) -> list[Factors]:
    """Return a table as tables of at most n rows."""
    return [factors.take(slice(at, at + n)) for at in range(0, len(factors), n)]


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy per pixel plus 1 - soft Dice per mask, means; both (B, organs, H, W)."""
    truth = truth.to(logits.dtype)
    p = logits.sigmoid()
    overlap = 2 * (p * truth).sum((2, 3)) + 1
    soft_dice = overlap / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, truth) + (1 - soft_dice).mean()


def train_unet(seed: int, folder: Path | None, n: int, epochs: int) -> Trained:
    """Train a U-Net on n renders and their true masks; other draws than the classifiers see."""
    world, model = worlds.get("radiographs"), channels_last(UNet(widths=WIDTHS))
    seed_of_masks = seed + ORACLE_SEED
    factors = world.sample(n, "train", seed=seed_of_masks)
    settings = {
        "n": n,
        "epochs": epochs,
        "batch_size": 16,
        "lr": 4e-3,
        "loss": "cross-entropy + 1 - soft Dice",
        "augmentation": "blur, noise up to 0.05",
    }

    def loss(module: nn.Module, batch: Any) -> Tensor:
        x, truth = batch
        return mask_loss(module(blur_and_add_noise(x)), truth)

    log = loop.fit(
        model,
        Renders(factors, stack_masks(factors, model.organs)),
        [loop.Part(loss, lr=settings["lr"], weight_decay=1e-2)],
        epochs=epochs,
        batch_size=settings["batch_size"],
        seed=seed_of_masks,
        folder=folder,
        settings=settings,
    )
    card = {
        "data": {
            "name": "radiographs (embedded)",
            "split": f"train ({n:,} renders, independent, seed {seed_of_masks})",
            "world_sha256": world.sha256(),
        },
        "architecture": {
            "class": "UNet",
            "arguments": {"organs": model.organs, "size": model.size, "widths": WIDTHS},
        },
        "settings": settings,
    }
    return Trained(model, card, log, lambda model: measure(model, world, seed))


def measure(model: UNet, world: World, seed: int, n: int = 500, pairs: int = 64) -> dict[str, Any]:
    """Measure Dice and the cardiothoracic ratio on test renders, and on pairs of hearts.

    `pairs` holds what `compare_masks` returns, for renders of which only the heart's size moved.
    """
    out: dict[str, Any] = {"test_n": n, "pairs_n": pairs}
    for size in (world.size, tuple(2 * side for side in world.size)):
        factors = world.sample(n if size == world.size else n // 5, "test", seed=seed)
        found = model.segment(world.render(factors, size))
        truth = radiographs.render_masks(factors, size)
        own = {organ: dice(found[organ], truth[organ]) for organ in model.organs}
        ratio = cardiothoracic_ratio(found["heart"], found["lungs"])
        error = ratio - cardiothoracic_ratio(truth["heart"], truth["lungs"])
        out[f"{size[0]} px"] = {
            "dice": {organ: values.mean().item() for organ, values in own.items()},
            "dice_worst_twentieth": {k: v.quantile(0.05).item() for k, v in own.items()},
            "ratio_error": error.abs().mean().item(),
        }
    out["pairs"] = compare_masks(model.segment, render_pairs(pairs, seed))
    return out


@recipe("radiographs_heart_unet", embedded=True)
def radiographs_heart_unet(root: str, seed: int, folder: Path | None) -> Trained:
    """Segments heart and lungs in rendered radiographs, to measure the heart's size."""
    return train_unet(seed, folder, n=4000, epochs=4)
