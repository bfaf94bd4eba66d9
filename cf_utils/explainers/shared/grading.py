"""Latent codes, graded by the classifier and by the discriminator of an adversarial autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cf_utils.core import PassCounter, target_score
from cf_utils.explainers.shared.latent import LatentPasses
from cf_utils.models.generators.adversarial_autoencoder import AdversarialAutoencoder


class GradedCodes(NamedTuple):
    """Codes of any number of items and their grades."""

    code: Tensor  # (..., d)
    score: Tensor  # (...), probability of the target
    label: Tensor  # (...) int64, decision; -1 if the logits are not finite
    accepted: Tensor  # (...) bool, whether the discriminator accepts the code


class Population(NamedTuple):
    """Codes, grades and fitness of two populations per item.

    The first population aims at the decision for the query, the second at the target.
    """

    code: Tensor  # (B, 2, N, d)
    score: Tensor  # (B, 2, N), like the following
    label: Tensor
    accepted: Tensor
    fitness: Tensor

    def take(self, at: Tensor) -> Population:
        """Return the members at positions `at` (B, 2, M)."""
        code = self.code.gather(2, at[..., None].expand(*at.shape, self.code.shape[-1]))
        return Population(code, *(values.gather(2, at) for values in self[1:]))


@dataclass(frozen=True, eq=False)
class Grader:
    """Grade codes: decode them, classify the outputs and apply the discriminator, in chunks.

    If the query is already decided as the target, only its score is too low. For such an item, a
    decision as the target with a score below tau gets a label of its own, the number of classes.
    """

    f: PassCounter
    autoencoder: AdversarialAutoencoder
    generator: LatentPasses  # counts the passes of `autoencoder`
    x: Tensor  # queries (B, ...)
    source: Tensor  # (B,) int64, decision for the query
    target: Tensor  # (B,) int64
    tau: float
    threshold: float  # the discriminator accepts a code at this probability or more
    chunk: int  # codes decoded and classified at once

    def grade(self, code: Tensor, rows: Tensor) -> GradedCodes:
        """Grade codes (N, d), where code[j] belongs to item rows[j]."""
        parts = zip(code.split(self.chunk), rows.split(self.chunk), strict=True)
        graded = [self._grade_chunk(*part) for part in parts]
        return GradedCodes(*(torch.cat(values) for values in zip(*graded, strict=True)))

    def grade_population(self, code: Tensor, z0: Tensor) -> Population:
        """Grade codes (B, 2, N, d), and compute their fitness around the queries' codes z0 (B, d).

        The fitness is that of the paper, but the indicator is 2 for the target at tau or more, and
        -1 for a code that is not accepted.
        """
        b, _, n, d = code.shape
        graded = self.grade(code.flatten(0, 2), torch.arange(b).repeat_interleave(2 * n))
        score, label, accepted = (values.view(b, 2, n) for values in graded[1:])
        wanted = torch.stack([self.source, self.target], 1)[:, :, None]  # (B, 2, 1)
        for_target = torch.tensor([False, True], device=code.device).view(1, 2, 1)
        weight = torch.where(for_target & (score >= self.tau), 2.0, 1.0)
        indicator = ((label == wanted) * weight).masked_fill(~accepted, -1.0)
        far = (code - z0[:, None, None]).norm(dim=-1)
        fitness = indicator + 1 - far / (far + d**0.5) - (far == 0).to(far)
        return Population(code, score, label, accepted, fitness.to(z0))

    def _grade_chunk(self, code: Tensor, rows: Tensor) -> GradedCodes:
        at = rows.to(self.x.device)
        target, source = self.target[at], self.source[at]
        logits = self.f(self.generator.decode(code, rows).to(self.x), rows)
        score, label = target_score(logits, target), logits.argmax(1)
        too_low = (label == target) & (target == source) & (score < self.tau)
        label = torch.where(too_low, logits.shape[1], label)
        label = label.masked_fill(~logits.isfinite().all(1), -1)
        accepted = self.autoencoder.discriminator(code).sigmoid() >= self.threshold
        return GradedCodes(code, score, label, accepted)
