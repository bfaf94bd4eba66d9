"""True counterfactuals of renders: what the renderer would change so that the decision flips.

They form a set with one member for each factor that alone can flip the classifier on this image.
Members have the same score as the explanation. It is compared with the nearest member, so a
classifier that uses two factors may be explained by either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.truth.displacement import Uses, check_factors, is_undefined, used_factors
from cf_utils.models.classifiers import predict
from cf_utils.worlds import Factors

Distance = Callable[[Tensor, Tensor], Tensor]  # two sets of images (M, 3, H, W) -> (M,)
Render = Callable[[Tensor, str, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class TrueSet:
    """M members for B items: member m is the query of item `item[m]` with one factor moved.

    The factor `factor[m]` is moved to `value[m]`. If `reached[m]`, the member has the wanted score;
    otherwise it flips the decision, and no other value that was tried has a higher score.
    """

    item: Tensor  # (M,) int64
    factor: tuple[str, ...]
    value: Tensor  # (M,), on the factor's own scale
    image: Tensor = field(repr=False)  # (M, 3, H, W)
    score: Tensor  # (M,) float64, probability of the target
    reached: Tensor  # (M,) bool
    n: int  # B

    def __len__(self) -> int:
        return len(self.item)

    def member_factors(self, factors: Factors) -> Factors:
        """Return the factors (M) that render the members, from those of the B items."""
        table = factors.take(self.item)
        for name in dict.fromkeys(self.factor):
            own = torch.tensor([factor == name for factor in self.factor])
            table = table.move(name, torch.where(own, self.value, table[name]))
        return table

    def minimum(self, values: Tensor) -> Tensor:
        """Per-item minimum over members: (M,) -> (B,), NaN where an item has no member."""
        out = values.new_full((self.n,), torch.inf).scatter_reduce(0, self.item, values, "amin")
        return out.masked_fill(out.isinf(), torch.nan)


def find(
    cfs: Counterfactuals,
    factors: Factors,
    classifier: nn.Module,
    uses: Uses,
    min_flips: float = 0.05,
    grid: int = 5,
    steps: int = 6,
) -> TrueSet:
    """Find the true counterfactuals that have the explanation's score, or 0.5 where it failed.

    Items whose query was the target already have no member.

    Args:
        factors: rows that rendered the queries.
        uses: of the classifier's model card.
        min_flips: factors that flip a smaller share of images are not tried.
        grid, steps: as in `search`.
    """
    check_factors(cfs, factors)
    rows = (~is_undefined(cfs)).cpu().nonzero().flatten()
    names = used_factors(uses, min_flips)
    return search(cfs.query, cfs.target, cfs.score, factors, classifier, names, rows, grid, steps)


def search(
    query: Tensor,
    target: Tensor,
    score: Tensor,
    factors: Factors,
    classifier: nn.Module,
    names: Sequence[str],
    rows: Tensor | None = None,
    grid: int = 5,
    steps: int = 6,
) -> TrueSet:
    """Find, per item and factor, the smallest move to the wanted probability of the target.

    The nearest grid value with the wanted score is approached by bisection. If no value has it, the
    value with the highest score is the member, provided that it flips the decision. A categorical
    factor has one member for each level that flips.

    Args:
        query, target: (B, 3, H, W) and (B,) int64.
        score: (B,), wanted probabilities.
        factors: rows that rendered the queries.
        names: factors to try.
        rows: (N,) int64, items to search, default all.
        grid: number of values tried on the factor's scale.
        steps: bisections; the move is exact to its length / 2^steps.
    """
    if not names:
        raise ValueError(
            "names: got none, expected factors to try; a classifier without a factor that flips "
            "enough images has no true counterfactuals"
        )
    rows = torch.arange(len(query)) if rows is None else rows
    wanted = score.detach().double().cpu().clamp(0.5, 1 - 1e-6)
    render = partial(_render, query, target, factors, classifier)
    items, found_names, values = [torch.zeros(0).long()], [], [torch.zeros(0)]
    images, scores = [query[:0]], [torch.zeros(0).double()]
    for name in names:
        moves = _moves(render, name, rows, wanted, factors, grid, steps) if len(rows) else ()
        for item, value in moves:
            x, p = render(item, name, value)
            at = (p > 0.5).nonzero().flatten()
            items.append(item[at])
            found_names += [name] * len(at)
            values.append(value[at])
            images.append(x[at])
            scores.append(p[at])
    item, p = torch.cat(items), torch.cat(scores)
    return TrueSet(
        item=item,
        factor=tuple(found_names),
        value=torch.cat(values),
        image=torch.cat(images),
        score=p,
        reached=p >= wanted[item] - 1e-6,
        n=len(query),
    )


def _render(
    query: Tensor,
    target: Tensor,
    factors: Factors,
    classifier: nn.Module,
    item: Tensor,
    name: str,
    value: Tensor,
) -> tuple[Tensor, Tensor]:
    """Render items with one factor moved; return the images and the target's probability."""
    moved = factors.take(item).move(name, value)
    x = factors.world.render(moved, (query.shape[2], query.shape[3])).to(query)
    p = predict(classifier, x).double().softmax(1).gather(1, target[item][:, None])[:, 0]
    return x, p.cpu()


