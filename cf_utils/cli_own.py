"""Commands of `cf` for your own classifier and data; slow imports are inside them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

Words = list[str] | None
MODEL, DATA, METHOD = "Classifier", "Data", "Explanation"


def _opt(text: str, panel: str, metavar: str, *names: str) -> Any:
    return Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


Model = Annotated[str, _opt("module:function, or a .pt, .ts or .onnx file.", MODEL, "SOURCE")]
Weights = Annotated[str, _opt("safetensors, or torch tensors, of module:function.", MODEL, "FILE")]
Output = Annotated[str, _opt("What it returns: logits or probabilities.", MODEL, "KIND")]
Mean = Annotated[str, _opt("Subtracted from images in [0, 1], per channel.", MODEL, "LIST")]
Std = Annotated[str, _opt("Divides them after that.", MODEL, "LIST")]
Units = Annotated[str, _opt("Columns as it takes them: raw or scaled.", MODEL, "KIND")]
Device = Annotated[str, _opt("auto, cpu, cuda or mps.", MODEL, "NAME")]
Images = Annotated[str, _opt("Folder of images, or of one folder per class.", DATA, "DIR")]
Csv = Annotated[str, _opt("Table with one row per item.", DATA, "FILE")]
Size = Annotated[str, _opt("Height and width of images, such as 64 or 64x128.", DATA, "N")]
Channels = Annotated[int | None, _opt("1 (grey) or 3 (default: the files').", DATA, "N")]
Label = Annotated[str, _opt("Column of the class.", DATA, "COLUMN")]
Classes = Annotated[str, _opt("Their names, as the classifier orders them.", DATA, "LIST")]
Drop = Annotated[Words, _opt("Ignore a column; repeatable.", DATA, "COLUMN")]
Immutable = Annotated[Words, _opt("A column that cannot change; repeatable.", DATA, "COLUMN")]
Up = Annotated[Words, _opt("A column that may only rise; repeatable.", DATA, "COLUMN")]
Down = Annotated[Words, _opt("A column that may only fall; repeatable.", DATA, "COLUMN")]
Method = Annotated[
    str,
    _opt(
        "Images: wachter (default), gradual, cem, ace, dime, fastdime. Tables: growing_spheres "
        "(default), lore, gradual, wachter, cem.",
        METHOD,
        "NAME",
    ),
]
Prior = Annotated[
    str, _opt("Diffusion model for ace, dime, fastdime; autoencoder for cem.", METHOD, "NAME|PATH")
]
Target = Annotated[str, _opt("Wanted class; other: the second most probable.", METHOD, "CLASS")]
Tau = Annotated[float | None, _opt("Wanted probability of it.", METHOD, "P")]
Number = Annotated[int | None, _opt("Most items (16 images, 100 rows).", METHOD, "N", "--n", "-n")]
Batch = Annotated[int | None, _opt("Items at once.", METHOD, "N")]
Seed = Annotated[int, _opt("Seed of all random draws.", METHOD, "N")]
Changes = Annotated[Words, _opt("Set a setting; repeatable.", METHOD, "NAME=VALUE", "--set", "-s")]


def _read_settings(changes: Words) -> dict[str, Any]:
    """Return settings from NAME=VALUE; a value is JSON, else text. Lists become tuples."""
    settings: dict[str, Any] = {}
    for change in changes or ():
        name, sign, text = change.partition("=")
        if not sign:
            raise ValueError(f"--set: got {change!r}, expected NAME=VALUE")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


def _read_list(name: str, text: str, kind: type = float) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError as e:
        raise ValueError(f"{name}: got {text!r}, expected numbers, separated by commas") from e


def _read_size(text: str) -> tuple[int, int] | None:
    sides = text.split("x") if text else []
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"--size: got {text!r}, expected a number such as 64, or 64x128")
    return (int(sides[0]), int(sides[-1])) if sides else None


def collect(
    model: Model,
    images: Images = "",
    csv: Csv = "",
    method: Method = "",
    weights: Weights = "",
    output: Output = "logits",
    mean: Mean = "",
    std: Std = "",
    units: Units = "raw",
    device: Device = "auto",
    size: Size = "",
    channels: Channels = None,
    label: Label = "",
    classes: Classes = "",
    drop: Drop = None,
    immutable: Immutable = None,
    up: Up = None,
    down: Down = None,
    prior: Prior = "",
    target: Target = "other",
    tau: Tau = None,
    n: Number = None,
    batch: Batch = None,
    seed: Seed = 0,
    changes: Changes = None,
) -> Any:
    """Return `own_case.Options` from the options of the command line.

    Raises ValueError that names the option.
    """
    return _to_options(**locals())


def _to_options(changes: Words, **given: Any) -> Any:
    from cf_utils.core import check_count
    from cf_utils.harness.own_case import Options

    for name in ("n", "batch"):
        if given[name] is not None:
            check_count(f"--{name}", given[name])
    for name in ("drop", "immutable", "up", "down"):
        given[name] = tuple(given[name] or ())
    for name in ("mean", "std"):
        given[name] = _read_list(f"--{name}", given[name])
    given["classes"] = _read_list("--classes", given["classes"], str)
    given["size"] = _read_size(given["size"])
    return Options(settings=_read_settings(changes), **given)


def _add_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of `collect`, and pass it what that returns, first."""
    shared = inspect.signature(collect, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = collect(**{name: given.pop(name) for name in shared})
        command(options, **given)

    del run.__wrapped__  # typing hints come from the signature
    run.__annotations__ = {p.name: p.annotation for p in [*shared.values(), *own]}
    run.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    return run


@_add_options
def check(options: Any) -> None:
    """Check whether a classifier fits your data and a method, and how long explaining takes.

    Ends with 1 if there is something to fix.

    Examples:

    cf check --model net:build --weights net.safetensors --images photos --size 64

    cf check --model churn:forest --csv clients.csv --label churned --immutable age
    """
    from cf_utils.harness import own_run

    findings, minutes = own_run.check(options)
    print("\n".join(map(str, findings)))
    if minutes is None:
        raise typer.Exit(1)


@_add_options
def explain(
    options: Any,
    out: Annotated[str, _opt("Output (default: results/run/own/DATA-METHOD).", METHOD, "DIR")] = "",
) -> None:
    """Explain your own classifier on your own images or table; a second call resumes.

    Writes results, counterfactuals, a gallery and report.html. Begin with `cf check`.

    Examples:

    cf explain --model net:build --weights net.safetensors --images photos --method gradual

    cf explain --model churn:forest --csv clients.csv --label churned --immutable age --n 50
    """
    from cf_utils.harness import folders, own_run
    from cf_utils.harness.own_methods import choose

    data, method = Path(options.images or options.csv).resolve().stem, choose(options).method
    folder = Path(out) if out else folders.root() / "own" / f"{data}-{method}"
    findings, cfs = own_run.explain(options, folder)
    print("\n".join(str(finding) for finding in findings if finding.level != "ok"))
    if cfs is None:
        raise typer.Exit(1)
    print(own_run.summarise(cfs))
    print(folder / "report.html")
