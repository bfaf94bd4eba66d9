"""The training objective of Explanation by Progressive Exaggeration, Eqs. 1 to 9.

Source: Singla et al. (ICLR 2020), section 2. The official code stops the gradient at the classifier
and replaces Eq. 5 by a distance between codes; here, the gradient flows through the classifier and
both reconstruction terms compare pixels, as printed.

Choices where the paper is silent: norms are means over pixels in [0, 1]; the wanted bin is drawn
uniformly; f(x) + delta is clipped to [0.01, 0.99].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.training import augment, loop

CLIP = 0.01  # the wanted output lies in [CLIP, 1 - CLIP]


def wanted_output(p: Tensor, own: Tensor, wanted: Tensor, bins: int) -> Tensor:
    """Return f(x) + delta, clipped to [0.01, 0.99].

    delta is the distance between the bins, (wanted - own) / bins. All arguments are (B,).
    """
    return (p + (wanted - own) / bins).clamp(CLIP, 1 - CLIP)


def bernoulli_kl(p: Tensor, logit: Tensor) -> Tensor:
    """Return KL(Bernoulli(p) || Bernoulli(sigmoid(logit))), elementwise; p inside (0, 1)."""
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    return F.binary_cross_entropy_with_logits(logit, p, reduction="none") - entropy


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of D, from D(x, c) of real and of generated images, (B,) each."""
    # Eq. 7
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Return the adversarial loss of E and G, from D(x, c) of generated images (B,)."""
    # Eq. 8
    return -fake.mean()


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference of the pixels of x and y, in [0, 1]."""
    # Eqs. 5 and 6
    return (x - y).abs().mean()


@dataclass(frozen=True)
class Weights:
    """Weights of the objective, Eq. 9; the defaults are the paper's."""

    cgan: float = 1.0
    f: float = 1.0
    rec: float = 100.0


