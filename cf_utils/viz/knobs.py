"""Interactive controls of a notebook, left out in headless runs."""

from __future__ import annotations

from collections.abc import Callable

from cf_utils import core


def interact(draw: Callable[..., object], /, manual: bool = False, **controls: object) -> None:
    """Call ipywidgets.interact(draw, **controls), or interact_manual, unless the run is headless.

    A widget's messages can make papermill wait for a cell's reply forever.
    """
    if core.headless():
        return
    import ipywidgets  # imported here: batch runs need no widgets

    (ipywidgets.interact_manual if manual else ipywidgets.interact)(draw, **controls)
