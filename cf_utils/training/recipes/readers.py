"""Factor oracles (`cf_utils.models.oracles`): readers of renders that are never explained.

They see other draws than any classifier (another seed of the world), and learn from renders that are plain, blurred, noisy, or
went through the diffusion prior with nothing edited, so that the prior's own handwriting is no displacement. Where the prior has
no checkpoint yet, its part is left out and the card says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from cf_utils import core, worlds
from cf_utils.core import files
from cf_utils.evaluation.baselines import PGD
from cf_utils.evaluation.truth import displacement
from cf_utils.harness import results
from cf_utils.models import checkpoints, classifiers, oracle_columns, oracles
from cf_utils.models.classifiers import OneOutput
from cf_utils.models.weights import channels_last
from cf_utils.training import loop
from cf_utils.training.recipes.base import recipe
from cf_utils.training.recipes.renders import Renders, in_bytes, joined, moved
from cf_utils.worlds import Factors, World

OTHER = 1000  # added to the seed of the world: no draw that a classifier saw
CAUSE_WEIGHT = 10.0  # of a cause's error: it is hard to read, and what every truth metric asks for
SIGMAS = (0.14, 0.27, 0.5)  # how far a zero edit goes up the noise
EPS = 4 / 255  # how far the second stage moves a pixel at most: twice what the anchor PGD may


def roughened(x: Tensor) -> Tensor:
    """By chance blurred a little (half of the images) and noisy (standard deviation up to 0.05), clamped to [0, 1]."""

    def draw():
        return torch.rand(len(x), 1, 1, 1, device=x.device)

    soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, soft, (2 * draw() - 1).clamp(min=0))
    return (x + 0.05 * draw().square() * torch.randn_like(x)).clamp(0, 1)


def worst(error: Callable[[Tensor], Tensor], x: Tensor, eps: float) -> Tensor:
    """x (B, 3, H, W) after one signed step that raises `error(x)`, a scalar, from a random place in a box around it; each image
    has a box of its own size, up to eps (Wong et al., 2020: as good as many steps, for the price of one)."""
    size = eps * torch.rand(len(x), 1, 1, 1, device=x.device)
    y = (x + size * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_(True)
    y = y.detach() + size * torch.autograd.grad(error(y), y)[0].sign()
    return torch.maximum(torch.minimum(y, x + size), x - size).clamp(0, 1)


def prior_of(world: World) -> str | None:
    """The checkpoint of the world's diffusion prior, if there is one."""
    name = f"{world.name}_ddpm"
    return name if (checkpoints.FOLDER / f"{name}.safetensors").exists() else None


def unedited(factors: Factors, seed: int) -> Tensor:
    """Renders of a table after an edit of nothing, uint8 (N, 3, H, W): noised by one of `SIGMAS` in turn, then denoised."""
    from cf_utils.models.generators import diffusion  # here: diffusers takes seconds to import

    name = prior_of(factors.world)
    key = files.sha256(
        factors.world.sha256(),
        factors.values,
        factors.ids,
        str((factors.seed, seed)),
        checkpoints.FOLDER / f"{name}.safetensors",
    )
    path = results.root() / "cache" / f"{name}-{key[:20]}.safetensors"
    if not path.exists():
        chain, x = checkpoints.load(name).model.chain("50"), in_bytes(factors)
        out = torch.empty_like(x)
        for k, sigma in enumerate(SIGMAS):
            for at in core.progress(
                torch.arange(k, len(x), len(SIGMAS)).split(50), desc=f"prior at {sigma}"
            ):
                b = x[at].float() / 255
                with torch.no_grad():
                    z = chain.filter(
                        b,
                        chain.schedule.steps_for(sigma),
                        diffusion.noise_of(seed, factors.ids[at], b, "zero edit"),
                    )
                out[at] = (z.clamp(0, 1) * 255).round().to(torch.uint8)
        files.write_tensors(path, {"x": out})
    return files.read_tensors(path)["x"]


class Bytes(Renders):
    """Images that are there already, as `Renders` gives them."""

    def __init__(self, x: Tensor, *targets: Tensor):
        self.x, self.targets = x, targets


# ---------------------------------------------------------------- factor oracles


def causes(world: World, names: list[str]) -> list[int]:
    """Columns that read a factor with the role of a cause."""
    return [k for k, column in enumerate(names) if oracle_columns.factor_of(column) in world.role("cause")]


