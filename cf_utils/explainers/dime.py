"""DiME: a diffusion chain from a noised query, each step of which is steered by the classifier; with FastDiME's shortcut.

Source: Jeanneret, Simon & Jurie, "Diffusion Models for Counterfactual Explanations", ACCV 2022. From z at the level of step tau
down to 0, with x_k a clean image that z_k leads to, q the query and images in [-1, 1]:

    z_{k-1} = mu_k(z_k) - Sigma_k(z_k) g + Sigma_k(z_k)^(1/2) eps
    g = grad_x [ s L_class(x_k) + p L_perc(x_k, q) ] / sqrt(abar_k)  +  l1 sign(z_k - q)

A classifier knows clean images only. So x_k comes from a whole unguided chain below each step: 1 + 2 + ... + 60 = 1,830 passes
instead of 60. The gradient is taken at x_k and carried to z_k by x = (z - sqrt(1 - abar) eps) / sqrt(abar) with the noise held
fixed: divided by sqrt(abar_k), no pass backwards. Scales s are tried in turn on the items that have not flipped yet.

FastDiME (Weng, Pegios et al., ECCV 2024): `fast` takes for x_k the clean image that the step's own pass guesses; `own_mask` keeps
the query where that guess differs little from it, from step `warm_up` on, and asks the classifier at the collage.
`pasted`: ACE's mask, refinement and paste on DiME's result, so that the two searches can be compared on equal terms.

Decisions, where the paper is silent or its code differs from it:
* L_class is minus the target's log-odds, which for two classes is the published logit with its sign, at any number of classes.
* The chain starts at the level that its first step comes from; the code noises one level further than it begins to denoise.
* Every scale starts from the same noised query and steps with fresh noise, as in the code; for each item its own.
* The result is clipped to [0, 1] before it is judged: the last step is guided, too, and may leave the range.
* FastDiME's code steers by the guess of the step before and does not divide; here by the step's own, divided as DiME's.
* L_perc is the mean squared difference of VGG19's first 18 layers, p = 30 (`metrics.perceptual.VGG19`). No such weights are
  shipped, so by default there is none: pass a module as `perceptual`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cf_utils.core import (
    NAN,
    Counterfactuals,
    Explainer,
    PassCounter,
    SearchResult,
    frozen,
    progress,
)
from cf_utils.explainers.shared.diffusion import (
    NAN_PRIOR,
    chain_of,
    check_prior,
    check_taken,
    counted,
    taken,
)
from cf_utils.explainers.shared.inpaint import change_mask, inpaint
from cf_utils.models.generators.diffusion import DDPM, noise_of, to_image, to_model


@dataclass(frozen=True, eq=False, kw_only=True)
class DiME(Explainer):
    """Counterfactual images by a guided chain of `prior`. x (B, C, H, W) in [0, 1], of the size that the prior was trained on.

    A scale costs an item steps (steps + 1) / 2 passes of the prior forward, or `steps` when `fast`, and `steps` of the
    classifier forward and back. The result's path holds what each scale tried ended in, then the pasted image; its mask, where
    there is one, what may differ from the query. Defaults are the authors' for CelebA (128 px). Raises ValueError on settings
    out of range and on images of another size.
    """

    prior: DDPM = field(repr=False)
    spacing: str = "200"  # the chain's levels (`schedule.spaced`)
    steps: int = 60  # tau: how many of them, from the least noise: sigma 0.774 of 500 levels
    scales: tuple[float, ...] = (8.0, 10.0, 15.0)  # s, in turn
    l1: float = 0.05
    perceptual: nn.Module | None = field(
        default=None, repr=False
    )  # (x, query), both (B, C, H, W) in [0, 1] -> (B,)
    perceptual_weight: float = 30.0  # p
    fast: bool = False
    own_mask: bool = False  # with `fast`
    warm_up: int = 30  # steps before the own mask
    pasted: bool = False
    refine: tuple[str, int] = ("50", 5)  # of the paste: spacing, steps; ACE's for CelebA
    threshold: float = 0.15  # of either mask, as a share of the largest change
    dilation: int = 15  # of either mask, pixels, odd
    bfloat16: bool = False  # the prior in autocast
    guided: Counterfactuals | None = field(
        default=None, repr=False
    )  # with `pasted`: take these results, do not search

    @classmethod
    def celeba(cls, prior: DDPM, **changes) -> DiME:
        return cls(prior=prior, **changes)

    @classmethod
    def celebahq(cls, prior: DDPM, **changes) -> DiME:
        """256 px. ACE's authors raised the scale for it (with CelebA's it turns 41 % there) and published no value: as CelebA's,
        and pasted by ACE's refinement for CelebA-HQ."""
        return cls(prior=prior, **({"refine": ("25", 5)} | changes))

    @classmethod
    def bdd(cls, prior: DDPM, **changes) -> DiME:
        """The number of steps that ACE's authors gave DiME on BDD100k; pasted by ACE's mask and refinement for BDD."""
        return cls(
            prior=prior, **({"steps": 45, "refine": ("100", 5), "threshold": 0.05} | changes)
        )

    @classmethod
    def fastdime(cls, prior: DDPM, **changes) -> DiME:
        """FastDiME on CelebA: 60 passes a scale, its own mask after 30 steps."""
        return cls(prior=prior, **({"fast": True, "own_mask": True, "dilation": 5} | changes))

    @classmethod
    def faces(cls, prior: DDPM, **changes) -> DiME:
        """Rendered faces, 64 px: 45 steps and, with `fast`, no mask of its own, which the tuning chose (results/tuning: semantic
        validity 0.98 of 64 validation faces; as published 0.94, `fast` 0.89). A paste's mask scales with the image."""
        return cls(prior=prior, **({"steps": 45, "dilation": 7} | changes))

    @classmethod
    def roads(cls, prior: DDPM, **changes) -> DiME:
        """Rendered roads, 64 x 128 px: as on BDD, not tuned."""
        return cls.bdd(prior, **changes)

    def check(self, x, logits):
        if not (
            self.scales
            and all(s >= 0 for s in self.scales)
            and self.l1 >= 0
            and self.perceptual_weight >= 0
        ):
            raise ValueError(
                f"scales, l1, perceptual_weight: got {self.scales}, {self.l1}, {self.perceptual_weight}, expected "
                "at least one scale and no negative number"
            )
        if self.own_mask and not (self.fast and 0 <= self.warm_up < self.steps and not self.pasted):
            raise ValueError(
                f"own_mask: needs fast=True, pasted=False and warm_up (got {self.warm_up}) from 0 to steps - 1"
            )
        if self.guided is not None and not self.pasted:
            raise ValueError(
                "guided: results of another run are only taken to be pasted, expected pasted=True"
            )
        check_taken("guided", self.guided, "DiME")
        refine = {"refine": self.refine} if self.pasted else {}
        check_prior(self.prior, x, self.bounds, steps=(self.spacing, self.steps), **refine)
        change_mask(x[:1], x[:1], self.threshold, self.dilation)

    def search(self, f: PassCounter, x: Tensor, target: Tensor, ids, tau: float) -> SearchResult:
        generator = counted(self.prior, len(x), self.bfloat16)
        mask = x.new_zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
        with (
            frozen(self.prior, *([] if self.perceptual is None else [self.perceptual])),
            torch.no_grad(),
        ):
            if self.guided is None:
                path, tried, reason = self._search(f, generator, x, target, ids, tau, mask)
            else:
                first, reason = taken(
                    "guided", self.guided, self.guided.counterfactual, ids, x, target
                )
                path = [first]
            if self.pasted:
                f.flush()
                result, mask = self._paste(generator, x, path[-1], ids)
                path.append(result)
                tried = torch.full((len(x),), len(path))
        return SearchResult(
            path[-1],
            mask=mask.expand_as(x) if self.pasted or self.own_mask else None,
            path=torch.stack(path, 1),
            path_len=tried,
            reason=reason,
            generator=generator,
        )

    def _search(
        self, f, generator, x, target, ids, tau, mask
    ) -> tuple[list[Tensor], Tensor, list[str]]:
        """The scales in turn: (the images after each, how many each item tried, why it failed); `mask` is written into."""
        path, tried, reason = [], torch.zeros(len(x), dtype=torch.int64), [""] * len(x)
        rows, at = (
            torch.arange(len(x)),
            torch.arange(len(x), device=x.device),
        )  # still searched; one on the CPU for counts
        for j, scale in enumerate(self.scales):
            own = ids[rows] if isinstance(ids, Tensor) else tuple(ids[i] for i in rows.tolist())
            y, kept, broken = self._guided(f, generator, x[at], target[at], own, rows, scale, j)
            logits = f(y, rows)
            p = logits.softmax(1).gather(1, target[at, None])[:, 0]
            broken |= ~p.isfinite()
            done = (logits.argmax(1) == target[at]) & (p >= tau) & ~broken
            path.append((path[-1] if path else x).clone())
            path[-1][at] = torch.where(broken.view(-1, 1, 1, 1), x[at], y)
            if kept is not None:
                mask[at] = kept & ~broken.view(-1, 1, 1, 1)
            tried[rows] = j + 1
            for i, ok in zip(rows.tolist(), done.tolist(), strict=True):
                reason[i] = (
                    ""
                    if ok
                    else f"not there at the scales {', '.join(f'{s:g}' for s in self.scales)}"
                )
            for k in broken.nonzero().flatten().tolist():
                reason[int(rows[k])] = (
                    NAN if y[k].isfinite().all() else NAN_PRIOR
                )  # steered by NaN, a chain stays finite
            stay = ~(done | broken)
            rows, at = rows[stay.cpu()], at[stay]
            if not len(rows):
                break
        return path, tried, reason

    def _guided(
        self, f, generator, x, target, ids, rows, scale: float, number: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """One chain from noise to image at one scale: (images, own mask or None, which items met a NaN)."""
        chain = chain_of(self.prior, generator, rows, self.spacing)
        s, q = chain.schedule, to_model(x)
        noise, other = (
            noise_of(self.seed, ids, x, f"{name} {number}") for name in ("dime", "query")
        )
        z = s.noised(q, self.steps - 1, noise_of(self.seed, ids, x, "dime")(self.steps))
        clean, kept, broken = q, None, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for k in progress(range(self.steps - 1, -1, -1), desc=f"scale {scale:g}", leave=False):
            mean, log_variance, guess = s.mean_variance(z, k, chain.predict(z, k), chain.clip)
            if self.fast:
                clean = guess
                if self.own_mask and self.steps - 1 - k >= self.warm_up:
                    kept = change_mask(x, to_image(guess), self.threshold, self.dilation)
                    clean = torch.where(kept, guess, q)
            g, fine = self._gradient(f, clean, x, target, rows, scale)
            broken |= ~fine  # goes on unguided, and is told of at the scale's end
            g = (
                torch.where(fine.view(-1, 1, 1, 1), g / s.abar[k].sqrt().item(), 0)
                + self.l1 * (z - q).sign()
            )
            z = mean - log_variance.exp() * g
            if k:
                z = z + (log_variance / 2).exp() * noise(k)
            if k and kept is not None:
                z = torch.where(kept, z, s.noised(q, k - 1, other(k)))
            if k and not self.fast:
                clean = chain.denoise(z, k, noise_of(self.seed, ids, x, f"dime {number} below {k}"))
        y = to_image(z).clamp(0, 1)
        return (y if kept is None else torch.where(kept, y, x)), kept, broken

    def _gradient(
        self, f: PassCounter, clean: Tensor, x: Tensor, target: Tensor, rows: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Of s L_class + p L_perc, at clean images in [-1, 1]; and for which items it and the logits are finite (B,)."""
        with torch.enable_grad():
            z = clean.detach().requires_grad_(True)
            y, t = to_image(z), target[:, None]
            logits = f(y, rows)
            odds = logits.gather(1, t)[:, 0] - logits.scatter(1, t, -torch.inf).logsumexp(1)
            loss = -scale * odds
            if self.perceptual is not None:
                loss = loss + self.perceptual_weight * self.perceptual(y, x)
            g = f.grad(loss.sum(), z)
        return g, g.flatten(1).isfinite().all(1) & logits.detach().isfinite().all(1)

    def _paste(self, generator: PassCounter, x: Tensor, y: Tensor, ids) -> tuple[Tensor, Tensor]:
        """ACE's last stage on the images y: (result, mask (B, 1, H, W))."""
        spacing, steps = self.refine
        mask = change_mask(x, y, self.threshold, self.dilation)
        chain = chain_of(self.prior, generator, torch.arange(len(x)), spacing)
        noise, other = (noise_of(self.seed, ids, x, name) for name in ("refine", "query"))
        return inpaint(chain, x, y, mask, steps, noise, other), mask
