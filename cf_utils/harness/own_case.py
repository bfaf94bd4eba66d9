"""Your own classifier and your own images or table, as `cf check` and `cf explain` take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import Ids, draw_rows, pick_device, select_ids
from cf_utils.core.choices import check_choice
from cf_utils.datasets import own_images, table_files
from cf_utils.datasets.tabular import Table
from cf_utils.models import own
from cf_utils.models.classifiers import predict

UNITS = ("raw", "scaled")
N = {"images": 16, "table": 100}  # items to explain, by default
BATCH = {"images": 8, "table": 25}
N_TRAIN = 1000  # images that prototypes are drawn from


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asks for; each field is an option of the command line.

    Exactly one of `images` and `csv` is given. Tuples hold names of columns.
    """

    model: str
    images: str = ""
    csv: str = ""
    method: str = ""  # "": wachter for images, growing_spheres for tables
    weights: str = ""
    output: str = "logits"
    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] = ()  # subtracted from x before the classifier, per channel
    std: tuple[float, ...] = ()
    label: str = ""
    drop: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # names in the order of the classifier's outputs
    units: str = "raw"  # what the classifier takes: the columns as they are, or scaled to [0, 1]
    prior: str = ""  # name or path of a diffusion model's checkpoint
    target: str = "other"
    tau: float | None = None
    n: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method

    @property
    def kind(self) -> str:
        """The kind of data: "images" or "table". Raises ValueError unless one is named."""
        if bool(self.images) == bool(self.csv):
            raise ValueError("--images, --csv: expected exactly one of them")
        return "images" if self.images else "table"


class Normalise(nn.Module):
    """(x - mean) / std per channel of images (B, C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0:
            raise ValueError(
                f"--mean, --std: got {list(mean)} and {list(std)}, expected 1 or 3 numbers each, "
                "and std above 0"
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images."""
        return (x - self.mean) / self.std


class InUnits(nn.Module):
    """Scaled rows of a table, in the table's units: x * span + low."""

    def __init__(self, table: Table):
        super().__init__()
        self.register_buffer("span", table.span.float())
        self.register_buffer("low", table.low.float())

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows (B, F) in units."""
        return x * self.span + self.low


@dataclass(frozen=True, eq=False)
class Case:
    """Queries with their classifier, on one device."""

    options: Options
    model: own.OwnModel
    x: Tensor  # (N, C, H, W) in [0, 1], or (N, F) scaled
    y: Tensor  # (N,) int64, -1 where unknown
    ids: Ids
    class_names: tuple[str, ...]
    train: Tensor  # (M, ...) items from which a method's parts are made
    table: Table | None = None

    @property
    def kind(self) -> str:
        """The kind of data: "images" or "table"."""
        return self.options.kind

    def take(self, rows: Tensor) -> Case:
        """Return the case of these queries."""
        ids = select_ids(self.ids, rows)
        return replace(self, x=self.x[rows], y=self.y[rows], ids=ids)

    @property
    def batch_size(self) -> int:
        """Items explained at once."""
        return self.options.batch or BATCH[self.kind]

    def name_class(self, number: int) -> str:
        """Return the name of a class, or its number if the data name none."""
        known = 0 <= number < len(self.class_names)
        return self.class_names[number] if known else str(number)

    def find_target(self) -> Tensor:
        """Return the wanted class per item, int64 (N,).

        "other" is the second most probable class. Raises ValueError for an unknown class.
        """
        logits, wanted = predict(self.model, self.x), self.options.target
        if wanted == "other":
            return logits.topk(2, 1).indices[:, 1]
        numbers = {name: i for i, name in enumerate(self.class_names)}
        numbers = {str(i): i for i in range(logits.shape[1])} | numbers
        check_choice("target", wanted, ["other", *numbers])
        return torch.full((len(self.x),), numbers[wanted])


def load(options: Options) -> Case:
    """Load data and classifier. Raises ValueError or FileNotFoundError that name the option."""
    check_choice("units", options.units, UNITS)
    load_kind = _load_images if options.kind == "images" else _load_table
    case = _order_classes(load_kind(options))
    case.model.to(pick_device(options.device))
    return case


def _load_images(options: Options) -> Case:
    data = own_images.load(options.images, options.size, options.channels)
    rows = draw_rows(len(data), options.n or N["images"], options.seed).sort().values
    others = draw_rows(len(data), N_TRAIN, options.seed)
    queries = data.take(rows).in_memory()
    prepare = Normalise(options.mean, options.std) if options.mean or options.std else None
    model = _load_model(options, prepare)
    train = data.take(others).in_memory().x
    return Case(options, model, queries.x, queries.y, queries.ids, data.class_names, train)


def _load_table(options: Options) -> Case:
    path = Path(options.csv)
    if not path.is_file():
        raise FileNotFoundError(f"--csv: {path} is missing")
    frame = table_files.read_csv(path)
    if unknown := [c for c in options.drop if c not in frame]:
        raise ValueError(f"--drop: got {unknown[0]!r}, expected names out of {list(frame.columns)}")
    monotone = dict.fromkeys(options.up, 1) | dict.fromkeys(options.down, -1)
    table = Table.from_frame(
        frame.drop(columns=list(options.drop)),
        options.label or None,
        immutable=options.immutable,
        monotone=monotone,
        name=path.name,
    )
    rows = draw_rows(len(table), options.n or N["table"], options.seed).sort().values
    model = _load_model(options, InUnits(table) if options.units == "raw" else None)
    ids = select_ids(table.ids, rows)
    return Case(
        options, model, table.x[rows], table.y[rows], ids, table.class_names, table.x, table
    )


def _order_classes(case: Case) -> Case:
    """Number the classes as `--classes` says. Raises ValueError if one of the data is missing."""
    order = case.options.classes
    if not order:
        return case
    if missing := [name for name in case.class_names if name not in order]:
        raise ValueError(f"--classes: got {list(order)}, expected {missing[0]!r} among them")
    number = torch.tensor([order.index(name) for name in case.class_names] + [-1])
    return replace(case, y=number[case.y], class_names=order)  # y = -1 takes the last


def _load_model(options: Options, prepare: nn.Module | None) -> own.OwnModel:
    weights = options.weights or None
    return own.load(options.model, weights, options.output, prepare=prepare)
