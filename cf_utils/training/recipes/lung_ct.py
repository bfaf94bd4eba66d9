"""Networks of rendered lung CT that notebook 09 explains: black boxes, and their linear agents.

Source of the procedure: Fang et al., DiffExplainer (MICCAI workshop 2024), sections 2.2 and 3.2.
All training patients are those of site A; site B is for evaluation only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils import worlds
from cf_utils.evaluation.metrics.alignment import auc, confusion, measure_alignment
from cf_utils.models import checkpoints
from cf_utils.models.agent import Agent
from cf_utils.models.classifiers import predict
from cf_utils.models.teacher import Teacher
from cf_utils.models.weights import channels_last
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.distillation import FOLDS, fit_agent, fit_teacher, read_patients
from cf_utils.training.recipes.renders import predict_bytes, render_bytes
from cf_utils.training.recipes.world_classifiers import measure_uses
from cf_utils.worlds import Factors
from cf_utils.worlds.lung_ct import mortality_probability

WORLD, AUTOENCODER = "lung_ct", "lung_ct_diffae"
SITES = ("site_a", "site_b")


# ---------------------------------------------------------------- black boxes


def train_teacher(
    label: str, seed: int, folder: Path | None, n: int, epochs: int, lr: float = 3e-3
) -> Trained:
    """Train five small DenseNets on folds of n patients of site A, and keep the best one."""
    world = worlds.get(WORLD)
    factors = world.sample(n, "train", SITES[0], seed)
    x, y = render_bytes(factors), world.label(label)(factors)
    settings = {
        "n": n,
        "folds": FOLDS,
        "epochs": epochs,
        "batch_size": 16,
        "lr": lr,
        "precision": "bfloat16 in convolutions",
        "imbalance": "class weights N / (2 N_c)",
        "augmentation": "shift by 3",
    }
    arguments = {"slices": world.channels}

    def build() -> Teacher:
        return channels_last(Teacher(**arguments))

    model, log = fit_teacher(build, x, y, settings, seed, folder, shift=3, bfloat16=True)
    card = _describe(n, seed, settings, "Teacher", arguments)
    card["classes"] = world.label(label).classes
    return Trained(model, card, log, lambda model: measure_teacher(model, label, seed))


def measure_teacher(
    model: nn.Module, label: str, seed: int, n: int = 500, n_uses: int = 16
) -> dict[str, Any]:
    """Measure a teacher on n test patients of each site, and which factors it uses.

    `auc_bayes` is the AUC of the probability from which the label was drawn, the best that any
    classifier can expect; `prevalence` is the share of class 1.
    """
    world, found = worlds.get(WORLD), {}
    for site in SITES:
        factors = world.sample(n, "test", site, seed)
        y, logits = world.label(label)(factors), predict_bytes(model, render_bytes(factors))
        best = auc(label_probability(label, factors), y)
        own = auc(logits[:, 1] - logits[:, 0], y)
        found[site] = {
            "test_n": n,
            "prevalence": y.double().mean().item(),
            "auc": own,
            "auc_bayes": best,
            "auc_share": own / best,
            "undecided": ((logits.softmax(1)[:, 1] - 0.5).abs() <= 0.1).double().mean().item(),
            **confusion(logits.argmax(1), y),
        }
    return found | {"uses": measure_uses(model, world, n_uses, seed)}


def label_probability(label: str, factors: Factors) -> Tensor:
    """Return the probability of class 1 given the factors, (N,); 0 or 1 for labels by rule."""
    if label == "mortality":
        return mortality_probability(factors)
    return factors.world.label(label)(factors).double()


@recipe("lung_ct_mortality", embedded=True)
def mortality(root: str, seed: int, folder: Path | None) -> Trained:
    """Death within a year or survival, from four CT slices: the black box of notebook 09."""
    return train_teacher("mortality", seed, folder, n=3000, epochs=5)


@recipe("lung_ct_emphysema", embedded=True)
def emphysema(root: str, seed: int, folder: Path | None) -> Trained:
    """Emphysema or not, from four CT slices: the second black box of notebook 09."""
    return train_teacher("emphysema", seed, folder, n=3000, epochs=5)


# ---------------------------------------------------------------- agents


def train_agent(
    name: str,
    objective: str,
    seed: int,
    folder: Path | None,
    n: int = 9000,
    epochs: int = 40,
    join: str = "concat",
) -> Trained:
    """Train agents of the shipped teacher `name` on folds of n patients, and keep the best one."""
    teacher = checkpoints.load(name, kind="classifier").model
    autoencoder = checkpoints.load(AUTOENCODER, kind="autoencoder").model
    world = worlds.get(WORLD)
    x = render_bytes(world.sample(n, "train", SITES[0], seed))
    table = codes, features, _ = read_patients(autoencoder, teacher, x)
    settings = {"teacher": name, "autoencoder": AUTOENCODER, "objective": objective, "n": n}
    settings |= {"folds": FOLDS, "epochs": epochs, "batch_size": 256, "lr": 1e-2}
    arguments = {
        "latent": codes.shape[1] // world.channels,
        "features": features.shape[1],
        "slices": world.channels,
        "join": join,
    }
    model, log = fit_agent(teacher, table, arguments, settings, seed, folder)
    card = _describe(n, seed, settings, "Agent", arguments)
    return Trained(model, card, log, lambda model: measure_agent(model, autoencoder, teacher, seed))


@torch.no_grad()
def measure_agent(
    agent: Agent, autoencoder: nn.Module, teacher: Teacher, seed: int, n: int = 500
) -> dict[str, Any]:
    """Measure the agreement of agent and teacher on n test patients of each site."""
    found = {}
    for site in SITES:
        factors = worlds.get(WORLD).sample(n, "test", site, seed)
        codes, _, logits = read_patients(autoencoder, teacher, render_bytes(factors))
        found[site] = measure_alignment(predict(agent, codes), logits)
    return found


def _describe(
    n: int, seed: int, settings: dict[str, Any], name: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the entries of a model card for a class `name` that is built with `arguments`."""
    return {
        "data": {
            "name": f"{WORLD} (embedded)",
            "split": f"train ({n:,} patients, {SITES[0]}, seed {seed})",
            "world_sha256": worlds.get(WORLD).sha256(),
        },
        "architecture": {"class": name, "arguments": arguments},
        "settings": settings,
    }


@recipe("lung_ct_agent", embedded=True)
def agent(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of the mortality classifier, by the l1 distance of features."""
    return train_agent("lung_ct_mortality", "l1", seed, folder)


@recipe("lung_ct_agent_mse", embedded=True)
def agent_mse(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of the mortality classifier, by the squared distance of features."""
    return train_agent("lung_ct_mortality", "mse", seed, folder)


@recipe("lung_ct_agent_kl", embedded=True)
def agent_kl(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of the mortality classifier, by the divergence of its outputs."""
    return train_agent("lung_ct_mortality", "kl", seed, folder)


@recipe("lung_ct_emphysema_agent", embedded=True)
def emphysema_agent(root: str, seed: int, folder: Path | None) -> Trained:
    """The agent of the emphysema classifier, by the l1 distance of features."""
    return train_agent("lung_ct_emphysema", "l1", seed, folder)
