"""The true counterfactuals of renders: what the renderer itself would change so that this classifier decides otherwise.

They are a set: one member for each factor that alone can flip f on this image, at the explanation's own score. An explanation is
held against the member that is nearest to it, so a classifier that uses two things may be explained by either. Conventions as in
`truth`: one value an item, NaN where it is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.truth.displacement import check, undefined, used
from cf_utils.models.classifiers import predict
from cf_utils.worlds.base import Factors

Distance = Callable[
    [Tensor, Tensor], Tensor
]  # images a, b (M, 3, H, W) -> (M,), for instance LPIPS


@dataclass(frozen=True, eq=False)
class TrueSet:
    """M members for B items: member m is the query of item `item[m]` with the factor `factor[m]` alone moved to `value[m]`.

    `reached[m]`: it has the score that was asked for; else it flips f, and no place that was tried has a higher score.
    """

    item: Tensor  # (M,) int64
    factor: tuple[str, ...]
    value: Tensor  # (M,) a place on the factor's own scale
    image: Tensor = field(repr=False)  # (M, 3, H, W)
    score: Tensor  # (M,) float64, probability of the target
    reached: Tensor  # (M,) bool
    n: int  # B

    def __len__(self) -> int:
        return len(self.item)

    def table(self, factors: Factors) -> Factors:
        """The rows (M) that the members are renders of; `factors`: those of the B items."""
        table = factors.take(self.item)
        for name in dict.fromkeys(self.factor):
            own = torch.tensor([one == name for one in self.factor])
            table = table.move(name, torch.where(own, self.value, table[name]))
        return table

    def least(self, values: Tensor) -> Tensor:
        """The smallest of a value a member (M,), by item (B,); NaN where an item has no member."""
        out = values.new_full((self.n,), torch.inf).scatter_reduce(0, self.item, values, "amin")
        return out.masked_fill(out.isinf(), torch.nan)


def true_counterfactuals(
    cfs: Counterfactuals,
    factors: Factors,
    f: nn.Module,
    uses: Mapping,
    least: float = 0.05,
    **settings,
) -> TrueSet:
    """The set at each explanation's own score, or at 0.5 where the explanation failed. An item that was the target already has
    no member. Tried are the factors that flip at least a share `least` of images in the classifier's card (`uses`);
    `settings` as in `search`, which says how."""
    check(cfs, factors)
    rows = (~undefined(cfs)).cpu().nonzero().flatten()
    return search(cfs.query, cfs.target, cfs.score, factors, f, used(uses, least), rows, **settings)


def search(
    query: Tensor,
    target: Tensor,
    score: Tensor,
    factors: Factors,
    f: nn.Module,
    names: Sequence[str],
    rows: Tensor | None = None,
    grid: int = 5,
    steps: int = 6,
) -> TrueSet:
    """For each item (of `rows`) and each factor of `names`, the least move along it to the probability `score` (B,) of `target`.

    Tried are `grid` places on the factor's scale. The nearest that has the score is approached by bisection: a move is known to
    its length / 2^steps. A place that flips without reaching the score is as far as that factor goes. A binary factor fades; of
    a category each level that flips is a member.
    """
    if not names:
        raise ValueError(
            "names: got none; a card in which no factor flips enough images has no true counterfactuals"
        )
    rows = torch.arange(len(query)) if rows is None else rows
    wanted = score.detach().double().cpu().clamp(0.5, 1 - 1e-6)

    def look(item: Tensor, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        x = factors.world.render(factors.take(item).move(name, value), tuple(query.shape[2:])).to(
            query
        )
        return x, predict(f, x).double().softmax(1).gather(1, target[item][:, None])[:, 0].cpu()

    none = torch.zeros(0)
    found = [(none.long(), (), none, query[:0], none.double())]
    for name in names:
        for item, value in (
            _moves(look, name, rows, wanted, factors, grid, steps) if len(rows) else ()
        ):
            x, p = look(item, name, value)
            at = (p > 0.5).nonzero().flatten()
            found.append((item[at], (name,) * len(at), value[at], x[at], p[at]))
    item, names, value, x, p = zip(*found, strict=True)
    item, p = torch.cat(item), torch.cat(p)
    return TrueSet(
        item,
        sum(names, ()),
        torch.cat(value),
        torch.cat(x),
        p,
        p >= wanted[item] - 1e-6,
        len(query),
    )


def _moves(
    look, name: str, rows: Tensor, wanted: Tensor, factors: Factors, grid: int, steps: int
) -> Iterator[tuple]:
    """(items, values) that one factor offers: one pair, or for a category one a level."""
    factor, own = factors.world.factors[factors.world.column(name)], factors.take(rows)[name]
    if factor.kind == "category":
        for level in range(len(factor.shares)):
            if len(other := rows[own != level]):
                yield other, torch.full((len(other),), float(level))
        return
    places = torch.linspace(0, 1, grid)
    score = torch.stack(
        [look(rows, name, at.expand(len(rows)))[1] for at in places], 1
    )  # (N, grid)
    able = score.amax(1) > 0.5
    rows, own, score = rows[able], own[able], score[able]
    if not len(rows):
        return
    p = wanted[rows]
    has = score >= p[:, None]
    near = torch.where(has, (places - own[:, None]).abs(), torch.inf).argmin(1)
    yes, no = places[torch.where(has.any(1), near, score.argmax(1))], own.clone()
    some = has.any(1).nonzero().flatten()
    for _ in range(steps if len(some) else 0):
        middle = (yes[some] + no[some]) / 2
        up = look(rows[some], name, middle)[1] >= p[some]
        yes[some], no[some] = torch.where(up, middle, yes[some]), torch.where(up, no[some], middle)
    yield rows, yes


def euclid(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm((a - b).double().flatten(1), dim=1)


def member_regions(members: TrueSet, factors: Factors) -> Tensor:
    """Where a member truly differs from its query: the noise-free change of some channel is over 2 standard deviations of the
    camera's noise. Bool (M, 1, H, W)."""
    size, world, parts = tuple(members.image.shape[2:]), factors.world, [members.image[:0, :1] > 0]
    items = members.item.unique()
    if len(items):
        clean = world.render(factors.take(items), size, noise=False)
        table, of = members.table(factors), torch.searchsorted(items, members.item)
    for at in torch.arange(len(members)).split(500) if len(items) else ():
        change = (
            (world.render(table.take(at), size, noise=False) - clean[of[at]])
            .abs()
            .amax(1, keepdim=True)
        )
        parts.append(
            (change > 2 * world.noise_sd(table.take(at))[:, None, None, None]).to(
                members.image.device
            )
        )
    return torch.cat(parts)


