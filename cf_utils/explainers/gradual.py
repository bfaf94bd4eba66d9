"""Counterfactuals by gradual construction: unmask one block, optimise all unmasked values, repeat.

Source: Jung, Kang, Kim, Won & Lee, "Counterfactual Explanation Based on Gradual Construction for
Deep Networks", Pattern Recognition 2022: Algorithm 1 with

    x' = (1 - M) x + M C                                              Eq. 1
    next block: the largest |d f_t(x) / d x|                          Eq. 5, masking step
    C = argmin ||z(x') - mean z||_2 + lam ||x' - x||_2 + eta TV(x')   Eqs. 7, 8, composition step

Here z are logits, and mean z is their mean over training inputs that are classified as t.

Decisions where the text leaves room:
* The norm of Eq. 7 is that of the class vector. As printed, the loss depends only on the sum of the
  logits, which softmax ignores; `term="literal"` gives that form. `term="log_probability"` and
  `term="probability"` give Eq. 12.
* Blocks are ranked by |d log f_t / d x|. This is the order of Eq. 5 without its underflow.
* Each composition step restarts Adam and continues from the values found so far; `restart=True`
  begins from the initial composite again.
* The noise of the composite depends on the seed alone, so equal queries get equal results.
* `patience` ends a composition step once its loss is flat, whatever the score. The path therefore
  does not depend on tau, and `truncate_at_tau` can read off the result for a lower tau.
* With constraints, the classifier sees the allowed point nearest to x'. Its gradient there is
  applied to x' (straight-through).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from cf_utils.core import (
    NAN,
    Explainer,
    Ids,
    PassCounter,
    SearchResult,
    block_index,
    block_mean,
    item_noise,
    target_score,
)
from cf_utils.explainers.shared.construction import AdamState, Record, State, bounds_like
from cf_utils.explainers.shared.objective import TERMS, class_term, proximity_term
from cf_utils.explainers.shared.prototypes import warn_of_weak_prototypes
from cf_utils.explainers.shared.ranking import Blocks, choose_block, rank_by_gradient, rank_by_probe
from cf_utils.explainers.shared.search import FoldedAdam, per_item

CHOICES = {
    "term": TERMS,
    "init": ("normal", "uniform", "query"),
    "noise": ("common", "item"),
    "ranking": ("once", "each", "probe"),
}
PULLS = ("logits", "mean_abs")  # class terms that are lowest at the prototype


@dataclass(frozen=True, eq=False)
class GradualConstruction(Explainer):
    """Change few blocks of x, so that its logits approach the mean logits of the target class.

    x (B, ...) has any shape; the total variation applies to images (B, C, H, W). The defaults are
    the paper's for images of 28 x 28. Without `clamp`, values may leave `bounds`.
    `path` holds the state after each composition step, `mask` the unmasked elements.
    """

    prototypes: Tensor = field(repr=False)  # (K, K) mean logits per class: `mean_logits`
    _: KW_ONLY
    tau: float = 0.9  # wanted probability; the search goes on until it is reached
    steps: int = 1000  # Adam steps per composition step (sigma)
    lr: float = 0.1
    lam: float = 0.3  # weight of ||x' - x||_2
    eta: float = 0.3  # weight of the total variation
    beta: float = 2.0  # its exponent
    block: tuple[int, ...] = (4, 4)  # block size in the last dimensions; -1: a whole one
    max_blocks: int | None = None  # the most blocks to unmask; None: all
    term: str = "logits"  # class term, one of objective.TERMS
    init: str = "normal"  # initial composite: normal, uniform (within bounds) or query
    noise: str = "common"  # of the composite. common: the same for all items; item: by id
    ranking: str = "once"  # once: gradient at the query; each: at each step; probe: by trial
    restart: bool = False  # begin each composition step from the initial composite
    clamp: bool = False  # keep x' within bounds
    patience: int | None = None  # Adam steps without progress that end a composition step
    flat: float = 0.01  # progress: the loss falls below its lowest value by this share

    keeps_constraints: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if the settings do not fit x or the classifier's logits for it."""
        k = logits.shape[1]
        if tuple(self.prototypes.shape) != (k, k) or not self.prototypes.isfinite().all():
            raise ValueError(
                f"prototypes: got {tuple(self.prototypes.shape)}, expected finite ({k}, {k}) for "
                "this classifier; compute them with mean_logits"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        for name in ("steps", "max_blocks", "patience"):
            if (got := getattr(self, name)) is not None and got < 1:
                raise ValueError(f"{name}: got {got}, expected at least 1")
        if self.lr <= 0:
            raise ValueError(f"lr: got {self.lr}, expected a positive number")
        block_index(x.shape[1:], self.block)
        if self.ranking == "probe" and self.constraints is None:
            raise ValueError(
                "ranking: got 'probe', which tries values inside constraints; pass constraints"
            )
        if self.bounds is None and (self.clamp or self.init == "uniform"):
            raise ValueError(
                "bounds: got None, expected a range for clamp=True or init='uniform'; pass bounds"
            )

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Run Algorithm 1. Items at different steps share each pass of the classifier."""
        state = self._start(f, x, target, ids)
        self._warn_if_weak(state, tau)
        n_blocks = state.blocks[1]
        record = Record.empty(x, min(self.max_blocks or n_blocks, n_blocks))
        while len(state):
            state.ended = self._find_ended(state)
            some_ended = bool(state.ended.any())  # a GPU synchronises only here
            logits, loss = self._evaluate(f, state, some_ended or self.patience is not None)
            if some_ended:
                self._look_at_score(state, record, logits, ~loss.isfinite(), tau)
                self._masking_step(f, state)
            self._composition_step(state)
        return record.to_result()

    def _start(self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids) -> AdamState:
        """Return the state before the first masking step."""
        rows, bounds = torch.arange(len(x)), bounds_like(self.bounds, x)
        index, n_blocks = block_index(x.shape[1:], self.block)
        blocks = index.to(x.device), n_blocks
        fixed = self._find_fixed_blocks(x, blocks)
        order = torch.zeros_like(fixed, dtype=torch.int64)
        if self.ranking == "once":
            rank = rank_by_gradient(f, x, target, rows, blocks).masked_fill(fixed, -torch.inf)
            order = rank.argsort(dim=1, descending=True, stable=True)
        adam = FoldedAdam(x, self.lr, self.steps)
        adam.count.fill_(self.steps)  # as if a composition step had ended
        return AdamState(
            rows=rows,
            query=x,
            target=target,
            prototype=self.prototypes.to(x)[target],
            composite=self._draw_composite(x, ids, bounds),
            fixed=fixed,
            budget=(~fixed).sum(1).clamp(max=self.max_blocks or n_blocks),
            order=order,
            adam=adam,
            blocks=blocks,
            bounds=bounds,
        )

    def _find_ended(self, state: AdamState) -> Tensor:
        """Return whose composition step has ended, (B,) bool."""
        ended = state.adam.count >= self.steps
        return ended if self.patience is None else ended | (state.since >= self.patience)

    def _evaluate(self, f: PassCounter, state: AdamState, with_loss: bool) -> tuple[Tensor, Tensor]:
        """Set `point` and `gradient`; return logits (B, K) and the loss (B,), see `_loss`."""
        point = self.snap(state.z, state.query).requires_grad_(True)
        logits = f(point, state.rows)
        state.z, state.point = state.z.detach(), point.detach()
        x, mean, t, out = state.query, state.prototype, state.target, state.gradient
        loss, by_logits, state.gradient = self._loss(
            logits.detach(), state.point, x, mean, t, out=out, with_value=with_loss
        )
        state.gradient += f.grad(logits, point, by_logits)
        if self.patience is not None:
            margin = self.flat * state.lowest.abs().nan_to_num(posinf=0.0)
            lower = loss < state.lowest - margin
            state.lowest = torch.where(lower, loss, state.lowest)
            state.since = torch.where(lower, 0, state.since + 1)
        return logits.detach(), loss

    def _look_at_score(
        self, state: State, record: Record, logits: Tensor, nan: Tensor, tau: float
    ) -> None:
        """Record the ended composition steps; items leave at tau, on NaN, or without budget.

        `logits` (B, K) are those of the states; `nan`, bool (B,), marks items to count as failed.
        """
        started, spent = state.n_unmasked > 0, state.n_unmasked >= state.budget
        hit = started & (logits.argmax(1) == state.target)
        hit &= target_score(logits, state.target) >= tau
        at = (state.ended & started).nonzero().flatten()
        changed = (state.mask[at] > 0) & ~per_item(nan[at], state.query)
        states = torch.where(changed, state.point[at], state.query[at])  # elsewhere x to the bit
        record.path[state.rows[at.cpu()], state.n_unmasked[at] - 1] = states
        state.write(record.counterfactual, states, at)
        leave = state.ended & (hit | (nan & started) | spent)
        if leave.any():
            record.finish(state, leave, self._list_reasons(state, leave, hit, nan, tau))

    def _masking_step(self, f: PassCounter, state: AdamState) -> None:
        """Unmask the next block of the items whose composition step has ended."""
        at = state.ended.nonzero().flatten()
        if not len(at):
            return
        index, n = state.blocks[0], state.n_unmasked[at]
        if self.ranking != "once":
            state.order[at, n] = self._choose_block(f, state, at)
        new = index == state.order[at, n].view(-1, *[1] * index.ndim)
        state.mask[at] += new
        fresh = state.mask[at] > 0 if self.restart else new
        state.z[at] = torch.where(fresh, state.composite[at], state.z[at])
        state.n_unmasked[at] += 1
        state.lowest[at], state.since[at] = torch.inf, 0
        state.gradient[at] = 0  # it precedes the new block: Adam begins with the next pass
        state.adam.restart(at, delay=1)

    def _choose_block(self, f: PassCounter, state: AdamState, at: Tensor) -> Tensor:
        """Return the best masked block of the items at positions `at`, and set its first values."""
        item = state.point[at], state.target[at], state.rows[at.cpu()]
        closed = state.mask[at], state.fixed[at], state.blocks
        if self.ranking == "each" or self.constraints is None:
            return choose_block(rank_by_gradient(f, *item, state.blocks), *closed)
        rank, probed = rank_by_probe(f, *item, state.blocks, state.query[at], self.constraints)
        block = choose_block(rank, *closed)
        state.composite[at] = probed[torch.arange(len(at)), block]
        return block

    def _composition_step(self, state: AdamState) -> None:
        """Take one Adam step on the unmasked values."""
        state.gradient.mul_(state.mask)
        state.adam.step_(state.z, state.gradient)
        if self.clamp:
            state.z.clamp_(*state.bounds)
        if self.constraints is not None:
            low, high = self.constraints.box(state.query)
            state.z = torch.maximum(torch.minimum(state.z, high), low)

    def _loss(
        self, logits: Tensor, z: Tensor, x: Tensor, mean: Tensor, target: Tensor, **proximity: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of Eqs. 7, 8 or 12 per item, (B,), and its gradients in logits and z.

        `proximity`: arguments `out` and `with_value` of `proximity_term`.
        """
        class_value, by_logits = class_term(self.term, logits, mean, target)
        eta = self.eta if z.ndim == 4 else 0.0  # total variation is for images
        value, by_z = proximity_term(z, x, self.lam, eta, self.beta, **proximity)
        return class_value + value, by_logits, by_z

    def _draw_composite(self, x: Tensor, ids: Ids, bounds: tuple[Any, Any]) -> Tensor:
        """Return the initial composite (B, ...)."""
        if self.init == "query":
            composite = x
        else:
            kind = "normal" if self.init == "normal" else "uniform"
            names = ids if self.noise == "item" else ["common"]
            noise = item_noise(self.seed, names, x.shape[1:], "composite", kind)
            composite = noise.to(x).expand(x.shape)
            if kind == "uniform":
                composite = bounds[0] + (bounds[1] - bounds[0]) * composite
        return composite.clamp(*bounds) if self.clamp else composite.clone()

    def _find_fixed_blocks(self, x: Tensor, blocks: Blocks) -> Tensor:
        """Return which blocks the constraints keep unchanged, (B, n_blocks) bool."""
        if self.constraints is None:
            return torch.zeros(len(x), blocks[1], dtype=torch.bool, device=x.device)
        low, high = self.constraints.box(x)
        return block_mean((high > low).to(x), *blocks) == 0

    def _warn_if_weak(self, state: State, tau: float) -> None:
        """Warn if the loss pulls to a prototype that scores below tau."""
        if self.term in PULLS:
            scores = target_score(state.prototype, state.target)
            warn_of_weak_prototypes(scores, state.target, tau, stacklevel=5)

    def _list_reasons(
        self, state: State, leave: Tensor, hit: Tensor, nan: Tensor, tau: float
    ) -> list[str]:
        """Return the failure reason of each item that leaves, "" where tau is reached."""
        scores = target_score(state.prototype, state.target)
        columns = (v[leave].tolist() for v in (hit, nan, state.n_unmasked, scores))
        return [
            NAN if is_nan else "" if is_hit else self._explain_failure(n, score, tau)
            for is_hit, is_nan, n, score in zip(*columns, strict=True)
        ]

    def _explain_failure(self, n_unmasked: int, prototype_score: float, tau: float) -> str:
        """Return why a search with `n_unmasked` unmasked blocks ended below tau."""
        if n_unmasked == 0:
            return "nothing in it may change"
        reason = f"budget of {n_unmasked} blocks spent below tau"
        if self.term in PULLS and prototype_score < tau:
            reason += f"; the mean logits score {prototype_score:.3f} themselves"
        return reason
