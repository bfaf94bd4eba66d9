"""A world of three stripes whose classifier, oracle and true counterfactuals have closed forms."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.datasets.rendered import Rendered
from cf_utils.evaluation import baselines
from cf_utils.worlds import Factor, Label, World

LOW, SPAN = 0.2, 0.6  # a factor of 0 to 1 is rendered as LOW to LOW + SPAN
STRIPES = {"left": slice(0, 6), "right": slice(6, 12), "shade": slice(12, 16)}  # of 16 columns


def draw(factors, height, width):
    x = torch.full((len(factors), 3, height, width), LOW)
    for name, at in STRIPES.items():
        x[..., at] += SPAN * factors[name][:, None, None, None]
    return x


TOY = World(
    "stripes",
    (
        Factor("left", "cause"),
        Factor("right", "cause"),
        Factor("shade"),
        Factor("noise"),
        Factor("echo", "child", parent="left", curve=((0, 0), (1, 1))),
    ),
    (Label("left", ("dark", "bright"), "left"),),
    {"independent": {}},
    draw,
    size=(16, 16),
    noise=("noise", 0.004, 0.008),
)
USES = {
    "left": {"r": 0.5, "flips": 0.9},
    "right": {"r": 0.0, "flips": 0.0},
    "shade": {"r": 0.01, "flips": 0.0},
}
USES_BOTH = USES | {"right": {"r": 0.5, "flips": 0.9}}


class Stripe(nn.Module):
    """Logits (0, gain (mean of the left stripe - 0.5) + brittle (mean of a signed chequerboard)).

    `also`: use the brighter of the left and the right stripe. Stripes have no chequerboard part.
    """

    def __init__(self, gain=20.0, brittle=0.0, also=False):
        super().__init__()
        self.gain, self.brittle, self.also = gain, brittle, also

    def forward(self, x):
        left, right = (x[..., STRIPES[k]].flatten(1).mean(1) for k in ("left", "right"))
        chequers = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2) * 2.0 - 1
        z = self.gain * ((torch.maximum(left, right) if self.also else left) - 0.5)
        z = z + self.brittle * (x * chequers).flatten(1).mean(1)
        return torch.stack([torch.zeros_like(z), z], 1)


class Perfect:
    """Reads each stripe; its members disagree on images whose first pixel exceeds 0.95."""

    names = ("left", "right", "shade")
    sd, null = torch.full((3,), 0.02), torch.full((3,), 0.01)

    def read(self, x):
        means = [x[..., at].flatten(1).mean(1) for at in STRIPES.values()]
        value = torch.stack([(mean - LOW) / SPAN for mean in means], 1)
        disagree = (x[:, 0, 0, 0] > 0.95).float()[:, None].expand(-1, 3)
        return value, disagree * torch.tensor([1.0, 0.0, 1.0])


def data(n=24, variant="independent") -> Rendered:
    """Render n images of stripes; the label is a bright left stripe."""
    factors = TOY.sample(n, "test", variant)
    x, y = TOY.render(factors), TOY.label("left")(factors)
    names = ("dark", "bright")
    return Rendered(x, y, factors.ids, names, "embedded", factors, y[:, None], ("left",))


def render_moved(rows: Rendered, **moves) -> Tensor:
    """Render the images of `rows` with factors moved."""
    factors = rows.factors
    for name, value in moves.items():
        factors = factors.move(name, value)
    return TOY.render(factors)


def make_counterfactuals(rows: Rendered, f, cf: Tensor, target: Tensor) -> Counterfactuals:
    """Wrap images `cf` as an explainer's result."""
    base = baselines.NoChange(bounds=None)(f, rows.x, target, rows.ids)
    logits = f(cf)
    score = logits.softmax(1).gather(1, target[:, None])[:, 0]
    valid = logits.argmax(1) == target
    return dataclasses.replace(base, counterfactual=cf, score=score, valid=valid)