def true_region(members: TrueSet, regions: Tensor) -> Tensor:
    """Where any member of an item differs from its query, bool (B, 1, H, W): it does not depend on the explanation, so that maps
    of several methods are held against one region. Empty where an item has no member."""
    out = torch.zeros(members.n, *regions.shape[1:], dtype=torch.int64)
    at = members.item[:, None, None, None].expand(regions.shape)
    return out.scatter_reduce(0, at, regions.cpu().long(), "amax").bool()


def decisive(
    members: TrueSet, regions: Tensor, query: Tensor, target: Tensor, f: nn.Module
) -> Tensor:
    """What of each member's region decides for this classifier: its connected parts (eight neighbours), pasted from the member
    into the query one after the other, that which gives the target the highest probability alone first, until f decides for it.

    query (B, C, H, W), target (B,). Returns bool (M, 1, H, W); the whole region where even all of it does not turn f. A person
    who crosses is missing in one place and there in another: a classifier may need only one of them.
    """
    out = regions.clone()
    for m, (x, image, t) in enumerate(
        zip(query[members.item], members.image, target[members.item], strict=True)
    ):
        label, n = ndimage.label(regions[m, 0].cpu().numpy(), structure=np.ones((3, 3)))
        parts = (
            torch.from_numpy(label).to(x.device)[None, None]
            == torch.arange(1, n + 1, device=x.device)[:, None, None, None]
        )

        def turned(kept: Tensor, x=x, image=image, t=t) -> Tensor:
            return predict(f, torch.where(kept, image, x)).double().softmax(1)[:, t]

        if n > 1:
            sofar = (
                parts[turned(parts).argsort(descending=True)].cumsum(0) > 0
            )  # (n, 1, H, W): the first, two, ...
            enough = (turned(sofar) > 0.5).nonzero().flatten()
            out[m] = sofar[enough[0] if len(enough) else n - 1].to(out.device)
    return out


