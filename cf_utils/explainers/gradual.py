"""Counterfactuals by gradual construction: unmask one block, optimise all unmasked values, look at the score, repeat.

Source: Jung, Kang, Kim, Won & Lee, "Counterfactual Explanation Based on Gradual Construction for Deep Networks", Pattern
Recognition 2022; Algorithm 1 with Eq. 5 (masking), Eq. 7 (composition), Eq. 8 (total variation, images), Eq. 12 (ablation).

    x' = (1 - M) x + M C                                                                          Eq. 1
    next block: the largest |d f_t(x) / d x|                                                      Eq. 5
    C = argmin ||z(x') - mean z(training inputs classified as t)||_2 + lam ||x' - x||_2 + eta TV(x')    Eqs. 7, 8

Decisions where the text leaves room:
* The norm of Eqs. 7 and 8 is over the class vector. Printed literally, the sum over classes stands inside the norm, and
  softmax is blind to that direction; `term="literal"` gives it.
* Blocks are ranked by the mean |d log f_t / d x|: d log f = d f / f, so the order is that of Eq. 5 without its underflow.
* Each composition step starts Adam afresh and goes on from the values found so far (`restart`: from the first noise again).
* The noise of C depends on the seed alone: two equal rows get equal advice.
* `patience` ends a composition step once its loss is flat, at any score: where the loss is flat under tau, going on would not
  raise the score either, and a path whose steps do not look at tau holds the answers for all lower tau (`at_score`).
* Constraints: the classifier is asked at the allowed point next to x', and that point's gradient moves x' (straight through).
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from cf_utils.core import (
    BELOW,
    NAN,
    Constraints,
    Counterfactuals,
    Explainer,
    PassCounter,
    SearchResult,
    block_index,
    block_mean,
    item_noise,
)
from cf_utils.explainers.shared.objective import TERMS, class_term, pull
from cf_utils.models.classifiers import predict

PROBES = 9  # values of a feature that `ranking="probe"` tries
TINY = 1e-30  # for 0 under Adam's root: the root of exact zeros takes eight times as long (MKL), that of this none


def mean_logits(classifier: nn.Module, x: Tensor, n: int = 100, seed: int = 0) -> Tensor:
    """Prototypes (K, K): row c is the mean logits of n inputs of x, drawn without replacement, that are classified as c.

    The paper's N is 100. ValueError when a class has fewer than n (a mean of three says little about a class).
    """
    return mean_of_logits(predict(classifier, x), n, seed)


def mean_of_logits(logits: Tensor, n: int = 100, seed: int = 0) -> Tensor:
    """The same from the training inputs' logits (N, K), where the inputs are too many to hold at once."""
    decided, gen = logits.argmax(1).cpu(), torch.Generator().manual_seed(seed)
    rows = []
    for c in range(logits.shape[1]):
        of_c = (decided == c).nonzero().flatten()
        if len(of_c) < n:
            raise ValueError(
                f"x: {len(of_c)} inputs are classified as {c}, expected at least n = {n}"
            )
        rows.append(logits[of_c[torch.randperm(len(of_c), generator=gen)[:n]]].mean(0))
    return torch.stack(rows)


def at_score(cfs: Counterfactuals, classifier: nn.Module, tau: float) -> Counterfactuals:
    """What the same search gives for a lower tau: each item's first state on `path` that reaches it.

    Exact, since a composition step does not look at tau. Passes and seconds stay those of the longer run; `mask` is dropped.
    ValueError for a search among word vectors: its path holds the states before words replaced them.
    """
    if cfs.settings.get("compose") == "embedding":
        raise ValueError(
            "at_score: the path of compose='embedding' holds vectors, not words; search again with score=tau"
        )
    b, steps = cfs.path.shape[:2]
    logits = predict(classifier, cfs.path.flatten(0, 1)).view(b, steps, -1)
    here = torch.arange(steps)[None] < cfs.path_len[:, None]
    score = logits.softmax(2).gather(2, cfs.target[:, None, None].expand(-1, steps, 1))[..., 0]
    hit = (score >= tau) & (logits.argmax(2) == cfs.target[:, None]) & here.to(score.device)
    at = torch.where(hit.any(1), hit.float().argmax(1), cfs.path_len.to(hit.device) - 1)
    rows = torch.arange(b)
    score, valid = score[rows, at], logits[rows, at].argmax(1) == cfs.target
    reached = hit.any(1)
    reason = tuple(
        "" if r else (why or BELOW) for r, why in zip(reached.tolist(), cfs.reason, strict=True)
    )
    return dataclasses.replace(
        cfs,
        counterfactual=cfs.path[rows, at],
        score=score,
        valid=valid,
        reached=reached,
        reason=reason,
        path_len=at.cpu() + 1,
        mask=None,
        settings=cfs.settings | {"tau": tau, "prefix_of_tau": cfs.settings["tau"]},
    )


