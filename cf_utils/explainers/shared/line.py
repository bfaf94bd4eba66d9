"""Search along straight lines in a latent space for the amount that gives a wanted probability."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils.core import PassCounter, target_score
from cf_utils.explainers.shared.latent import LatentPasses, walk
from cf_utils.explainers.shared.search import per_item

GROWTH = 2.0  # factor between two amounts while no amount is enough


class Look(NamedTuple):
    """What the classifier says at one point of each line."""

    output: Tensor  # (R, ...), the decoded point
    score: Tensor  # (R,), probability of the target
    reached: Tensor  # (R,) bool
    finite: Tensor  # (R,) bool: all logits are finite


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines code + amount * direction, amount >= 0, with what is wanted on each of them.

    An item may have several lines. Passes of decoder and classifier are counted per item.
    """

    f: PassCounter
    generator: LatentPasses
    items: Tensor  # int64 (P,) on the CPU, the item of each line
    code: Tensor  # (P, *latent_shape)
    direction: Tensor  # (P, *latent_shape)
    target: Tensor  # int64 (P,)
    wanted: Tensor  # (P,), least probability of the target
    decided: bool = True  # whether the target must also be the classifier's decision

    @torch.no_grad()
    def look(self, amount: Tensor, at: Tensor) -> Look:
        """Decode and classify the points at `amount` (R,) on the lines `at`, int64 (R,)."""
        z = self.code[at] + per_item(amount, self.code) * self.direction[at]
        items = self.items[at.cpu()]
        output = self.generator.decode(z, items)
        return self.judge(output, self.f(output, items), at)

    def judge(self, output: Tensor, logits: Tensor, at: Tensor) -> Look:
        """Return what logits (R, K) of `output` say about the lines `at`."""
        target, finite = self.target[at], logits.isfinite().all(1)
        score = target_score(logits, target)
        reached = finite & (score >= self.wanted[at])
        if self.decided:
            reached &= logits.argmax(1) == target
        return Look(output, score, reached, finite)


@dataclass(frozen=True, eq=False)
class Amounts:
    """Amounts found on P lines, with the decoded points.

    A line that does not reach what is wanted holds the visited point with the highest score.
    """

    amount: Tensor  # (P,)
    output: Tensor  # (P, ...)
    score: Tensor  # (P,), probability of the target; NaN if no visited point had finite logits
    reached: Tensor  # (P,) bool

    def record(self, look: Look, amount: Tensor, at: Tensor) -> None:
        """Keep the points that reach what is wanted, or else have the highest score so far.

        A point that reaches it replaces every earlier point, so amounts must fall from then on.
        """
        higher = look.finite & ~self.reached[at] & ~(look.score <= self.score[at])
        keep = look.reached | higher
        rows = at[keep]
        self.amount[rows], self.output[rows] = amount[keep], look.output[keep]
        self.score[rows], self.reached[rows] = look.score[keep], look.reached[keep]


def start(look: Look) -> Amounts:
    """Return the result of looking at amount 0 of every line."""
    return Amounts(
        amount=torch.zeros_like(look.score),
        output=look.output.clone(),
        score=look.score.masked_fill(~look.finite, torch.nan),
        reached=look.reached.clone(),
    )


def search_amounts(
    lines: Lines, found: Amounts, first: Tensor, most: Tensor, halvings: int
) -> Amounts:
    """Search each line for the smallest amount that reaches what is wanted; fill in `found`.

    From `first` on, the amount doubles until it is enough or equals `most`. Then `halvings` steps
    of bisection follow, between that amount and the last one that was not enough. A line is left
    alone if it is done at amount 0, has `most` 0, or meets logits that are not finite.

    Args:
        found: result at amount 0, from `start`.
        first, most: amounts (P,); `first` is at least most / 2^20 here.
    """
    low, high = torch.zeros_like(most), torch.full_like(most, torch.inf)
    at = (~found.reached & found.score.isfinite() & (most > 0)).nonzero().flatten()
    amount = torch.minimum(torch.maximum(first, most / 2**20), most)[at]
    while len(at):
        look = lines.look(amount, at)
        found.record(look, amount, at)
        high[at[look.reached]] = amount[look.reached]
        go_on = ~look.reached & look.finite & (amount < most[at])
        at, amount = at[go_on], amount[go_on]
        low[at] = amount
        amount = torch.minimum(GROWTH * amount, most[at])
    return bisect(lines, found, low, high, halvings)


