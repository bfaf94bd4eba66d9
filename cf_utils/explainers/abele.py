"""ABELE: a genetic neighbourhood in an autoencoder's latent space, a decision tree on it, and decoded counter-exemplars.

Source: Guidotti, Monreale, Matwin & Pedreschi, "Black Box Explanation by Learning Image Exemplars in the Latent Feature Space",
ECML-PKDD 2019; the genetic neighbourhood and the counter-rules are those of LORE (Guidotti et al., 2018). This is a
RE-IMPLEMENTATION from the method's description: the authors' code was not run, so figures are not comparable to theirs.

    fitness(z) = I[b(decode(z)) is as wanted] + 1 - d(z, z0) - I[z = z0],    d(z, z0) = ||z - z0|| / (||z - z0|| + sqrt(latent))
    counter-rule: a leaf of the tree whose class is the target; best: fewest of its conditions are false for z0

Decisions and deviations:
* Targeted: the second population wants the call's target, not any other class. Its indicator is 1 for the decision and 2 for
  the decision with probability >= tau, so that the neighbourhood also holds points that are sure enough.
* The discriminator sees the latent point, as in an adversarial autoencoder. A point with D < `threshold` has indicator -1,
  stays out of the tree, and is never returned.
* Parents and children compete (the best `population` survive); a mutated gene is drawn from the prior N(0, 1).
* The populations are equally large; where some of them miss their class, weights give target and rest the same say in the tree.
* Counter-exemplars: points of the rule's leaf, and points on the lines from them to the leaf's point nearest to z0 (a leaf is a
  box, so all satisfy the rule). Returned: of those accepted and valid at tau, the nearest to z0 in latent space. Where none
  reaches tau: the accepted one with the highest score, flagged; where none is decided as the target: the query, flagged.
* The decoder makes the whole image: even far from the change, pixels are reconstructions.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from cf_utils.core import Explainer, PassCounter, SearchResult, frozen, item_noise

NO_RULE, NO_EXEMPLAR = (
    "no counter-rule: no accepted neighbour is decided as the target",
    "no valid counter-exemplar",
)


# ---------------------------------------------------------------- the genetic operators; u: uniform noise in [0, 1)


def select(z: Tensor, fitness: Tensor, n: int) -> Tensor:
    """Positions (..., n) of the n fittest of z (..., N, d), best first; ties in order; NaN counts as worst."""
    return fitness.nan_to_num(nan=-torch.inf).argsort(dim=-1, descending=True, stable=True)[..., :n]


def tournament(fitness: Tensor, u: Tensor) -> Tensor:
    """Of two members drawn by u (..., M, 2) the fitter: positions (..., M) into fitness (..., N)."""
    pair = (u * fitness.shape[-1]).long()  # (..., M, 2)
    first, second = (fitness.gather(-1, pair[..., i]) for i in (0, 1))
    return torch.where(second > first, pair[..., 1], pair[..., 0])


def crossover(a: Tensor, b: Tensor, u: Tensor, rate: float) -> Tensor:
    """Two-point crossover of parents (..., M, d): with probability `rate` the genes between two cuts are b's; u (..., M, 3)."""
    d = a.shape[-1]
    cut = (u[..., 1:] * (d + 1)).long().sort(-1).values  # 0 .. d
    gene = torch.arange(d, device=a.device)
    swap = (gene >= cut[..., :1]) & (gene < cut[..., 1:]) & (u[..., :1] < rate)
    return torch.where(swap, b, a)


def mutate(z: Tensor, fresh: Tensor, u: Tensor, rate: float) -> Tensor:
    """Each gene of z (..., d) is replaced by that of `fresh` with probability `rate`."""
    return torch.where(u < rate, fresh, z)


# ---------------------------------------------------------------- the tree's rules


