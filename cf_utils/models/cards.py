"""The model card of a checkpoint: how the model was made, on which data, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor

from cf_utils.core import files

Entry = Mapping[str, Any]


class HasSha256(Protocol):
    """Anything with a content hash, such as a rendered world."""

    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Card:
    """Content of `<name>.json`, one field per key; keys without a field are kept in `extra`."""

    name: str = ""  # of the checkpoint
    recipe: str = ""  # command that trains it again
    about: str = ""  # purpose, in one or two sentences
    seed: int | None = None
    data: Entry = field(default_factory=dict)  # name, split and hash of the training data
    architecture: Entry = field(default_factory=dict)  # class and its arguments
    settings: Entry = field(default_factory=dict)  # of the training
    quality: Entry = field(default_factory=dict)  # measured after the training
    training: Entry = field(default_factory=dict)  # log: seconds, steps, losses
    torch: str = ""  # version
    parameters: int | None = None  # number of trainable values
    sha256: str = ""  # of the weights file
    extra: Entry = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Card:
        """Build a card from the parsed JSON of a file."""
        known = {f.name for f in fields(cls)} - {"extra"}
        extra = {key: value for key, value in content.items() if key not in known}
        return cls(**{k: v for k, v in content.items() if k in known}, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file; empty fields are left out."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own = {k: v for k, v in own.items() if v is not None and v != "" and v != {}}
        last = {k: own.pop(k) for k in ("torch", "parameters", "sha256") if k in own}
        return own | dict(self.extra) | last

    def check_data(self, data: Tensor | Sequence[str] | HasSha256) -> None:
        """Check that the training data in use have the hash in the card.

        `data` is the training split: its inputs x, its texts, or the rendered world.
        Raises ValueError when the card holds another hash, or none.
        """
        key = "world_sha256" if hasattr(data, "sha256") else "sha256"
        if key not in self.data:
            raise ValueError(
                f"data: the card of {self.name} holds no {key} of its training data to compare "
                "with; load it without data"
            )
        recorded, found = self.data[key], hash_data(data)
        if not found.startswith(recorded):
            source = f"{self.data.get('name', 'other data')}, {self.data.get('split', 'train')}"
            raise ValueError(
                f"data: got training data with sha256 {found[:12]}..., but {self.name} was trained "
                f"on {source}, with sha256 {recorded[:12]}...; its training rows may be among your "
                f"test rows. Use the original file, or run `cf train {self.name}` on yours"
            )


def hash_data(data: Tensor | Sequence[str] | HasSha256) -> str:
    """Return the sha256 of training inputs x, of texts in their order, or of a rendered world."""
    if isinstance(data, Tensor):
        return files.sha256(data)
    if isinstance(data, Sequence):
        return files.sha256(*data)
    return data.sha256()
