"""Readers of rendered images that are never explained: what do the causes of this image look like to somebody else?

`FactorOracle` reads the factors behind a render, `AttributeOracle` its yes-or-no labels, `IdentityEncoder` who it is. All are
strided convolutions that keep the places of what they find: another architecture than the explained DenseNets, trained from
other seeds on other draws (`recipes/readers.py`).

A factor becomes one column of a reading; a category becomes one a level ("scene=1"), read between 0 and 1. What a factor
shows in some images only (the rims of glasses) is neither learnt nor scored in the others; a cause of another scene reads 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.cards import Card
from cf_utils.worlds import Factors, World


def _in_scene(k: int) -> Callable[[Factors], Tensor]:
    return lambda f: f["scene"] == k


def _with(name: str, scene: int | None = None) -> Callable[[Factors], Tensor]:
    return lambda f: (f[name] >= 0.5) if scene is None else (f["scene"] == scene) | (f[name] >= 0.5)


SHOWN: dict[
    str, dict[str, Callable[[Factors], Tensor]]
] = {  # world -> factor -> in which images it shows (N,) bool
    "faces": {"rims": _with("glasses")},
    "roads": {
        "braking": _in_scene(0),
        "red": _in_scene(1),
        "crossing": _in_scene(2),
        "lead_distance": _with("lead", 0),
        "lead_color": _with("lead", 0),
        "light_distance": _with("light", 1),
        "right_distance": _with("right_car"),
        "right_color": _with("right_car"),
        "right_braking": _with("right_car"),
        "oncoming_distance": _with("oncoming"),
        "clothes": _with("walker", 2),
        "walker_size": _with("walker", 2),
        "walker_side": _with("walker", 2),
        "stride": _with("walker", 2),
        "walker_distance": lambda f: (f["scene"] == 2) | (f["walker"] >= 0.5) | (f["zebra"] >= 0.5),
        "walker_at": lambda f: (f["scene"] != 2) & (f["walker"] >= 0.5),
        "lead": lambda f: f["scene"] != 0,
        "light": lambda f: f["scene"] != 1,
        "walker": lambda f: f["scene"] != 2,
        "zebra": lambda f: f["scene"] != 2,
    },
}


def columns(world: World) -> tuple[str, ...]:
    """Names of what can be read: each factor that is no child, a category once a level."""
    return tuple(
        name
        for f in world.factors
        if f.parent is None
        for name in (
            [f"{f.name}={k}" for k in range(len(f.shares))] if f.kind == "category" else [f.name]
        )
    )


def factor_of(column: str) -> str:
    return column.partition("=")[0]


def readable(card: Card, least: float = 0.5) -> tuple[str, ...]:
    """Factors of which the oracle reads at least this share of the variance of fresh renders (R2 in its card), every level of a
    category: what moves in the others is its own noise."""
    r2: dict[str, list[float]] = {}
    for column, row in card.quality["columns"].items():
        r2.setdefault(factor_of(column), []).append(row["r2"])
    return tuple(name for name, of in r2.items() if min(of) >= least)


def truth(factors: Factors, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What a perfect reader says, float32 (N, K), and where it shows, bool (N, K)."""
    own, values, shown = SHOWN.get(factors.world.name, {}), [], []
    for column in names:
        name, _, level = column.partition("=")
        there = own[name](factors) if name in own else torch.ones(len(factors), dtype=torch.bool)
        if level:
            values.append((factors[name] == int(level)).float())
        elif factors.world.factors[factors.world.column(name)].role == "cause":
            values.append(torch.where(there, factors[name], 0.0))
            there = torch.ones_like(there)
        else:
            values.append(factors[name])
        shown.append(there)
    return torch.stack(values, 1), torch.stack(shown, 1)