@dataclass(frozen=True, eq=False)
class GradualConstruction(Explainer):
    """Change few blocks of the input, so that its logits come to lie where the target's training inputs have theirs.

    x (B, ...) of any shape; images (B, C, H, W) get the total variation term. Defaults are the paper's for MNIST (500 steps
    elsewhere; tau 0.5 on tables): composite from N(0, 1), unclamped, so values may leave `bounds`. `recommended` clamps.
    `path` holds the state after each composition step, `mask` the unmasked elements.
    """

    prototypes: Tensor = field(
        repr=False
    )  # (K, K) mean logits of a class's training inputs: `mean_logits`
    _: KW_ONLY
    tau: float = 0.9  # wanted probability; the search goes on until it is reached
    steps: int = 1000  # Adam steps of a composition step (sigma)
    lr: float = 0.1
    lam: float = 0.3  # weight of ||x' - x||_2
    eta: float = 0.3  # weight of the total variation, images only
    beta: float = 2.0  # its exponent
    block: tuple[int, ...] = (
        4,
        4,
    )  # extent of a mask element along the trailing dimensions; -1: all of one
    max_blocks: int | None = None  # budget; None: all of them
    term: str = "logits"  # of the loss: logits, literal, mean_abs, log_probability, probability
    init: str = "normal"  # of the composite: normal, uniform (inside bounds) or query
    noise: str = "common"  # to all rows, or by item (blank images of one call differ)
    ranking: str = "once"  # gradient at the query alone, again at each step, or probe (`_probe`)
    restart: bool = False  # begin each composition step from the first noise
    clamp: bool = False  # keep x' inside bounds
    patience: int | None = (
        None  # leave a composition step when the loss has been flat for so many steps
    )
    flat: float = 0.01  # flat: no new lowest loss by this share of it

    keeps_constraints: ClassVar[bool] = True

    @classmethod
    def recommended(cls, prototypes: Tensor, **changes) -> GradualConstruction:
        """Values inside bounds, composite from U[0, 1), blocks ranked again at each step, at most 16 of them.

        Measured on 180 embedded digits (mnist_cnn, 100 steps, 12 blocks, tau 0.9): decision flipped for 1.00, tau reached for
        0.97; ranked once 0.98 and 0.91; from the query itself 0.98 and 0.96.
        """
        return cls(
            prototypes,
            **({"clamp": True, "init": "uniform", "ranking": "each", "max_blocks": 16} | changes),
        )

    @classmethod
    def early(cls, prototypes: Tensor, **changes) -> GradualConstruction:
        """`recommended`, leaving a composition step once its loss has been flat for ten steps."""
        return cls.recommended(prototypes, **({"patience": 10} | changes))

    @classmethod
    def official(cls, prototypes: Tensor, **changes) -> GradualConstruction:
        """The authors' released code for 28 x 28 digits: lr 0.01, 500 steps, mean |logit difference|, total variation with
        exponent 4 and weight 4 on its mean, composite from U[0, 1), started again at each block; prototypes there are of
        N = 50. Kept from the paper: unclamped pixels in [0, 1], not the code's normalised ones."""
        return cls(
            prototypes,
            **(
                {
                    "lr": 0.01,
                    "steps": 500,
                    "term": "mean_abs",
                    "eta": 4 / 784,
                    "beta": 4.0,
                    "init": "uniform",
                    "restart": True,
                }
                | changes
            ),
        )

    @classmethod
    def tables(cls, prototypes: Tensor, **changes) -> GradualConstruction:
        """The paper's for HELOC and UCI credit: a feature a block, tau 0.5, 500 steps, values free to leave any range."""
        return cls(
            prototypes, **({"block": (1,), "tau": 0.5, "steps": 500, "bounds": None} | changes)
        )

    @classmethod
    def recommended_tables(
        cls, prototypes: Tensor, constraints: Constraints, **changes
    ) -> GradualConstruction:
        """Inside `constraints`: the feature that alone comes furthest is changed, starting from where it came.

        Measured on 1,000 UCI test rows (uci_credit_mlp, whole numbers): all valid with 1.05 features, where one could do for
        999; ranked by the gradient inside the same constraints 0.99 valid with 7.0 features (values not kept whole)."""
        return cls.tables(
            prototypes,
            **(
                {"constraints": constraints, "init": "query", "ranking": "probe", "patience": 20}
                | changes
            ),
        )

    def check(self, x, logits):
        k = logits.shape[1]
        if tuple(self.prototypes.shape) != (k, k) or not self.prototypes.isfinite().all():
            raise ValueError(
                f"prototypes: got {tuple(self.prototypes.shape)}, expected finite ({k}, {k}) for this classifier"
            )
        for name, known in (
            ("term", TERMS),
            ("init", ("normal", "uniform", "query")),
            ("noise", ("common", "item")),
            ("ranking", ("once", "each", "probe")),
        ):
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
                "ranking: 'probe' tries the values that constraints allow, but constraints is None"
            )
        if self.bounds is None and (self.clamp or self.init == "uniform"):
            raise ValueError("bounds: None, but clamp and a uniform composite need a range")

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        mean, own = self.prototypes.to(x)[target], self._own_score(x, target, tau)  # (B, K), (B,)
        index, n_blocks = block_index(x.shape[1:], self.block)
        index, budget = index.to(x.device), min(self.max_blocks or n_blocks, n_blocks)
        bounds = self._range(x)
        fill = self._composite(x, ids, bounds)
        shut = self._shut(x, index, n_blocks)  # (B, n_blocks)
        most = (~shut).sum(1).clamp(max=budget)
        order = torch.zeros_like(shut, dtype=torch.int64)
        if self.ranking == "once":
            rank = self._rank(f, x, target, torch.arange(len(x)), index, n_blocks)  # (B, n_blocks)
            order = rank.masked_fill(shut, -torch.inf).argsort(dim=1, descending=True, stable=True)

        result, failed = x.clone(), [""] * len(x)
        path = x[:, None].repeat(1, budget, *[1] * (x.ndim - 1))
        n_done = torch.zeros(len(x), dtype=torch.int64)
        mask = torch.zeros_like(x, dtype=torch.bool)

        rows = torch.arange(len(x))  # still searched; all below is theirs
        q, c, t_mean, t_class, a_order, on = (
            x,
            fill,
            mean,
            target,
            order,
            torch.zeros_like(x),
        )  # on: 1 where unmasked
        n = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # blocks unmasked
        z, m, v = (
            x.clone(),
            torch.zeros_like(x),
            torch.full_like(x, TINY),
        )  # x', and Adam's two moments
        t = torch.full(
            (len(x),), self.steps, device=x.device
        )  # at the end of "step 0": unmask first
        best, since, room = (
            x.new_full((len(x),), torch.inf),
            torch.zeros_like(t),
            torch.empty_like(x),
        )
        k = (
            torch.arange(self.steps + 1, device=x.device).clamp(min=1).to(x)
        )  # Adam's corrections after k steps
        least = 1e-8 * (1 - 0.9**k) / self.lr
        slope = (1 - 0.9**k) / (1 - 0.999**k).sqrt() / self.lr
        wide = (-1, *[1] * (x.ndim - 1))
        while len(rows):
            ended = t >= self.steps
            if self.patience is not None:
                ended |= since >= self.patience
            some = bool(ended.any())  # asked once: a GPU waits for it
            y = self.snap(z, q).requires_grad_(True)  # z itself where nothing is constrained
            logits = f(y, rows)
            loss, up, g = self._loss(
                logits.detach(),
                y.detach(),
                q,
                t_mean,
                t_class,
                out=room[: len(z)],
                value=some or self.patience is not None,
            )
            g += f.grad(logits, y, up)
            y, z = y.detach(), z.detach()
            if self.patience is not None:
                low = loss < best - self.flat * best.abs().nan_to_num(posinf=0.0)
                best, since = torch.where(low, loss, best), torch.where(low, 0, since + 1)
            t = t + 1
            if some:  # look at the score, leave or unmask
                p = logits.detach().softmax(1).gather(1, t_class[:, None])[:, 0]
                nan, spent = ~loss.isfinite(), n >= most
                hit = (p >= tau) & (logits.argmax(1) == t_class)
                e = (ended & (n > 0)).nonzero().flatten()
                state = torch.where(
                    (on[e] > 0) & ~nan[e].view(wide), y[e], q[e]
                )  # where masked, x to the last bit
                path[rows[e.cpu()], n[e] - 1] = state
                result[rows[e.cpu()]] = state
                leave = ended & (((n > 0) & (hit | nan)) | spent)
                if leave.any():
                    for j in leave.nonzero().flatten().tolist():
                        i = int(rows[j])
                        n_done[i], mask[i] = n[j], on[j] > 0
                        failed[i] = (
                            NAN
                            if nan[j]
                            else ""
                            if hit[j] and n[j]
                            else self._why(int(n[j]), float(own[i]), tau)
                        )
                    stay = ~leave
                    rows = rows[stay.cpu()]
                    (
                        z,
                        y,
                        m,
                        v,
                        t,
                        n,
                        q,
                        c,
                        t_mean,
                        t_class,
                        a_order,
                        on,
                        best,
                        since,
                        ended,
                        g,
                        most,
                        shut,
                    ) = (
                        s[stay]
                        for s in (
                            z,
                            y,
                            m,
                            v,
                            t,
                            n,
                            q,
                            c,
                            t_mean,
                            t_class,
                            a_order,
                            on,
                            best,
                            since,
                            ended,
                            g,
                            most,
                            shut,
                        )
                    )
                    if not len(rows):
                        break
                e = ended.nonzero().flatten()
                if len(e):  # masking step
                    if self.ranking != "once":
                        here = (t_class[e], rows[e.cpu()], index, n_blocks)
                        if self.ranking == "each":
                            again = self._rank(f, y[e], *here)
                        else:
                            again, start = self._probe(f, y[e], q[e], *here)
                        taken = torch.zeros_like(again).scatter_(
                            1, index.flatten().expand(len(e), -1), on[e].flatten(1)
                        )
                        a_order[e, n[e]] = again.masked_fill(
                            (taken > 0) | shut[e], -torch.inf
                        ).argmax(1)
                        if self.ranking == "probe":
                            c[e] = start[torch.arange(len(e)), a_order[e, n[e]]]
                    new = index == a_order[e, n[e]].view(-1, *[1] * index.ndim)
                    on[e] += new
                    z[e] = torch.where(on[e] > 0 if self.restart else new, c[e], z[e])
                    n[e] += 1
                    t[e], m[e], v[e], best[e], since[e] = 0, 0, TINY, torch.inf, 0
                    g[e] = 0  # the others go on with this very pass; these start with the next
            g.mul_(on)  # composition step: Adam on unmasked values
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            under = torch.sqrt(v, out=room[: len(z)])  # no new memory: it costs page faults
            z.addcdiv_(m, under.mul_(slope[t].view(wide)).add_(least[t].view(wide)), value=-1)
            if self.clamp:
                z.clamp_(*bounds)
            if self.constraints is not None:
                low, high = self.constraints.box(q)
                z = torch.maximum(torch.minimum(z, high), low)
        n_done = n_done.clamp(min=1)
        last = torch.minimum(
            torch.arange(int(n_done.max()))[None], n_done[:, None] - 1
        )  # padded with the last state
        return SearchResult(
            result,
            mask=mask,
            path=path[torch.arange(len(x))[:, None], last],
            path_len=n_done,
            reason=failed,
        )

    def _own_score(self, x: Tensor, target: Tensor, tau: float) -> Tensor:
        """The target's score of its mean logits themselves, (B,): where the loss pulls. Warns where that is below tau."""
        own = self.prototypes.to(x)[target].softmax(1).gather(1, target[:, None])[:, 0]
        if self.term in ("logits", "mean_abs") and (own < tau).any():
            low = sorted(
                {
                    (t, round(p, 3))
                    for t, p in zip(target.tolist(), own.tolist(), strict=True)
                    if p < tau
                }
            )
            warnings.warn(
                f"the mean logits of (class, score) {low} score below tau = {tau}: this loss pulls the score there, "
                "so the search may end below tau. Ask for a lower tau or train the classifier longer",
                stacklevel=4,
            )
        return own

    def _range(self, x: Tensor) -> tuple:
        """Bounds as numbers (one fast kernel), or as two tensors like x where one of them is given per feature."""
        if self.bounds is None or not any(isinstance(b, Tensor) for b in self.bounds):
            return self.bounds or (None, None)
        return tuple(torch.as_tensor(b).to(x) for b in self.bounds)

    def _composite(self, x: Tensor, ids, bounds: tuple) -> Tensor:
        """The composite's first values (B, ...)."""
        if self.init == "query":
            c = x
        else:
            kind = "normal" if self.init == "normal" else "uniform"
            names = ids if self.noise == "item" else ["common"]
            c = item_noise(self.seed, names, x.shape[1:], "composite", kind).to(x).expand(x.shape)
            if kind == "uniform":
                c = bounds[0] + (bounds[1] - bounds[0]) * c
        return c.clamp(*bounds) if self.clamp else c.clone()

    def _shut(self, x: Tensor, index: Tensor, n_blocks: int) -> Tensor:
        """Blocks that may not change at all, (B, n_blocks) bool."""
        if self.constraints is None:
            return torch.zeros(len(x), n_blocks, dtype=torch.bool, device=x.device)
        low, high = self.constraints.box(x)
        return block_mean((high > low).to(x), index, n_blocks) == 0

    def _rank(
        self, f: PassCounter, z: Tensor, target: Tensor, rows: Tensor, index: Tensor, n_blocks: int
    ) -> Tensor:
        """Eq. 5: mean |d log f_t / d z| of each block, (B, n_blocks)."""
        z = z.detach().requires_grad_(True)
        g = f.grad(f(z, rows).log_softmax(1).gather(1, target[:, None]).sum(), z)
        return block_mean(g.abs(), index, n_blocks)

    def _probe(
        self,
        f: PassCounter,
        z: Tensor,
        x: Tensor,
        target: Tensor,
        rows: Tensor,
        index: Tensor,
        n_blocks: int,
    ) -> tuple[Tensor, Tensor]:
        """Eq. 5's question asked of the black box itself: the highest log f_t that each block reaches when it alone takes each of
        PROBES values of its allowed range, (B, n_blocks); and z with each block at that value, (B, n_blocks, ...)."""
        low, high = self.constraints.box(x)
        best, start = (
            torch.full((len(z), n_blocks), -torch.inf).to(z),
            z[:, None].repeat(1, n_blocks, *[1] * (z.ndim - 1)),
        )
        alone = index == torch.arange(n_blocks, device=z.device).view(
            -1, *[1] * index.ndim
        )  # (n_blocks, ...)
        again, t = rows.repeat_interleave(n_blocks), target.repeat_interleave(n_blocks)[:, None]
        for level in torch.linspace(0, 1, PROBES).tolist():
            tried = torch.where(
                alone, self.snap(torch.lerp(low, high, level), x)[:, None], z[:, None]
            )
            with torch.no_grad():
                score = (
                    f(tried.flatten(0, 1), again).log_softmax(1).gather(1, t).view(len(z), n_blocks)
                )
            better = score > best
            best, start = (
                torch.where(better, score, best),
                torch.where(better.view(*best.shape, *[1] * index.ndim), tried, start),
            )
        return best, start

    def _loss(
        self,
        logits: Tensor,
        z: Tensor,
        x: Tensor,
        mean: Tensor,
        target: Tensor,
        out: Tensor | None = None,
        value: bool = True,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Eqs. 7, 8 and 12: an entry an item (B,), where `value` is asked for, and its gradients in the logits (B, K) and, beside
        those, in z (B, ...)."""
        near, up = class_term(self.term, logits, mean, target)
        far, g = pull(
            z, x, self.lam, self.eta if z.ndim == 4 else 0.0, self.beta, out, value
        )  # total variation is for images
        return None if far is None else near + far, up, g

    def _why(self, n: int, own: float, tau: float) -> str:
        if n == 0:
            return "nothing in it may change"
        pull = (
            f"; the mean logits score {own:.3f} themselves"
            if self.term in ("logits", "mean_abs") and own < tau
            else ""
        )
        return f"budget of {n} blocks spent below tau{pull}"
