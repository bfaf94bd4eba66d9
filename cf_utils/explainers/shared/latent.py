"""Search the latent space of a generative model, with counted passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cf_utils.core import PassCounter, frozen, target_score
from cf_utils.explainers.shared.search import Adam, SearchState, is_reached
from cf_utils.models.generators.latent import LatentModel

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits (R, K), target (R,)) -> (R,)
Penalty = Callable[[Tensor, Tensor, Tensor], Tensor]  # (output, code, rows (R,)) -> (R,)


class _Method(nn.Module):
    """A method of a model as a module; looked up when called, since a model may lack some."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        arguments = x if isinstance(x, tuple) else (x,)
        return getattr(self.model, self.name)(*arguments)


class LatentPasses:
    """A latent model whose passes are counted per item.

    `encode`, `decode` and `reconstruct` (the model's `forward`) are counters. Call each with a
    tensor, or with a tuple of all arguments, and the rows of its items. Differentiate its output
    with its `grad`.
    """

    def __init__(self, model: LatentModel, n: int):
        """Count the passes of `model` for n items."""
        self.encode = PassCounter(_Method(model, "encode"), n)
        self.decode = PassCounter(_Method(model, "decode"), n)
        self.reconstruct = PassCounter(model, n)

    def total(self) -> PassCounter:
        """Return one counter with the passes of all three. A reconstruction counts as one pass."""
        total = PassCounter(self.reconstruct.module, len(self.reconstruct.n_forward))
        for counter in (self.encode, self.decode, self.reconstruct):
            counter.flush()
            total.n_forward += counter.n_forward
            total.n_backward += counter.n_backward
        return total


def cast_to_model(x: Tensor, model: LatentModel) -> Tensor:
    """Return x with the dtype and on the device of the model's parameters, if it has any."""
    return x.to(next(model.parameters(), x))


@dataclass(frozen=True, eq=False)
class OptimisedCodes:
    """Result of `optimise_code`."""

    code: Tensor  # (B, *latent_shape)
    output: Tensor  # (B, ...), the decoded codes
    score: Tensor  # (B,), probability of the target
    reached: Tensor  # (B,) bool: decided as the target, with probability tau if one is given
    n_steps: Tensor  # (B,) int64 on the CPU, updates of the code


@dataclass(eq=False)
class _OpenCodes(SearchState):
    code: Tensor
    target: Tensor
    adam: Adam


def optimise_code(
    f: PassCounter,
    generator: LatentPasses,
    code: Tensor,
    target: Tensor,
    *,
    steps: int,
    lr: float | Sequence[float],
    tau: float | None = None,
    loss: Loss | None = None,
    penalty: Penalty | None = None,
) -> OptimisedCodes:
    """Minimise loss(f(decode(z)), target) + penalty(decode(z), z) over the code z with Adam.

    Items do not influence each other. An item stops once it is decided as the target with
    probability `tau` or more, or once its logits are not finite. The last state with finite logits
    is returned. Each state costs one forward and one backward pass of decoder and classifier; the
    state after all `steps` needs no backward pass. The caller must freeze both models.

    Args:
        f: the classifier.
        generator: the latent model.
        code: first codes (B, *latent_shape).
        target: wanted class per item, int64 (B,).
        steps: most updates per item, at least 1.
        lr: step size of Adam, or one for each update.
        tau: wanted probability of the target; None: make all steps, whatever the decision.
        loss: per item, from logits and target; None: -log of the target's probability.
        penalty: per item, from outputs, codes and the items' positions in the batch.
    """
    state = _OpenCodes(torch.arange(len(code)), code.clone(), target, Adam(code, lr, steps))
    z, output, point, logits = _evaluate(f, generator, state)
    found = _start(code, output)
    for step in range(steps):
        go_on = _record(found, state, point, logits, tau, step)
        with torch.enable_grad():
            fit = (loss or _negative_log_probability)(logits, state.target)
            upstream = f.grad(fit.sum(), point)
            total = (output * upstream).sum()  # its gradient in z is that of `fit`
            if penalty is not None:
                total = total + penalty(output, z, state.rows).sum()
            gradient = generator.decode.grad(total, z)
        state.adam.step_(state.code, gradient)
        if not go_on.all():  # keeping the same `rows` object is faster for the counters
            state.keep(go_on)
        if not len(state):
            return found
        z, output, point, logits = _evaluate(f, generator, state)
    _record(found, state, point, logits, tau, steps)
    return found


