"""Commands of `cf` that train and tune; slow imports are inside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

OWN = "cf train prior, cf train autoencoder"
Names = list[str] | None
Data = Annotated[str, Option(help="Folder with official data sets.", metavar="DIR")]
Seed = Annotated[int, Option(help="Seed of all random draws.", metavar="N")]


def train(
    names: Annotated[Names, Argument(help="Names (see --list), or all.", metavar="NAME")] = None,
    data: Data = "",
    seed: Seed = 0,
    resume: Annotated[
        str, Option(help="Keep training states here, to go on after a kill.", metavar="DIR")
    ] = "",
    out: Annotated[str, Option(help="Output (default: results/checkpoints).", metavar="DIR")] = "",
    calibrate: Annotated[bool, Option("--calibrate", help="Only measure oracles again.")] = False,
    fine_tune: Annotated[
        bool, Option("--fine-tune", help="Only show oracles the zero edits of all generators.")
    ] = False,
    list_all: Annotated[bool, Option("--list", help="List the checkpoints.")] = False,
    images: Annotated[
        str, Option(help="Your own images.", metavar="DIR", rich_help_panel=OWN)
    ] = "",
    size: Annotated[
        int, Option(help="Side of the square images.", metavar="N", rich_help_panel=OWN)
    ] = 64,
    channels: Annotated[
        int | None, Option(help="1 or 3 (default: files').", metavar="N", rich_help_panel=OWN)
    ] = None,
    steps: Annotated[int, Option(help="Of the training.", metavar="N", rich_help_panel=OWN)] = 3000,
) -> None:
    """Train checkpoints, measure them, and write their model cards.

    Examples:

    cf train mnist_cnn --data /data

    cf train faces_ddpm --resume /tmp/states

    cf train faces_oracle --fine-tune

    cf train prior --images photos --size 64

    cf train autoencoder --images photos --size 64

    torchrun --nproc-per-node 4 -m cf_utils.cli train celeba_ddpm --data /data
    """
    from cf_utils.training.recipes import session

    if list_all:
        print("\n".join(session.list_checkpoints()))
        return
    if images or names in (["prior"], ["autoencoder"]):
        from cf_utils.training import own_session

        own_session.run(names or (), images, size, channels, steps, seed, resume, out)
        return
    session.train(names or (), data, seed, resume, out, calibrate, fine_tune)


def tune(
    world: Annotated[str, Argument(help="faces or roads.", metavar="WORLD")],
    method: Annotated[str, Option(help="ace, dime, fastdime, dime_pasted, xgem.", metavar="NAME")],
    label: Annotated[str, Option(help="Default: the main label.", metavar="NAME")] = "",
    kind: Annotated[str, Option(help="causal, shortcut or mixed.", metavar="KIND")] = "causal",
    n: Annotated[int, Option(help="Validation queries.", metavar="N")] = 64,
    batch: Annotated[int, Option(help="Images explained at once.", metavar="N")] = 8,
    seed: Seed = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.", metavar="NAME")] = "auto",
    settings: Annotated[str, Option(help="Numbers such as 3,7, or all.", metavar="LIST")] = "all",
    limit_minutes: Annotated[float, Option(help="Begin no batch later.", metavar="MIN")] = math.inf,
    out: Annotated[str, Option(help="Output (default: results/tuning).", metavar="DIR")] = "",
    list_all: Annotated[bool, Option("--list", help="List the settings by number.")] = False,
) -> None:
    """Measure a method's settings on validation renders, and choose one by the common rule.

    Examples:

    cf tune faces --method ace --list

    cf tune roads --method dime --limit-minutes 60
    """
    from cf_utils.training.tuning import session

    if list_all:
        print("\n".join(session.list_settings(world, method)))
        return
    queries = session.Queries(world, label, kind, n, batch, seed, device)
    raise typer.Exit(session.measure(queries, method, settings, limit_minutes, out))


def ablation(
    names: Annotated[Names, Argument(help="Settings (default: all).", metavar="NAME")] = None,
    seeds: Annotated[int, Option(help="Number of seeds.", metavar="N")] = 2,
    epochs: Annotated[int, Option(help="Of each training.", metavar="N")] = 3,
    resume: Annotated[str, Option(help="Keep training states here.", metavar="DIR")] = "",
    out: Annotated[str, Option(help="Record (default: in results/tuning).", metavar="FILE")] = "",
    list_all: Annotated[bool, Option("--list", help="List the settings.")] = False,
) -> None:
    """Train progressive exaggeration with the weights of the paper's Table 6, and measure them.

    A second call continues the record.
    """
    from cf_utils.training import ablation as study

    if list_all:
        print("\n".join(f"{name:10} {weights}" for name, weights in study.list_settings().items()))
        return
    folder, file = Path(resume) if resume else None, Path(out) if out else study.RECORD
    study.run(names or (), range(seeds), epochs, folder=folder, out=file)
