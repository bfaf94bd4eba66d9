"""Judges of digits: three classifiers that are never explained and decide what an image shows."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from cf_utils.models import classifiers
from cf_utils.training.augment import add_noise, attack, smudge, warp
from cf_utils.training.progress import report
from cf_utils.training.recipes.base import Trained, recipe
from cf_utils.training.recipes.digits import load_digits, measure_accuracy, train_classifier

SMUDGES = "ghosts of other digits, clouds, blur, wiped blocks, noise"


@recipe("mnist_judge_augmented")
def mnist_judge_augmented(root: str, seed: int, folder: Path | None) -> Trained:
    """Judge 1 of digits: another architecture, trained with strong augmentation.

    The augmentation consists of affine maps, ghosts of other digits, clouds, blur, wiped blocks and
    noise.
    """
    settings = {"epochs": 6, "batch_size": 128, "lr": 5e-3, "augmentation": f"affine, {SMUDGES}"}

    def change(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return add_noise(smudge(warp(x, 0.35, 0.2, 0.3, 0.15)), 0.3)

    return train_classifier(classifiers.JudgeCNN(), root, change, settings, seed + 1, folder)


@recipe("mnist_judge_adversarial")
def mnist_judge_adversarial(root: str, seed: int, folder: Path | None) -> Trained:
    """Judge 2 of digits: trained on PGD attacks on itself, so that weak noise does not flip it."""
    settings = {"epochs": 4, "batch_size": 128, "lr": 2e-3, "eps": 0.25, "steps": 4}
    arguments = {"a": 16, "b": 32, "hidden": 128}

    def change(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack(module, x, y, settings["eps"], settings["steps"])

    model = classifiers.MnistCNN(**arguments)
    trained = train_classifier(model, root, change, settings, seed + 2, folder)
    architecture = {"class": "MnistCNN", "arguments": arguments}
    return trained._replace(card=trained.card | {"architecture": architecture})


@recipe("mnist_judge_svm")
def mnist_judge_svm(root: str, seed: int, folder: Path | None) -> Trained:
    """Judge 3 of digits: a linear SVM on HOG features, trained on plain and on smudged digits."""
    from sklearn.svm import LinearSVC

    splits, data = load_digits(root)
    model, began = classifiers.HogSVM(), time.perf_counter()
    x, y, _ = splits["train"][:]
    x = torch.cat([x, *(add_noise(smudge(batch), 0.3) for batch in x.split(128))])
    report("mnist_judge_svm: fitting the SVM")
    svm = LinearSVC(C=1.0, tol=1e-3, random_state=seed)
    svm.fit(model.features(x).numpy(), torch.cat([y, y]).numpy())
    model.svm.weight.data = torch.from_numpy(svm.coef_).float()
    model.svm.bias.data = torch.from_numpy(svm.intercept_).float()
    settings = {"C": 1.0, "augmentation": f"each digit plain, and with {SMUDGES}"}
    card = {"data": data, "settings": settings}
    log = {"seconds": time.perf_counter() - began}
    return Trained(model, card, log, lambda model: measure_accuracy(model, splits))
