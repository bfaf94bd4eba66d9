"""Figures that do more than draw: the knobs, which a headless run must not open, and the mosaic, one panel for many images."""

from __future__ import annotations

import ipywidgets
import numpy as np
import pytest
import torch

from cf_utils.viz import knobs, plots


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("headless", [False, True])
def test_knobs_open_a_widget_only_where_somebody_watches(monkeypatch, manual, headless):
    opened = []
    monkeypatch.setattr(knobs.core, "headless", lambda: headless)
    for name in ("interact", "interact_manual"):
        monkeypatch.setattr(
            ipywidgets, name, lambda f, /, name=name, **controls: opened.append((name, f, controls))
        )
    assert knobs.interact(print, manual=manual, step=(0, 3), draw=1) is None
    assert opened == (
        []
        if headless
        else [("interact_manual" if manual else "interact", print, {"step": (0, 3), "draw": 1})]
    )


def test_a_mosaic_shows_every_image_in_its_place():
    """Ten grey images of different levels, four in a row: what is drawn at the middle of each place is its level."""
    images = torch.linspace(0.1, 0.9, 10)[:, None, None, None].expand(10, 3, 32, 64)
    fig = plots.mosaic(images, 4, 0.8)
    fig.canvas.draw()
    drawn = np.asarray(fig.canvas.buffer_rgba())[..., 0] / 255
    high, wide = drawn.shape
    assert (
        abs(wide / high - 4 * 64 / (3 * 32)) < 0.15 and len(fig.axes) == 1
    )  # and the white between
    for k, level in enumerate(images[:, 0, 0, 0].tolist()):
        at = drawn[int((k // 4 + 0.5) * high / 3), int((k % 4 + 0.5) * wide / 4)]
        assert abs(at - level) < 0.01, k
