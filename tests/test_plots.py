"""Behaviour beyond drawing: controls in headless runs, and a mosaic of many images."""

from __future__ import annotations

import ipywidgets
import numpy as np
import pytest
import torch

from cf_utils import core
from cf_utils.viz import knobs, plots


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("headless", [False, True])
def test_controls_open_a_widget_unless_the_run_is_headless(monkeypatch, manual, headless):
    opened = []
    monkeypatch.setattr(core, "headless", lambda: headless)
    for name in ("interact", "interact_manual"):

        def record(draw, /, name=name, **controls):
            opened.append((name, draw, controls))

        monkeypatch.setattr(ipywidgets, name, record)
    assert knobs.interact(print, manual=manual, step=(0, 3), draw=1) is None
    name = "interact_manual" if manual else "interact"
    assert opened == ([] if headless else [(name, print, {"step": (0, 3), "draw": 1})])


def test_mosaic_shows_every_image_in_its_place():
    """Ten uniform images, four per row: the drawn pixel at the centre of each place is its grey."""
    images = torch.linspace(0.1, 0.9, 10)[:, None, None, None].expand(10, 3, 32, 64)
    fig = plots.mosaic(images, 4, 0.8)
    fig.canvas.draw()
    drawn = np.asarray(fig.canvas.buffer_rgba())[..., 0] / 255
    height, width = drawn.shape
    assert len(fig.axes) == 1
    assert abs(width / height - 4 * 64 / (3 * 32)) < 0.15  # the gaps change the proportion
    for k, level in enumerate(images[:, 0, 0, 0].tolist()):
        row, column = (k // 4 + 0.5) * height / 3, (k % 4 + 0.5) * width / 4
        assert abs(drawn[int(row), int(column)] - level) < 0.01, k
