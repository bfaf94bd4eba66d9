"""Load or save a trained model (a checkpoint) together with its model card.

A checkpoint is two files: `<name>.safetensors` with the weights and `<name>.json` with the card.
`cf train NAME` trains a shipped one again. The registry maps the class that a card names to its
kind and its module. The module is imported when one of its classes is first loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.choices import check_choice, nearest
from cf_utils.models.cards import Card, HasSha256
from cf_utils.models.weights import channels_last, mismatches

FOLDER = files.ROOT / "results" / "checkpoints"  # of the shipped checkpoints
_LOADED: dict[str, str] = {}  # what `loaded` returns
KINDS = ("classifier", "oracle", "encoder", "autoencoder", "diffusion", "gan", "segmenter", "agent")


class Loaded(NamedTuple):
    """A model in eval mode with its card; unpack it as `model, card = load(name)`."""

    model: Any  # an nn.Module of the class that the card names
    card: Card


@dataclass(frozen=True)
class Architecture:
    """How to build the model that a card names."""

    kind: str
    module: str  # to import
    builder: str  # class or function in it
    from_quality: tuple[str, ...] = ()  # entries of the card's quality that the builder also takes


def _register(kind: str, module: str, *classes: str) -> dict[str, Architecture]:
    return {name: Architecture(kind, f"cf_utils.models.{module}", name) for name in classes}


REGISTRY: dict[str, Architecture] = {
    **_register("classifier", "classifiers", "MnistCNN", "JudgeCNN", "HogSVM"),
    **_register("classifier", "classifiers", "TextCNN", "TabularMLP"),
    **_register("classifier", "image_classifiers", "ImageDenseNet", "ImageResNet", "SmallDenseNet"),
    **_register("classifier", "teacher", "Teacher"),
    **_register("agent", "agent", "Agent"),
    **_register("oracle", "oracles", "FactorOracle", "AttributeOracle"),
    "IdentityEncoder": Architecture(
        "encoder", "cf_utils.models.oracles", "IdentityEncoder", ("threshold",)
    ),
    **_register("autoencoder", "generators.autoencoder", "AutoEncoder"),
    **_register("autoencoder", "generators.adversarial_autoencoder", "AdversarialAutoencoder"),
    **_register("autoencoder", "generators.vae", "VAE"),
    **_register("autoencoder", "generators.diffae", "DiffusionAutoencoder"),
    **_register("gan", "generators.cgan", "ConditionalGAN"),
    **_register("segmenter", "segmentation", "UNet"),
    "DDPM": Architecture("diffusion", "cf_utils.models.generators.diffusion", "build"),
}


def load(
    name: str,
    device: torch.device | str = "cpu",
    data: Tensor | Sequence[str] | HasSha256 | None = None,
    kind: str | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Load a checkpoint by its name: the model in eval mode on `device`, and its card.

    Args:
        data: training data in use (inputs x, texts or a rendered world), checked against the hash
            in the card; None: no check.
        kind: the kind that the model must have, one of `KINDS`; None: any.
        folder: where the two files are; None: the folder of the shipped checkpoints.

    Raises FileNotFoundError for an unknown name, with the nearest known one. Raises ValueError when
    the files do not belong together, or when `data` or `kind` differs.
    """
    card = read_card(name, folder)
    architecture = _architecture(card, name)
    if kind is not None and architecture.kind != kind:
        raise ValueError(
            f"name: got {name!r}, whose card names a {card.architecture['class']} of kind "
            f"{architecture.kind!r}, expected kind {kind!r}; choose from {names(kind, folder)}"
        )
    if data is not None:
        card.check_data(data)
    model = _build(architecture, card)
    load_weights(name, model, folder)
    return Loaded(model.to(device), card)


