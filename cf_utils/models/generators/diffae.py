"""Diffusion autoencoder of images: a code, and noise that holds what the code leaves out.

Sources: Fang et al., "DiffExplainer", 2024, section 2.1; Preechakul et al., "Diffusion
autoencoders", CVPR 2022. An encoder E maps x_0 to a code z, and a network D predicts the noise in
x_t, given z. Both are trained together:

    loss = E || eps - D(x_t, t, E(x_0)) ||_1                            section 2.1
    x_{t-1} = sqrt(a_{t-1}) (x_t - sqrt(1 - a_t) D) / sqrt(a_t) + sqrt(1 - a_{t-1}) D      Eq. 1
        with D = D(x_t, t, z); a_t is `Schedule.abar`

Eq. 1 is the deterministic step of DDIM (Song, Meng & Ermon 2021, Eq. 12). It decodes (z, x_T). The
paper prints x_T as x_0 with fresh noise. Preechakul et al. obtain it from x_0 by running Eq. 1
backwards; `invert` does this. Each step back asks for the x_t that Eq. 1 maps to the known x_{t-1}.
That x_t is a fixed point, found by accelerated iteration (Pan et al., "Effective real image editing
with accelerated iterative diffusion inversion", ICCV 2023).

Codes are normalised by mean and standard deviation over the training data (Preechakul et al.,
section 4); the code q is the normalised z.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cf_utils.core import device_of, item_noise
from cf_utils.core.checks import check_count
from cf_utils.core.choices import check_choice
from cf_utils.models.generators import fixed_point, schedule
from cf_utils.models.generators.adaptive_unet import AdaptiveUNet, Encoder
from cf_utils.models.generators.diffusion import Chain, to_image, to_model
from cf_utils.models.generators.latent import LatentModel

PREDICTIONS = ("epsilon", "v")
NORMS = ("l1", "l2")
STEPS = 20  # of decoding and inversion
ITERATIONS = 4  # of each step of the inversion


class DiffusionAutoencoder(LatentModel):
    """Diffusion autoencoder of images x (B, channels, H, W) in [0, 1].

    A code q is (B, latent), and x_T has the shape of x. `torch.autocast` around a call runs the
    networks in bfloat16; states, codes and images keep the dtype of the input.

    Args:
        size: height and width of x.
        channels: of x.
        latent: dimensions of a code.
        steps: number of noise levels T.
        prediction: what the network predicts, `epsilon` (the noise) or `v`; v is converted into the
            noise, so that the loss stays the same.
        unshuffle: side of the pixel blocks that become channels of both networks.
        widths: channels of the noise predictor, from the highest resolution down.
        blocks: its residual blocks per width, on the way down and again on the way up.
        encoder_widths: channels of the encoder's residual blocks.
        groups: of the normalisation; divides every width.

    Raises ValueError on values that do not fit each other.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        size: Sequence[int] = (96, 96),
        channels: int = 1,
        latent: int = 64,
        steps: int = 1000,
        prediction: str = "epsilon",
        unshuffle: int = 4,
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 1,
        encoder_widths: Sequence[int] = (64, 96, 128),
        groups: int = 16,
    ):
        super().__init__()
        counts = {"channels": channels, "latent": latent, "unshuffle": unshuffle, "blocks": blocks}
        for name, value in counts.items():
            check_count(name, value)
        check_choice("prediction", prediction, PREDICTIONS)
        _check_widths(size, unshuffle, widths, encoder_widths, groups)
        self.size, self.channels, self.latent = (size[0], size[1]), channels, latent
        self.prediction, self.schedule = prediction, schedule.linear(steps)
        self.encoder = Encoder(self.size, channels, unshuffle, encoder_widths, groups, latent)
        self.unet = AdaptiveUNet(channels, unshuffle, widths, blocks, groups, latent)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("deviation", torch.ones(latent))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes q (B, latent) of x. Raises ValueError on images of another shape."""
        self._check_images("x", x)
        z = self.encoder(to_model(x.to(self._device(x)))).to(x)
        return (z - self.mean.to(z)) / self.deviation.to(z)

    def predict_noise(self, x_t: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Return D(x_t, t, z), the noise in x_t (B, C, H, W) at levels t, int64 (B,), given q."""
        z = self.mean.to(q) + self.deviation.to(q) * q
        device = self._device(x_t)
        out = self.unet(x_t.to(device), t.to(device), z.to(device)).to(x_t)
        return self.schedule.noise_from_v(x_t, t, out) if self.prediction == "v" else out

    def decode(self, z: Tensor, x_T: Tensor | None = None, steps: int = STEPS) -> Tensor:
        """Return the images (B, C, H, W) in [0, 1] of codes q and x_T: Eq. 1 from T down to 0.

        Args:
            z: normalised codes q (B, latent).
            x_T: (B, C, H, W), from `invert` or standard normal; None: the same fixed noise for all.
            steps: number of noise levels used, at equal distances, 2 to T.

        Raises ValueError on other shapes or values.
        """
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected (B, {self.latent})")
        x_t = self.fixed_noise(z) if x_T is None else x_T
        self._check_images("x_T", x_t, len(z))
        chain = self._chain(z, steps)
        for k in range(steps - 1, -1, -1):
            x_t = chain.ddim(x_t, k, k - 1)
        return to_image(x_t).clamp(0, 1)

    @torch.no_grad()
    def invert(
        self, x: Tensor, q: Tensor, steps: int = STEPS, iterations: int = ITERATIONS
    ) -> Tensor:
        """Return the x_T (B, C, H, W) that `decode` maps to x, given codes q (B, latent).

        With one iteration the error falls with the number of steps. With more iterations it also
        vanishes in few steps, as long as D changes slowly with x_t. No gradient flows.

        Args:
            steps: as in `decode`.
            iterations: of the fixed point per step; each is one pass of the network.

        Raises ValueError on other shapes or values.
        """
        self._check_images("x", x, len(q))
        check_count("iterations", iterations)
        chain = self._chain(q, steps)
        x_t, eps = to_model(x), torch.zeros_like(x)
        for k in range(steps):
            below = x_t

            def rise(x_t: Tensor, below: Tensor = below, k: int = k) -> Tensor:
                nonlocal eps
                eps = chain.predict(x_t, k)
                return self._rise(chain, below, k, eps)

            guess = self._rise(chain, below, k, eps)  # the noise changes little between levels
            x_t = fixed_point.solve(rise, guess, iterations)
        return x_t

    def forward(self, x: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """Return the reconstruction of x; in training, the noise in x_t at levels t."""
        q = self.encode(x)
        if x_t is not None and t is not None:
            return self.predict_noise(x_t, t, q)
        return self.decode(q, self.invert(x, q.detach()))

    def add_noise(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return x_T as printed below Eq. 1, from x in [0, 1] and standard normal noise."""
        return self.schedule.add_noise(to_model(x), len(self.schedule) - 1, noise)

    def fixed_noise(self, q: Tensor, seed: int = 0) -> Tensor:
        """Return standard normal noise (B, C, H, W), the same for every item."""
        noise = item_noise(seed, torch.zeros(1, dtype=torch.int64), self._shape, "diffae")
        return noise.to(q).expand(len(q), -1, -1, -1)

    def set_normalisation(self, z: Tensor) -> None:
        """Normalise codes by mean and deviation of the codes z (N, latent) that `encode` returned.

        Raises ValueError if a dimension is constant.
        """
        z = self.mean + self.deviation * z.to(self.mean)  # undo the present normalisation
        mean, deviation = z.mean(0), z.std(0)
        if len(z) < 2 or not (deviation > 0).all():
            raise ValueError(
                f"z: got {len(z)} codes with {int((deviation <= 0).sum())} constant dimensions, "
                "expected at least 2 and none"
            )
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def _device(self, like: Tensor) -> torch.device:
        return device_of(self, like.device)

    def _chain(self, q: Tensor, steps: int) -> Chain:
        if not 2 <= steps <= len(self.schedule):
            raise ValueError(f"steps: got {steps}, expected 2 to {len(self.schedule)}")
        levels = self.schedule.respace(steps)
        return Chain(lambda x_t, t: self.predict_noise(x_t, t, q), levels, clip=False)

    @staticmethod
    def _rise(chain: Chain, below: Tensor, k: int, eps: Tensor) -> Tensor:
        """Solve Eq. 1 for x_t at level k, given x_{t-1} and the noise D."""
        s = chain.schedule
        return s.add_noise(below, 0, eps) if k == 0 else s.ddim(below, k - 1, eps, k)

    def _check_images(self, name: str, x: Tensor, n: int | None = None) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self._shape or n not in (None, len(x)):
            batch = "B" if n is None else n
            raise ValueError(
                f"{name}: got shape {tuple(x.shape)}, expected ({batch}, {self.channels}, "
                f"{self.size[0]}, {self.size[1]})"
            )


def _check_widths(
    size: Sequence[int],
    unshuffle: int,
    widths: Sequence[int],
    encoder_widths: Sequence[int],
    groups: int,
) -> None:
    """Raise ValueError on an architecture that cannot be built."""
    for name, own in (("widths", widths), ("encoder_widths", encoder_widths)):
        if not own or any(w < 1 or w % groups for w in own):
            raise ValueError(f"{name}: got {tuple(own)}, expected multiples of groups ({groups})")
    factor = unshuffle * 2 ** max(len(widths) - 1, len(encoder_widths))
    if len(size) != 2 or any(side < factor or side % factor for side in size):
        raise ValueError(
            f"size: got {tuple(size)}, expected two multiples of {factor} (unshuffle, then halved)"
        )


def loss(
    module: nn.Module, batch: Sequence[Tensor], norm: str = "l1", bfloat16: bool = False
) -> Tensor:
    """Return the training loss of a batch (x, ...): the mean error of the predicted noise.

    The mean is taken over pixels and items; the paper's norm is the sum over pixels. Levels are
    uniform over 1..T. They and the noise come from torch's global generator.

    Args:
        module: a DiffusionAutoencoder, possibly wrapped by accelerate.
        norm: `l1` as in the paper, or `l2` (squared) as in Preechakul et al.
        bfloat16: run the networks in autocast.
    """
    check_choice("norm", norm, NORMS)
    model: Any = getattr(module, "module", module)  # behind accelerate's wrapper
    x, s = batch[0], model.schedule
    t = torch.randint(len(s), (len(x),), device=x.device)
    noise = torch.randn_like(x)
    x_t = s.add_noise(to_model(x), t, noise)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        away = module(x, x_t, t) - noise
    return away.abs().mean() if norm == "l1" else away.square().mean()
