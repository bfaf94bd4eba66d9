"""The preflight of `cf check`: does a classifier fit the data and the method, and what to fix.

Each check returns findings: "ok", "note" (cannot be checked, or worth a look) or "fix" (the
explanation would fail or mean nothing), with the option that repairs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cf_utils.core import device_of
from cf_utils.core.checks import are_probabilities
from cf_utils.explainers import presets
from cf_utils.harness import own_methods
from cf_utils.harness.own_case import Case, InUnits, Normalise
from cf_utils.harness.own_methods import METHODS
from cf_utils.models.classifiers import predict

SIDES = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 256, 299, 384, 512)  # of square images
NORMALISATIONS = {
    "--mean 0.5 --std 0.5": ((0.5,), (0.5,)),
    "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225": (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    "--mean 0.1307 --std 0.3081": ((0.1307,), (0.3081,)),
    "--mean 0.2860 --std 0.3530": ((0.286,), (0.353,)),
    "--mean 0 --std 0.00392157": ((0.0,), (1 / 255,)),
}
GAIN = 0.1  # in accuracy, from which another range or normalisation is taken to be the right one
N_ACCURACY = 200  # items for the accuracy


class Finding(NamedTuple):
    """One result of the preflight."""

    level: str  # ok, note, fix
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:5}{self.subject:13}{self.text}"


def inspect(case: Case) -> list[Finding]:
    """Return the findings about data, classifier and method, in the order of the pipeline.

    A classifier that does not accept the data ends the list, since nothing else can be asked.
    """
    findings = [_check_data(case)]
    outputs, error = _ask(case, case.x[:4])
    if outputs is None:
        return [*findings, _find_accepted_shape(case, error)]
    findings.append(Finding("ok", "shape", f"the classifier accepts {_shape(case.x)}"))
    findings.append(_check_outputs(case, outputs))
    if findings[-1].level == "fix":
        return findings
    checks = (_check_batch, _check_classes, _check_decisions, _check_range, _check_prior)
    for check in (*checks, _check_gradient):
        findings += check(case)
    return findings


def _shape(x: Tensor) -> str:
    return "(B, " + ", ".join(map(str, x.shape[1:])) + ")"


def _ask(case: Case, x: Tensor) -> tuple[Tensor | None, str]:
    """Return the classifier's own outputs for x, or None with the error."""
    model, device = case.model, device_of(case.model, "cpu")
    try:
        with torch.no_grad():
            prepared = x.to(device) if model.prepare is None else model.prepare(x.to(device))
            out = model.model(prepared)
    except Exception as e:  # any error of the user's own code
        return None, (str(e).strip() or type(e).__name__).splitlines()[0]
    if not isinstance(out, Tensor):
        return None, f"its output is a {type(out).__name__}, not one tensor"
    return out, ""


def _check_data(case: Case) -> Finding:
    n, low, high = len(case.x), float(case.x.min()), float(case.x.max())
    if case.kind == "images":
        colour = "grey" if case.x.shape[1] == 1 else "colour"
        size = f"{case.x.shape[2]} x {case.x.shape[3]} {colour}"
        text = f"{n} queries, {size} images, values {low:.3g} to {high:.3g}"
        flat = high - low < 0.05
        return Finding("fix" if flat else "ok", "data", text + (": hardly any contrast" * flat))
    held = case.table.stated_constraints() if case.table is not None else None
    limits = int((held.immutable | held.only_up | held.only_down).sum()) if held else 0
    text = f"{n} queries with {case.x.shape[1]} features, scaled to [0, 1]; {limits} constrained"
    return Finding("ok", "data", text)


def _find_accepted_shape(case: Case, error: str) -> Finding:
    """Say which size, number of channels or batch the classifier would accept."""
    first = f"the classifier does not accept {_shape(case.x)} ({error[:120]})"
    if case.kind == "table":
        return Finding("fix", "shape", first + "; compare --drop and --label with its features")
    for option, x in _other_shapes(case.x[:2]):
        if _ask(case, x)[0] is not None:
            return Finding("fix", "shape", f"{first}; it accepts {_shape(x)}: {option}")
    if _ask(case, case.x[0])[0] is not None:
        return Finding("fix", "shape", f"{first}; it takes single images: let it take (B, C, H, W)")
    return Finding("fix", "shape", first + "; look into its forward method")