def save(
    name: str, module: nn.Module, card: Card, folder: Path | None = None, half: bool = True
) -> Path:
    """Write the weights of `module` and its card; return the path of the weights.

    Floats are stored as float16 unless `half` is False. The card gets the name, the number of
    parameters and the hash of the weights file.
    """
    path = _path(name, folder)
    state = {
        key: value.half() if half and value.is_floating_point() else value
        for key, value in module.state_dict().items()
    }
    files.write_tensors(path, state)
    parameters = sum(p.numel() for p in module.parameters())
    card = dataclasses.replace(card, name=name, parameters=parameters, sha256=files.sha256(path))
    files.write_json(path.with_suffix(".json"), card.to_json())
    return path


def loaded() -> dict[str, str]:
    """Return name -> hash of the card, for the shipped checkpoints that this process has loaded."""
    return dict(sorted(_LOADED.items()))


def names(kind: str | None = None, folder: Path | None = None) -> list[str]:
    """List the checkpoints in the folder, sorted; with `kind`, only those of that kind."""
    if kind is not None:
        check_choice("kind", kind, KINDS)
    found = sorted(path.stem for path in (FOLDER if folder is None else folder).glob("*.json"))
    if kind is None:
        return found
    return [name for name in found if _architecture(read_card(name, folder), name).kind == kind]


def exists(name: str, folder: Path | None = None) -> bool:
    """Return whether both files of a checkpoint exist."""
    path = _path(name, folder)
    return path.exists() and path.with_suffix(".json").exists()


def read_card(name: str, folder: Path | None = None) -> Card:
    """Read the card of a checkpoint. Raises FileNotFoundError with the nearest known name."""
    path = _path(name, folder).with_suffix(".json")
    if not path.exists():
        raise FileNotFoundError(_not_found(name, path, folder))
    return Card.from_json(files.read_json(path))


def load_weights(name: str, module: nn.Module, folder: Path | None = None) -> Card:
    """Fill `module` with the weights of a checkpoint, set it to eval mode, and return the card.

    Raises FileNotFoundError when a file is missing. Raises ValueError when the weights belong to
    another card or to another architecture.
    """
    path, card = _path(name, folder), read_card(name, folder)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `cf train {name}` to make it")
    if (found := files.sha256(path)) != card.sha256:
        raise ValueError(
            f"{path}: got sha256 {found[:12]}..., expected {card.sha256[:12]}... as in its card; "
            f"run `cf train {name}` to make both again"
        )
    state, own = files.read_tensors(path), module.state_dict()
    if wrong := mismatches(state, own):
        raise ValueError(f"{path} does not fit {type(module).__name__}: " + "; ".join(wrong[:8]))
    module.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()})
    channels_last(module).eval()
    if path.parent == FOLDER:
        _LOADED[name] = files.sha256(path.with_suffix(".json"))
    return card


def _path(name: str, folder: Path | None) -> Path:
    return (FOLDER if folder is None else Path(folder)) / f"{name}.safetensors"


def _not_found(name: str, path: Path, folder: Path | None) -> str:
    known = names(folder=folder)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    listed = f"Checkpoints there: {known}" if len(known) <= 12 else "`cf train --list` names all"
    return (
        f"name: got {name!r}, but {path} is missing; {hint}{listed}. "
        f"`cf train {name}` makes a missing one, if it has a recipe"
    )


def _architecture(card: Card, name: str) -> Architecture:
    found = card.architecture.get("class")
    if found not in REGISTRY:
        raise ValueError(
            f"{name}: its card names class {found!r}, expected one of {list(REGISTRY)}"
        )
    return REGISTRY[found]


def _build(architecture: Architecture, card: Card) -> nn.Module:
    """Build the model with the arguments in its card; JSON's lists become tuples."""
    arguments = dict(card.architecture.get("arguments", {}))
    arguments |= {k: card.quality[k] for k in architecture.from_quality if k in card.quality}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    builder = getattr(importlib.import_module(architecture.module), architecture.builder)
    return builder(**arguments)
