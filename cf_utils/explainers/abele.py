"""ABELE: counter-exemplars from a genetic neighbourhood in an autoencoder's latent space.

Source: Guidotti, Monreale, Matwin & Pedreschi, "Black Box Explanation by Learning Image Exemplars
in the Latent Feature Space", ECML-PKDD 2019. The genetic neighbourhood and the counter-rules are
those of LORE (Guidotti et al., 2018). This is a re-implementation from the paper; the authors' code
was not run, so results are not comparable with theirs.

With b the classifier's decision and z0 the query's code:

    fitness(z) = I[b(decode(z)) is as wanted] + 1 - d(z, z0) - I[z = z0]
    d(z, z0) = ||z - z0|| / (||z - z0|| + sqrt(number of latent dimensions))
    counter-rule: a leaf of the tree whose class is the target, with the fewest conditions that z0
    does not meet

Decisions and deviations:
* Targeted: the second population aims at the call's target, not at any other class. Its indicator
  is 1 for a code that is decided as the target, and 2 if the probability is tau or more.
* The discriminator judges the code, as in an adversarial autoencoder. A code that it rejects has
  indicator -1, is not used for the tree, and is never returned.
* Parents and children compete: the fittest survive. A mutated gene is drawn from N(0, 1).
* Both populations have the same size, but members may miss the class that they aim at. Weights
  therefore give the target and the rest the same total influence on the tree.
* Counter-exemplars are the neighbours in the rule's leaf, and points on the lines from them to the
  leaf's point nearest to z0. A leaf is a box, so all of them satisfy the rule.
* The result is the valid, accepted counter-exemplar nearest to z0 in latent space. If none reaches
  tau, it is the accepted one with the highest score; if none is decided as the target, it is the
  query. Both failures are flagged.
* The decoder generates the whole image, so pixels far from the change are reconstructions, too.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from cf_utils.core import Explainer, Ids, PassCounter, SearchResult, frozen, item_noise
from cf_utils.explainers.shared.genetic import crossover, mutate, select, tournament
from cf_utils.explainers.shared.grading import GradedCodes, Grader, Population
from cf_utils.explainers.shared.latent import LatentPasses, cast_to_model
from cf_utils.explainers.shared.rules import LeafBox, fit_tree, read_boxes
from cf_utils.models.generators.adversarial_autoencoder import AdversarialAutoencoder

NO_RULE = "no counter-rule: no accepted neighbour is decided as the target"
NO_EXEMPLAR = "no valid counter-exemplar"


@dataclass(frozen=True, eq=False)
class ABELE(Explainer):
    """Nearest valid counter-exemplar in the latent space of an adversarial autoencoder.

    x has shape (B, *autoencoder.shape). The classifier sees at most
    `2 * population * (generations + 1) + exemplars + 3` images per item. Passes of encoder and
    decoder count as passes of the generator. Raises ValueError if the autoencoder generates images
    of another shape, and on settings out of range.
    """

    autoencoder: AdversarialAutoencoder = field(repr=False, metadata={"stored_as": "aae"})
    _: KW_ONLY
    population: int = 50  # members of each of the two populations
    generations: int = 6
    crossover_rate: float = 0.7  # probability that a child mixes two parents
    mutation_rate: float = 0.25  # probability that a gene is drawn anew
    threshold: float = 0.4  # the discriminator accepts a code at this probability or more
    leaf: int = 2  # fewest neighbours in a leaf of the tree
    max_rules: int = 3  # counter-rules tried
    exemplars: int = 240  # images decoded for these rules
    # neighbours in a rule's leaf towards which exemplars are decoded
    neighbours_per_rule: int = field(default=10, metadata={"stored_as": "anchors"})
    chunk: int = 2000  # images decoded and classified at once

    stored_as: ClassVar[str] = "Abele"  # name of the class in older files

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError on settings out of range or an autoencoder of another image shape."""
        shape = tuple(self.autoencoder.shape)
        if shape != tuple(x.shape[1:]):
            raise ValueError(
                f"autoencoder: generates images {shape}, got x with {tuple(x.shape[1:])}, "
                "expected the same shape"
            )
        least = {
            "population": 2,
            "generations": 1,
            "leaf": 1,
            "max_rules": 1,
            "neighbours_per_rule": 1,
            "chunk": 1,
            "exemplars": self.max_rules * self.neighbours_per_rule,
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
    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the reconstruction of x: encoded and decoded, with nothing changed in between."""
        generator, rows = LatentPasses(self.autoencoder, len(x)), torch.arange(len(x))
        with frozen(self.autoencoder):
            code = generator.encode(cast_to_model(x, self.autoencoder), rows)
            return generator.decode(code, rows).to(x)

    @torch.no_grad()
    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        generator, rows = LatentPasses(self.autoencoder, len(x)), torch.arange(len(x))
        with frozen(self.autoencoder):
            source = f(x, rows).argmax(1)
            z0 = generator.encode(cast_to_model(x, self.autoencoder), rows)  # (B, d)
            grader = Grader(
                f=f,
                autoencoder=self.autoencoder,
                generator=generator,
                x=x,
                source=source,
                target=target,
                tau=tau,
                threshold=self.threshold,
                chunk=self.chunk,
            )
            neighbours = self._evolve(grader, z0, ids)
            chosen, found, reason = self._choose_exemplars(grader, neighbours, z0)
            result, rows = x.clone(), found.nonzero().flatten()
            if len(rows):
                images = generator.decode(chosen[rows.to(z0.device)], rows)
                result[rows.to(x.device)] = images.to(x)
        return SearchResult(result, reason=reason, generator=generator.total())

    def fit_tree(self, z: Tensor, label: Tensor, target: int) -> DecisionTreeClassifier:
        """Fit the local tree on neighbours z (N, d) and the classifier's decisions `label` (N,).

        Neighbours decided as the target and the rest have the same total weight.
        """
        y = label.cpu().numpy()
        is_target = y == target
        n_target = is_target.sum()
        weight_target, weight_rest = 0.5 / max(n_target, 1), 0.5 / max(len(y) - n_target, 1)
        weight = np.where(is_target, weight_target, weight_rest) * len(y)
        return fit_tree(z.cpu().numpy(), y, self.leaf, self.seed, weight)

    def _evolve(self, grader: Grader, z0: Tensor, ids: Ids) -> GradedCodes:
        """Evolve one population decided as the query and one as the target, per item.

        Returns the graded codes of both together, (B, 2 * population, ...). Noise depends on
        (seed, id, generation) alone.
        """
        (b, d), n = z0.shape, self.population

        def draw(size: int, stream: str, kind: str) -> Tensor:
            return item_noise(self.seed, ids, (2, n, size), f"abele {stream}", kind).to(z0)

        start = z0[:, None, None].expand(b, 2, n, d)
        code = mutate(start, draw(d, "0 genes", "normal"), draw(d, "0 where", "uniform"), 0.5)
        population = grader.grade_population(code, z0)
        for g in range(1, self.generations + 1):
            u = draw(7 + d, f"{g} choices", "uniform")  # two tournaments, crossover, mutation
            first, second = (
                population.take(tournament(population.fitness, u[..., k : k + 2])).code
                for k in (0, 2)
            )
            child = crossover(first, second, u[..., 4:7], self.crossover_rate)
            fresh = draw(d, f"{g} genes", "normal")
            child = mutate(child, fresh, u[..., 7:], self.mutation_rate)
            children = grader.grade_population(child, z0)
            pairs = zip(population, children, strict=True)
            both = Population(*(torch.cat(pair, 2) for pair in pairs))
            population = both.take(select(both.fitness, n))
        return GradedCodes(*(values.flatten(1, 2) for values in population[:-1]))

    def _choose_exemplars(
        self, grader: Grader, neighbours: GradedCodes, z0: Tensor
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Return the chosen codes (B, d), which items have one (B,), and the failure reasons."""
        n, target = len(z0), grader.target
        points, inside = [], []
        for i in range(n):  # scikit-learn fits one tree per call
            own = GradedCodes(*(values[i] for values in neighbours))
            own_points, own_inside = self._candidates(own, z0[i], int(target[i]), grader.tau)
            points.append(own_points)
            inside.append(own_inside.to(z0.device))
        chosen, found = z0.clone(), torch.zeros(n, dtype=torch.bool)
        reason, sizes = [NO_RULE] * n, [len(p) for p in points]
        if not any(sizes):
            return chosen, found, reason
        rows = torch.arange(n).repeat_interleave(torch.tensor(sizes))
        graded = grader.grade(torch.cat(points), rows)
        per_item = zip(*(values.split(sizes) for values in graded), strict=True)
        for i, exemplars in enumerate(per_item):
            if not sizes[i]:
                continue
            pairs = zip(neighbours, exemplars, strict=True)
            options = GradedCodes(*(torch.cat([a[i], b]) for a, b in pairs))
            in_rule = torch.cat([inside[i], torch.ones_like(exemplars[-1])])
            allowed = in_rule & options.accepted & (options.label == target[i])
            best, reason[i] = _choose(options, allowed, z0[i], grader.tau)
            if best is not None:
                chosen[i], found[i] = options.code[best], True
        return chosen, found, reason

    def _candidates(
        self, neighbours: GradedCodes, z0: Tensor, target: int, tau: float
    ) -> tuple[Tensor, Tensor]:
        """Return points (M, d) that satisfy one item's best counter-rules.

        Also returns which neighbours (N,) satisfy them.
        """
        z, label = neighbours.code, neighbours.label
        usable = neighbours.accepted & (label >= 0)
        inside = torch.zeros(len(z), dtype=torch.bool)
        is_target = usable & (label == target)
        if not is_target.any():
            return z[:0], inside
        here, codes = z0.cpu().numpy(), z.cpu().numpy()
        tree = self.fit_tree(z[usable], label[usable], target)
        counter_rules = [box for box in read_boxes(tree, here) if box.label == target]
        counter_rules.sort(key=lambda box: (box.n_changes, _distance(box.project(here), here)))
        far = np.linalg.norm(codes - here, axis=1)
        sure = (neighbours.score >= tau).cpu().numpy()
        lines = []
        for box in counter_rules[: self.max_rules]:
            contained = box.contains(codes)
            inside |= torch.from_numpy(contained)
            ends = np.flatnonzero(contained & is_target.cpu().numpy())
            order = np.lexsort((far[ends], ~sure[ends]))  # tau reached first, then nearest
            ends = ends[order][: self.neighbours_per_rule]
            lines.append(_points_on_lines(box, here, codes[ends], self.exemplars // self.max_rules))
        return torch.from_numpy(np.concatenate(lines)).to(z) if lines else z[:0], inside


def _choose(
    options: GradedCodes, allowed: Tensor, z0: Tensor, tau: float
) -> tuple[Tensor | None, str]:
    """Return the position of one item's counter-exemplar, or None, and the failure reason."""
    reaches_tau = allowed & (options.score >= tau)
    far = (options.code - z0).norm(dim=1)
    if reaches_tau.any():
        return far.masked_fill(~reaches_tau, torch.inf).argmin(), ""
    if allowed.any():
        best = options.score.masked_fill(~allowed, -torch.inf).argmax()
        return best, f"{NO_EXEMPLAR} at tau"
    return None, NO_EXEMPLAR


def _points_on_lines(box: LeafBox, z0: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """Return at most n points (M, d) on the lines from z0's projection on the box to `ends`.

    The points of different lines are staggered. Without ends, all points are the projection.
    """
    near, n_lines = box.project(z0), max(len(ends), 1)
    n_each = n // n_lines
    offset = np.arange(n_lines)[:, None, None] / n_lines
    share = (np.arange(n_each)[None, :, None] + offset) / n_each  # in [0, 1)
    ends = ends if len(ends) else near[None]
    return (near + share * (ends[:, None] - near)).reshape(-1, len(z0))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))