def _oracle(
    name: str, seed: int, folder: Path | None, n: int, epochs: int, n_prior: int, hard_epochs: int
):
    """Members are trained one after the other, each with its own first weights, order and augmentation; where `hard_epochs`, once
    more on twice as many renders, each moved to where the member reads it worst: what follows noise cannot say what moved."""
    world = worlds.get(name)
    names, prior = oracle_columns.list_columns(world), prior_of(world)
    weight = torch.ones(len(names))
    weight[causes(world, names)] = CAUSE_WEIGHT
    settings = {
        "n": n,
        "n_prior": n_prior if prior else 0,
        "epochs": epochs,
        "batch_size": 64,
        "lr": 3e-3,
        "members": 3,
        "cause_weight": CAUSE_WEIGHT,
        "augmentation": "blur, noise up to 0.05",
        "prior": prior,
        "sigmas": SIGMAS if prior else None,
    }
    if hard_epochs:
        settings["second_stage"] = {
            "n": 2 * n,
            "epochs": hard_epochs,
            "lr": 1.5e-3,
            "worst_of_a_box_up_to": EPS,
        }

    def part_of(start: int):
        factors = world.sample(n, "train", seed=seed + OTHER, start=start)
        return factors, *oracle_columns.true_readings(factors, names)

    factors, value, shown = part_of(0)
    spread = (value * shown).std(0).clamp(min=1e-3)

    def error(module, x, t, there):
        return (((module(x) - t) / spread).square() * there * weight).sum() / (there * weight).sum()

    def plain(module, batch):
        x, t, there = batch
        return error(module, roughened(x), t, there)

    def hard(module, batch):
        x, t, there = batch
        return error(
            module, worst(lambda y: error(module, y, t, there), roughened(x), EPS), t, there
        )

    first: list[Dataset] = [Renders(factors, value, shown)]
    if prior:
        first += [
            Bytes(unedited(factors.take(slice(0, n_prior)), seed), value[:n_prior], shown[:n_prior])
        ] * 2
    stages = [(ConcatDataset(first), plain, 3e-3, epochs)]
    if hard_epochs:
        stages.append((ConcatDataset([*first, Renders(*part_of(n))]), hard, 1.5e-3, hard_epochs))
    model = channels_last(oracles.FactorOracle(names, world.size))
    logs = []
    for k, member in enumerate(model.members):
        core.seed_everything(seed + OTHER + k)
        member.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        for stage, (data, loss, lr, rounds) in enumerate(stages):
            own = folder and folder / (f"{k}-hard" if stage else str(k))
            logs.append(
                loop.fit(
                    member,
                    data,
                    [loop.Part(loss, lr=lr, weight_decay=1e-2)],
                    epochs=rounds,
                    batch_size=64,
                    seed=seed + OTHER + k + 50 * stage,
                    folder=own,
                )
            )
    log = {
        "seconds": sum(one["seconds"] for one in logs),
        "steps": sum(one["steps"] for one in logs),
        "epochs": epochs + hard_epochs,
        "losses": [one["losses"] for one in logs],
    }
    split = f"train ({n * len(stages):,} renders, independent, seed {seed + OTHER})"
    card = {
        "data": {"name": f"{name} (embedded)", "split": split, "world_sha256": world.sha256()},
        "architecture": {
            "class": "FactorOracle",
            "arguments": {"names": names, "size": world.size},
        },
        "settings": settings,
    }
    return model, card, log | {"quality": calibrate(model, world, seed)}


@torch.no_grad()
def unshrink(model: oracles.FactorOracle, factors: Factors) -> None:
    """Sets `slope`, by how much a reading moves with the truth on fresh renders, and `centre`. A column that is hardly read keeps
    a slope of 0.5: dividing by next to nothing would make its noise the largest displacement of all."""
    value, shown = oracle_columns.true_readings(factors, model.names)
    read = torch.cat([model.read(b.float() / 255)[0] for b in in_bytes(factors).split(500)])
    there = shown.sum(0).clamp(min=2)
    centre, middle = ((t * shown).sum(0) / there for t in (value, read))
    a, b = (value - centre) * shown, (read - middle) * shown
    model.slope.copy_(((a * b).sum(0) / a.square().sum(0).clamp(min=1e-9)).clamp(0.5, 1))
    model.centre.copy_(middle)


@torch.no_grad()
def calibrate(
    model: oracles.FactorOracle, world: World, seed: int, n: int = 1500, n_null: int = 300
) -> dict:
    """Sets the oracle's `slope`, `centre`, `sd` and `null`, and measures what its card says (see `FactorOracle`); of `unread`,
    `leakage` and the images by PGD that flip the shipped classifiers beside it."""
    model.eval()
    unshrink(model, world.sample(n, "validation", seed=seed + OTHER))
    factors = world.sample(n, "test", seed=seed + OTHER)
    value, shown = oracle_columns.true_readings(factors, model.names)
    x = in_bytes(factors)
    read = torch.cat([model.read(b.float() / 255)[0] for b in x.split(500)])
    error, there = (read - value).square() * shown, shown.sum(0).clamp(min=2)
    mean = (value * shown).sum(0) / there
    model.sd.copy_((error.sum(0) / there).sqrt())
    r2 = 1 - error.sum(0) / ((value - mean).square() * shown).sum(0)
    few, prior = factors.take(slice(0, n_null)), prior_of(world)
    a = x[:n_null].float() / 255
    if prior:
        b = unedited(few, seed).float() / 255
    else:
        noise = core.item_noise(seed, few.ids, x.shape[1:], "another camera")
        b = (
            world.render(few, noise=False) + world.noise_sd(few)[:, None, None, None] * noise
        ).clamp(0, 1)
    model.null.copy_(displacement.null_sd(model, a, b))
    table = {
        name: {
            "sd": model.sd[k].item(),
            "r2": r2[k].item(),
            "null": model.null[k].item(),
            "slope": model.slope[k].item(),
        }
        for k, name in enumerate(model.names)
    }
    disagreement = model.read(b)[1]
    by = {
        "null_by": prior or "camera noise",
        "null_by_sha256": prior and files.sha256(checkpoints.FOLDER / f"{prior}.safetensors"),
    }
    return {
        "test_n": n,
        **by,
        "columns": table,
        "unread_after_zero_edit": (disagreement > 2 * model.sd).double().mean().item(),
        "leakage_over_half": leakage(model, world, seed),
        "pgd": adversarial(model, world, seed),
    }


