"""DiME and FastDiME: a diffusion chain from the noised query, guided by the classifier.

Source: Jeanneret, Simon & Jurie, "Diffusion Models for Counterfactual Explanations", ACCV 2022.
The chain runs from the level of step tau down to 0. q is the query, and images are in [-1, 1]:

    z_{k-1} = mu_k(z_k) - Sigma_k(z_k) g + Sigma_k(z_k)^(1/2) eps
    g = grad_x [ s L_class(x_k) + p L_perc(x_k, q) ] / sqrt(abar_k)  +  l1 sign(z_k - q)

The classifier was trained on clean images. It is therefore applied to x_k, the clean image that an
unguided chain makes from z_k. This takes 1 + 2 + ... + tau passes in all. The gradient at z_k is
that at x_k divided by sqrt(abar_k), since x = (z - sqrt(1 - abar) eps) / sqrt(abar) with eps fixed.
The scales s are tried in turn, each on the items that have not reached tau yet.

FastDiME (Weng, Pegios et al., ECCV 2024): with `fast`, x_k is the clean image that the step's own
pass predicts. From step `warm_up` on, `own_mask` restores the query where x_k differs little from
it. `pasted` (ours) adds ACE's mask and refinement, to compare the two searches.

Decisions, where the paper is silent or its code differs:
* L_class is minus the target's log-odds. For two classes this is the published logit.
* The chain starts at the level of its first step; the code noises one level further.
* Every scale starts from the same noised query and draws fresh noise per item in its steps.
* The result is clipped to [0, 1] before it is judged, because the last step is guided, too.
* FastDiME's code guides by the previous step's prediction, and does not divide by sqrt(abar_k).
  Ours guides by the step's own prediction, and divides.
* L_perc is the mean squared difference of VGG19's first 18 layers, p = 30
  (`metrics.perceptual.VGG19`). VGG19's weights are not shipped, so L_perc is off by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from cf_utils.core import (
    NAN,
    Counterfactuals,
    Explainer,
    Ids,
    PassCounter,
    SearchResult,
    frozen,
    progress,
    select_ids,
)
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
from cf_utils.explainers.shared.search import SearchState, log_odds, per_item, target_score
from cf_utils.models.generators.diffusion import DDPM, noise_of, to_image, to_model

# clean images in [-1, 1] -> their gradient, and which items it is finite for (B,)
Guide = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class _Trials:
    """Results of the scales tried so far, for all items of the call."""

    path: list[Tensor]  # images (B, C, H, W) after each scale
    n_tried: Tensor  # int64 (B,), scales tried
    reason: list[str]  # failure reason per item
    mask: Tensor  # bool (B, 1, H, W), FastDiME's own mask


@dataclass(frozen=True, eq=False, kw_only=True)
class DiME(Explainer):
    """Denoise the noised query, and steer every step towards the target.

    x: images (B, C, H, W) in [0, 1], of the size that `prior` was trained on. Per item, each scale
    takes steps * (steps + 1) / 2 passes of the prior, or `steps` with `fast`. It also takes `steps`
    forward and backward passes of the classifier.

    The result's `path` holds the query, the image after each scale tried, and the pasted image. Its
    `mask`, if there is one, marks the pixels that may differ from the query.
    Raises ValueError on settings out of range and on images of another size.
    """

    prior: DDPM = field(repr=False)
    spacing: str = "200"  # levels of the re-spaced chain (`schedule.select_levels`)
    steps: int = 60  # tau: levels of that chain that are used, from the least noise up
    scales: tuple[float, ...] = (8.0, 10.0, 15.0)  # s, in turn
    l1: float = 0.05  # weight of the pull to the query
    # L_perc: (x, query), both (B, C, H, W) in [0, 1] -> (B,)
    perceptual: nn.Module | None = field(default=None, repr=False)
    perceptual_weight: float = 30.0  # p
    fast: bool = False  # FastDiME
    own_mask: bool = False  # FastDiME's mask; needs `fast`
    warm_up: int = 30  # steps before the own mask
    pasted: bool = False  # ACE's mask and refinement at the end
    refine: tuple[str, int] = ("50", 5)  # spacing, steps of that refinement
    threshold: float = 0.15  # of either mask, as a share of the largest change
    dilation: int = 15  # of either mask, odd, in pixels
    bfloat16: bool = False  # run the prior in autocast
    # An earlier result of DiME: paste its images instead of searching; needs `pasted`.
    reuse: Counterfactuals | None = field(
        default=None, repr=False, metadata={"stored_as": "guided"}
    )

    needs_gradient: ClassVar[bool] = True

    def check(self, x: Tensor, logits: Tensor) -> None:
        """Raise ValueError unless the settings are in range and the prior fits x."""
        weights = (*self.scales, self.l1, self.perceptual_weight)
        if not self.scales or not all(weight >= 0 for weight in weights):
            raise ValueError(
                f"scales, l1, perceptual_weight: got {self.scales}, {self.l1}, "
                f"{self.perceptual_weight}, expected at least one scale and no negative number"
            )
        if self.own_mask and not (self.fast and 0 <= self.warm_up < self.steps and not self.pasted):
            raise ValueError(
                f"own_mask: got fast={self.fast}, pasted={self.pasted}, warm_up={self.warm_up}, "
                "expected fast=True, pasted=False and warm_up from 0 to steps - 1"
            )
        if self.reuse is not None and not self.pasted:
            raise ValueError("reuse: got pasted=False, expected True; a reused result is pasted")
        check_reuse(self.reuse, "DiME")
        refine = {"refine": self.refine} if self.pasted else {}
        check_prior(self.prior, x, self.bounds, steps=(self.spacing, self.steps), **refine)
        change_mask(x[:1], x[:1], self.threshold, self.dilation)

    def search(
        self, f: PassCounter, x: Tensor, target: Tensor, ids: Ids, tau: float
    ) -> SearchResult:
        """Try the scales in turn, or reuse a result, and paste if wanted."""
        generator = count_passes(self.prior, len(x), self.bfloat16)
        networks = [self.prior] if self.perceptual is None else [self.prior, self.perceptual]
        with frozen(*networks), torch.no_grad():
            if self.reuse is None:
                trials = self._try_scales(f, generator, x, target, ids, tau)
            else:
                images, reason = reuse_results(
                    self.reuse, self.reuse.counterfactual, ids, x, target
                )
                trials = self._start_trials(x)
                trials.path, trials.reason = [images], reason
            if self.pasted:
                f.flush()
                result, trials.mask = self._paste(generator, x, trials.path[-1], ids)
                trials.path.append(result)
                trials.n_tried = torch.full((len(x),), len(trials.path))
        return SearchResult(
            trials.path[-1],
            mask=trials.mask.expand_as(x) if self.pasted or self.own_mask else None,
            path=torch.stack(trials.path, 1),
            path_len=trials.n_tried,
            reason=trials.reason,
            generator=generator,
        )

    @staticmethod
    def _start_trials(x: Tensor) -> _Trials:
        mask = x.new_zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
        return _Trials([], torch.zeros(len(x), dtype=torch.int64), [""] * len(x), mask)

    def _try_scales(
        self,
        f: PassCounter,
        generator: PassCounter,
        x: Tensor,
        target: Tensor,
        ids: Ids,
        tau: float,
    ) -> _Trials:
        """Run the guided chain at each scale on the items that have not reached tau."""
        trials, state = self._start_trials(x), SearchState(torch.arange(len(x)))
        failed = f"target not reached at the scales {', '.join(f'{s:g}' for s in self.scales)}"
        for number, scale in enumerate(self.scales):
            rows, at = state.rows, state.rows.to(x.device)
            guide = partial(self._guide, f, query=x[at], target=target[at], rows=rows, scale=scale)
            y, mask, finite = self._run_chain(
                generator, x[at], select_ids(ids, rows), rows, number, guide
            )
            logits = f(y, rows)
            score = target_score(logits, target[at])
            finite &= score.isfinite()
            done = (logits.argmax(1) == target[at]) & (score >= tau) & finite
            trials.path.append((trials.path[-1] if trials.path else x).clone())
            state.write(trials.path[-1], torch.where(per_item(finite, y), y, x[at]))
            if mask is not None:
                state.write(trials.mask, mask & per_item(finite, mask))
            state.write(trials.n_tried, torch.full((len(state),), number + 1))
            for i, ok in zip(rows.tolist(), done.tolist(), strict=True):
                trials.reason[i] = "" if ok else failed
            for k in (~finite).nonzero().flatten().tolist():
                stayed_finite = bool(y[k].isfinite().all())  # then only the classifier broke
                trials.reason[int(rows[k])] = NAN if stayed_finite else NAN_PRIOR
            state.keep(finite & ~done)
            if not len(state):
                break
        return trials

    def _run_chain(
        self,
        generator: PassCounter,
        x: Tensor,
        ids: Ids,
        rows: Tensor,
        number: int = 0,
        guide: Guide | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Noise x (B, C, H, W) and denoise it step by step, guided if there is a `guide`.

        `rows` are the items' positions in the counter, and `number` selects the noise.
        Returns images in [0, 1], FastDiME's mask or None, and which items met no NaN (B,).
        """
        chain = build_chain(self.prior, generator, rows, self.spacing)
        schedule, q = chain.schedule, to_model(x)
        noise, query_noise = (
            noise_of(self.seed, ids, x, f"{name} {number}") for name in ("dime", "query")
        )
        start = noise_of(self.seed, ids, x, "dime")(self.steps)
        z, clean, mask = schedule.add_noise(q, self.steps - 1, start), q, None
        finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        levels = range(self.steps - 1, -1, -1)
        for k in progress(levels, desc=f"scale {number + 1}", leave=False):
            mean, log_variance, predicted = schedule.mean_variance(
                z, k, chain.predict(z, k), chain.clip
            )
            if self.fast:
                clean = predicted
                if self.own_mask and self.steps - 1 - k >= self.warm_up:
                    mask = change_mask(x, to_image(predicted), self.threshold, self.dilation)
                    clean = torch.where(mask, predicted, q)
            if guide is not None:
                g, ok = guide(clean)
                finite &= ok  # the others continue unguided and fail at the end
                g = torch.where(per_item(ok, z), g / schedule.abar[k].sqrt().item(), 0)
                mean = mean - log_variance.exp() * (g + self.l1 * (z - q).sign())
            z = mean + (log_variance / 2).exp() * noise(k) if k else mean
            if k and mask is not None:
                z = torch.where(mask, z, schedule.add_noise(q, k - 1, query_noise(k)))
            if k and guide is not None and not self.fast:
                below = noise_of(self.seed, ids, x, f"dime {number} below {k}")
                clean = chain.denoise(z, k, below)
        y = to_image(z).clamp(0, 1)
        return (y if mask is None else torch.where(mask, y, x)), mask, finite

    def _guide(
        self,
        f: PassCounter,
        clean: Tensor,
        query: Tensor,
        target: Tensor,
        rows: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of s L_class + p L_perc at clean images, and where it is finite."""
        with torch.enable_grad():
            z = clean.detach().requires_grad_(True)
            y = to_image(z)
            logits = f(y, rows)
            loss = -scale * log_odds(logits, target)
            if self.perceptual is not None:
                loss = loss + self.perceptual_weight * self.perceptual(y, query)
            gradient = f.grad(loss.sum(), z)
        finite = gradient.flatten(1).isfinite().all(1) & logits.detach().isfinite().all(1)
        return gradient, finite

    def _paste(
        self, generator: PassCounter, x: Tensor, edited: Tensor, ids: Ids
    ) -> tuple[Tensor, Tensor]:
        """Return ACE's refinement of edited images, and its mask (B, 1, H, W)."""
        spacing, steps = self.refine
        mask = change_mask(x, edited, self.threshold, self.dilation)
        chain = build_chain(self.prior, generator, torch.arange(len(x)), spacing)
        noise, query_noise = (noise_of(self.seed, ids, x, name) for name in ("refine", "query"))
        return inpaint(chain, x, edited, mask, steps, noise, query_noise), mask

    @torch.no_grad()
    def zero_edit(self, x: Tensor, ids: Ids | None = None) -> Tensor:
        """Return the images of the unguided chain from the noised x, pasted if `pasted`."""
        ids = check_images(x, ids, self.bounds)
        self.check(x, logits=x)  # no classifier takes part
        generator = count_passes(self.prior, len(x), self.bfloat16)
        with frozen(self.prior):
            y, _, _ = self._run_chain(generator, x, ids, torch.arange(len(x)))
            return self._paste(generator, x, y, ids)[0] if self.pasted else y