@dataclass(frozen=True)
class Rule:
    """A leaf: low < z <= high in every latent dimension, the class it predicts, how many dimensions of z0 lie outside."""

    low: np.ndarray
    high: np.ndarray
    label: int
    changed: int

    def __str__(self) -> str:
        parts = [
            (f"{lo:.2f} < " if np.isfinite(lo) else "")
            + f"z{i}"
            + (f" <= {hi:.2f}" if np.isfinite(hi) else "")
            for i, (lo, hi) in enumerate(zip(self.low, self.high, strict=True))
            if np.isfinite(lo) or np.isfinite(hi)
        ]
        return f"{' and '.join(parts) or 'always'}: {self.label}"

    def holds(self, z: np.ndarray) -> np.ndarray:
        """Which of z (N, d) satisfy the rule."""
        return ((z > self.low) & (z <= self.high)).all(-1)

    def project(self, z: np.ndarray, margin: float = 1e-4) -> np.ndarray:
        """The rule's point nearest to z (d,), `margin` inside its bounds (trees compare in float32)."""
        width = np.minimum(margin, (self.high - self.low) / 4)
        return np.clip(z, self.low + width, self.high - width)


def rules(tree: DecisionTreeClassifier, z: np.ndarray) -> list[Rule]:
    """All leaves of a fitted tree as rules; the one that holds for z (d,) has `changed` 0 and is the factual rule."""
    t, out, d = tree.tree_, [], len(z)
    stack = [(0, np.full(d, -np.inf), np.full(d, np.inf))]
    while stack:
        node, low, high = stack.pop()
        if t.children_left[node] < 0:
            changed = int(((z <= low) | (z > high)).sum())
            out.append(Rule(low, high, int(tree.classes_[t.value[node, 0].argmax()]), changed))
            continue
        i, cut = t.feature[node], t.threshold[node]
        left, right = high.copy(), low.copy()
        left[i], right[i] = min(high[i], cut), max(low[i], cut)
        stack += [(t.children_right[node], right, high), (t.children_left[node], low, left)]
    return out


# ---------------------------------------------------------------- the method


