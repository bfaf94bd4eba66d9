"""Explanation by Progressive Exaggeration: a conditional GAN turns the decision up and down.

Source: Singla et al. (ICLR 2020), section 2. The GAN is trained for one classifier; its training is
`cf_utils.training.exaggeration`. An explanation needs outputs of the classifier, no gradients.

    x_delta = I_f(x, delta) = G(E(x), c_f(x, delta))                                        (Eq. 2)

c_f(x, delta) is the bin of f(x) + delta: K equal bins divide [0, 1]. Progressing from bin to bin
changes the classifier's output by 1 / K per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import Explainer, PassCounter, SearchResult, device_of, frozen
from cf_utils.core.checks import Ids
from cf_utils.explainers.shared.latent import LatentPasses
from cf_utils.explainers.shared.search import target_score
from cf_utils.models.generators.cgan import ConditionalGAN


@dataclass(frozen=True, eq=False)
class Progression:
    """The explanations of each query for all K bins, and the classifier's outputs on them.

    "Output" is the probability of class 1.
    """

    query: Tensor  # (B, C, H, W)
    images: Tensor  # (B, K, C, H, W), x_delta for bins 0 to K - 1
    source: Tensor  # (B,), f(x)
    own: Tensor  # int64 (B,), the query's bin c_f(x, 0)
    expected: Tensor  # (B, K), f(x) + delta, inside [0, 1]
    actual: Tensor  # (B, K), f(x_delta)


@dataclass(frozen=True, eq=False, kw_only=True)
class Exaggeration(Explainer):
    """Walk from the query's bin towards the target, and stop at the first bin that reaches tau.

    x: images (B, C, H, W) in [0, 1] of the GAN's size. The classifier has two classes: explain one
    label of a multi-label model by `OneOutput(model, i)`. Per item, a call takes one pass of the
    encoder, K of the generator and K of the classifier.

    If no bin on the way reaches tau, the counterfactual is the bin with the highest probability of
    the target. The result's `path` holds the query and the explanations for bins 0 to K - 1.
    Raises ValueError on images of another size or channel count, and unless the classifier has two
    classes.
    """

    gan: ConditionalGAN = field(repr=False)
    classifier: nn.Module | None = field(default=None, repr=False)  # of `zero_edit`: gives own bins

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError unless the GAN fits x and the classifier has two classes."""
        shape = (self.gan.channels, self.gan.size, self.gan.size)
        if x.shape[1:] != shape:
            raise ValueError(
                f"x: got images of shape {tuple(x.shape[1:])}, the GAN expects {shape} "
                "(channels, height, width)"
            )
        if logits.shape[1] != 2:
            raise ValueError(
                f"classifier: got {logits.shape[1]} classes, expected 2; explain one output of a "
                "multi-label model by OneOutput(model, i)"
            )

    @torch.no_grad()
    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Generate the whole progression of each item, and choose its bin."""
        with frozen(self.gan):
            rows, passes = torch.arange(len(x)), LatentPasses(self.gan, len(x))
            images = self._generate(passes, x)  # (B, K, C, H, W)
            n_bins = images.shape[1]
            every = rows.repeat_interleave(n_bins)
            logits = f(images.flatten(0, 1), every)
            own = self.gan.bin_of(f(x, rows).softmax(1)[:, 1])
        score = target_score(logits, target.repeat_interleave(n_bins)).view(-1, n_bins)
        chosen = choose_bin(score, own, target, tau)
        return SearchResult(
            counterfactual=images[torch.arange(len(x)), chosen],
            path=images,
            path_len=torch.full((len(x),), n_bins),
            generator=passes.total(),
        )

    def _generate(self, passes: LatentPasses, x: Tensor) -> Tensor:
        """Return x_delta for every bin, (B, K, C, H, W)."""
        n_bins, rows = self.gan.bins, torch.arange(len(x))
        z = passes.encode(x, rows)
        bins = torch.arange(n_bins, device=x.device).repeat(len(x))
        # Eq. 2: x_delta = G(E(x), c_f(x, delta))
        images = passes.decode(
            (z.repeat_interleave(n_bins, 0), bins), rows.repeat_interleave(n_bins)
        )
        return images.unflatten(0, (len(x), n_bins))

    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return I_f(x, 0), the explanation for the query's own bin, same shape as x.

        Raises ValueError without the field `classifier`, which defines the bin.
        """
        if self.classifier is None:
            raise ValueError(
                "classifier: got None; zero_edit needs the classifier that the GAN explains, pass "
                "it as Exaggeration(gan=..., classifier=...)"
            )
        device = device_of(self.gan, x.device)
        with torch.no_grad(), frozen(self.gan, self.classifier):
            p = self.classifier(x.to(device)).softmax(1)[:, 1]
            return self.gan(x.to(device), self.gan.bin_of(p)).to(x.device)

    def progress(self, classifier: nn.Module, x: Tensor, batch_size: int = 64) -> Progression:
        """Return the explanations of each query for all bins, as tensors on the CPU.

        Unlike a call, this has no target: queries that are classified as the target already get
        their progression as well. x: images (N, C, H, W) in [0, 1].
        """
        parts = [self._progress(classifier, batch) for batch in x.split(batch_size)]
        joined: dict[str, Any] = {
            name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]
        }
        return Progression(query=x.cpu(), **joined)

    @torch.no_grad()
    def _progress(self, classifier: nn.Module, x: Tensor) -> dict[str, Tensor]:
        x, bins = x.to(device_of(self.gan, x.device)), self.gan.bins
        with frozen(self.gan, classifier):
            logits = classifier(x)
            self.check(x, logits)
            source = logits.softmax(1)[:, 1]
            images = self._generate(LatentPasses(self.gan, len(x)), x)
            actual = classifier(images.flatten(0, 1)).softmax(1)[:, 1].unflatten(0, (-1, bins))
        own = self.gan.bin_of(source)
        delta = (torch.arange(bins, device=x.device) - own[:, None]) / bins
        expected = (source[:, None] + delta).clamp(0, 1)
        return {
            "images": images,
            "source": source,
            "own": own,
            "expected": expected,
            "actual": actual,
        }


def choose_bin(score: Tensor, own: Tensor, target: Tensor, tau: float) -> Tensor:
    """Return the bin of each item's counterfactual, int64 (B,).

    Candidates are the bins beyond the query's own bin, in the direction of the target. If the own
    bin is the last one in that direction, it is the only candidate. The nearest candidate whose
    score is at least tau is chosen; if there is none, the candidate with the highest score.

    Args:
        score: probability of the target for each bin, (B, K).
        own: the query's bin (B,).
        target: 0 or 1 per item (B,). Towards 1, bins rise.
    """
    n_bins = score.shape[1]
    bins = torch.arange(n_bins, device=score.device)
    steps = (bins - own[:, None]) * (2 * target[:, None] - 1)  # number of steps to the target
    end = own == target * (n_bins - 1)
    on_the_way = (steps > 0) | (end[:, None] & (steps == 0))
    reached = on_the_way & (score >= tau)
    nearest = steps.masked_fill(~reached, n_bins).argmin(1)
    best = score.masked_fill(~on_the_way, -1).argmax(1)
    return torch.where(reached.any(1), nearest, best)
