"""The file from which a killed training resumes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cf_utils.core import files
from cf_utils.training.fingerprint import list_differences


class StateFile:
    """A training state on disk, tied to the settings and the data of its training.

    path: the file. fingerprint: flat dict of everything that the training depends on.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]):
        self.path = path
        self.fingerprint = fingerprint

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file. If the process dies while writing, the old file stays."""
        with files.whole_file(self.path) as part:
            torch.save(content | {"fingerprint": json.dumps(self.fingerprint)}, part)

    def read(self, device: torch.device) -> dict[str, Any] | None:
        """Return the content with its tensors on `device`, or None if there is no file.

        Raises ValueError if the file is unreadable, has no fingerprint, or belongs to a training
        with other settings, other data or another seed. The error names what differs.
        """
        if not self.path.exists():
            return None
        advice = "delete it to train from the start, or pass another folder"
        try:
            content = torch.load(self.path, weights_only=True, map_location=device)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"folder: got an unreadable state in {self.path} ({error!s:.100}); {advice}"
            ) from error
        if not isinstance(content, dict) or "fingerprint" not in content:
            raise ValueError(
                f"folder: got a state in {self.path} without a record of its settings and data, "
                f"written by an older version; {advice}"
            )
        saved = json.loads(content["fingerprint"])
        if differences := list_differences(saved, self.fingerprint):
            raise ValueError(
                f"folder: got a state of another training in {self.path}: "
                f"{'; '.join(differences)}; {advice}"
            )
        return content
