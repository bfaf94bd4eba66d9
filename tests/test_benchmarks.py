"""Each benchmark runs from the folder that `make bench` calls it in and writes every figure that it judges."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from cf_utils.io import ROOT

FIGURES = {
    "ace": {"overhead", "speedup_batch8", "max_abs_difference", "checkpoint_max_abs_difference", "speedup_early", "flip_rate",
            "flip_rate_early", "peak_mib"},
    "gradual": {"speedup_batch64", "max_abs_difference", "speedup_early", "overhead", "peak_mib", "float32_same_blocks"},
    "tabular": {"speedup_batch", "speedup_spheres", "same_batch", "limit_gradual", "rows_per_second_lore"},
    "words": {"speedup_replacement", "same_words", "sentences_per_second_recommended", "sentences_per_second_loop"}}


def test_every_benchmark_is_tried():
    assert {p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py")} == FIGURES.keys()


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_it_runs_and_writes_its_figures(name, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["quick"] and record["data"] == "embedded" and FIGURES[name] <= record.keys()
    assert all(math.isfinite(record[k]) and record[k] >= 0 for k in FIGURES[name])
    if name == "ace":
        assert record["max_abs_difference"] <= 1e-9 and record["checkpoint_max_abs_difference"] <= 1e-4
        assert record["overhead"] > 0.9
    if name == "gradual":
        assert record["max_abs_difference"] <= 1e-9 and record["overhead"] > 0.9       # a search costs no less than its passes
    if name == "tabular":
        assert 0 < record["limit_gradual"] < 1.1 and record["same_spheres_query"] == 1
    if name == "words":
        assert record["same_words"] == 1
