"""Find amounts on lines by false position in the log-odds, for decoders that are expensive.

Along a line, the log-odds of a score are often nearly linear in the amount; false position then
needs two or three decodings where bisection needs ten. The Illinois rule (Dowell & Jarratt, 1971)
halves the value at an end that stays twice in a row, so that both ends converge.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils.explainers.shared.line import Amounts, Lines, Look

EPS = 1e-7  # distance of a score from 0 and 1, at which its log-odds are cut off


@dataclass(frozen=True, eq=False)
class TracedLines(Lines):
    """Lines that remember every point that was looked at."""

    amounts: list[Tensor] = field(default_factory=list)  # (P,) per look; infinite: not looked at
    scores: list[Tensor] = field(default_factory=list)  # (P,) per look

    def look(self, amount: Tensor, at: Tensor) -> Look:
        """Decode, classify and remember the points at `amount` (R,) on the lines `at` (R,)."""
        found = super().look(amount, at)
        self.remember(found, amount, at)
        return found

    def remember(self, found: Look, amount: Tensor, at: Tensor) -> None:
        """Add the points at `amount` (R,) on the lines `at` (R,) to the trace."""
        usable = at[found.finite]
        amounts = torch.full_like(self.wanted, torch.inf)
        scores = torch.full_like(self.wanted, torch.nan)
        amounts[usable] = amount[found.finite]
        scores[usable] = found.score[found.finite].to(scores)
        self.amounts.append(amounts)
        self.scores.append(scores)

    def bracket(self, aim: Tensor) -> Bracket:
        """Return the first two neighbouring points between which the score rises to the aim.

        aim: (P,) or (P, K), log-odds. Lines without such a pair have an infinite `high`.
        """
        aim = aim.view(len(aim), -1)  # (P, K)
        absent = torch.full_like(self.wanted, torch.inf)
        amounts, order = torch.stack([*self.amounts, absent], 1).sort(1)  # (P, V)
        scores = torch.stack([*self.scores, torch.full_like(absent, torch.nan)], 1).gather(1, order)
        away = torch.logit(scores, EPS)[:, None] - aim[:, :, None]  # (P, K, V)
        crosses = (away[..., :-1] < 0) & (away[..., 1:] >= 0)  # False at NaN
        k = crosses.long().argmax(2, keepdim=True)
        points = amounts[:, None].expand_as(away)
        low, high = points.gather(2, k)[..., 0], points.gather(2, k + 1)[..., 0]
        below, above = away.gather(2, k)[..., 0], away.gather(2, k + 1)[..., 0]
        high = high.masked_fill(~crosses.any(2), torch.inf)
        return Bracket(*(value.flatten() for value in (low, high, below, above)))


class Bracket(NamedTuple):
    """Intervals of amounts, with the log-odds minus the aim at their ends."""

    low: Tensor  # (P,)
    high: Tensor  # (P,), infinite where there is none
    below: Tensor  # (P,), < 0
    above: Tensor  # (P,), >= 0


def aim_of(wanted: Tensor, tolerance: float) -> Tensor:
    """Return the log-odds to aim at, so that the score ends between wanted and wanted + tolerance.

    It is the middle of that interval, or of the one between `wanted` and 1 if that is shorter.
    """
    aim = torch.minimum(wanted + tolerance / 2, (1 + wanted) / 2)
    return torch.logit(aim, EPS)


def refine(lines: Lines, found: Amounts, bracket: Bracket, steps: int, tolerance: float) -> Amounts:
    """Narrow the brackets until the scores are at most `tolerance` above `lines.wanted`.

    Args:
        found: a point of each line that reaches what is wanted; filled in with nearer ones.
        bracket: of the log-odds `aim_of(lines.wanted, tolerance)`.
        steps: the most points per line.
    """
    aim = aim_of(lines.wanted, tolerance)
    low, high, below, above = (value.clone() for value in bracket)
    stayed = torch.zeros_like(low)  # -1: the lower end moved last, 1: the upper end
    at = high.isfinite().nonzero().flatten()
    for _ in range(steps):
        at = at[found.score[at] > lines.wanted[at] + tolerance]
        if not len(at):
            break
        share = below[at] / (below[at] - above[at])
        middle = low[at] + share * (high[at] - low[at])
        look = lines.look(middle, at)
        found.record(look, middle, at)
        away = torch.logit(look.score.to(aim), EPS) - aim[at]
        up, down = at[away >= 0], at[away < 0]
        below[up] *= torch.where(stayed[up] == 1, 0.5, 1.0).to(below)
        above[down] *= torch.where(stayed[down] == -1, 0.5, 1.0).to(above)
        high[up], above[up], stayed[up] = middle[away >= 0], away[away >= 0], 1
        low[down], below[down], stayed[down] = middle[away < 0], away[away < 0], -1
        at = at[look.finite]
    return found


def split_by_score(
    lines: TracedLines, begin: Look, ends: Amounts, parts: int, steps: int, tolerance: float
) -> Tensor:
    """Return parts + 1 states whose scores rise in equal steps, (P, parts + 1, ...).

    Args:
        lines: one line per item, with the trace of the search for `ends`.
        begin: the look at amount 0.
        parts: equal steps of the score between `begin` and `ends`.
        steps, tolerance: as for `refine`; a score is at most tolerance / 2 off.
    """
    n, between = len(ends.amount), parts - 1
    if not between:
        return torch.stack([begin.output, ends.output], 1)
    share = torch.arange(1, parts, device=ends.amount.device).to(ends.score) / parts
    scores = begin.score[:, None] + share * (ends.score - begin.score)[:, None]  # (P, parts - 1)
    wanted = (scores - tolerance / 2).clamp(min=0)
    points = Lines(
        lines.f,
        lines.generator,
        lines.items.repeat_interleave(between),
        *(v.repeat_interleave(between, 0) for v in (lines.code, lines.direction, lines.target)),
        wanted=wanted.flatten(),
        decided=False,
    )
    names = ("amount", "output", "score", "reached")
    inside = Amounts(*(getattr(ends, k).repeat_interleave(between, 0) for k in names))
    bracket = lines.bracket(aim_of(wanted, tolerance))
    moved = inside.amount > 0
    bracket = bracket._replace(high=bracket.high.masked_fill(~moved, torch.inf))
    inside = replace(inside, reached=moved)
    refine(points, inside, bracket, steps, tolerance)
    states = inside.output.unflatten(0, (n, between))
    return torch.cat([begin.output[:, None], states, ends.output[:, None]], 1)
