"""Gradual construction on words: one mask element a word, composition among word vectors, an answer made of real words.

Source: Jung et al. (see `gradual.py`), section 4.2: the composite is optimised in the embedding space and each changed word is
then replaced by the nearest vector of the vocabulary. The decision that counts is the one after that replacement, and it is what
a result's `score`, `valid` and `reached` say here; `path` holds the states before it.

Decisions:
* `compose="embedding"` is the paper's form. Its optimum is a small move off the vocabulary, which the replacement undoes: a
  counterfactual of vectors, seldom one of words.
* `compose="vocabulary"` (`recommended`) never leaves the vocabulary. Masking step: the word with the best first-order gain that
  any vocabulary word offers there. Composition step: at each unmasked position, the new one first, the `shortlist` words of best
  first-order gain are scored by Eq. 7 exactly, in one batch; the best is kept, or the word that is there if none is better.
* Under max-pooling a composite that starts from noise can lie outside every winning window: the logit term then has no gradient
  there and only lam acts, which pulls the word back to where it came from. `init="query"` starts at the word itself.
* Zero vectors are padding: they are never unmasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cf_utils.core import NAN, Counterfactuals, PassCounter, SearchResult, item_noise
from cf_utils.datasets.glove import TAIL, Glove, embed, encode
from cf_utils.explainers.gradual import GradualConstruction
from cf_utils.models.classifiers import predict

CHUNK = 2**24  # numbers held at once


def predict_texts(classifier: nn.Module, glove: Glove, texts: Sequence[str]) -> Tensor:
    """Logits (N, K) of whole texts; texts of like length go through together, so that little padding does."""
    rows = encode(glove, texts)
    length, out = (rows >= 0).sum(1), None
    for part in length.argsort(stable=True).split(100):
        logits = predict(classifier, embed(glove, rows[part, : length[part].max() + TAIL]))
        out = logits.new_empty(len(rows), logits.shape[1]) if out is None else out
        out[part] = logits
    return out


def nearest(points: Tensor, table: Tensor, metric: str = "euclidean") -> Tensor:
    """Row of `table` (V, d) nearest to each of `points` (N, d), int64 (N,); the first of equals. metric: euclidean or cosine."""
    if metric == "cosine":
        points, table = (torch.nn.functional.normalize(t, dim=1) for t in (points, table))
    parts = []
    for some in points.split(max(1, CHUNK // len(table))):
        near = (
            torch.cdist(some, table)
            .topk(min(8, len(table)), dim=1, largest=False)
            .indices.sort(1)
            .values
        )  # fast,
        far = torch.linalg.vector_norm(some[:, None] - table[near], dim=2)  # then exact
        parts.append(near.gather(1, far.argmin(1, keepdim=True))[:, 0])
    return (
        torch.cat(parts) if len(points) else torch.zeros(0, dtype=torch.int64, device=points.device)
    )


def replacements(cfs: Counterfactuals, table: Tensor) -> list[list[tuple[int, int, int]]]:
    """(position, row of the old word, row of the new word) of each changed word, item by item; rows of `table` (V, d)."""
    changed = (cfs.counterfactual != cfs.query).any(2)
    item, position = changed.nonzero(as_tuple=True)
    old, new = (
        nearest(x[item, position], table.to(x)).tolist() for x in (cfs.query, cfs.counterfactual)
    )
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(len(cfs))]
    for i, p, a, b in zip(item.tolist(), position.tolist(), old, new, strict=True):
        out[i].append((p, a, b))
    return out


@dataclass(frozen=True, eq=False, kw_only=True)
class GradualWords(GradualConstruction):
    """Change few words of a review, so that its logits come to lie where the target's training reviews have theirs.

    x (B, L, d): word vectors, zero after the last word. Defaults are the paper's for IMDB; `recommended` searches real words.
    """

    vectors: Tensor = field(repr=False)  # (V, d), the words that may stand in a counterfactual
    steps: int = 500
    block: tuple[int, ...] = (1, -1)
    bounds: tuple | None = None
    compose: str = (
        "embedding"  # then the nearest word; or vocabulary: among real words from the start
    )
    metric: str = "euclidean"  # of the nearest word; or cosine
    shortlist: int = 20  # words scored exactly at a position

    @classmethod
    def recommended(cls, prototypes: Tensor, vectors: Tensor, **changes) -> GradualWords:
        """Among real words, at most eight of them; lam 0.1: real words lie far apart. Rule: the largest of 0.3, 0.2, 0.1, 0.05,
        0.025 at which 0.95 of 64 embedded validation reviews reach tau 0.9 (imdb_cnn: 0.59, 0.83, 0.98, 1, 1); by the same rule
        0.05 for `term="log_probability"` (0.08, 0.34, 0.80, 0.97, 1)."""
        return cls(
            prototypes,
            vectors=vectors,
            **({"compose": "vocabulary", "max_blocks": 8, "lam": 0.1} | changes),
        )

    def check(self, x, logits):
        if self.init == "uniform":
            raise ValueError(
                "init: got 'uniform', expected 'normal' or 'query': word vectors have no range"
            )
        super().check(x, logits)
        if x.ndim != 3 or self.vectors.ndim != 2 or self.vectors.shape[1] != x.shape[2]:
            raise ValueError(
                f"vectors: got {tuple(self.vectors.shape)} for x of shape {tuple(x.shape)}, expected (V, d) for "
                "x (B, L, d)"
            )
        for name, known in (
            ("compose", ("embedding", "vocabulary")),
            ("metric", ("euclidean", "cosine")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        if not 1 <= self.shortlist <= len(self.vectors):
            raise ValueError(
                f"shortlist: got {self.shortlist}, expected 1 to {len(self.vectors)}, the size of the vocabulary"
            )

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        if self.compose == "vocabulary":
            return self._among_words(f, x, target, tau)
        found = super().search(f, x, target, ids, tau)
        moved = (found.counterfactual != x).any(2)
        words = self.vectors.to(x)
        real = found.counterfactual.clone()
        real[moved] = words[nearest(real[moved], words, self.metric)]
        found.counterfactual = real
        return found

    def _composite(self, x: Tensor, ids, bounds: tuple) -> Tensor:
        """Noise word by word, so that how far a review is padded does not change it."""
        if self.init == "query":
            return x.clone()
        whose = ids if self.noise == "item" else ["common"]
        names = [
            f"{i}|{p}"
            for i in (whose.tolist() if isinstance(whose, Tensor) else whose)
            for p in range(x.shape[1])
        ]
        noise = item_noise(self.seed, names, x.shape[2:], "composite").to(x).view(-1, *x.shape[1:])
        return noise.expand(x.shape).clone()

    def _shut(self, x: Tensor, index: Tensor, n_blocks: int) -> Tensor:
        return (x == 0).all(2)

    def _among_words(self, f: PassCounter, x: Tensor, target: Tensor, tau: float) -> SearchResult:
        words, own = self.vectors.to(x), self._own_score(x, target, tau)
        may = ~self._shut(x, None, 0)  # (B, L)
        most = may.sum(1).clamp(max=self.max_blocks or x.shape[1])
        result, path, n_done = x.clone(), [], torch.ones(len(x), dtype=torch.int64)
        on = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)  # unmasked
        failed = ["" if k else self._why(0, 1.0, tau) for k in most.tolist()]
        rows, n = (most > 0).nonzero().flatten(), 0  # still searched; words unmasked in each
        while len(rows):
            z, t = result[rows], target[rows]
            _, g = self._slope(f, z, x[rows], t, rows)
            size = max(1, CHUNK // (len(words) * z.shape[1]))
            gain = torch.cat([(-part @ words.T).amax(2) for part in g.split(size)]) + (g * z).sum(2)
            at = gain.masked_fill(on[rows] | ~may[rows], -torch.inf).argmax(1)  # masking step
            on[rows, at], n = True, n + 1
            z, logits = self._compose(f, z, x[rows], t, rows, on[rows], at, words)
            nan = ~logits.isfinite().all(1)
            result[rows] = torch.where(nan[:, None, None], x[rows], z)
            path.append(result.clone())
            p = logits.softmax(1).gather(1, t[:, None])[:, 0]
            hit, spent = (p >= tau) & (logits.argmax(1) == t), n >= most[rows]
            leave = hit | nan | spent
            for i, ok, bad in zip(
                rows[leave].tolist(), hit[leave].tolist(), nan[leave].tolist(), strict=True
            ):
                n_done[i], failed[i] = (
                    n,
                    NAN if bad else "" if ok else self._why(n, float(own[i]), tau),
                )
            rows = rows[~leave]
        mask = on[..., None].expand_as(x).clone()
        return SearchResult(
            result, mask=mask, path=torch.stack(path or [result], 1), path_len=n_done, reason=failed
        )

    def _slope(
        self, f: PassCounter, z: Tensor, q: Tensor, t: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 7 at z (B, L, d): value (B,) and gradient (B, L, d)."""
        z = z.detach().requires_grad_(True)
        logits = f(z, rows)
        loss, up, own = self._loss(logits.detach(), z.detach(), q, self.prototypes.to(z)[t], t)
        return loss, f.grad(logits, z, up) + own

    def _compose(
        self,
        f: PassCounter,
        z: Tensor,
        q: Tensor,
        t: Tensor,
        rows: Tensor,
        on: Tensor,
        at: Tensor,
        words: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Composition step: the new position `at` first, then each other unmasked one. Words, and the logits there."""
        order = on.float().scatter(1, at[:, None], 2.0).argsort(dim=1, descending=True, stable=True)
        for k in range(int(on[0].sum())):  # all rows have as many unmasked
            z = self._best_word(f, z, q, t, rows, order[:, k], words)
        with torch.no_grad():
            return z, f(z, rows)

    def _best_word(
        self,
        f: PassCounter,
        z: Tensor,
        q: Tensor,
        t: Tensor,
        rows: Tensor,
        p: Tensor,
        words: Tensor,
    ) -> Tensor:
        """z with the best word of the shortlist at position p of each row; what is there stays where none is better (Eq. 7)."""
        k, here = self.shortlist, torch.arange(len(z), device=z.device)
        value, g = self._slope(f, z, q, t, rows)
        short = words[(-g[here, p] @ words.T).topk(k, dim=1).indices]  # (B, k, d)
        tried, t, q, rows = (s.repeat_interleave(k, 0) for s in (z, t, q, rows))
        tried[torch.arange(len(tried), device=z.device), p.repeat_interleave(k)] = short.flatten(
            0, 1
        )
        with torch.no_grad():
            loss = self._loss(f(tried, rows), tried, q, self.prototypes.to(z)[t], t)[0].view(-1, k)
        low, j = loss.nan_to_num(nan=torch.inf).min(1)
        better = low < value
        z = z.clone()
        z[here[better], p[better]] = short[here[better], j[better]]
        return z
