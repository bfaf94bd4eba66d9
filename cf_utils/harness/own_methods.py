"""Prepare a method for your own data: its settings, and the parts that it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cf_utils.core import Explainer, median_absolute_deviation, pick_device
from cf_utils.core.choices import check_choice
from cf_utils.explainers import presets
from cf_utils.explainers.shared.prototypes import average_by_class
from cf_utils.harness.own_case import Case, Options
from cf_utils.models import checkpoints
from cf_utils.models.classifiers import predict
from cf_utils.models.generators.autoencoder import AutoEncoder

METHODS = {
    "images": ("wachter", "gradual", "cem", "ace", "dime", "fastdime"),
    "table": ("growing_spheres", "lore", "gradual", "wachter", "cem"),
}
WITH_PRIOR = ("ace", "dime", "fastdime")  # a diffusion model; cem may have an autoencoder
BLOCKS = 7  # along each side of an image, for gradual construction


def choose(options: Options) -> presets.Preset:
    """Return the settings of the chosen method, or of the default one for the kind of data.

    Raises ValueError for a method that does not fit the data, an unknown setting, or a prior that
    the method does not take.
    """
    kind = options.kind
    method = options.method or METHODS[kind][0]
    check_choice("method", method, METHODS[kind])
    if options.prior and not takes_prior(method, kind):
        raise ValueError(f"--prior: got {options.prior!r}, but {method} takes none for {kind}")
    preset = presets.get(method, kind, variant(method, kind, options.prior))
    known = [f.name for f in dataclasses.fields(preset.explainer) if f.kw_only]
    for name in options.settings:
        check_choice("setting", name, known)
    return preset


def takes_prior(method: str, kind: str) -> bool:
    """Return whether a method can use a generative model of such data."""
    return method in WITH_PRIOR or (method, kind) == ("cem", "images")


def variant(method: str, kind: str, prior: str = "") -> str | None:
    """Return the variant of a method's settings, where it has one.

    It keeps constraints, or uses an autoencoder if `prior` names one.
    """
    if method == "cem" and prior:
        return "autoencoder"
    return "constrained" if (method, kind) == ("gradual", "table") else None


def build(case: Case) -> Explainer:
    """Return the explainer, with prototypes, deviations, constraints or a prior as it needs them.

    Raises ValueError that names what is missing.
    """
    preset, method = choose(case.options), case.options.method or METHODS[case.kind][0]
    parts: list[Any] = []
    changes: dict[str, Any] = {"seed": case.options.seed}
    if method == "gradual":
        parts.append(_make_prototypes(case))
        if case.kind == "images":
            changes["block"] = tuple(-(-side // BLOCKS) for side in case.x.shape[2:])
    if method == "lore":
        parts.append(case.train)
    if case.table is not None:
        changes["constraints"] = case.table.stated_constraints()
        if method == "wachter":
            changes["mad"] = median_absolute_deviation(case.train)
    if method in WITH_PRIOR:
        changes["prior"] = load_prior(case.options)
    elif case.options.prior:
        changes["autoencoder"] = load_prior(case.options)
    if case.options.tau is not None:
        changes["tau"] = case.options.tau
    return preset.build(*parts, **(changes | dict(case.options.settings)))


def load_prior(options: Options) -> Any:
    """Load the model that `--prior` names: a shipped checkpoint, or a path with or without ending.

    It is an autoencoder for cem and a diffusion model for all others. Raises ValueError without a
    name or for another model, FileNotFoundError if there is none of that name.
    """
    if not options.prior:
        raise ValueError(
            f"--prior: got none, but {options.method} needs a diffusion model of such images; "
            "train one with `cf train prior --images DIR --size N`"
        )
    path = Path(options.prior)
    card = path.with_suffix(".json")
    folder = path.parent if card.is_file() else None
    if folder is None and (path.suffix == ".safetensors" or len(path.parts) > 1):
        raise FileNotFoundError(
            f"--prior: got {options.prior!r}, but {card} is missing: weights need their card "
            "beside them, as `cf train prior` writes both"
        )
    name = path.stem if folder else options.prior
    device = pick_device(options.device)
    kind = "autoencoder" if options.method == "cem" else "diffusion"
    model = checkpoints.load(name, device, kind=kind, folder=folder).model
    if kind == "autoencoder" and not isinstance(model, AutoEncoder):
        raise ValueError(
            f"--prior: got {options.prior!r}, a {type(model).__name__}, expected an AutoEncoder; "
            "train one with `cf train autoencoder --images DIR --size N`"
        )
    return model


def _make_prototypes(case: Case) -> Any:
    """Return the mean logits per class, from the items that are classified as it."""
    logits = predict(case.model, case.train)
    sizes = logits.argmax(1).bincount(minlength=logits.shape[1])
    if (smallest := int(sizes.min())) < 1:
        empty = case.name_class(int(sizes.argmin()))
        raise ValueError(
            f"--method: gradual needs items of every class, but none of {len(logits)} is "
            f"classified as {empty!r}; add some, or use another method"
        )
    return average_by_class(logits, min(100, smallest), case.options.seed)
