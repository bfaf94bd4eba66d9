"""Gradual construction on words: one block per word, and a counterfactual made of real words.

Source: Jung et al. (see `gradual.py`), section 4.2. The composite is optimised in the space of word
vectors. Each changed word is then replaced by the nearest word of the vocabulary. A result's
`score`, `valid` and `reached` are those after the replacement; `path` holds the states before it.

Decisions:
* `compose="embedding"` is the paper's form. Its optimum is often a small move away from a word,
  which the replacement undoes.
* `compose="vocabulary"` never leaves the vocabulary. Masking step: for each position, find the
  vocabulary word with the largest first-order gain; unmask the position where it is largest.
  Composition step: visit each unmasked position, the new one first. Compute Eq. 7 for the
  `shortlist` words of largest first-order gain, and keep the best one if it lowers the loss.
* A max-pooled classifier may ignore the initial noise at a position. The class term then has no
  gradient there, and lam pulls the word back to the query. `init="query"` starts at the query.
* Zero vectors are padding and are never unmasked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cf_utils.core import Counterfactuals, Ids, PassCounter, SearchResult, item_noise
from cf_utils.explainers.gradual import GradualConstruction
from cf_utils.explainers.shared.construction import Record, State
from cf_utils.explainers.shared.ranking import Blocks

CHUNK = 2**24  # most elements of an intermediate tensor; limits the memory


def find_nearest(points: Tensor, table: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the number of the row of `table` (V, d) nearest to each of points (N, d), int64 (N,).

    `metric`: euclidean or cosine. Ties go to the first row.
    """
    if metric == "cosine":
        points, table = (F.normalize(t, dim=1) for t in (points, table))
    rows = [torch.zeros(0, dtype=torch.int64, device=points.device)]
    for part in points.split(max(1, CHUNK // len(table))) if len(points) else ():
        near = torch.cdist(part, table).topk(min(8, len(table)), dim=1, largest=False).indices
        near = near.sort(1).values
        exact = torch.linalg.vector_norm(part[:, None] - table[near], dim=2)  # cdist is inexact
        rows.append(near.gather(1, exact.argmin(1, keepdim=True))[:, 0])
    return torch.cat(rows)


def list_replacements(cfs: Counterfactuals, table: Tensor) -> list[list[tuple[int, int, int]]]:
    """Return (position, row of the old word, row of the new word) per changed word, per item.

    Rows are those of `table` (V, d), the vocabulary's vectors.
    """
    changed = (cfs.counterfactual != cfs.query).any(2)
    item, position = changed.nonzero(as_tuple=True)
    old, new = (
        find_nearest(x[item, position], table.to(x)).tolist()
        for x in (cfs.query, cfs.counterfactual)
    )
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(len(cfs))]
    for i, *replacement in zip(item.tolist(), position.tolist(), old, new, strict=True):
        out[i].append(tuple(replacement))
    return out


def last_vectors(cfs: Counterfactuals) -> Tensor:
    """Return the vectors (B, L, d) that the search ended with, before words replaced them."""
    if cfs.path is None or cfs.path_len is None:
        raise ValueError("cfs: got a result without a path, expected one of GradualWords")
    return cfs.path[torch.arange(len(cfs)), cfs.path_len - 1]


def replace_by_words(cfs: Counterfactuals, table: Tensor, metric: str = "euclidean") -> Tensor:
    """Return `last_vectors`, each moved vector replaced by its nearest row of `table` (V, d)."""
    last = last_vectors(cfs)
    moved = (last != cfs.query).any(2)
    last[moved] = table[find_nearest(last[moved], table, metric)]
    return last


@dataclass(frozen=True, eq=False, kw_only=True)
class GradualWords(GradualConstruction):
    """Change few words of a text, so that its logits approach the mean logits of the target class.

    x (B, L, d) holds word vectors, zero after the last word. The defaults are the paper's.
    """

    vectors: Tensor = field(repr=False)  # (V, d), words that may stand in a counterfactual
    steps: int = 500
    block: tuple[int, ...] = (1, -1)
    bounds: tuple[Any, Any] | None = None
    compose: str = "embedding"  # embedding: among vectors, then nearest word; vocabulary: words
    metric: str = "euclidean"  # of the nearest word: euclidean or cosine
    shortlist: int = 20  # words per position for which Eq. 7 is computed

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if the settings do not fit x or the classifier's logits for it."""
        if self.init == "uniform":
            raise ValueError(
                "init: got 'uniform', expected 'normal' or 'query': word vectors have no range"
            )
        super().check(x, logits)
        if x.ndim != 3 or self.vectors.ndim != 2 or self.vectors.shape[1] != x.shape[2]:
            raise ValueError(
                f"vectors: got {tuple(self.vectors.shape)} for x of shape {tuple(x.shape)}, "
                "expected (V, d) for x (B, L, d)"
            )
        for name, known in (
            ("compose", ("embedding", "vocabulary")),
            ("metric", ("euclidean", "cosine")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        if not 1 <= self.shortlist <= len(self.vectors):
            raise ValueError(
                f"shortlist: got {self.shortlist}, expected 1 to {len(self.vectors)}, the size of "
                "the vocabulary"
            )

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Run Algorithm 1 among real words, or among vectors with a replacement at the end."""
        if self.compose == "vocabulary":
            return self._search_vocabulary(f, x, target, tau)
        found = super().search(f, x, target, ids, tau)
        words, moved = self.vectors.to(x), (found.counterfactual != x).any(2)
        real = found.counterfactual.clone()
        real[moved] = words[find_nearest(real[moved], words, self.metric)]
        found.counterfactual = real
        return found

    def _search_vocabulary(
        self, f: PassCounter, x: Tensor, target: Tensor, tau: float
    ) -> SearchResult:
        """Run Algorithm 1 among real words."""
        words, fixed = self.vectors.to(x), self._find_fixed_blocks(x)
        budget = (~fixed).sum(1).clamp(max=self.max_blocks or x.shape[1])
        rows, prototype = torch.arange(len(x)), self.prototypes.to(x)[target]
        state = State(rows, x, target, prototype, fixed, budget)
        self._warn_if_weak(state, tau)
        record = Record.empty(x, max(1, int(budget.max())))
        empty = budget == 0
        record.finish(state, empty, [self._explain_failure(0, 1.0, tau)] * int(empty.sum()))
        while len(state):
            position = self._unmask_word(f, state, words)
            logits = self._compose_words(f, state, position, words)
            nan = ~logits.isfinite().all(1)
            self._look_at_score(state, record, logits, nan, tau)
        return record.to_result()

    def _unmask_word(self, f: PassCounter, state: State, words: Tensor) -> Tensor:
        """Masking step: unmask the word of largest first-order gain; return its position (B,)."""
        _, gradient = self._differentiate(f, state)
        size = max(1, CHUNK // (len(words) * state.z.shape[1]))
        best = torch.cat([(-part @ words.T).amax(2) for part in gradient.split(size)])
        gain = best + (gradient * state.z).sum(2)  # (B, L)
        closed = (state.mask[..., 0] > 0) | state.fixed
        position = gain.masked_fill(closed, -torch.inf).argmax(1)
        state.mask[torch.arange(len(state)), position] = 1
        state.n_unmasked += 1
        return position

    def _compose_words(
        self, f: PassCounter, state: State, position: Tensor, words: Tensor
    ) -> Tensor:
        """Composition step: choose words, at the new position first. Return the logits (B, K)."""
        unmasked = state.mask[..., 0]
        order = unmasked.scatter(1, position[:, None], 2.0).argsort(
            dim=1, descending=True, stable=True
        )
        for k in range(int(state.n_unmasked[0])):  # the same for all items
            self._choose_word(f, state, order[:, k], words)
        state.point = state.z
        with torch.no_grad():
            return f(state.z, state.rows)

    def _choose_word(self, f: PassCounter, state: State, position: Tensor, words: Tensor) -> None:
        """Put the shortlist's best word at `position` (B,) of each item whose loss it lowers."""
        k, item = self.shortlist, torch.arange(len(state), device=state.z.device)
        loss, gradient = self._differentiate(f, state)
        gain = -gradient[item, position] @ words.T  # (B, V)
        shortlist = words[gain.topk(k, dim=1).indices]  # (B, k, d)
        rows, x, mean, t, tried, at = (
            v.repeat_interleave(k, 0)
            for v in (state.rows, state.query, state.prototype, state.target, state.z, position)
        )
        tried[torch.arange(len(tried), device=tried.device), at] = shortlist.flatten(0, 1)
        with torch.no_grad():
            losses = self._loss(f(tried, rows), tried, x, mean, t)[0].view(-1, k)
        lowest, j = losses.nan_to_num(nan=torch.inf).min(1)
        better = item[lowest < loss]
        state.z[better, position[better]] = shortlist[better, j[better]]

    def _differentiate(self, f: PassCounter, state: State) -> tuple[Tensor, Tensor]:
        """Return the loss (B,) at x' and its gradient (B, L, d)."""
        z = state.z.detach().requires_grad_(True)
        logits = f(z, state.rows)
        x, mean, t = state.query, state.prototype, state.target
        loss, by_logits, by_z = self._loss(logits.detach(), z.detach(), x, mean, t)
        return loss, f.grad(logits, z, by_logits) + by_z

    def _draw_composite(self, x: Tensor, ids: Ids, bounds: tuple[Any, Any]) -> Tensor:
        """Return the initial composite (B, L, d); drawn per position, so independent of padding."""
        if self.init == "query":
            return x.clone()
        owners = ids if self.noise == "item" else ["common"]
        owners = owners.tolist() if isinstance(owners, Tensor) else owners
        names = [f"{i}|{p}" for i in owners for p in range(x.shape[1])]
        noise = item_noise(self.seed, names, x.shape[2:], "composite").to(x).view(-1, *x.shape[1:])
        return noise.expand(x.shape).clone()

    def _find_fixed_blocks(self, x: Tensor, blocks: Blocks | None = None) -> Tensor:
        """Return which words are padding, (B, L) bool."""
        return (x == 0).all(2)