@dataclass(frozen=True)
class Disturbance:
    """Random changes of the images that the classifier, or the discriminator, sees.

    Adversarial noise rarely survives them, so the generator has to change what the class depends
    on. A discriminator before which real and generated images are changed alike (Zhao et al.,
    Differentiable Augmentation, NeurIPS 2020) cannot tell them apart by their finest detail, and
    judges what is drawn. The defaults change nothing, as in the paper.

    shift: largest shift in pixels. noise: largest standard deviation of Gaussian noise.
    """

    shift: int = 0
    noise: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images x (B, C, H, W), each changed by its own draw."""
        x = augment.shift(x, self.shift) if self.shift else x
        return augment.add_noise(x, self.noise) if self.noise else x


class Objective(nn.Module):
    """The GAN together with the classifier that it explains, as one module to train.

    A batch is (x, p): images (B, C, H, W) in [0, 1] and the classifier's probability of class 1,
    (B,). The explainer's loss comes first; its generated images also serve the discriminator's.

    Args:
        gan: encoder, generator and discriminator.
        classifier: maps images to logits (B, 2); it stays frozen.
        weights: of the terms of Eq. 9.
        disturb: changes the images that the classifier sees in its loss term.
        disturb_critic: changes all images that the discriminator sees.
        low_precision: run the GAN in bfloat16 where autocast allows; all losses and the classifier
            stay in float32.
    """

    def __init__(
        self,
        gan: ConditionalGAN,
        classifier: nn.Module,
        weights: Weights = Weights(),
        disturb: Disturbance = Disturbance(),
        low_precision: bool = True,
        disturb_critic: Disturbance = Disturbance(),
    ):
        super().__init__()
        self.gan, self.classifier = gan, classifier.requires_grad_(False)
        self.weights, self.low_precision = weights, low_precision
        self.disturb, self.disturb_critic = disturb, disturb_critic
        self._fake: tuple[Tensor, Tensor] | None = None  # x_delta and its bins

    def train(self, mode: bool = True) -> Objective:
        """Set the mode of the GAN; the classifier stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, step: str, x: Tensor, p: Tensor) -> Tensor:
        """Return the loss of a step: "reconstruct", "explain" or "criticise"."""
        own = self.gan.bin_of(p)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            return getattr(self, step)(x, p, own)

    def reconstruct(self, x: Tensor, p: Tensor, own: Tensor) -> Tensor:
        """Return the loss of the warm-up: Eq. 5 alone."""
        return reconstruction_loss(x, self.gan(x, own).float())

    def explain(self, x: Tensor, p: Tensor, own: Tensor) -> Tensor:
        """Return the loss of encoder and generator, Eq. 9."""
        return sum(self.terms(x, p, own).values(), torch.zeros((), device=x.device))

    def terms(self, x: Tensor, p: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of Eq. 9 for encoder and generator; terms of weight 0 are 0."""
        gan, weights = self.gan, self.weights
        wanted = torch.randint(gan.bins, own.shape, device=own.device)
        z = gan.encode(x)
        images = gan.decode(torch.cat([z, z]), torch.cat([wanted, own])).float()
        x_delta, same = images.chunk(2)  # I_f(x, delta) and I_f(x, 0), Eq. 2
        self._fake = x_delta.detach(), wanted
        # Eq. 6: from x_delta back to the query's own bin
        back = gan.decode(gan.encode(x_delta), own).float()
        critic = gan.criticise(self.disturb_critic(x_delta), wanted).float()
        kl = self.classifier_loss(x_delta, wanted_output(p, own, wanted, gan.bins))
        return {
            "cgan": weights.cgan * generator_loss(critic),
            "f": weights.f * kl,
            "rec": weights.rec * reconstruction_loss(x, same),
            "cyc": weights.rec * reconstruction_loss(x, back),
        }

    def classifier_loss(self, x_delta: Tensor, p: Tensor) -> Tensor:
        """Return the mean of KL(p || f(x_delta)); the gradient flows through the classifier."""
        with torch.autocast(x_delta.device.type, enabled=False):
            logits = self.classifier(self.disturb(x_delta))
        return bernoulli_kl(p, logits[:, 1] - logits[:, 0]).mean()

    def criticise(self, x: Tensor, p: Tensor, own: Tensor) -> Tensor:
        """Return the loss of the discriminator, on the images that `explain` generated last."""
        if self._fake is None:
            raise RuntimeError("criticise: no generated images; call the step 'explain' first")
        fake, wanted = self._fake
        images, bins = torch.cat([x, fake]), torch.cat([own, wanted])
        scores = self.gan.criticise(self.disturb_critic(images), bins).float()
        real, generated = scores.chunk(2)
        return discriminator_loss(real, generated)


def step_loss(module: nn.Module, batch: Any, step: str) -> Tensor:
    """Return the loss of one step of an `Objective`, as `loop.Part` expects it."""
    return module(step, *batch)


def explainer_parameters(module: Objective) -> list[nn.Parameter]:
    """Return the parameters of encoder and generator."""
    return [*module.gan.encoder.parameters(), *module.gan.generator.parameters()]


def averaged_part(module: Objective) -> nn.Module:
    """Return encoder and generator. Averaging would spoil the discriminator's spectral norms."""
    return nn.ModuleList([module.gan.encoder, module.gan.generator])


def warm_up_parts(lr: float) -> list[loop.Part]:
    """Return the part that trains encoder and generator on reconstruction alone."""
    loss = partial(step_loss, step="reconstruct")
    return [loop.Part(loss, lr, explainer_parameters, weight_decay=0.0)]


def joint_parts(lr: float = 2e-4, critic: float = 1.0, decay: bool = False) -> list[loop.Part]:
    """Return the parts of the joint training: Adam with the paper's betas (0, 0.9)."""
    options: dict[str, Any] = {"betas": (0.0, 0.9), "weight_decay": 0.0, "schedule": decay}
    return [
        loop.Part(partial(step_loss, step="explain"), lr, explainer_parameters, **options),
        loop.Part(
            partial(step_loss, step="criticise"),
            critic * lr,
            lambda module: module.gan.discriminator.parameters(),
            **options,
        ),
    ]
