"""DiffExplainer: move the code of a diffusion autoencoder along the gradient of a linear agent.

Source: Fang, Wu, Jin, Wang, Xu, Walsh & Yang, "DiffExplainer: Unveiling Black Box Models Via
Counterfactual Generation", MICCAI workshop 2024. The authors have not released code.

    q_i+ = q + alpha dy'_i/dq,   I'_qi+ = D(q_i+),   y_i+ = C(I'_qi+)
    q_i- = q - alpha dy'_i/dq,   I'_qi- = D(q_i-),   y_i- = C(I'_qi-)                     (Eq. 2)

q are the codes of a patient's slices, y' = A(q) is the agent's score of class i, D the decoder and
C the black box ("teacher"). The black box is only asked for its outputs.

Decisions:
* y'_i is the log-odds of class i. With two classes, lowering one class is raising the other, so
  that a call with `target` covers both lines of Eq. 2. For a linear agent this gradient is the same
  for every patient. That of the probability has its direction, but vanishes where it saturates.
* The paper chooses alpha by hand. Here it is searched for each item: from the amount that the agent
  predicts, it doubles until the black box gives the wanted score or ||q' - q||_2 equals `limit`.
  False position then takes the score down to at most `tolerance` above the wanted one.
* `direction="pattern"` replaces dy'/dq by its product with the covariance of the training codes
  (Haufe et al., NeuroImage 2014, Eq. 6). The gradient is a filter: it also weighs codes that only
  cancel what disturbs the others. The pattern is how codes of patients vary with the score.
* D decodes from the noise x_T of the inverted query, as in Preechakul et al. (CVPR 2022).
* An item that does not reach tau keeps the visited point with the highest score.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cf_utils.core import (
    NAN,
    Counterfactuals,
    Explainer,
    Ids,
    PassCounter,
    SearchResult,
    check_count,
    device_of,
    frozen,
)
from cf_utils.core.choices import check_choice
from cf_utils.explainers.shared import line
from cf_utils.explainers.shared.false_position import (
    TracedLines,
    aim_of,
    refine,
    split_by_score,
)
from cf_utils.explainers.shared.latent import (
    LatentPasses,
    cast_to_model,
    check_output,
    reconstruct,
    walk,
)
from cf_utils.explainers.shared.search import log_odds
from cf_utils.models.agent import Agent
from cf_utils.models.generators.slices import DiffusionCodes

FLAT = "gradient of the agent's score is 0"
PATHS = ("score", "amount")
DIRECTIONS = ("gradient", "pattern")


@dataclass(frozen=True, eq=False, kw_only=True)
class DiffExplainer(Explainer):
    """Shift the codes of a patient's slices along dy'/dq until the black box reaches tau.

    x: patients (B, S, H, W) in [0, 1], with the slices as channels. All models are on the
    classifier's device. Per item, a call costs one encoding with its inversion, one decoding of the
    reconstruction, and one decoding and one pass of the classifier for each amount that is tried. A
    decoding of a patient takes S * steps passes of the diffusion model's network, but is counted as
    one pass of the generator.

    `path` holds the query, the reconstruction, and `path_steps` states in equal steps of the black
    box's score, or of alpha; the last one is the result.

    Raises ValueError on settings out of range, and on x with another number of slices than the
    agent's.
    """

    autoencoder: nn.Module = field(repr=False)  # of single slices, see `DiffusionCodes`
    agent: Agent = field(repr=False)
    steps: int = 20  # of the inversion and of the decoding
    limit: float = 40.0  # largest ||q' - q||_2
    tolerance: float = 0.01  # largest excess of a score over the wanted one
    refinements: int = 6  # most points of false position, per state
    path_steps: int = 5  # states of the path after the reconstruction
    path_by: str = "score"  # equal steps of the path: score (extra decodings), or amount (alpha)
    direction: str = "gradient"  # dy'/dq of Eq. 2, or the pattern of the agent
    bfloat16: bool = False  # of the autoencoder's networks

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError if a setting is out of range or x does not fit the agent."""
        if not self.limit > 0:
            raise ValueError(f"limit: got {self.limit}, expected a number above 0")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance: got {self.tolerance}, expected inside (0, 1)")
        check_count("steps", self.steps)
        check_count("refinements", self.refinements, least=0)
        check_count("path_steps", self.path_steps)
        check_choice("path_by", self.path_by, PATHS)
        check_choice("direction", self.direction, DIRECTIONS)
        if x.ndim != 4 or x.shape[1] != self.agent.slices:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected patients (B, {self.agent.slices}, H, W) "
                "with as many slices as the agent's"
            )

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Search alpha for each item."""
        model = self._codes(x)
        generator, rows = LatentPasses(model, len(x)), torch.arange(len(x))
        with frozen(model, self.agent):
            with torch.no_grad():
                z = generator.encode(cast_to_model(x, model), rows)
                output = generator.decode(z, rows)  # I'_q = D(q)
                check_output(output, x)
                logits = f(output, rows)  # C(I'_q)
            slope = self._gradient(model.semantic(z), target)
            ahead = self._turn(slope)
            rise = (slope * ahead).sum(1)  # of linear log-odds, per unit of alpha
            direction = model.extend(ahead, x.shape[1])
            wanted = torch.full_like(rise, tau)
            lines = TracedLines(f, generator, rows, z, direction, target, wanted)
            every = torch.arange(len(x), device=x.device)
            begin = lines.judge(output, logits, every)
            lines.remember(begin, torch.zeros_like(rise), every)
            found = self._search_amounts(
                lines, begin, log_odds(logits, target), rise, ahead.norm(dim=1)
            )
            path = self._split(lines, begin, found)
        return SearchResult(
            found.output.to(x),
            path=path.to(x),
            path_len=torch.full((len(x),), path.shape[1]),
            reason=self._reasons(begin.finite, found.reached, rise),
            generator=generator.total(),
        )

    def _search_amounts(
        self, lines: TracedLines, begin: line.Look, now: Tensor, rise: Tensor, length: Tensor
    ) -> line.Amounts:
        """Return the amounts alpha.

        Args: now: log-odds at alpha = 0; rise: of the agent's, per unit of alpha; length: of the
        direction.
        """
        aim = aim_of(lines.wanted, self.tolerance)
        first = ((aim - now) / rise).nan_to_num(0, 0, 0)
        most = torch.where(length > 0, self.limit / length, torch.zeros_like(length))
        found = line.search_amounts(lines, line.start(begin), first, most, halvings=0)
        return refine(lines, found, lines.bracket(aim), self.refinements, self.tolerance)

    def _split(self, lines: TracedLines, begin: line.Look, found: line.Amounts) -> Tensor:
        """Return the states of the path after the query, (B, path_steps + 1, S, H, W)."""
        if self.path_by == "amount":
            return line.split_line(lines, begin, found, self.path_steps, "amount", halvings=0)
        return split_by_score(
            lines, begin, found, self.path_steps, self.refinements, self.tolerance
        )

    def explain_both(
        self,
        classifier: nn.Module,
        x: Tensor,
        ids: Ids | None = None,
        tau: float | None = None,
    ) -> tuple[Counterfactuals, Counterfactuals]:
        """Explain towards class 0 and towards class 1: both directions of undecided patients."""
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self(classifier, x, zeros, ids, tau), self(classifier, x, zeros + 1, ids, tau)

    @torch.no_grad()
    def manipulate(self, x: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
        """Return D(q + alpha d) for the direction d and given amounts, (B, K, S, H, W).

        Args: x (B, S, H, W); target int64 (B,), the class i; alpha (K,), of either sign.
        """
        model, place = self._codes(x), device_of(self.agent, x.device)
        with frozen(model, self.agent):
            z = model.encode(cast_to_model(x, model))
            ahead = self._turn(self._gradient(model.semantic(z), target.to(place)))
            generator = LatentPasses(model, len(x))
            return walk(generator, z, model.extend(ahead, x.shape[1]), alpha.to(z)).to(x)

    @torch.no_grad()
    def directions(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the direction for the class `target` (B,) at the codes of x, (B, S * d)."""
        model, place = self._codes(x), device_of(self.agent, x.device)
        with frozen(model, self.agent):
            codes = model.encode_semantic(cast_to_model(x, model))
            return self._turn(self._gradient(codes, target.to(place))).to(x)

    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the reconstruction D(q) of x, the point at alpha = 0."""
        return reconstruct(self._codes(x), x)

    def _codes(self, x: Tensor) -> DiffusionCodes:
        """Return the latent model of patients of the size of x."""
        size = (x.shape[2], x.shape[3])
        return DiffusionCodes(self.autoencoder, size, self.steps, self.bfloat16)

    @torch.enable_grad()
    def _gradient(self, codes: Tensor, target: Tensor) -> Tensor:
        """Return dy'/dq, the gradient of the target's log-odds in q (B, S * d)."""
        q = codes.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(log_odds(self.agent(q), target).sum(), q)
        return slope.nan_to_num(0, 0, 0)

    def _turn(self, slope: Tensor) -> Tensor:
        """Return the direction of the search (B, S * d) for gradients of the same shape."""
        return slope @ self.agent.covariance.to(slope) if self.direction == "pattern" else slope

    def _reasons(self, finite: Tensor, reached: Tensor, rise: Tensor) -> list[str]:
        """Return the failure reason per item."""
        far = f"score below tau up to distance {self.limit:g} in the latent space"
        reasons = [FLAT if flat else far for flat in (rise == 0).tolist()]
        reasons = [r if ok else NAN for r, ok in zip(reasons, finite.tolist(), strict=True)]
        return ["" if ok else r for r, ok in zip(reasons, reached.tolist(), strict=True)]


def difference_maps(
    cfs: Counterfactuals,
    window: tuple[float, float] = (-1000.0, 200.0),
    zero_edit: Tensor | None = None,
) -> Tensor:
    """Return counterfactual minus reconstruction in Hounsfield units, signed (B, S, H, W).

    Positive values are textures that the counterfactual adds. The reconstruction is the second
    state of the path; an item that was not searched has a map of 0. With `zero_edit`, its map is
    the query minus the zero edit.

    Args:
        window: HU of the values 0 and 1 of x.
        zero_edit: what to subtract instead, like x: the method's result with nothing to change.

    Raises ValueError for a result without path and zero edit.
    """
    low, high = window
    if zero_edit is not None:
        return (cfs.counterfactual - zero_edit) * (high - low)
    if cfs.path is None:
        raise ValueError("cfs: got a result without path, expected one of DiffExplainer")
    return (cfs.counterfactual - cfs.path[:, 1]) * (high - low)