def walk(
    generator: LatentPasses,
    code: Tensor,
    direction: Tensor,
    sizes: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Decode the points code + size * direction, for each step size.

    Args:
        generator: the latent model.
        code: codes (B, *latent_shape).
        direction: (B, *latent_shape), or (*latent_shape) for one that all items share.
        sizes: step sizes (S,), or (B, S).
        rows: int64 (B,) on the CPU, positions of the items in the batch; None: 0 to B - 1.

    Returns the outputs (B, S, ...).
    """
    n_items, n_sizes = len(code), sizes.shape[-1]
    rows = torch.arange(n_items) if rows is None else rows
    size = sizes.to(code).expand(n_items, n_sizes)
    size = size.view(n_items, n_sizes, *[1] * (code.ndim - 1))
    points = code[:, None] + size * direction.expand_as(code)[:, None]
    output = generator.decode(points.flatten(0, 1), rows.repeat_interleave(n_sizes))
    return output.unflatten(0, (n_items, n_sizes))


def _negative_log_probability(logits: Tensor, target: Tensor) -> Tensor:
    return -logits.log_softmax(1).gather(1, target[:, None])[:, 0]


@torch.enable_grad()
def _evaluate(
    f: PassCounter, generator: LatentPasses, state: _OpenCodes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes, their outputs, the outputs as a new leaf, and the leaf's logits."""
    z = state.code.detach().clone().requires_grad_(True)
    output = generator.decode(z, state.rows)
    point = output.detach().requires_grad_(True)
    return z, output, point, f(point, state.rows)


def _start(code: Tensor, output: Tensor) -> OptimisedCodes:
    """Return the result before the first step."""
    n, output = len(code), output.detach()
    return OptimisedCodes(
        code=code.clone(),
        output=output.clone(),
        score=torch.full((n,), torch.nan, dtype=output.dtype, device=output.device),
        reached=torch.zeros(n, dtype=torch.bool, device=output.device),
        n_steps=torch.zeros(n, dtype=torch.int64),
    )


def _record(
    found: OptimisedCodes,
    state: _OpenCodes,
    output: Tensor,
    logits: Tensor,
    tau: float | None,
    step: int,
) -> Tensor:
    """Write the items with finite logits into `found`; return which items go on, bool (R,)."""
    output, logits = output.detach(), logits.detach()
    finite = logits.isfinite().all(1)
    score = target_score(logits, state.target)
    reached = finite & is_reached(logits, state.target, 0.0 if tau is None else tau)
    state.write(found.code, state.code[finite], finite)
    state.write(found.output, output[finite], finite)
    state.write(found.score, score[finite].to(found.score.dtype), finite)
    state.write(found.reached, reached[finite], finite)
    state.write(found.n_steps, torch.full((int(finite.sum()),), step), finite)
    return finite if tau is None else finite & ~reached


@torch.no_grad()
def reconstruct(model: LatentModel, x: Tensor) -> Tensor:
    """Return decode(encode(x)), of the shape, dtype and device of x; the model is in eval mode."""
    with frozen(model):
        output = model.decode(model.encode(cast_to_model(x, model)))
    check_output(output, x)
    return output.to(x)


def check_output(output: Tensor, x: Tensor) -> None:
    """Raise ValueError unless a model's outputs have the shape of the queries x."""
    if output.shape != x.shape:
        raise ValueError(
            f"model: decodes items of shape {tuple(output.shape[1:])}, got x of shape "
            f"{tuple(x.shape)}, expected the same"
        )