def calibrate_again(name: str, out: Path = checkpoints.FOLDER) -> dict:
    """Calibrate a shipped oracle by the prior that ships now, which another one may have been trained beside: its members stay.
    Writes checkpoint and card, returns the card. Raises ValueError on what is no oracle of factors."""
    model, card = checkpoints.load(name)
    if not isinstance(model, oracles.FactorOracle):
        raise ValueError(
            f"{name}: holds a {type(model).__name__}, expected a FactorOracle; nothing else is calibrated"
        )
    model.slope.fill_(1)  # read as trained, as `unshrink` expects
    quality = calibrate(model, worlds.get(name.split("_")[0]), card.seed)
    card = dataclasses.replace(card, quality=quality)
    checkpoints.save(name, model, card, out)
    return card.to_json()


def leakage(
    model: oracles.FactorOracle, world: World, seed: int, n: int = 64, least: float = 0.5
) -> dict:
    """Mean |displacement| of each column, in its sd, when the renderer moves one factor alone as far as it goes; what is under
    `least` is left out. Row: the factor that moves."""
    factors = world.sample(n, "test", seed=seed)
    tables = moved(factors)
    x = in_bytes(joined([factors, *(table for _, table in tables)]))
    read = torch.cat([model.read(b.float() / 255)[0] for b in x.split(500)]).view(
        -1, n, len(model.names)
    )
    out = {}
    for name in dict.fromkeys(one for one, _ in tables):
        own = read[[k + 1 for k, (one, _) in enumerate(tables) if one == name]]
        most = ((own - read[0]).abs() / model.sd).amax(0).mean(0)
        out[name] = {
            column: round(most[k].item(), 2)
            for k, column in enumerate(model.names)
            if most[k] >= least
        }
    return out


def adversarial(model: oracles.FactorOracle, world: World, seed: int, n: int = 128) -> dict:
    """On PGD images (2/255) that flip a shipped classifier of this world: share of (image, column) pairs that the oracle reads as
    not moved; share of images in which it reads so of every column of the label's cause; share in which none of these moved by
    over 1 sd of the oracle's error, and by how many sd the most moved one did in the mean."""
    factors = world.sample(n, "test", seed=seed)
    x, out = in_bytes(factors).float() / 255, {}
    for label in world.labels:
        of = {label.factor, *(name for name, _ in label.neutral)}
        causes = [k for k, column in enumerate(model.names) if oracle_columns.factor_of(column) in of]
        for path in sorted(checkpoints.FOLDER.glob(f"{world.name}_{label.name}_*.safetensors")):
            f = OneOutput(checkpoints.load(path.stem).model)
            cfs = PGD()(f, x, 1 - classifiers.predict(f, x).argmax(1))
            if not cfs.valid.any():
                continue
            d = displacement.measure(cfs, model)
            still, most = (
                ~d.moved[cfs.valid],
                (d.value.abs() / model.sd)[cfs.valid][:, causes].amax(1).double(),
            )
            out[path.stem] = {
                "n": len(still),
                "columns_not_moved": still.double().mean().item(),
                "causes_not_moved": still[:, causes].all(1).double().mean().item(),
                "causes_within_1_sd": (most <= 1).double().mean().item(),
                "most_moved_cause_sd": most.mean().item(),
            }
    return out


@recipe("faces_oracle", embedded=True)
def faces_oracle(root, seed, folder):
    """The factor oracle of rendered faces: three regressors of every factor that is no child."""
    return _oracle("faces", seed, folder, n=14_000, epochs=10, n_prior=1200, hard_epochs=4)


@recipe("roads_oracle", embedded=True)
def roads_oracle(root, seed, folder):
    """The factor oracle of rendered roads: three regressors of every factor; scene and weather by level, a cause 0 outside its
    scene."""
    return _oracle("roads", seed, folder, n=12_000, epochs=9, n_prior=1200, hard_epochs=2)