def true_gain(
    cfs: Counterfactuals,
    members: TrueSet,
    regions: Tensor | None = None,
    distance: Distance = euclid,
) -> Tensor:
    """1 - min over the set of d(counterfactual, member) / d(query, member). (B,), (-inf, 1], higher is better.

    1: a true counterfactual; 0: as far from all as the query was, no change among them; negative: harm. NaN: none differs.
    `distance`: Euclidean over all values where it is not given. `regions` (of `member_regions`): pixels outside a member's region
    are taken from the member on both sides, so only those inside count.
    """
    query, cf = cfs.query[members.item], cfs.counterfactual[members.item]
    if regions is not None:
        query, cf = (torch.where(regions, x, members.image) for x in (query, cf))
    before = distance(
        query, members.image
    )  # 0: a region of no pixel, in which there is nothing to gain
    ratio = torch.where(before > 0, distance(cf, members.image) / before, torch.inf)
    return 1 - members.least(ratio.double().cpu())


def change_map(cfs: Counterfactuals) -> Tensor:
    """|counterfactual - query| summed over channels (B, H, W)."""
    return (cfs.counterfactual - cfs.query).abs().sum(1)


def area(region: Tensor) -> Tensor:
    """Share of pixels (B,) in the region (B, 1, H, W): what a map without any knowledge has inside; NaN where it is empty."""
    share = region.flatten(1).double().mean(1)
    return torch.where(share > 0, share, torch.nan)


def share_inside(maps: Tensor, region: Tensor) -> Tensor:
    """Share of a map's sum (B, H, W; not negative: an amount of change, a saliency) inside the region. [0, 1] (B,), higher is
    better, beside `area`. NaN: an empty map or region."""
    values, inside = maps.flatten(1).double(), region.flatten(1).to(maps.device)
    if (values < 0).any():
        raise ValueError(
            "maps: negative values, expected amounts (take the absolute value of a signed map)"
        )
    total = values.sum(1)
    share = (values * inside).sum(1) / total
    return torch.where((total > 0) & inside.any(1), share, torch.nan)


def pixel_auroc(maps: Tensor, region: Tensor, beside: Tensor | None = None) -> Tensor:
    """Probability that a pixel inside the region has a higher value than one outside, ties half. [0, 1] (B,), 0.5 is chance.
    NaN: a region that is empty or everything. Maps (B, H, W), finite, of any sign. What lies in `beside`, a region, too, and not
    inside counts on neither side."""
    inside = region.flatten(1).cpu()
    neither = torch.zeros_like(inside) if beside is None else beside.flatten(1).cpu() & ~inside
    values = maps.flatten(1).double().cpu().masked_fill(neither, -torch.inf)
    rank = torch.from_numpy(rankdata(values.numpy(), axis=1)) - neither.sum(
        1, keepdim=True
    )  # they hold the lowest ranks
    n, m = inside.sum(1).double(), (~inside & ~neither).sum(1).double()
    score = ((rank * inside).sum(1) - n * (n + 1) / 2) / (n * m)
    return torch.where((n > 0) & (m > 0), score, torch.nan)