def displaced(factors: Factors, names: Sequence[str], change: Tensor, moved: Tensor) -> Factors:
    """The same images with `change` (N, K) added to the columns where `moved` (N, K), clamped to each factor's scale.

    Children follow. Of a category the level that is highest afterwards is taken. A cause of another scene is put to 0 first, as
    it reads: it shows nowhere, and a scene that was read otherwise must not bring it to light.
    """
    for name, there in SHOWN.get(factors.world.name, {}).items():
        if name in factors.world.role("cause"):
            factors = factors.move(name, torch.where(there(factors), factors[name], 0.0))
    change = torch.where(moved, change, 0.0).to(factors.values)
    for name in dict.fromkeys(map(factor_of, names)):
        at = [i for i, column in enumerate(names) if factor_of(column) == name]
        if not moved[:, at].any():
            continue
        if "=" in names[at[0]]:
            level = torch.tensor([int(names[i].partition("=")[2]) for i in at])
            value = level[
                ((factors[name][:, None] == level).float() + change[:, at]).argmax(1)
            ].float()
        else:
            value = (factors[name] + change[:, at[0]]).clamp(0, 1)
        factors = factors.move(name, torch.where(moved[:, at].any(1), value, factors[name]))
    return factors


class Residual(nn.Module):
    """x + two 3 x 3 convolutions of it, then ReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class ConvNet(nn.Module):
    """Strided 3 x 3 convolutions with batch norm and ReLU, a residual block after each but the first, then a linear map of the
    whole last grid. x (B, 3, H, W) in [0, 1], H and W as in `size` (multiples of 16), to (B, outputs)."""

    def __init__(
        self,
        outputs: int,
        size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (24, 48, 80, 112),
    ):
        super().__init__()
        if any(side % 2 ** len(widths) for side in size):
            raise ValueError(f"size: got {tuple(size)}, expected multiples of {2 ** len(widths)}")
        self.size, layers, before = tuple(size), [], 3
        for k, width in enumerate(widths):
            kernel = 3 if k else 5
            layers += [
                nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [Residual(width)] if k else []
            before = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before * (size[0] * size[1] // 4 ** len(widths)), outputs)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != (3, *self.size):
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, this reader was trained on (B, 3, {self.size[0]}, {self.size[1]})"
            )
        return self.head(self.layers(2 * x - 1).flatten(1))


class AttributeOracle(ConvNet):
    """Logits (B, L) of the labels `names`: yes where positive."""

    def __init__(
        self,
        names: Sequence[str],
        size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (24, 48, 80, 112),
    ):
        super().__init__(len(names), size, widths)
        self.names = tuple(names)


class IdentityEncoder(ConvNet):
    """x -> embedding (B, width) of length 1; two images show the same person where their inner product is over
    `threshold`, which a checkpoint's card holds."""

    def __init__(
        self,
        width: int = 64,
        size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (24, 48, 80, 112),
        threshold: float | None = None,
    ):
        super().__init__(width, size, widths)
        self.threshold = threshold

    def raw(self, x: Tensor) -> Tensor:
        """The embedding before it gets its length."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.raw(x), dim=1)


class FactorOracle(nn.Module):
    """An ensemble of regressors of `names`, in the factors' own units.

    A regressor that is unsure reads towards the mean, so a factor that moves by 1 would be read as moving by its `slope` < 1.
    What is said is divided by it (K,), and the mean stays where it is (`centre` (K,)): a displacement has no such bias.
    `sd` (K,): standard deviation of the reading's error on test renders where the factor shows. `null` (K,): root mean square
    of its displacement when nothing was edited but the camera's noise was drawn anew or, where the card says so, the image went
    through the diffusion prior.
    """

    def __init__(
        self,
        names: Sequence[str],
        size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (24, 48, 80, 112),
        members: int = 3,
    ):
        super().__init__()
        self.names = tuple(names)
        self.members = nn.ModuleList(ConvNet(len(self.names), size, widths) for _ in range(members))
        self.register_buffer("slope", torch.ones(len(self.names)))
        self.register_buffer("centre", torch.zeros(len(self.names)))
        self.register_buffer("sd", torch.ones(len(self.names)))
        self.register_buffer("null", torch.ones(len(self.names)))

    def forward(self, x: Tensor) -> Tensor:
        """Each member's reading (members, B, K)."""
        return (
            torch.stack([member(x) for member in self.members]) - self.centre
        ) / self.slope + self.centre

    @torch.no_grad()
    def read(self, x: Tensor, batch_size: int = 250) -> tuple[Tensor, Tensor]:
        """(value (B, K), disagreement (B, K)): mean and standard deviation over the members, on the device of x."""
        parts = [self(b.to(self.sd.device)).to(x.device) for b in x.split(batch_size)]
        return torch.cat([p.mean(0) for p in parts]), torch.cat([p.std(0) for p in parts])
