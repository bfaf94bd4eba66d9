"""Truth metrics: did an explanation change what this classifier uses, and only that? Asked of a world that knows its causes.

Everything takes `cfs` (Counterfactuals of renders), `factors` (the rows that made its queries, in the same order), the explained
classifier f (logits (B, 2), normalisation inside) or an oracle (`.names`, `.read(x) -> value, disagreement`, `.sd`, `.null`), and
returns one value an item, NaN where it is not defined: print n beside a mean. Words:

* displacement: oracle(counterfactual) - oracle(query); moved: over 2 sd of what the oracle reads when nothing was edited.
* used, unused: by the card of the classifier, which holds for each factor r (mean change of its probability when the renderer
  moves that factor alone) and flips (share of images that it alone can flip).
* the true counterfactuals of an item are a set, and have a file of their own: `true_set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.core.checks import listed
from cf_utils.models import oracles
from cf_utils.models.classifiers import predict
from cf_utils.worlds.base import Factors


def check(cfs: Counterfactuals, factors: Factors) -> None:
    """ValueError where `factors` are not the rows behind the queries of `cfs`."""
    if len(cfs) != len(factors):
        raise ValueError(
            f"factors: got {len(factors)} rows for {len(cfs)} items, expected those that made the queries"
        )
    if not cfs.row_ids and listed(cfs.ids) != listed(factors.ids):
        raise ValueError(
            f"factors: ids {listed(factors.ids)[:3]}... are not the items' {listed(cfs.ids)[:3]}..., in their order"
        )


def undefined(cfs: Counterfactuals) -> Tensor:
    """Items with nothing to explain: the query was the target already, or could not be decided. (B,) bool."""
    return (cfs.source == cfs.target) | (cfs.source < 0)


# ---------------------------------------------------------------- what an oracle reads


@dataclass(frozen=True, eq=False)
class Displacement:
    """`value` (B, K) in the factors' units; `moved` (B, K): read, and over 2 null sd, so it is no chance; `firm` (B, K): over
    2 sd of the oracle's error, too, so its size can be trusted; `unread` (B, K): the members disagree."""

    names: tuple[str, ...]
    value: Tensor
    moved: Tensor
    firm: Tensor
    unread: Tensor
    undefined: Tensor = field(repr=False)

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """(moved (B,), read (B,)) of a factor; of a category: every level read, and any of them moved."""
        at = [i for i, column in enumerate(self.names) if oracles.factor_of(column) == name]
        if not at:
            raise ValueError(
                f"factor: got {name!r}, expected one of {tuple(dict.fromkeys(map(oracles.factor_of, self.names)))}"
            )
        read = ~self.unread[:, at].any(1)
        return self.moved[:, at].any(1) & read, read


def null_sd(oracle, x: Tensor, unedited: Tensor) -> Tensor:
    """Root mean square of the displacement (K,) between x and the same images after an edit of nothing (a generator's filter at
    zero change). [0, inf), smaller is a finer instrument. Every generator has its own; use the method's."""
    return (oracle.read(unedited)[0] - oracle.read(x)[0]).square().mean(0).sqrt()


def displacement(cfs: Counterfactuals, oracle, null: Tensor | None = None) -> Displacement:
    """What the oracle sees move. `null` (K,): `null_sd` of the method's generator, the oracle's own where None.

    Unread: the members' standard deviation, at query or counterfactual, is over 2 sd of the oracle's error on renders.
    """
    (a, da), (b, db) = oracle.read(cfs.query.float()), oracle.read(cfs.counterfactual.float())
    sd, null = (one.to(a.device) for one in (oracle.sd, oracle.null if null is None else null))
    unread = torch.maximum(da, db) > 2 * sd
    moved = ((b - a).abs() > 2 * null) & ~unread
    firm = moved & ((b - a).abs() > 2 * sd)
    return Displacement(tuple(oracle.names), b - a, moved, firm, unread, undefined(cfs))


def unread(d: Displacement) -> Tensor:
    """Share of an item's columns that the oracle could not read. [0, 1] (B,), lower is better; 0 for renders, nearly."""
    return d.unread.double().mean(1)


def used(uses: Mapping[str, Mapping[str, float]], least: float = 0.25) -> tuple[str, ...]:
    """Factors that alone flip at least this share of images; `uses` is the classifier's `card["quality"]["uses"]`."""
    return tuple(name for name, row in uses.items() if row["flips"] >= least)


def unused(uses: Mapping[str, Mapping[str, float]], most: float = 0.05) -> tuple[str, ...]:
    """Factors that change the probability by less than `most` on average."""
    return tuple(name for name, row in uses.items() if row["r"] < most)


def used_factor_moved(d: Displacement, uses: Mapping, least: float = 0.25) -> Tensor:
    """Did a factor move that the classifier uses? 1 or 0 (B,), higher is better; NaN: nothing to explain, or none was read.

    Chance is what an edit of nothing gives: some 0.05 a used column.
    """
    pairs = [d.of(name) for name in used(uses, least)]
    if not pairs:
        raise ValueError(f"uses: no factor flips a share of at least {least}")
    moved, read = (torch.stack(one).any(0) for one in zip(*pairs, strict=True))
    return torch.where(read & ~d.undefined, moved.double(), torch.nan)


def unused_factor_moved(d: Displacement, uses: Mapping, most: float = 0.05) -> Tensor:
    """Share of the factors read, among those that the classifier does not use, that moved. [0, 1] (B,), lower is better.

    An edit of nothing gives some 0.05. NaN: nothing to explain, or no such factor was read.
    """
    pairs = [d.of(name) for name in unused(uses, most)]
    if not pairs:
        raise ValueError(f"uses: no factor changes the probability by less than {most}")
    moved, read = (torch.stack(one).double().sum(0) for one in zip(*pairs, strict=True))
    return torch.where((read > 0) & ~d.undefined, moved / read.clamp(min=1), torch.nan)


def semantic_validity(
    cfs: Counterfactuals, factors: Factors, f: nn.Module, d: Displacement
) -> Tensor:
    """Does the decision still flip when the renderer makes the change that the oracle read? 1 or 0 (B,), higher is better.

    Where a column moved firmly, its displacement is added to the query's true factor, clamped to the scale; the same streams
    render again. An adversarial change, which moves nothing, does not survive this. 0 where the explanation is not valid; NaN
    where there was nothing to explain. Its ceiling is what the true counterfactual gets (`anchors.TrueChange`).
    """
    check(cfs, factors)
    rows = (
        (d.firm.any(1) & cfs.valid & ~d.undefined).cpu().nonzero().flatten()
    )  # where nothing moved, nothing flips
    flips = torch.zeros(len(cfs), dtype=torch.float64)
    for at in rows.split(500) if len(rows) else ():
        again = oracles.displaced(factors.take(at), d.names, d.value[at], d.firm[at])
        x = factors.world.render(again, tuple(cfs.query.shape[2:])).to(cfs.query)
        flips[at] = (predict(f, x).argmax(1) == cfs.target[at]).double().cpu()
    return torch.where(d.undefined.cpu(), torch.nan, flips)