def bisect(lines: Lines, found: Amounts, low: Tensor, high: Tensor, halvings: int) -> Amounts:
    """Halve the intervals (P,) from `low`, not enough, to `high`, enough; fill in `found`.

    Lines whose `high` is infinite are left alone. `found` must hold the points at `high`.
    """
    at = high.isfinite().nonzero().flatten()
    low, high = low[at], high[at]
    for _ in range(halvings if len(at) else 0):
        middle = (low + high) / 2
        look = lines.look(middle, at)
        found.record(look, middle, at)
        low, high = torch.where(look.reached, low, middle), torch.where(look.reached, middle, high)
    return found


def split_line(
    lines: Lines, begin: Look, ends: Amounts, steps: int, by: str, halvings: int
) -> Tensor:
    """Return steps + 1 states from amount 0 to the amount of `ends`, (B, steps + 1, ...).

    Args:
        lines: one line per item, in the order of the items.
        begin: the look at amount 0.
        by: "amount": equal steps of amount; "score": equal steps of the target's probability, each
            found by bisection between amount 0 and that of `ends`.
    """
    n, n_between = len(ends.amount), steps - 1
    if not n_between:
        return torch.stack([begin.output, ends.output], 1)
    share = torch.arange(1, steps, device=ends.amount.device).to(ends.amount) / steps
    if by == "amount":
        sizes = ends.amount[:, None] * share
        between = walk(lines.generator, lines.code, lines.direction, sizes, lines.items)
    else:
        wanted = begin.score[:, None] + share * (ends.score - begin.score)[:, None]
        points = replace(
            lines,
            items=lines.items.repeat_interleave(n_between),
            code=lines.code.repeat_interleave(n_between, 0),
            direction=lines.direction.repeat_interleave(n_between, 0),
            target=lines.target.repeat_interleave(n_between),
            wanted=wanted.flatten(),
            decided=False,
        )
        names = ("amount", "output", "score", "reached")
        inside = Amounts(*(getattr(ends, k).repeat_interleave(n_between, 0) for k in names))
        high = inside.amount.masked_fill(inside.amount == 0, torch.inf)
        bisect(points, inside, torch.zeros_like(high), high, halvings)
        between = inside.output.unflatten(0, (n, n_between))
    return torch.cat([begin.output[:, None], between, ends.output[:, None]], 1)


class Progression(NamedTuple):
    """One image per item and wanted probability of class 1; all tensors are on the CPU."""

    images: Tensor  # (B, K, ...)
    actual: Tensor  # (B, K), probability of class 1 at the images
    reached: Tensor  # (B, K) bool: at least as far from the start as wanted


def make_progression(
    f: PassCounter,
    generator: LatentPasses,
    code: Tensor,
    begin: tuple[Tensor, Tensor],
    expected: Tensor,
    directions: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor],
    halvings: int,
) -> Progression:
    """Move each code until class 1 of two has the expected probabilities.

    Args:
        code: (B, *latent_shape).
        begin: the decoded codes and their logits (B, 2).
        expected: wanted probabilities of class 1, (B, K).
        directions: towards class 0 and towards class 1, (B, *latent_shape) each.
        limits: first and largest amount per item and wanted probability, (B, K) each.
    """
    n, k = expected.shape
    output, logits = begin
    rows = torch.arange(n, device=code.device).repeat_interleave(k)
    up = expected > logits.softmax(1)[:, 1:]
    target = up.flatten().long()
    direction = torch.where(per_item(up.flatten(), code), directions[1][rows], directions[0][rows])
    wanted = torch.where(up, expected, 1 - expected).flatten()
    lines = Lines(f, generator, rows.cpu(), code[rows], direction, target, wanted, decided=False)
    found = start(lines.judge(output[rows], logits[rows], torch.arange(n * k, device=code.device)))
    search_amounts(lines, found, limits[0].flatten(), limits[1].flatten(), halvings)
    actual = torch.where(target == 1, found.score, 1 - found.score)
    parts = (found.output, actual, found.reached)
    return Progression(*(part.unflatten(0, (n, k)).cpu() for part in parts))


def check_expected(expected: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `expected` holds probabilities (B, K) for x (B, ...)."""
    if expected.ndim != 2 or len(expected) != len(x) or not expected.is_floating_point():
        raise ValueError(
            f"expected: got {expected.dtype} {tuple(expected.shape)}, "
            f"expected float probabilities ({len(x)}, K)"
        )
    if not ((expected >= 0) & (expected <= 1)).all():
        raise ValueError(
            f"expected: got values from {expected.min():.3g} to {expected.max():.3g}, "
            "expected probabilities in [0, 1]"
        )
