"""Displacement: which factors an explanation moved, and whether the classifier uses them.

Requires a world that renders images from known factors. Each metric takes explanations of renders
and returns one value per item, NaN where undefined; report the mean with n. Terms:

* displacement of a factor: oracle(counterfactual) - oracle(query), in the factor's units.
* moved: the displacement exceeds two standard deviations of what the oracle reads if nothing is
  edited (the null).
* used and unused factors: by the classifier's model card. It holds for each factor `r`, the mean
  change of the probability if the renderer moves that factor alone, and `flips`, the share of
  images that this can flip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.core.checks import to_list
from cf_utils.models import oracle_columns
from cf_utils.models.classifiers import predict
from cf_utils.worlds import Factors

Uses = Mapping[str, Mapping[str, float]]  # factor -> {"r": ..., "flips": ...}


class Oracle(Protocol):
    """Reads K columns of factors from images; `models.oracles.FactorOracle` is one."""

    names: tuple[str, ...]
    sd: Tensor  # (K,), standard deviation of the reading's error
    null: Tensor  # (K,), `null_sd` of the oracle's own null

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and disagreement of the ensemble, both (B, K)."""
        ...


def check_factors(cfs: Counterfactuals, factors: Factors) -> None:
    """Raise ValueError unless `factors` rendered the queries of `cfs`, in the same order."""
    if len(cfs) != len(factors):
        raise ValueError(
            f"factors: got {len(factors)} rows for {len(cfs)} items, "
            "expected those that rendered the queries"
        )
    if not cfs.row_ids and to_list(cfs.ids) != to_list(factors.ids):
        raise ValueError(
            f"factors: got ids {to_list(factors.ids)[:3]}..., expected {to_list(cfs.ids)[:3]}..., "
            "the items' ids in their order"
        )


def is_undefined(cfs: Counterfactuals) -> Tensor:
    """Whether there is nothing to explain: the query was the target already, or gave NaN. (B,)"""
    return (cfs.source == cfs.target) | (cfs.source < 0)


@dataclass(frozen=True, eq=False)
class Displacement:
    """Displacements that an oracle reads between B queries and counterfactuals, in K columns."""

    names: tuple[str, ...]  # columns; a categorical factor has one per level, "scene=1"
    value: Tensor  # (B, K), in the factors' units
    moved: Tensor  # (B, K) bool, readable and over 2 null standard deviations
    reliable: Tensor  # (B, K) bool, moved and over 2 standard deviations of the oracle's error
    unreadable: Tensor  # (B, K) bool, the members of the ensemble disagree
    undefined: Tensor = field(repr=False)  # (B,) bool, nothing to explain

    def read_factor(self, name: str) -> tuple[Tensor, Tensor]:
        """Return whether a factor moved and whether it was readable, both (B,) bool.

        A categorical factor is readable if all its levels are, and moved if any level moved.
        """
        at = [i for i, column in enumerate(self.names) if oracle_columns.factor_of(column) == name]
        if not at:
            known = tuple(dict.fromkeys(map(oracle_columns.factor_of, self.names)))
            raise ValueError(f"factor: got {name!r}, expected one of {known}")
        read = ~self.unreadable[:, at].any(1)
        return self.moved[:, at].any(1) & read, read


def null_sd(oracle: Oracle, x: Tensor, unedited: Tensor) -> Tensor:
    """Root mean square displacement between images and the same images after a zero edit.

    A smaller value means that smaller displacements can be measured. Use the zero edit of the
    method under test, because each generator leaves its own traces.

    Args: x, unedited (B, 3, H, W). Returns: (K,) >= 0, in the factors' units.
    """
    return (oracle.read(unedited)[0] - oracle.read(x)[0]).square().mean(0).sqrt()


def measure(cfs: Counterfactuals, oracle: Oracle, null: Tensor | None = None) -> Displacement:
    """Read the displacement of each column between queries and counterfactuals.

    A column is unreadable if the members' standard deviation, at query or counterfactual, exceeds
    twice the standard deviation of the oracle's error on renders.

    Args: null (K,): `null_sd` of the method's generator; the oracle's own by default.
    """
    before, spread_before = oracle.read(cfs.query.float())
    after, spread_after = oracle.read(cfs.counterfactual.float())
    sd = oracle.sd.to(before.device)
    null = (oracle.null if null is None else null).to(before.device)
    unreadable = torch.maximum(spread_before, spread_after) > 2 * sd
    value = after - before
    moved = (value.abs() > 2 * null) & ~unreadable
    reliable = moved & (value.abs() > 2 * sd)
    return Displacement(tuple(oracle.names), value, moved, reliable, unreadable, is_undefined(cfs))


