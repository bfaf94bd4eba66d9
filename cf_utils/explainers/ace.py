"""ACE: an adversarial attack through a diffusion model, then refinement inside a mask.

Source: Jeanneret, Simon & Jurie, "Adversarial Counterfactual Visual Explanations", CVPR 2023:

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps               Eq. 1    `Schedule.add_noise`
    x_{t-1} = mu_t(x_t) + Sigma_t(x_t) eps                      Eq. 2    `Chain.step`
    min_x'  L_class(F_tau(x'); y') + lambda_d d(x', x)          Eq. 3    `ACE._attack`
    x_{t-1} = mu_t(x'_t) + Sigma_t(x'_t) eps, x'_t a collage    Eq. 4    `inpaint`

The filter F_tau noises an image to the level of step tau of a re-spaced chain and denoises it.
The gradient of Eq. 3 passes through all of these steps.

Decisions, where the paper is silent or its code differs:
* lambda_d is per item. The authors' code averages the class loss over a batch, but sums the
  distance. There, the weight of the distance grows with the batch size.
* Pixels are in [0, 1]. d is the l1 norm, or the l2 norm, not squared. L_class is cross-entropy.
* PGD steps along the sign of the gradient, GD along the gradient. The last iterate is kept.
* C&W (Carlini & Wagner, 2017) uses their hinge on logits, with kappa 5; the authors' code has 0. It
  updates w, where x' = (tanh w + 1) / 2, by Adam; the authors' code takes plain gradient steps.
  w starts inside [-3, 3], because the gradient in w vanishes at black and white pixels.
* Each iteration of the attack draws fresh noise per item; `common_noise` repeats one draw.
* Stages (Table 5): `pre` is x' itself; `fr` is F_tau(x'); `f` filters x' from the same noise level
  through all levels of the original chain; `ace` is the whole method.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cf_utils.core import (
    NAN,
    Counterfactuals,
    Explainer,
    Ids,
    PassCounter,
    SearchResult,
    frozen,
    select_ids,
)
from cf_utils.core.checks import check_count
from cf_utils.explainers.shared.diffusion import (
    NAN_PRIOR,
    build_chain,
    check_images,
    check_prior,
    check_reuse,
    count_passes,
    reuse_results,
)
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.explainers.shared.search import Adam, SearchState, logit_margin, per_item
from cf_utils.models.generators.diffusion import DDPM, Chain, noise_of

CHOICES = {
    "attack": ("pgd", "gd", "cw"),
    "distance": ("l1", "l2"),
    "stage": ("ace", "pre", "fr", "f"),
}


@dataclass(eq=False)
class _Attack(SearchState):
    """The items that are still attacked."""

    query: Tensor  # (B, C, H, W)
    target: Tensor  # (B,)
    w: Tensor | None = None  # (B, C, H, W), the variable of C&W
    adam: Adam | None = None  # its optimiser


@dataclass(frozen=True, eq=False, kw_only=True)
class ACE(Explainer):
    """Attack each image through a diffusion model, then restore what need not change.

    x: images (B, C, H, W) in [0, 1], of the size that `prior` was trained on. Per item, the attack
    takes iterations * steps forward passes of the prior and as many backward passes. The refinement
    takes `steps` more forward passes.

    The result's `mask` marks the pixels that the refinement may change. Its `path` holds the query,
    every `trace`-th state of the attack, x' (`pre_explanation`) and the counterfactual.
    Raises ValueError on settings out of range and on images of another size.
    """

    prior: DDPM = field(repr=False)
    spacing: str = "50"  # levels of the re-spaced chain (`schedule.select_levels`)
    steps: int = 5  # tau of F_tau: levels of that chain, from the least noise up
    attack: str = "pgd"  # pgd, gd, cw
    iterations: int = 50  # the paper: 100 for gd and cw
    step: float = 1 / 255  # pgd: in pixel units; gd: factor of the gradient; cw: Adam's step for w
    eps: float = 1.0  # bound of |x' - x| per value, in (0, 1]
    distance: str = "l1"  # l1, l2
    lam: float = 0.003  # lambda_d
    kappa: float = 5.0  # cw: margin of logits beyond which the class loss is 0
    threshold: float = 0.15  # of the mask, as a share of the largest change in the image
    dilation: int = 15  # of the mask, odd, in pixels
    stage: str = "ace"  # ace, pre, fr, f
    refine: tuple[str, int] | None = None  # spacing, steps of the refinement; None: the filter's
    common_noise: bool = False  # all iterations of the attack share one draw
    margin: float | None = None  # stop attacking an item once the target's logit leads by this
    checkpoint: bool = False  # recompute activations in the backward pass: less memory
    bfloat16: bool = False  # run the prior in autocast
    trace: int = 10  # iterations between two states of the path
    # An earlier result of ACE: refine its x' instead of attacking.
    reuse: Counterfactuals | None = field(
        default=None, repr=False, metadata={"stored_as": "attacked"}
    )

    needs_gradient: ClassVar[bool] = True

    def by(self, attack: str, **changes) -> ACE:
        """Return a copy with another attack; GD and C&W get twice the iterations (section 4.6)."""
        iterations = self.iterations * (1 if attack == "pgd" else 2)
        return self.with_(attack=attack, **({"iterations": iterations} | changes))

    def l2(self) -> ACE:
        """Return a copy with the l2 distance. Its lambda_d is ours; the authors give none."""
        return self.with_(distance="l2", lam=0.1)

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError unless the settings are in range and the prior fits x."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {known}")
        for name in ("iterations", "trace", "steps"):
            check_count(name, getattr(self, name))
        if not (self.step > 0 and self.lam >= 0 and 0 < self.eps <= 1 and self.kappa >= 0):
            raise ValueError(
                f"step, lam, eps, kappa: got {self.step}, {self.lam}, {self.eps}, {self.kappa}, "
                "expected step > 0, lam >= 0, 0 < eps <= 1 and kappa >= 0"
            )
        if self.margin is not None and not self.margin >= 0:
            raise ValueError(f"margin: got {self.margin}, expected None or a number >= 0")
        check_reuse(self.reuse, "ACE")
        chains = {"steps": (self.spacing, self.steps), "refine": self._refinement}
        check_prior(self.prior, x, self.bounds, **chains)
        change_mask(x[:1], x[:1], self.threshold, self.dilation)

    @property
    def _refinement(self) -> tuple[str, int]:
        """Spacing and steps of the refinement."""
        return self.refine or (self.spacing, self.steps)

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Find x' by Eq. 3, or reuse it, and refine it by Eq. 4."""
        generator, states = count_passes(self.prior, len(x), self.bfloat16), []
        with frozen(self.prior):
            if self.reuse is None:
                pre, states, reason = self._attack(f, generator, x, target, ids)
            else:
                pre, reason = reuse_results(self.reuse, pre_explanation(self.reuse), ids, x, target)
            f.flush()
            with torch.no_grad():
                result, mask = self._finish(generator, x, pre, ids)
        finite = result.flatten(1).isfinite().all(1).tolist()
        reason = [why or ("" if ok else NAN_PRIOR) for why, ok in zip(reason, finite, strict=True)]
        failed = torch.tensor([bool(why) for why in reason], device=x.device)
        result = torch.where(per_item(failed, x), x, result)
        path = torch.stack([*states, pre, result], 1)
        path_len = torch.full((len(x),), path.shape[1])
        return SearchResult(result, mask, path, path_len, reason, generator)

    def _attack(
        self, f: PassCounter, generator: PassCounter, x: Tensor, target: Tensor, ids: Ids
    ) -> tuple[Tensor, list[Tensor], list[str]]:
        """Minimise Eq. 3 from x. Return x' (B, ...), its states, and a failure reason per item."""
        edited, states, reason = x.clone(), [], [""] * len(x)
        state = self._start(x, target)
        chain = self._attack_chain(generator, state)
        for i in range(self.iterations):
            stream = "attack" if self.common_noise else f"attack {i}"
            noise = noise_of(self.seed, select_ids(ids, state.rows), state.query, stream)
            x_prime = edited[state.rows.to(x.device)].requires_grad_(True)
            filtered = chain.filter(x_prime, self.steps, noise)  # F_tau(x')
            logits = f(filtered, state.rows)
            loss = self._class_loss(logits, state.target)
            loss = loss + self.lam * self._distance(x_prime - state.query)
            gradient = f.grad(loss.sum(), x_prime)
            generator.count_backward(self.steps)
            logits, x_prime = logits.detach(), x_prime.detach()
            broken = ~(logits.isfinite().all(1) & gradient.flatten(1).isfinite().all(1))
            leave = broken | self._leads(logits, state.target)
            moved = self._step(state, x_prime, gradient)
            state.write(edited, torch.where(per_item(leave, x_prime), x_prime, moved))
            if leave.any():
                for k in broken.nonzero().flatten().tolist():
                    finite = bool(filtered[k].isfinite().all())
                    reason[int(state.rows[k])] = NAN if finite else NAN_PRIOR
                state.keep(~leave)
                chain = self._attack_chain(generator, state)
            if (i + 1) % self.trace == 0 and i + 1 < self.iterations:
                states.append(edited.clone())
            if not len(state):
                break
        n_states = (self.iterations - 1) // self.trace
        return edited, states + [edited.clone()] * (n_states - len(states)), reason

    def _start(self, x: Tensor, target: Tensor) -> _Attack:
        """Return the state of the attack before its first iteration."""
        state = _Attack(torch.arange(len(x)), x, target)
        if self.attack == "cw":
            state.w = torch.atanh(2 * x - 1).clamp(-3, 3)
            state.adam = Adam(state.w, self.step, self.iterations)
        return state

    def _attack_chain(self, generator: PassCounter, state: _Attack) -> Chain:
        recompute = self.checkpoint
        return build_chain(self.prior, generator, state.rows, self.spacing, checkpoint=recompute)

    def _class_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return L_class of Eq. 3, (B,)."""
        if self.attack == "cw":
            return (self.kappa - logit_margin(logits, target)).clamp(min=0)
        return F.cross_entropy(logits, target, reduction="none")

    def _distance(self, change: Tensor) -> Tensor:
        """Return d(x', x) of Eq. 3, (B,), where `change` (B, ...) is x' - x."""
        change = change.flatten(1)
        if self.distance == "l1":
            return change.abs().sum(1)
        square = change.square().sum(1)  # the norm has no gradient at 0, so 0 is used there
        return torch.where(square > 0, square, 1).sqrt() * (square > 0)

    def _leads(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return whether the target's logit has the wanted `margin`, bool (B,)."""
        if self.margin is None:
            return torch.zeros_like(target, dtype=torch.bool)
        return logit_margin(logits, target) >= self.margin

    def _step(self, state: _Attack, x_prime: Tensor, gradient: Tensor) -> Tensor:
        """Return x' after one step of the attack, within eps of the query and inside [0, 1]."""
        if state.w is not None and state.adam is not None:
            slope = (1 - state.w.tanh().square()) / 2  # d x' / d w
            x_prime = (state.adam.step_(state.w, gradient * slope).tanh() + 1) / 2
        else:
            direction = gradient.sign() if self.attack == "pgd" else gradient
            x_prime = x_prime - self.step * direction
        low, high = state.query - self.eps, state.query + self.eps
        return torch.maximum(torch.minimum(x_prime, high), low).clamp(0, 1)

    def _finish(
        self, generator: PassCounter, x: Tensor, pre: Tensor, ids: Ids
    ) -> tuple[Tensor, Tensor | None]:
        """Return the images of `stage` made from x', and the refinement's mask or None."""
        if self.stage == "ace":
            mask = change_mask(x, pre, self.threshold, self.dilation)
            return self._refine(generator, x, pre, mask, ids), mask.expand_as(x)
        if self.stage == "pre":
            return pre, None
        return self._filter(generator, pre, ids), None

    def _refine(
        self, generator: PassCounter, x: Tensor, edited: Tensor, mask: Tensor, ids: Ids
    ) -> Tensor:
        """Return Eq. 4's images: `edited` inside the mask, the query outside."""
        spacing, steps = self._refinement
        chain = build_chain(self.prior, generator, torch.arange(len(x)), spacing)
        noise, query_noise = (noise_of(self.seed, ids, x, name) for name in ("refine", "query"))
        return inpaint(chain, x, edited, mask, steps, noise, query_noise)

    def _filter(self, generator: PassCounter, x: Tensor, ids: Ids) -> Tensor:
        """Return the filtered images of the stages `fr` and `f`."""
        spacing, steps = self._refinement
        if self.stage == "f":  # the same noise level, through all original levels
            steps, spacing = self.prior.schedule.respace(spacing).t[steps - 1] + 1, None
        chain = build_chain(self.prior, generator, torch.arange(len(x)), spacing)
        return chain.filter(x, steps, noise_of(self.seed, ids, x, "refine")).clamp(0, 1)

    @torch.no_grad()
    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the images (B, C, H, W) in [0, 1] that `stage` makes from x' = x.

        There is no edit to mask. Stage `ace` therefore masks where F_tau changes x, with the usual
        threshold.
        """
        ids = check_images(x, ids, self.bounds)
        self.check(x, logits=x)  # no classifier takes part
        if self.stage == "pre":
            return x.clone()
        generator = count_passes(self.prior, len(x), self.bfloat16)
        with frozen(self.prior):
            if self.stage != "ace":
                return self._filter(generator, x, ids)
            chain = build_chain(self.prior, generator, torch.arange(len(x)), self.spacing)
            filtered = chain.filter(x, self.steps, noise_of(self.seed, ids, x, "zero edit"))
            mask = change_mask(x, filtered, self.threshold, self.dilation)
            return self._refine(generator, x, x, mask, ids)


def pre_explanation(cfs: Counterfactuals) -> Tensor:
    """Return x' of Eq. 3, the attack's result (B, C, H, W); the query for items not searched."""
    if cfs.path is None or cfs.path_len is None:
        raise ValueError("cfs: got a result without a path, expected one of ACE")
    return cfs.path[torch.arange(len(cfs)), (cfs.path_len - 2).clamp(min=0)]