def _moves(
    render: Render,
    name: str,
    rows: Tensor,
    wanted: Tensor,
    factors: Factors,
    grid: int,
    steps: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (items, values) to try for one factor; a categorical factor yields once per level."""
    factor = factors.world.factors[factors.world.column(name)]
    own = factors.take(rows)[name]
    if factor.kind == "category":
        for level in range(len(factor.shares)):
            if len(other := rows[own != level]):
                yield other, torch.full((len(other),), float(level))
        return
    places = torch.linspace(0, 1, grid)
    scores = [render(rows, name, at.expand(len(rows)))[1] for at in places]
    score = torch.stack(scores, 1)  # (N, grid)
    flips = score.amax(1) > 0.5
    rows, own, score = rows[flips], own[flips], score[flips]
    if not len(rows):
        return
    p = wanted[rows]
    has = score >= p[:, None]
    nearest = torch.where(has, (places - own[:, None]).abs(), torch.inf).argmin(1)
    yes, no = places[torch.where(has.any(1), nearest, score.argmax(1))], own.clone()
    some = has.any(1).nonzero().flatten()
    for _ in range(steps if len(some) else 0):
        middle = (yes[some] + no[some]) / 2
        up = render(rows[some], name, middle)[1] >= p[some]
        yes[some] = torch.where(up, middle, yes[some])
        no[some] = torch.where(up, no[some], middle)
    yield rows, yes


def euclidean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance per item over all values. (M,) float64."""
    return torch.linalg.vector_norm((a - b).double().flatten(1), dim=1)


def true_gain(
    cfs: Counterfactuals,
    members: TrueSet,
    regions: Tensor | None = None,
    distance: Distance = euclidean_distance,
) -> Tensor:
    """1 - min over members of d(counterfactual, member) / d(query, member). Higher is better.

    Range (-inf, 1]: 1 for a true counterfactual, 0 for no change, negative if the explanation is
    further from all members than the query was.

    Args:
        regions: (M, 1, H, W) of `localization.member_regions`; only pixels inside them count.
        distance: images (M, 3, H, W) x 2 -> (M,).

    Returns: (B,) float64, NaN where no member differs from the query.
    """
    query, cf = cfs.query[members.item], cfs.counterfactual[members.item]
    if regions is not None:
        query, cf = (torch.where(regions, x, members.image) for x in (query, cf))
    before = distance(query, members.image)  # 0 for an empty region
    ratio = torch.where(before > 0, distance(cf, members.image) / before, torch.inf)
    return 1 - members.minimum(ratio.double().cpu())
