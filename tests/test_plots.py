"""Figures that do more than draw: the knobs, which a headless run must not open."""

from __future__ import annotations

import ipywidgets
import pytest

from cf_utils import plots


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("headless", [False, True])
def test_knobs_open_a_widget_only_where_somebody_watches(monkeypatch, manual, headless):
    opened = []
    monkeypatch.setattr(plots.core, "headless", lambda: headless)
    for name in ("interact", "interact_manual"):
        monkeypatch.setattr(ipywidgets, name, lambda f, /, name=name, **controls: opened.append((name, f, controls)))
    assert plots.knobs(print, manual=manual, step=(0, 3), draw=1) is None
    assert opened == ([] if headless else [("interact_manual" if manual else "interact", print, {"step": (0, 3), "draw": 1})])