def _other_shapes(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield options and images of other shapes, those with the fewest changes first."""
    other = 3 if x.shape[1] == 1 else 1
    swapped = x.expand(-1, 3, -1, -1) if other == 3 else x.mean(1, keepdim=True)
    yield f"pass --channels {other}", swapped
    for images, channels in ((x, ""), (swapped, f" --channels {other}")):
        for side in SIDES:
            yield f"pass --size {side}{channels}", F.interpolate(images, (side, side))


def _check_outputs(case: Case, outputs: Tensor) -> Finding:
    """Check that the classifier's own outputs are logits, or probabilities if it says so."""
    subject, shape = "outputs", tuple(outputs.shape)
    if outputs.ndim not in (1, 2) or len(outputs) != min(4, len(case.x)):
        return Finding(
            "fix", subject, f"got {shape} for {min(4, len(case.x))} items, expected (B, K)"
        )
    if not outputs.isfinite().all():
        return Finding("fix", subject, "got NaN or infinite values; check weights and range")
    single = outputs.ndim == 1 or outputs.shape[1] == 1
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    ends = are_probabilities(outputs) if not single else inside
    if case.model.output == "logits" and ends:
        name = "sigmoid" if single else "softmax"
        return Finding("fix", subject, f"it ends in a {name}: pass --output probabilities")
    if case.model.output == "probabilities" and not inside:
        return Finding("fix", subject, "its outputs leave [0, 1]: pass --output logits")
    return Finding("ok", subject, f"{case.model.output} of {_n_classes(outputs)} classes")


def _n_classes(outputs: Tensor) -> int:
    return 2 if outputs.ndim == 1 else max(2, outputs.shape[1])


def _check_batch(case: Case) -> list[Finding]:
    """Check that an item's output depends neither on its batch nor on chance."""
    x = case.x[:4]
    together, again = predict(case.model, x), predict(case.model, x)
    if not torch.equal(together, again):
        text = "two equal calls differ: switch dropout and other random layers off in eval mode"
        return [Finding("fix", "batch", text)]
    _, error = _ask(case, x[:1])
    if error:
        return [Finding("fix", "batch", f"it fails on a batch of one: {error[:120]}")]
    alone = torch.cat([predict(case.model, item[None]) for item in x])
    scale = together.abs().max().clamp(min=1)
    if (alone - together).abs().max() > 1e-3 * scale:
        text = "an item's output depends on its batch: use eval mode, and no mean over the batch"
        return [Finding("fix", "batch", text)]
    return [Finding("ok", "batch", "each item's output is its own")]


def _check_classes(case: Case) -> list[Finding]:
    k, names = predict(case.model, case.x[:1]).shape[1], case.class_names
    if names and len(names) != k:
        where = "folders" if case.kind == "images" else "label's values"
        text = f"the classifier has {k}, the {where} {len(names)} ({', '.join(names[:5])})"
        return [Finding("note", "classes", text)]
    return [Finding("ok", "classes", f"{k}" + (f": {', '.join(names[:10])}" if names else ""))]


def _check_decisions(case: Case) -> list[Finding]:
    """Check that the classifier does not decide all queries alike."""
    decided = predict(case.model, case.x).argmax(1)
    if len(decided) > 3 and len(decided.unique()) == 1:
        name = case.name_class(int(decided[0]))
        text = f"all {len(decided)} queries are {name!r}; range or normalisation may be wrong"
        return [Finding("note", "decisions", text)]
    return [Finding("ok", "decisions", f"{len(decided.unique())} different classes")]


def _check_range(case: Case) -> list[Finding]:
    """Compare the accuracy with those under other normalisations, units and orders of classes."""
    known = case.y >= 0
    if not known.any():
        hint = "one folder per class" if case.kind == "images" else "--label"
        return [Finding("note", "range", f"not checked, there are no labels ({hint})")]
    x, y = case.x[known][:N_ACCURACY], case.y[known][:N_ACCURACY]
    votes = _count_votes(case, x, y, case.model.prepare)
    matched, option = _match(votes), ""
    for name, prepare in _other_ranges(case):
        other = _count_votes(case, x, y, prepare)
        if _match(other) > max(matched, _match(votes) + GAIN):
            matched, option = _match(other), name
    text = f"accuracy {_share_on_diagonal(votes):.2f} on {len(x)} labelled queries"
    if option and len(x) >= 10:
        return [Finding("fix", "range", f"{text}, but {matched:.2f} with {option}: pass it")]
    if matched > _share_on_diagonal(votes) + GAIN and len(x) >= 10:
        order = f"--classes {','.join(_find_order(case, votes))}"
        text += f", but {matched:.2f} if the classifier's classes come as in {order}: pass it"
        return [Finding("fix", "classes", text)]
    if matched < 1.2 / max(len(case.class_names), 2):
        return [Finding("note", "range", text + ", which is chance; do the weights fit?")]
    return [Finding("ok", "range", text)]


def _count_votes(case: Case, x: Tensor, y: Tensor, prepare: nn.Module | None) -> np.ndarray:
    """Return how many items of class i are decided as j, (classes, K); zeros if it fails."""
    own, case.model.prepare = case.model.prepare, prepare
    n = len(case.class_names)
    try:
        logits = predict(case.model, x)
        k = logits.shape[1]
        return torch.bincount(y * k + logits.argmax(1), minlength=n * k).view(n, k).numpy()
    except Exception:  # any error of the user's own code
        return np.zeros((n, n), dtype=np.int64)
    finally:
        case.model.prepare = own


def _share_on_diagonal(votes: np.ndarray) -> float:
    return votes.diagonal().sum() / max(votes.sum(), 1)


def _match(votes: np.ndarray) -> float:
    """Return the accuracy under the order of the classes that fits best."""
    return votes[linear_sum_assignment(-votes)].sum() / max(votes.sum(), 1)


def _find_order(case: Case, votes: np.ndarray) -> list[str]:
    """Return the name of each of the classifier's outputs in the order that fits best."""
    names = {
        int(j): case.class_names[i] for i, j in zip(*linear_sum_assignment(-votes), strict=True)
    }
    return [names.get(j, f"unknown{j}") for j in range(votes.shape[1])]


def _other_ranges(case: Case) -> Iterator[tuple[str, nn.Module | None]]:
    device = device_of(case.model, "cpu")
    if case.table is not None:
        raw = case.options.units == "raw"
        yield "--units scaled" if raw else "--units raw", None if raw else InUnits(case.table)
        return
    yield "no --mean and --std", None
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) in (1, case.x.shape[1]):
            yield name, Normalise(mean, std).to(device)