def unreadable_share(displacement: Displacement) -> Tensor:
    """Share of columns that the oracle could not read. (B,) in [0, 1], lower is better."""
    return displacement.unreadable.double().mean(1)


def used_factors(uses: Uses, min_flips: float = 0.25) -> tuple[str, ...]:
    """Factors that alone flip at least this share of images, by a classifier's model card."""
    return tuple(name for name, row in uses.items() if row["flips"] >= min_flips)


def unused_factors(uses: Uses, max_change: float = 0.05) -> tuple[str, ...]:
    """Factors that change the probability by less than `max_change` on average."""
    return tuple(name for name, row in uses.items() if row["r"] < max_change)


def used_factor_moved(displacement: Displacement, uses: Uses, min_flips: float = 0.25) -> Tensor:
    """Whether a factor moved that the classifier uses. (B,) 0 or 1, higher is better.

    NaN where there is nothing to explain or no used factor was readable. Compare with a zero edit,
    which exceeds the null by chance.
    """
    names = used_factors(uses, min_flips)
    if not names:
        raise ValueError(f"uses: no factor flips a share of at least {min_flips}")
    pairs = [displacement.read_factor(name) for name in names]
    moved, read = (torch.stack(columns).any(0) for columns in zip(*pairs, strict=True))
    return torch.where(read & ~displacement.undefined, moved.double(), torch.nan)


def unused_factor_moved(displacement: Displacement, uses: Uses, max_change: float = 0.05) -> Tensor:
    """Share of the readable unused factors that moved. (B,) in [0, 1], lower is better.

    NaN where there is nothing to explain or no unused factor was readable. Compare with a zero
    edit, which exceeds the null by chance.
    """
    names = unused_factors(uses, max_change)
    if not names:
        raise ValueError(f"uses: no factor changes the probability by less than {max_change}")
    pairs = [displacement.read_factor(name) for name in names]
    moved, read = (torch.stack(columns).double().sum(0) for columns in zip(*pairs, strict=True))
    return torch.where((read > 0) & ~displacement.undefined, moved / read.clamp(min=1), torch.nan)


def semantic_validity(
    cfs: Counterfactuals,
    factors: Factors,
    classifier: nn.Module,
    displacement: Displacement,
    only: Sequence[str] | None = None,
) -> Tensor:
    """Whether the decision still flips if the renderer makes the change that the oracle read.

    (B,) 0 or 1, higher is better. Each reliable displacement is added to the query's true factor,
    clamped to its scale, and the image is rendered again with the same random streams. Adversarial
    noise moves no factor and scores 0. The reference is the score of `baselines.TrueChange`.

    Args:
        factors: rows that rendered the queries.
        displacement: `measure` of `cfs`.
        only: factors to displace, such as `used_factors`; the others stay. None: all of them.

    Returns: 0 where the explanation is not valid, NaN where there is nothing to explain.
    """
    check_factors(cfs, factors)
    made = displacement.reliable
    if only is not None:
        factor = [oracle_columns.factor_of(column) for column in displacement.names]
        made = made & torch.tensor([name in only for name in factor], device=made.device)
    candidates = made.any(1) & cfs.valid & ~displacement.undefined
    rows = candidates.cpu().nonzero().flatten()
    size = (cfs.query.shape[2], cfs.query.shape[3])
    flips = torch.zeros(len(cfs), dtype=torch.float64)
    for at in rows.split(500) if len(rows) else ():
        change, reliable = displacement.value[at], made[at]
        moved = oracle_columns.displace(factors.take(at), displacement.names, change, reliable)
        x = factors.world.render(moved, size).to(cfs.query)
        flips[at] = (predict(classifier, x).argmax(1) == cfs.target[at]).double().cpu()
    return torch.where(displacement.undefined.cpu(), torch.nan, flips)