@dataclass(frozen=True, eq=False)
class ABELE(Explainer):
    """Nearest valid counter-exemplar in the latent space of an adversarial autoencoder.

    x (B, *aae.shape). `aae` has `shape`, `latent`, `encoder`, `decoder` and `discriminator` (logits (B,)), see
    `generators.aae`. Per query at most 2 population (generations + 1) + exemplars + 3 images are classified: 943 by default.
    Passes of encoder and decoder are the generator's. ValueError when aae makes images of another shape.
    """

    aae: nn.Module = field(repr=False)
    _: KW_ONLY
    population: int = 50  # members of each of the two populations
    generations: int = 6
    crossover_rate: float = 0.7  # probability that a child mixes two parents
    mutation_rate: float = 0.25  # probability that a gene is drawn anew
    threshold: float = (
        0.4  # least probability by the discriminator; 0.5 is what a perfect autoencoder's codes get
    )
    leaf: int = 2  # fewest neighbours in a leaf of the tree
    max_rules: int = 3  # counter-rules tried
    exemplars: int = 240  # images decoded for them
    anchors: int = 10  # neighbours in a rule's leaf towards which it is searched
    chunk: int = 2000  # images decoded and classified at once

    def check(self, x, logits):
        if tuple(self.aae.shape) != tuple(x.shape[1:]):
            raise ValueError(
                f"aae: makes images {tuple(self.aae.shape)}, x has {tuple(x.shape[1:])}; expected the same shape"
            )
        least = {
            "population": 2,
            "generations": 1,
            "leaf": 1,
            "max_rules": 1,
            "anchors": 1,
            "chunk": 1,
            "exemplars": self.max_rules * self.anchors,
        }
        for name, n in least.items():
            if getattr(self, name) < n:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {n}")
        for name in ("crossover_rate", "mutation_rate", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, expected a probability in [0, 1]"
                )

    @torch.no_grad()
    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        kind = next(self.aae.parameters(), x)
        enc, dec = PassCounter(self.aae.encoder, len(x)), PassCounter(self.aae.decoder, len(x))
        with frozen(self.aae):
            every = torch.arange(len(x))
            source, z0 = f(x, every).argmax(1), enc(x.to(kind), every)  # (B,), (B, d)

            def look(z: Tensor, rows: Tensor):
                """(score of the target, label, accepted) of z (N, d); label -1 where the classifier gave NaN."""
                out = []
                for part, r in zip(z.split(self.chunk), rows.split(self.chunk), strict=True):
                    logits, at = f(dec(part, r).to(x), r), target[r.to(x.device)]
                    p, label = logits.softmax(1).gather(1, at[:, None])[:, 0], logits.argmax(1)
                    same = (
                        (label == at) & (at == source[r.to(x.device)]) & (p < tau)
                    )  # query decided so already, score too low:
                    label = torch.where(
                        same, logits.shape[1], label
                    )  # "too low" is then a class of its own
                    accepted = self.aae.discriminator(part).sigmoid() >= self.threshold
                    out.append((p, label.masked_fill(~logits.isfinite().all(1), -1), accepted))
                return [torch.cat(o) for o in zip(*out, strict=True)]

            z, p, label, ok = self._neighbourhood(
                look, z0, source, target, ids, tau
            )  # (B, N, d), (B, N) x 3
            lines, rows, inside, why = [], [], torch.zeros_like(ok), [""] * len(x)
            for i in range(len(x)):  # scikit-learn fits one tree a call
                points, mine = self._candidates(
                    z[i], p[i], label[i], ok[i], z0[i], int(target[i]), tau
                )
                inside[i] = mine.to(ok.device)
                lines.append(points)
                rows += [i] * len(points)
                why[i] = "" if len(points) else NO_RULE
            new, rows = torch.cat(lines), torch.tensor(rows, dtype=torch.int64)
            if len(new):
                new_p, new_label, new_ok = look(new, rows)
            chosen, found = z0.clone(), torch.zeros(len(x), dtype=torch.bool)
            for i in (i for i in range(len(x)) if not why[i]):
                own = (rows == i).to(z.device)
                points = torch.cat([z[i], new[own]])
                score = torch.cat([p[i], new_p[own]])
                can = torch.cat(
                    [
                        inside[i] & ok[i] & (label[i] == target[i]),
                        new_ok[own] & (new_label[own] == target[i]),
                    ]
                )
                good, far = can & (score >= tau), (points - z0[i]).norm(dim=1)
                if good.any():
                    best = far.masked_fill(~good, torch.inf).argmin()
                elif can.any():
                    best = score.masked_fill(~can, -torch.inf).argmax()
                    why[i] = f"{NO_EXEMPLAR} at tau"
                else:
                    why[i] = NO_EXEMPLAR
                    continue
                chosen[i], found[i] = points[best], True
            result, keep = x.clone(), found.nonzero().flatten()
            if len(keep):
                result[keep.to(x.device)] = dec(chosen[keep.to(z.device)], keep).to(x)
        enc.flush()
        dec.flush()
        dec.n_forward += enc.n_forward
        return SearchResult(result, reason=why, generator=dec)

    def _neighbourhood(self, look, z0: Tensor, source: Tensor, target: Tensor, ids, tau: float):
        """Evolve, per item, one population decided as the query and one as the target: (B, 2 population, d) and its
        scores, labels and acceptance. Noise depends on (seed, id, generation) alone."""
        (b, d), n = z0.shape, self.population
        rows = torch.arange(b).repeat_interleave(2 * n)
        wanted = torch.stack([source, target], 1)[:, :, None]  # (B, 2, 1)
        flips = torch.tensor([0.0, 1.0], device=z0.device).view(1, 2, 1) > 0

        def noise(shape, stream, kind):
            return item_noise(self.seed, ids, (2, n, *shape), f"abele {stream}", kind).to(z0)

        def grade(z):
            p, label, ok = (v.view(b, 2, n) for v in look(z.flatten(0, 2), rows))
            far = (z - z0[:, None, None]).norm(dim=-1)
            hit = ((label == wanted) * torch.where(flips & (p >= tau), 2.0, 1.0)).masked_fill(
                ~ok, -1.0
            )
            return (hit + 1 - far / (far + d**0.5) - (far == 0).to(far)).to(z0), p, label, ok

        start = z0[:, None, None].expand(b, 2, n, d)
        z = mutate(start, noise((d,), "0 genes", "normal"), noise((d,), "0 where", "uniform"), 0.5)
        state = (z, *grade(z))  # z, fitness, score, label, accepted
        for g in range(1, self.generations + 1):
            z, fit = state[:2]
            u = noise((7 + d,), f"{g} choices", "uniform")  # two tournaments, crossover, mutation
            a, c = (
                z.gather(2, tournament(fit, u[..., k : k + 2])[..., None].expand_as(z))
                for k in (0, 2)
            )
            child = crossover(a, c, u[..., 4:7], self.crossover_rate)
            child = mutate(
                child, noise((d,), f"{g} genes", "normal"), u[..., 7:], self.mutation_rate
            )
            both = [torch.cat(pair, 2) for pair in zip(state, (child, *grade(child)), strict=True)]
            keep = select(both[0], both[1], n)
            state = tuple(
                v.gather(2, keep[..., None].expand(*keep.shape, d) if v.ndim == 4 else keep)
                for v in both
            )
        z, _, p, label, ok = state
        return z.flatten(1, 2), p.flatten(1), label.flatten(1), ok.flatten(1)

    def fit_tree(self, z: Tensor, label: Tensor, target: int) -> DecisionTreeClassifier:
        """The local tree on neighbours z (N, d) with the black box's decisions label (N,); target and rest weigh the same."""
        y = label.cpu().numpy()
        hits = (y == target).sum()
        weight = np.where(y == target, 0.5 / max(hits, 1), 0.5 / max(len(y) - hits, 1)) * len(y)
        return DecisionTreeClassifier(min_samples_leaf=self.leaf, random_state=self.seed).fit(
            z.cpu().numpy(), y, weight
        )

    def _candidates(self, z, p, label, ok, z0, target: int, tau: float) -> tuple[Tensor, Tensor]:
        """For one item: points (M, d) that satisfy its best counter-rules, and which neighbours (N,) satisfy them."""
        use, mine = ok & (label >= 0), torch.zeros(len(z), dtype=torch.bool)
        if not (use & (label == target)).any():
            return z[:0], mine
        here, points = z0.cpu().numpy(), z.cpu().numpy()
        far = np.linalg.norm(points - here, axis=1)
        counter = [
            r for r in rules(self.fit_tree(z[use], label[use], target), here) if r.label == target
        ]
        counter.sort(key=lambda r: (r.changed, float(np.linalg.norm(r.project(here) - here))))
        hit, sure, out = (use & (label == target)).cpu().numpy(), (p >= tau).cpu().numpy(), []
        steps = self.exemplars // self.max_rules
        for rule in counter[: self.max_rules]:
            held = rule.holds(points)
            mine |= torch.from_numpy(held)
            of = np.flatnonzero(held & hit)
            of = of[np.lexsort((far[of], ~sure[of]))][
                : self.anchors
            ]  # the sure ones first, then the nearest
            near, k = rule.project(here), max(len(of), 1)
            each = steps // k
            share = (
                np.arange(each)[None, :, None] + np.arange(k)[:, None, None] / k
            ) / each  # [0, 1), staggered
            out.append(
                (near + share * ((points[of] if len(of) else near[None])[:, None] - near)).reshape(
                    -1, len(here)
                )
            )
        return torch.from_numpy(np.concatenate(out)).to(z) if out else z[:0], mine
