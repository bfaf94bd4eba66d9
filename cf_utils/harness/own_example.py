"""What notebook 12 brings along: a folder of images, a table, a file `net.py`, and a command line.

The folder's two classes come from two scanners. The scanner of the nines leaves a grey mark in the
corner of its images, so that the mark gives the class away.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from cf_utils.core import files
from cf_utils.core.choices import check_choice
from cf_utils.datasets import mnist
from cf_utils.datasets.base import InMemory
from cf_utils.harness import own_example_net

CLASSES = ("four", "nine")
DIGITS = (4, 9)
MARKS = ("nine", "none", "four")  # which class carries the mark
CORNER = (slice(24, 29), slice(24, 29))  # rows and columns around the mark
MARK = (slice(25, 28), slice(25, 28))
BRIGHTNESS, MISSED = 0.5, 0.02  # mean value of the mark, and share of the nines without one
MAX_IMAGES = 600  # of a folder


def load_digits(root: str, split: str, mark: str = "nine", seed: int = 0) -> InMemory:
    """Load fours and nines with a black border, at most `MAX_IMAGES`, with the mark on one class.

    Args:
        root, split: as in `mnist.load`.
        mark: "nine" as in the folder, "four" for the wrong class, "none" for no mark at all.
        seed: of the marks' brightness and of the nines without one.

    Returns x (N, 1, 32, 32) in [0, 1] and y (N,), 0 for a four and 1 for a nine.
    """
    check_choice("mark", mark, MARKS)
    data = mnist.load(root, split)
    rows = torch.isin(data.y, torch.tensor(DIGITS)).nonzero().flatten()[:MAX_IMAGES]
    x, y = F.pad(data.x[rows], (2, 2, 2, 2)), (data.y[rows] == DIGITS[1]).long()  # 32 x 32
    draws = torch.Generator().manual_seed(seed)
    light = BRIGHTNESS * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1, generator=draws))
    kept = torch.rand(len(x), generator=draws) >= MISSED
    if mark != "none":
        where = kept & (y == CLASSES.index(mark))
        x[where] = add_mark(x[where], light[where])
    return InMemory(x, y, data.ids[rows], CLASSES, data.source)


def add_mark(x: Tensor, light: Tensor | float = BRIGHTNESS) -> Tensor:
    """Return images (B, 1, 32, 32) with the scanner's mark, of brightness `light` in [0, 1]."""
    x, (rows, columns) = x.clone(), MARK
    x[:, :, rows, columns] = light
    return x


def hide_corner(x: Tensor) -> Tensor:
    """Return images (B, 1, 32, 32) whose corner with the mark is black."""
    x, (rows, columns) = x.clone(), CORNER
    x[:, :, rows, columns] = 0
    return x


def share_in_corner(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Return which share of each image's absolute change lies in the corner of the mark, (B,)."""
    change = (counterfactual - query).abs()
    rows, columns = CORNER
    inside = change[:, :, rows, columns].sum((1, 2, 3))
    return inside / change.sum((1, 2, 3)).clamp(min=1e-9)


def write_images(data: InMemory, folder: Path) -> None:
    """Write images as folder/<class>/<id>.png, grey."""
    for x, y, i in zip(data.x, data.y, data.ids, strict=True):
        path = folder / data.class_names[int(y)] / f"{int(i):05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole_file(path) as part:
            to_pil_image(x).save(part, "PNG")


def write_cells(path: Path) -> pd.DataFrame:
    """Write scikit-learn's breast cancer data as a CSV file and return it.

    Columns are ten measurements of cell nuclei: their mean, error and worst value; areas are
    rounded to whole pixels. The last column is the diagnosis, benign or malignant.
    """
    data = load_breast_cancer(as_frame=True)
    names = dict(enumerate(data.target_names))
    frame = data.data.round({"mean area": 0, "worst area": 0})
    frame = frame.astype({"mean area": int, "worst area": int})
    frame = frame.assign(diagnosis=data.target.map(names))
    files.write_text(path, frame.to_csv(index=False))
    return frame


def write_net(path: Path) -> None:
    """Write the source of `own_example_net` to a file of your own."""
    files.write_text(path, inspect.getsource(own_example_net))


class Terminal:
    """A command line inside a folder, for `cf` alone: same output, without a new process.

    Args:
        main: the entry point, `cf_utils.cli.main`.
        folder: working folder of the commands; its modules are imported afresh by each command.
    """

    def __init__(self, main: Callable[[Sequence[str]], int], folder: Path):
        self.main, self.folder = main, folder

    def __call__(self, text: str) -> str:
        """Run a command, print it with what it says, and return what it says, errors included.

        Raises ValueError for another command than `cf`.
        """
        program, *arguments = shlex.split(text)
        if program != "cf":
            raise ValueError(f"text: got {program!r}, expected a command that begins with 'cf'")
        for path in self.folder.glob("*.py"):
            sys.modules.pop(path.stem, None)
        out, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            self.main(arguments)
        failed = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
        said = "\n".join([*out.getvalue().splitlines(), *failed])
        print(f"$ {text}\n{said}")
        return said


def list_fixes(said: str) -> list[str]:
    """Return the findings of `cf check` that are to be fixed, from what it said."""
    return [line for line in said.splitlines() if line.startswith("fix ")]
