"""What a row may do: features that stay, that only rise or fall, that are whole numbers, that have a range.

For tables: x is (B, F), scaled so that `bounds` hold. A method searches under them and what it returns keeps them exactly; a
row that cannot flip inside them comes back with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Constraints:
    """Limits on the change of each of F features, in the scaled units of x.

    `step` > 0 puts a feature on the grid k * step (an integer of range [a, b] scaled to [0, 1]: step 1 / (b - a)); 0 leaves it
    continuous. A feature that is not changed keeps its value, wherever that lies; a changed one lies in [low, high]. ValueError
    on shapes that differ, a low over its high, a negative step, or a feature that may neither rise nor fall and is not immutable.
    """

    low: Tensor  # (F,)
    high: Tensor  # (F,)
    immutable: Tensor  # (F,) bool
    only_up: Tensor  # (F,) bool
    only_down: Tensor  # (F,) bool
    step: Tensor = field(repr=False)  # (F,) >= 0

    def __post_init__(self):
        sizes = {
            name: tuple(getattr(self, name).shape)
            for name in ("low", "high", "immutable", "only_up", "only_down", "step")
        }
        if len(set(sizes.values())) != 1 or self.low.ndim != 1:
            raise ValueError(f"constraints: got shapes {sizes}, expected one (F,) for all")
        if (self.low > self.high).any() or (self.step < 0).any():
            raise ValueError("constraints: expected low <= high and step >= 0 for every feature")
        if (self.only_up & self.only_down).any():
            both = (self.only_up & self.only_down).nonzero().flatten().tolist()
            raise ValueError(
                f"constraints: features {both} may only rise and only fall; name them immutable instead"
            )

    @classmethod
    def none(cls, n_features: int, low: float = 0.0, high: float = 1.0) -> Constraints:
        """Nothing but a range: a start for `dataclasses.replace`."""
        no = torch.zeros(n_features, dtype=torch.bool)
        return cls(
            low=torch.full((n_features,), low),
            high=torch.full((n_features,), high),
            immutable=no,
            only_up=no.clone(),
            only_down=no.clone(),
            step=torch.zeros(n_features),
        )

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest allowed value of each feature of each row, both (B, F). x itself is always inside."""
        low, high = self._changed(x)
        return torch.minimum(low, x), torch.maximum(high, x)

    def snap(self, y: Tensor, x: Tensor) -> Tensor:
        """The allowed point nearest to y for rows x, feature by feature: x's own value to the last bit, or one in the range and
        on the grid."""
        low, high = self._changed(x)
        at, there = (
            torch.maximum(torch.minimum(y, high), low),
            low <= high,
        )  # not there: nothing fits between the walls
        grid = (self.step > 0).to(y.device)
        if grid.any():
            size = torch.where(
                grid, self.step.to(y.device), 1
            ).double()  # a step may be 1e-6: too fine for float32
            k = (at / size).round()
            slack = self._slack(k) * size
            k = torch.where(
                k * size > high + slack, k - 1, torch.where(k * size < low - slack, k + 1, k)
            )
            own = (k - x / size).abs() <= self._slack(k)  # the query's own grid point
            there = there & (~grid | ((k * size <= high + slack) & (k * size >= low - slack)))
            at = torch.where(grid, torch.where(own, x, (k * size).to(y)), at)
        nearer = (at - y).abs() <= (x - y).abs() - 1e-9
        return torch.where(there & nearer, at, x)

    def kept(self, y: Tensor, x: Tensor) -> Tensor:
        """Which rows of y keep every constraint for x, (B,) bool; up to 1e-6 on the walls and float32's rounding on the grid."""
        low, high = self._changed(x)
        grid = (self.step > 0).to(y.device)
        k = y / torch.where(grid, self.step.to(y.device), 1).double()
        on = ((k - k.round()).abs() <= self._slack(k)) | ~grid
        return (
            (y == x) | ((y >= low - 1e-6) & (y <= high + 1e-6) & on & ~self.immutable.to(y.device))
        ).all(1)

    def _changed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From where to where a changed value of each feature may lie, (B, F); empty (low > high) where none may."""
        immutable, up, down = (
            t.to(x.device) for t in (self.immutable, self.only_up, self.only_down)
        )
        low, high = self.low.to(x).expand_as(x), self.high.to(x).expand_as(x)
        return torch.where(immutable, x, torch.where(up, torch.maximum(low, x), low)), torch.where(
            immutable, x, torch.where(down, torch.minimum(high, x), high)
        )

    @staticmethod
    def _slack(k: Tensor) -> Tensor:
        """How far from a whole number float32 may leave the grid coordinate k."""
        return 0.01 + 1.2e-7 * k.abs()