def _check_prior(case: Case) -> list[Finding]:
    """Check that the images have the size and channels that the prior was trained on."""
    if case.options.method not in own_methods.WITH_PRIOR and not case.options.prior:
        return []
    try:
        prior = own_methods.load_prior(case.options)
    except (ValueError, FileNotFoundError) as e:
        return [Finding("fix", "prior", str(e))]
    found = (prior.channels, *prior.size)
    if tuple(case.x.shape[1:]) != found:
        size = f"{found[1]}" if found[1] == found[2] else f"{found[1]}x{found[2]}"
        text = f"it was trained on {found}, the images are {tuple(case.x.shape[1:])}"
        option = f"pass --size {size} --channels {found[0]}, or train a prior of this size"
        return [Finding("fix", "prior", f"{text}: {option}")]
    return [Finding("ok", "prior", f"trained on images of this size {found}")]


def _check_gradient(case: Case) -> list[Finding]:
    """Check that a gradient passes, if the method needs one."""
    preset, free = own_methods.choose(case.options), _gradient_free(case.kind)
    if not preset.explainer.needs_gradient:
        return [Finding("ok", "gradient", f"{preset.method} needs none")]
    x = case.x[:4].to(device_of(case.model, "cpu")).requires_grad_(True)
    logits = case.model(x)
    problem = "" if logits.requires_grad else "the classifier gives no gradient"
    if not problem:
        weights = torch.arange(1, 1 + logits.shape[1]).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
        problem = "" if gradient.any() else "its gradient is zero; does it round or threshold?"
    if problem:
        instead = (
            f"use --method {' or '.join(free)}" if free else "no method for images does without"
        )
        return [Finding("fix", "gradient", f"{problem}, and {preset.method} needs one: {instead}")]
    return [Finding("ok", "gradient", f"available, as {preset.method} needs")]


def _gradient_free(kind: str) -> list[str]:
    found = [presets.get(name, kind, own_methods.variant(name, kind)) for name in METHODS[kind]]
    return [preset.method for preset in found if not preset.explainer.needs_gradient]
