"""What progressive exaggeration costs beyond the passes that it needs.

training_overhead
    seconds of a training step / seconds of its passes through encoder, generator, discriminator
    and classifier alone, forward and backward, in the same precision
speedup_bfloat16
    seconds of a training step in float32 / in bfloat16
explain_overhead
    seconds of the progressions of `--n` faces in one call / seconds of its passes alone
seconds_an_image
    seconds of the call / (n * bins)
slider_seconds
    one face, one bin: what the slider of notebook 04 waits for
max_abs_difference
    largest difference between progressions computed one by one and in one batch

Prints a table and writes a JSON file; exits with 1 if a bound is missed (`--quick` has none).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from _side import make_parser, measure_seconds, report
from torch import Tensor, nn

from cf_utils import core, worlds
from cf_utils.explainers.exaggeration import Exaggeration
from cf_utils.models import checkpoints, classifiers
from cf_utils.models.generators.cgan import ConditionalGAN
from cf_utils.models.weights import channels_last
from cf_utils.training import exaggeration


class Step:
    """One training step on a fixed batch, as the training loop makes it, and its bare passes."""

    def __init__(self, x: Tensor, classifier: nn.Module, low_precision: bool = True):
        gan = channels_last(ConditionalGAN(size=x.shape[2])).to(x.device)
        self.objective = exaggeration.Objective(gan, classifier, low_precision=low_precision)
        self.parts = exaggeration.joint_parts()
        self.optimisers = [
            torch.optim.AdamW(list(part.parameters(self.objective)), lr=part.lr, betas=part.betas)
            for part in self.parts
        ]
        self.x, self.low_precision = x, low_precision
        self.p = classifier(x).softmax(1)[:, 1].detach()
        self.objective.train()

    def whole(self) -> None:
        """Make the step: losses, gradients and both updates."""
        for part, optimiser in zip(self.parts, self.optimisers, strict=True):
            optimiser.zero_grad(set_to_none=True)
            part.loss(self.objective, (self.x, self.p)).backward()
            optimiser.step()

    def bare(self) -> None:
        """Make the passes of the step and nothing else."""
        gan, x = self.objective.gan, self.x
        bins = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        twice, pair = torch.cat([bins, bins]), torch.cat([x, x])
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            z = gan.encode(x)
            images = gan.decode(torch.cat([z, z]), twice)
            x_delta = images[: len(x)]
            back = gan.decode(gan.encode(x_delta), bins)
            critic = gan.criticise(x_delta, bins)
        f = self.objective.classifier(x_delta.float())
        (images.float().sum() + back.float().sum() + critic.float().sum() + f.sum()).backward()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.low_precision):
            judged = gan.criticise(pair, twice)
        judged.float().sum().backward()


def best_seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time the calls in turn; the best of `repeats` counts."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            best[name] = min(best[name], measure_seconds(call)[0])
    return best


def measure_training(x: Tensor, classifier: nn.Module, repeats: int) -> dict[str, float]:
    """Compare a training step with its passes, and with a step in float32."""
    fast, slow = (Step(x, classifier, low) for low in (True, False))
    calls = {"whole": fast.whole, "bare": fast.bare, "float32": slow.whole}
    for call in calls.values():
        call()
    seconds = best_seconds(calls, repeats)
    return {
        "training_overhead": seconds["whole"] / seconds["bare"],
        "speedup_bfloat16": seconds["float32"] / seconds["whole"],
        "seconds_a_step": seconds["whole"],
    }


def measure_explaining(
    explain: Exaggeration, f: nn.Module, x: Tensor, repeats: int, batch: int = 64
) -> dict[str, float]:
    """Compare the progressions of all images in one call with their passes alone."""
    gan, k = explain.gan, explain.gan.bins

    def bare() -> None:
        with torch.no_grad(), core.frozen(gan, f):
            for part in x.split(batch):
                f(part)
                bins = torch.arange(k, device=x.device).repeat(len(part))
                f(gan.decode(gan.encode(part).repeat_interleave(k, 0), bins))

    calls = {"whole": lambda: explain.progress(f, x, batch), "bare": bare}
    seconds = best_seconds(calls, repeats)
    one = best_seconds({"slider": lambda: slide(gan, x[:1])}, 5)["slider"]
    few = x[:4]
    together = explain.progress(f, few).images
    alone = torch.cat([explain.progress(f, few[i : i + 1]).images for i in range(len(few))])
    return {
        "explain_overhead": seconds["whole"] / seconds["bare"],
        "seconds_an_image": seconds["whole"] / (len(x) * k),
        "slider_seconds": one,
        "max_abs_difference": (together - alone).abs().max().item(),
    }


@torch.no_grad()
def slide(gan: ConditionalGAN, x: Tensor) -> Tensor:
    """Return the explanation of one image for one bin."""
    return gan(x, torch.full((len(x),), 7, device=x.device))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a bound is missed, else 0."""
    parser = make_parser(__doc__, "exaggeration")
    parser.add_argument("--n", type=int, default=256, help="faces explained")
    parser.add_argument("--batch", type=int, default=16, help="faces of a training step")
    parser.add_argument("--repeats", type=int, default=9, help="timings; the best counts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.quick:
        args.n, args.batch, args.repeats = 4, 4, 1
    start, device = time.perf_counter(), core.pick_device(args.device)
    core.seed_everything(args.seed)
    world = worlds.get("faces")
    x = world.render(world.sample(args.n, "test")).to(device)
    f = classifiers.OneOutput(checkpoints.load("faces_smile_causal", device).model).eval()
    gan = checkpoints.load("faces_smile_gan", device).model
    figures = measure_training(x[: args.batch], f, args.repeats)
    figures |= measure_explaining(Exaggeration(gan=gan), f, x, max(1, args.repeats // 2))
    bounds = {
        "training_overhead": (None, 1.2),
        "explain_overhead": (None, 1.2),
        "slider_seconds": (None, 0.3),
        "max_abs_difference": (None, 1e-4),
    }
    return report(figures, bounds, start, args, device, n=args.n, data="embedded")


if __name__ == "__main__":
    raise SystemExit(main())
