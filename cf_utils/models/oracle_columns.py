"""Columns that a factor oracle reads: their names, their true values, and edits of them.

Each factor without a parent is one column. A category is one column per level (`scene=1`), with
values between 0 and 1. Some factors are visible in some images only, such as the rims of glasses.
They are neither learnt nor scored in the other images. A cause of another scene counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cf_utils.models.cards import Card
from cf_utils.worlds import Factors, World

Visibility = Callable[[Factors], Tensor]  # factors of N images -> (N,) bool


def _in_scene(scene: int) -> Visibility:
    return lambda f: f["scene"] == scene


def _when(factor: str, or_scene: int | None = None) -> Visibility:
    if or_scene is None:
        return lambda f: f[factor] >= 0.5
    return lambda f: (f["scene"] == or_scene) | (f[factor] >= 0.5)


VISIBLE: dict[str, dict[str, Visibility]] = {  # world -> factor -> images that show it
    "faces": {"rims": _when("glasses")},
    "lung_ct": {name: lambda f: f["extent"] >= 0.2 for name in ("side", "zone", "depth")},
    "radiographs": {"left_marker": _when("marker"), "marker_height": _when("marker")},
    "roads": {
        "braking": _in_scene(0),
        "red": _in_scene(1),
        "crossing": _in_scene(2),
        "lead_distance": _when("lead", 0),
        "lead_color": _when("lead", 0),
        "light_distance": _when("light", 1),
        "right_distance": _when("right_car"),
        "right_color": _when("right_car"),
        "right_braking": _when("right_car"),
        "oncoming_distance": _when("oncoming"),
        "clothes": _when("walker", 2),
        "walker_size": _when("walker", 2),
        "walker_side": _when("walker", 2),
        "stride": _when("walker", 2),
        "walker_distance": lambda f: (f["scene"] == 2) | (f["walker"] >= 0.5) | (f["zebra"] >= 0.5),
        "walker_at": lambda f: (f["scene"] != 2) & (f["walker"] >= 0.5),
        "lead": lambda f: f["scene"] != 0,
        "light": lambda f: f["scene"] != 1,
        "walker": lambda f: f["scene"] != 2,
        "zebra": lambda f: f["scene"] != 2,
    },
}


def list_columns(world: World) -> tuple[str, ...]:
    """List the columns of a world: each factor without a parent, a category once per level."""
    columns: list[str] = []
    for factor in world.factors:
        if factor.parent is not None:
            continue
        if factor.kind == "category":
            columns += [f"{factor.name}={level}" for level in range(len(factor.shares))]
        else:
            columns.append(factor.name)
    return tuple(columns)


def factor_of(column: str) -> str:
    """Return the name of the factor that a column belongs to."""
    return column.partition("=")[0]


def readable_factors(card: Card, least_r2: float = 0.5) -> tuple[str, ...]:
    """List the factors that an oracle reads well, by its card.

    On fresh renders, the R^2 of every column of such a factor must be at least `least_r2`. If the
    oracle reads movements of other factors, they are its own noise.
    """
    r2: dict[str, list[float]] = {}
    for column, row in card.quality["columns"].items():
        r2.setdefault(factor_of(column), []).append(row["r2"])
    return tuple(name for name, values in r2.items() if min(values) >= least_r2)


def true_readings(factors: Factors, columns: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the readings of a perfect oracle, float32 (N, K), and where they are visible, bool."""
    visible, readings, shown = VISIBLE.get(factors.world.name, {}), [], []
    for column in columns:
        name, _, level = column.partition("=")
        everywhere = torch.ones(len(factors), dtype=torch.bool)
        seen = visible[name](factors) if name in visible else everywhere
        value = factors[name]
        if level:
            value = (value == int(level)).float()
        elif factors.world.factors[factors.world.column(name)].role == "cause":
            value, seen = torch.where(seen, value, 0.0), everywhere
        readings.append(value)
        shown.append(seen)
    return torch.stack(readings, 1), torch.stack(shown, 1)


def displace(factors: Factors, columns: Sequence[str], change: Tensor, moved: Tensor) -> Factors:
    """Return the factors of the same images with `change` (N, K) added where `moved` (N, K).

    Values are clamped to [0, 1], and factors with a parent are updated. A category takes the level
    with the highest value after the change. Causes of other scenes are first set to 0, as they are
    read; an edit of the scene would otherwise reveal their hidden values.
    """
    for name, visible in VISIBLE.get(factors.world.name, {}).items():
        if name in factors.world.role("cause"):
            factors = factors.move(name, torch.where(visible(factors), factors[name], 0.0))
    change = torch.where(moved, change, 0.0).to(factors.values)
    for name in dict.fromkeys(map(factor_of, columns)):
        at = [i for i, column in enumerate(columns) if factor_of(column) == name]
        if not moved[:, at].any():
            continue
        if "=" in columns[at[0]]:
            levels = torch.tensor([int(columns[i].partition("=")[2]) for i in at])
            share = (factors[name][:, None] == levels).float() + change[:, at]
            value = levels[share.argmax(1)].float()
        else:
            value = (factors[name] + change[:, at[0]]).clamp(0, 1)
        factors = factors.move(name, torch.where(moved[:, at].any(1), value, factors[name]))
    return factors
