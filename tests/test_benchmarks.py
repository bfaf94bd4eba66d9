"""Each benchmark runs as `make bench` calls it, and writes its figures."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys

import pytest
import torch

from cf_utils.core.files import ROOT
from cf_utils.worlds import lung_ct_scan

FIGURES = {
    "ace": {
        "overhead",
        "speedup_batch8",
        "max_abs_difference",
        "checkpoint_max_abs_difference",
        "speedup_early",
        "flip_rate",
        "flip_rate_early",
        "peak_mib",
    },
    "diffexplainer": {
        "overhead",
        "speedup_batch",
        "max_abs_difference",
        "seconds_a_patient",
        "predictor_passes_a_patient",
    },
    "exaggeration": {
        "training_overhead",
        "speedup_bfloat16",
        "explain_overhead",
        "seconds_an_image",
        "slider_seconds",
        "max_abs_difference",
    },
    "gradual": {
        "speedup_batch64",
        "max_abs_difference",
        "speedup_early",
        "overhead",
        "peak_mib",
        "float32_same_blocks",
    },
    "layout": {"ratio_mnist_cnn", "ratio_faces_ddpm_forward", "max_abs_difference"},
    "tabular": {
        "speedup_batch",
        "speedup_spheres",
        "same_batch",
        "limit_gradual",
        "rows_per_second_lore",
    },
    "words": {
        "speedup_replacement",
        "same_words",
        "sentences_per_second_recommended",
        "sentences_per_second_loop",
    },
}


LIMITS = {  # figure -> lowest and highest value; all figures are finite and at least 0
    "ace": {
        "max_abs_difference": (0, 1e-9),
        "checkpoint_max_abs_difference": (0, 1e-4),
        "unet_passes_an_image": (3 * 5 + 5, 3 * 5 + 5),  # the attack's and the refinement's
        "peak_mib_checkpoint": (1, math.inf),
    },
    "diffexplainer": {
        "predictor_passes_a_patient": (4 * 2 * (4 + 1), math.inf),  # inversion, one decoding
        "psnr_steps_4": (1, 99),
    },
    "exaggeration": {"max_abs_difference": (0, 1e-4)},
    "gradual": {"max_abs_difference": (0, 1e-9), "passes_overhead": (2 * 20 + 1, math.inf)},
    "layout": {"max_abs_difference": (0, 1e-4)},
    "tabular": {"limit_gradual": (1e-9, 1.1), "same_spheres_query": (1, 1)},
    "words": {"same_words": (1, 1)},
}


def test_every_benchmark_is_tested():
    assert {p.stem for p in (ROOT / "benchmarks").glob("[a-z]*.py")} == FIGURES.keys()


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_benchmark_runs_and_writes_its_figures(name, tmp_path):
    if name == "diffexplainer" and not lung_ct_scan.exists():
        pytest.skip(f"no scan: run {lung_ct_scan.HOW}")
    out = tmp_path / "out.json"
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--out", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["quick"] and record["data"] == "embedded"
    assert FIGURES[name] <= record.keys()
    assert all(math.isfinite(record[k]) and record[k] >= 0 for k in FIGURES[name])
    for figure, (low, high) in LIMITS[name].items():
        assert low <= record[figure] <= high, figure
    if name == "ace":
        assert record["peak_mib_checkpoint"] < 0.8 * record["peak_mib"]


def test_bare_passes_equal_those_of_the_call(monkeypatch):
    """The bare passes have the call's modules and sizes; the same ones are differentiated."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ace, side = importlib.import_module("ace"), importlib.import_module("_side")
    explain, model, x, target, _ = ace.build_small(2)
    prior = explain.prior
    passes = side.Passes(explain.with_(iterations=2), model, x, target, generator=prior)
    made, again = [tuple(p) for p in passes.made], []

    def record(module, inputs, output):
        again.append((module, len(output), output.requires_grad))

    for module in (model, prior):
        module.register_forward_hook(record)
    passes.bare()
    assert again == made
    of_prior = [back for module, _, back in made if module is prior]
    assert len(of_prior) == 2 * explain.steps + explain.steps
    assert set(of_prior) == {True, False}  # the attack's, the refinement's
    assert torch.is_grad_enabled()
