"""The voting form of a class survey: one picture at a time, Yes or No, then the result."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from torch import Tensor

from cf_utils.viz.survey_analysis import JUDGES

if TYPE_CHECKING:
    from cf_utils.viz.survey import Survey

EXPLANATION = (
    "<i>share</i>, the statistic of Fig. 6, hides absolute rates: equal methods get equal shares "
    "even where hardly anything was accepted. Compare <i>acceptance</i> beside it."
)


class VoteForm:
    """Form of one voter, shown as `box`; voters without a name get a guest name of their own."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.guest = f"guest-{uuid.uuid4().hex[:6]}"
        self.item: int | None = None  # the picture shown, None if all are judged
        self.name = widgets.Text(
            placeholder="your name (optional)", continuous_update=False, layout={"width": "220px"}
        )
        self.question, self.progress = widgets.HTML(), widgets.Label()
        self.note, self.result = widgets.Label(), widgets.VBox()
        self.picture = widgets.Image(format="png", layout={"width": "224px"})
        self.yes = widgets.Button(description="Yes", button_style="success")
        self.no = widgets.Button(description="No", button_style="danger")
        self.end = widgets.Button(description="Show result", button_style="")
        self.box = widgets.VBox(
            [
                widgets.HBox([self.name, self.progress]),
                self.question,
                self.picture,
                widgets.HBox([self.yes, self.no, self.end]),
                self.note,
                self.result,
            ]
        )
        self.yes.on_click(self._answer)
        self.no.on_click(self._answer)
        self.end.on_click(self._reveal)
        self.name.observe(self._advance, "value")
        self._advance()

    def _voter(self) -> str:
        return self.name.value.strip() or self.guest

    def _answer(self, button: widgets.Button) -> None:
        if self.item is not None:
            self.survey.vote(self.item, button is self.yes, self._voter())
            self._advance()

    def _advance(self, _: object = None) -> None:
        """Show the voter's next picture; show the result after the last one."""
        survey, reserved = self.survey, self._voter() == JUDGES
        judged = survey.judged_by(self._voter())
        open_items = [] if reserved else [i for i in range(len(survey)) if i not in judged]
        self.item = open_items[0] if open_items else None
        count = f"{len(judged)} of {len(survey)} judged"
        self.progress.value = "This name is reserved." if reserved else count
        self.note.value = survey.note
        self.yes.disabled = self.no.disabled = self.item is None
        self.result.children = ()  # it names the methods, which voters must not see
        self.picture.layout.display = "none" if self.item is None else None
        if self.item is not None:
            target = int(survey.items["target"][self.item])
            article = "an" if target == 8 else "a"
            self.question.value = f"<b>Does this look like {article} {target}?</b>"
            self.picture.value = encode_png(survey.pictures[self.item])
        elif len(judged) == len(survey):
            self.question.value = "<b>Thank you: all pictures are judged.</b>"
            self._reveal()

    def _reveal(self, _: object = None) -> None:
        fig, buffer = self.survey.figure(), io.BytesIO()
        plt.close(fig)  # otherwise the inline backend shows it a second time
        fig.savefig(buffer, format="png")
        table = self.survey.table().to_html(float_format="{:.2f}".format)
        self.result.children = (
            widgets.HTML(table + EXPLANATION),
            widgets.Image(value=buffer.getvalue(), format="png"),
        )


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
