"""The voting form of a class survey: one picture at a time, a button per answer, the result."""

from __future__ import annotations

import io
import uuid
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from cf_utils.viz.survey_analysis import JUDGES

EXPLANATION = (
    "<i>share</i>, the statistic of Fig. 6, hides absolute rates: equal methods get equal shares "
    "even where hardly anything was accepted. Compare <i>acceptance</i> beside it."
)


class VoteForm:
    """Form of one voter, shown as `box`; voters without a name get a guest name of their own.

    The methods without an underscore are those in which kinds of surveys differ.
    """

    width = 224  # of a picture, in pixels

    def __init__(self, survey: Any) -> None:
        self.survey = survey
        self.guest = f"guest-{uuid.uuid4().hex[:6]}"
        self.item: int | None = None  # the picture shown, None if all are judged
        self.name = widgets.Text(
            placeholder="your name (optional)", continuous_update=False, layout={"width": "220px"}
        )
        self.question, self.progress = widgets.HTML(), widgets.Label()
        self.note, self.result = widgets.Label(), widgets.VBox()
        self.picture = widgets.Image(format="png", layout={"max_width": f"{self.width}px"})
        self.buttons = widgets.HBox()  # one per option
        self.end = widgets.Button(description="Show result", button_style="")
        self.box = widgets.VBox(
            [
                widgets.HBox([self.name, self.progress]),
                self.question,
                self.picture,
                widgets.HBox([self.buttons, self.end]),
                self.note,
                self.result,
            ]
        )
        self.end.on_click(self._reveal)
        self.name.observe(self._advance, "value")
        self._offer(self.options(0))
        self._advance()

    def options(self, i: int) -> dict[str, str]:
        """Return the possible answers to item i, and the styles of their buttons."""
        return {"Yes": "success", "No": "danger"}

    def ask(self, i: int) -> str:
        """Return the question on item i."""
        target = int(self.survey.items["target"][i])
        return f"Does this look like {'an' if target == 8 else 'a'} {target}?"

    def draw(self, i: int) -> bytes:
        """Return the picture of item i as PNG."""
        return encode_png(self.survey.pictures[i], self.width)

    def cast(self, i: int, option: str, voter: str) -> None:
        """Record an answer to item i."""
        self.survey.vote(i, option == "Yes", voter)

    def report(self) -> list[widgets.Widget]:
        """Return what is shown at the end."""
        fig, buffer = self.survey.figure(), io.BytesIO()
        plt.close(fig)  # otherwise the inline backend shows it a second time
        fig.savefig(buffer, format="png")
        return [
            widgets.HTML(to_html(self.survey.table()) + EXPLANATION),
            widgets.Image(value=buffer.getvalue(), format="png"),
        ]

    def _offer(self, options: dict[str, str]) -> None:
        """Show one button per option."""
        buttons = []
        for text, style in options.items():
            layout = {"width": "auto", "min_width": "100px"}
            button = widgets.Button(description=text, button_style=style, layout=layout)
            button.on_click(self._answer)
            buttons.append(button)
        self.buttons.children = buttons

    def _voter(self) -> str:
        return self.name.value.strip() or self.guest

    def _answer(self, button: widgets.Button) -> None:
        if self.item is not None:
            self.cast(self.item, button.description, self._voter())
            self._advance()

    def _advance(self, _: object = None) -> None:
        """Show the voter's next picture; show the result after the last one."""
        survey, reserved = self.survey, self._voter().startswith(JUDGES)
        judged = survey.judged_by(self._voter())
        open_items = [] if reserved else [i for i in range(len(survey)) if i not in judged]
        self.item = open_items[0] if open_items else None
        count = f"{len(judged)} of {len(survey)} judged"
        self.progress.value = "This name is reserved." if reserved else count
        self.note.value = survey.note
        self.result.children = ()  # it names the methods, which voters must not see
        self.picture.layout.display = "none" if self.item is None else None
        if self.item is not None:
            if list(self.options(self.item)) != [b.description for b in self.buttons.children]:
                self._offer(self.options(self.item))
            self.question.value = f"<b>{escape(self.ask(self.item))}</b>"
            self.picture.value = self.draw(self.item)
        elif len(judged) == len(survey):
            self.question.value = "<b>Thank you: all pictures are judged.</b>"
            self._reveal()
        for button in self.buttons.children:
            button.disabled = self.item is None

    def _reveal(self, _: object = None) -> None:
        self.result.children = self.report()


def to_html(table: pd.DataFrame) -> str:
    """Return a table of results as HTML, its numbers with two digits."""
    return table.to_html(float_format="{:.2f}".format)


def to_pixels(image: Tensor) -> np.ndarray:
    """Clamp an image (C, H, W) to [0, 1]; return the bytes shown, uint8 (H, W) or (H, W, 3)."""
    a = (image.clamp(0, 1) * 255).round().byte().numpy()
    return a[0] if len(a) == 1 else np.moveaxis(a, 0, -1).copy()


def encode_png(image: Tensor, side: int = 224) -> bytes:
    """Encode an image (C, H, W), enlarged to about `side` pixels without smoothing."""
    picture, buffer = Image.fromarray(to_pixels(image)), io.BytesIO()
    scale = max(1, side // max(picture.size))
    size = (picture.width * scale, picture.height * scale)
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
