"""Limits on what may change in a row of a table.

A feature can be made immutable, allowed only to rise or only to fall, or limited to a range or to
whole numbers. Tables are x (B, F), scaled by the data set. A method searches under the constraints,
and its counterfactuals keep them exactly. A row that cannot flip under them gets a failure reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Constraints:
    """Limits on the change of each of F features, in the scaled units of x.

    A changed feature must lie in [low, high]; an unchanged one may lie outside. With `step` > 0 a
    changed feature must be a multiple of `step`. For example, an integer with range [a, b] that is
    scaled to [0, 1] has step 1 / (b - a). Step 0 leaves a feature continuous.

    Raises ValueError for shapes that differ, low > high, a negative step, or a feature that is
    both `only_up` and `only_down`.
    """

    low: Tensor  # (F,)
    high: Tensor  # (F,)
    immutable: Tensor  # (F,) bool
    only_up: Tensor  # (F,) bool
    only_down: Tensor  # (F,) bool
    step: Tensor = field(repr=False)  # (F,) >= 0

    def __post_init__(self) -> None:
        names = ("low", "high", "immutable", "only_up", "only_down", "step")
        sizes = {name: tuple(getattr(self, name).shape) for name in names}
        if len(set(sizes.values())) != 1 or self.low.ndim != 1:
            raise ValueError(f"constraints: got shapes {sizes}, expected one (F,) for all")
        if (self.low > self.high).any() or (self.step < 0).any():
            raise ValueError("constraints: expected low <= high and step >= 0 for every feature")
        if (self.only_up & self.only_down).any():
            both = (self.only_up & self.only_down).nonzero().flatten().tolist()
            raise ValueError(
                f"constraints: features {both} are only_up and only_down at once; "
                "make them immutable instead"
            )

    @classmethod
    def none(cls, n_features: int, low: float = 0.0, high: float = 1.0) -> Constraints:
        """Return constraints that only set a range; `dataclasses.replace` adds others."""
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
        """Return the lowest and the highest value of each feature of x, both (B, F).

        x itself lies inside the box.
        """
        low, high = self._changed_range(x)
        return torch.minimum(low, x), torch.maximum(high, x)

    def snap(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the allowed point nearest to y for the query x, feature by feature, (B, F).

        Each value either equals that of x exactly, or lies in the range and on the grid.
        """
        low, high = self._changed_range(x)
        at, allowed = torch.maximum(torch.minimum(y, high), low), low <= high
        grid = (self.step > 0).to(y.device)
        if grid.any():
            point, is_own, inside = self._nearest_grid_point(at, x, low, high)
            at = torch.where(grid, torch.where(is_own, x, point.to(y)), at)
            allowed = allowed & (~grid | inside)
        nearer = (at - y).abs() <= (x - y).abs() - 1e-9
        return torch.where(allowed & nearer, at, x)

    def _nearest_grid_point(
        self, at: Tensor, x: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest grid point, whether it is x's own, and whether it is in range."""
        # float64, because a step may be 1e-6, too fine for float32
        size = torch.where(self.step > 0, self.step, 1).to(at.device).double()
        k = (at / size).round()
        slack = self._rounding(k) * size
        too_high, too_low = k * size > high + slack, k * size < low - slack
        k = torch.where(too_high, k - 1, torch.where(too_low, k + 1, k))
        is_own = (k - x / size).abs() <= self._rounding(k)
        inside = (k * size <= high + slack) & (k * size >= low - slack)
        return k * size, is_own, inside

    def allows(self, y: Tensor, x: Tensor) -> Tensor:
        """Return which rows of y keep every constraint for the query x, (B,) bool.

        Tolerates 1e-6 beyond the range and float32's rounding on the grid.
        """
        low, high = self._changed_range(x)
        grid = (self.step > 0).to(y.device)
        k = y / torch.where(grid, self.step.to(y.device), 1).double()
        on_grid = ((k - k.round()).abs() <= self._rounding(k)) | ~grid
        inside = (y >= low - 1e-6) & (y <= high + 1e-6)
        return ((y == x) | (inside & on_grid & ~self.immutable.to(y.device))).all(1)

    def _changed_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and highest value that a feature may change to, both (B, F).

        For an immutable feature both are x. low > high means that no changed value is allowed.
        """
        immutable, up, down = (
            t.to(x.device) for t in (self.immutable, self.only_up, self.only_down)
        )
        low, high = self.low.to(x).expand_as(x), self.high.to(x).expand_as(x)
        low = torch.where(up, torch.maximum(low, x), low)
        high = torch.where(down, torch.minimum(high, x), high)
        return torch.where(immutable, x, low), torch.where(immutable, x, high)

    @staticmethod
    def _rounding(k: Tensor) -> Tensor:
        """Return how far float32's rounding may move the grid coordinate k from a whole number."""
        return 0.01 + 1.2e-7 * k.abs()
